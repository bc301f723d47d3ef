"""python -m benchmarks.exposure [--tokens 1e9] [--json FILE]: what the exposure ledger costs.

A synthetic corpus with Zipf's frequencies (vocabulary 50,257, documents of 700 tokens in the mean)
and a run that reads nearly all of it once, by the keyed order. Its shards are hard links to one
file, which changes nothing of what is computed. Timed: `ledger(run, last)` from nothing kept,
documents included. Peak memory is the process's own, memory maps not counted.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(
    0, str(Path(__file__).resolve().parent.parent)
)  # so that `python benchmarks/exposure.py` works too

from benchmarks.rounds import report
from forensics import config
from forensics.data.batches import own_stream
from forensics.data.intact import hash_file
from forensics.data.shards import Shard, Source, open_corpus, write_header
from forensics.records import DOCUMENTS

V, EOT, MEAN = 50_257, 0, 700
SHARD = 1 << 24  # tokens of the one file


def make(folder: Path, tokens: int, T: int, batch: int) -> Any:
    """Write a run over a corpus of this many tokens, finished as far as the ledger can tell."""
    from forensics.model.knobs import shape_of
    from forensics.model.shape import parameter_shapes
    from forensics.store.writer import replace_table
    from forensics.train.header import Header
    from forensics.train.header import write_header as write_run
    from forensics.train.run import open_run

    corpus = folder / "_data" / "synthetic"
    corpus.mkdir(parents=True)
    shards = _shards(corpus, tokens)
    documents = _documents(corpus, shards)
    (corpus / "tokenizer.json").write_text("{}")
    source = Source("main", "synthetic", tokens, documents, 0, "", (), shards)
    write_header(corpus, "synthetic", V, EOT, np.dtype("<u2"), [source])
    steps = (tokens - 1) // T * 99 // 100 // batch
    recipe = config.from_dict(
        {
            "data": {"sequence_length": T},
            "model": {"layers": 1, "width": 8, "heads": 1},
            "train": {"steps": steps, "batch": batch, "device": "cpu", "threads": 2},
        }
    )
    opened = open_corpus(corpus)
    shape = shape_of(recipe.model, V, T)
    order = own_stream(opened, recipe.data, batch, 0).order.fingerprint
    write_run(
        folder,
        Header(
            name="synthetic",
            recipe="synthetic",
            config=json.loads(json.dumps(config.to_dict(recipe))),
            first_step=0,
            steps=steps,
            corpus="synthetic",
            corpus_sources=[],
            order=order,
            shape=shape.__dict__,
            parameters=len(parameter_shapes(shape)),
            eot=EOT,
            device="cpu",
            precision="fp32",
            threads=2,
            fingerprint={"device": "cpu"},
            arguments=[],
            created="",
        ),
    )
    at = np.arange(steps)
    replace_table(
        folder / "synthetic",
        "steps",
        {"step": at, "update": ["apply"] * steps, "schedule": at, "updates": at},
    )
    saved = folder / "synthetic" / "checkpoints" / f"step-{steps:06d}"
    saved.mkdir(parents=True)
    (saved / "manifest.json").write_text("{}")
    return open_run(folder, "synthetic")


def _shards(corpus: Path, tokens: int) -> tuple[Shard, ...]:
    rng = np.random.default_rng(0)
    weight = 1 / np.arange(1, V) ** 1.05
    edges = np.cumsum(weight / weight.sum())
    tokens_of_file = np.searchsorted(edges, rng.random(min(SHARD, tokens))).clip(max=V - 2).astype(
        "<u2"
    ) + np.uint16(1)
    tokens_of_file[rng.random(len(tokens_of_file)) < 1 / MEAN] = EOT
    tokens_of_file[-1] = EOT
    shards: list[Shard] = []
    for shard_number in range(-(-tokens // SHARD)):
        path, length = corpus / f"0-{shard_number}.bin", min(SHARD, tokens - shard_number * SHARD)
        if shard_number and length == SHARD:
            os.link(corpus / "0-0.bin", path)
        else:
            path.write_bytes(tokens_of_file[:length].tobytes())
        first = shards and length == SHARD
        shards.append(Shard(path.name, length, shards[0].hash if first else hash_file(path)))
    return tuple(shards)


def _documents(corpus: Path, shards: tuple[Shard, ...]) -> int:
    import pyarrow as pa
    import pyarrow.parquet as pq

    firsts, at = [np.zeros(1, np.int64)], 0
    for shard in shards:
        ends = np.flatnonzero(np.fromfile(corpus / shard.file, "<u2") == EOT)
        firsts.append(at + ends + 1)
        at += shard.tokens
    first = np.concatenate(firsts)
    first = first[first < at]
    rows = {
        "document": np.arange(len(first)),
        "source": ["main"] * len(first),
        "path": [""] * len(first),
        "first_token": first,
        "tokens": np.diff(first, append=at),
    }
    schema = DOCUMENTS.arrow_schema()
    table = pa.table(
        {field.name: rows.get(field.name, pa.nulls(len(first), field.type)) for field in schema}
    )
    pq.write_table(table.cast(schema), corpus / "documents.parquet", compression="zstd")
    return len(first)


def measure(folder: Path, tokens: int, T: int, batch: int) -> dict[str, Any]:
    """Time the ledger from nothing kept, and again."""
    from forensics.tokens.exposure import ledger

    run = make(folder, tokens, T, batch)
    start = time.perf_counter()
    exposure = ledger(run, run.header.steps)
    seconds = time.perf_counter() - start
    counted = int(exposure.exposure_in.sum())
    assert counted == run.header.steps * batch * T, "every input of every batch is counted once"
    start = time.perf_counter()
    ledger(run, run.header.steps)
    again = time.perf_counter() - start
    return {
        "tokens": counted,
        "corpus_tokens": tokens,
        "vocabulary": V,
        "sequence_length": T,
        "batch": batch,
        "seconds": seconds,
        "tokens_per_second": counted / seconds,
        "seconds_per_1e9": 1e9 * seconds / counted,
        "seconds_again": again,
    }


def peak_bytes(folder: Path, tokens: int, T: int, batch: int) -> int:
    """Return the most bytes that Python and NumPy hold at once while the ledger is made.

    It is slower under the tracer, so it is measured by itself.
    """
    from forensics.tokens.exposure import ledger

    run = make(folder, tokens, T, batch)
    tracemalloc.start()
    ledger(run, run.header.steps)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def main() -> None:
    """Read the arguments, measure, report."""
    parser = argparse.ArgumentParser(description="what the exposure ledger costs")
    parser.add_argument("--tokens", type=float, default=1e9, help="of the corpus")
    parser.add_argument("--sequence-length", type=int, default=1024)
    parser.add_argument("--batch", type=int, default=256, help="sequences per step")
    parser.add_argument("--memory", action="store_true", help="peak memory instead of time")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the numbers there too")
    options = parser.parse_args()
    shape = (int(options.tokens), options.sequence_length, options.batch)
    with tempfile.TemporaryDirectory() as folder:
        if options.memory:
            numbers: dict[str, Any] = {
                "corpus_tokens": shape[0],
                "peak_bytes": peak_bytes(Path(folder), *shape),
            }
        else:
            numbers = measure(Path(folder), *shape)
    report("exposure", numbers, options.json)


if __name__ == "__main__":
    main()
