"""Opening a corpus of many linked token files under an order of 10^8 entries, and reading batches.

    python -m benchmarks.linked_corpus [FILES] [ENTRIES] [BATCHES]

Prints seconds and the largest resident memory; the token files are sparse and are deleted again.
"""

from __future__ import annotations

import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from forensics import config
from forensics.data.batches import own_stream
from forensics.data.foreign_order import order_of
from forensics.data.linked_corpus import bring_in_corpus
from forensics.data.made_elsewhere import ForeignOrder, TokenFiles
from forensics.data.shards import open_corpus

FILES, ENTRIES, BATCHES = 1000, 10**8, 1000
BATCH, LENGTH = 512, 16  # sequences a batch, tokens a sequence


def main(files: int, entries: int, batches: int) -> None:
    """Measure importing, opening and reading."""
    with tempfile.TemporaryDirectory() as folder:
        names = _write(Path(folder), files, entries)
        tokens = TokenFiles(names, "bare", "uint16", eot=1)
        started = time.perf_counter()
        corpus = bring_in_corpus(tokens, LENGTH, "inside", 50304, Path(folder) / "runs")
        _tell(f"link {files} files of {entries * LENGTH:,} tokens", started)
        started = time.perf_counter()
        made = order_of(ForeignOrder("olmo", 6198), corpus, LENGTH, "inside", BATCH, batches)
        _tell(f"make an order of {entries:,}", started)
        data = {"sequence_length": LENGTH, "window": "inside", "held_out": 0}
        recipe = config.from_dict(
            {"data": {**data, "order_file": made.order_file}, "train": {"batch": BATCH}}
        )
        started = time.perf_counter()
        stream = own_stream(open_corpus(corpus.folder), recipe.data, recipe.train)
        _tell("open corpus and order", started)
        started = time.perf_counter()
        for step in range(batches):
            stream.provenance(stream.batch_at(step))
        _tell(f"read {batches} batches of {BATCH}, with their documents", started)
        started = time.perf_counter()
        stream.untrained(batches, 64)
        _tell("find sequences that the run does not read", started)


def _write(folder: Path, files: int, entries: int) -> tuple[str, ...]:
    """Write sparse files of zeros, with a document's end every 1,000 of the first 10,000 tokens."""
    paths = []
    per_file = -(-entries // files) * LENGTH
    for number in range(files):
        path = folder / f"part-{number:05}.npy"
        ids = np.memmap(path, "<u2", "w+", shape=(per_file,))
        ids[999:10_000:1000] = 1
        del ids
        paths.append(str(path))
    return tuple(paths)


def _tell(what: str, started: float) -> None:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{what}: {time.perf_counter() - started:.2f} s, peak {peak:,.0f} MiB")


if __name__ == "__main__":
    given = [int(number) for number in sys.argv[1:]]
    main(*given, *(FILES, ENTRIES, BATCHES)[len(given) :])
