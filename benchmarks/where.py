"""python -m benchmarks.where [--tokens 6e7] [--json FILE]: what finding a text costs.

The corpus is the standard library's text, as often as it takes, tokenised to 4,096 ids. Counters:
places found, blocks whose tokens were read of all, bytes of the index. `without the filter` reads
every block, which is what the index saves. The right number of places is that of the text itself.
"""

from __future__ import annotations

import argparse
import os
import resource
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.rounds import report
from forensics.config import Data
from forensics.data import text_index
from forensics.data.corpus import Documents
from forensics.data.shards import Corpus, open_corpus, write_header
from forensics.data.tokenize import prepare

TEXTS = {
    "nowhere": "no such words stand here",
    "a few places": "def _run_once(self",
    "a common line": "import os",
    "a word": "return",
    "three bytes": "def",
}


def make(folder: Path, tokens: int) -> Corpus:
    """Write a corpus of at least this many tokens: the standard library's, several times."""
    once = prepare(Data(source="stdlib", vocabulary=4096), folder)
    copies = max(1, -(-tokens // once.tokens_in_all))
    many = folder / "many"
    many.mkdir()
    sources = []
    for copy in range(copies):
        (source,) = once.sources
        shards = []
        for shard in source.shards:
            name = f"{copy}-{shard.file}"
            os.link(once.folder / shard.file, many / name)
            shards.append(replace(shard, file=name))
        first = copy * source.documents
        sources.append(
            replace(source, name=f"copy{copy}", first_document=first, shards=tuple(shards))
        )
    os.link(once.tokenizer_file, many / "tokenizer.json")
    _documents(once, copies, many)
    dtype = np.dtype("<u2")
    write_header(many, f"{once.hash}x{copies}", once.vocabulary, once.eot, dtype, sources)
    return open_corpus(many)


def _documents(once: Corpus, copies: int, folder: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table, number = once.documents, once.documents.num_rows
    tables = []
    for copy in range(copies):
        ids = pa.array(np.arange(number) + copy * number)
        names = pa.array([f"copy{copy}"] * number)
        tables.append(table.set_column(0, table.field(0), ids).set_column(1, table.field(1), names))
    pq.write_table(pa.concat_tables(tables), folder / "documents.parquet", compression="zstd")


def measure(folder: Path, tokens: int) -> dict[str, Any]:
    """Build the index, and look for each text with it and without."""
    corpus = make(folder, tokens)
    copies = len(corpus.sources)
    started, cpu = time.perf_counter(), time.process_time()
    index = text_index.build(corpus)
    built, built_cpu = time.perf_counter() - started, time.process_time() - cpu
    size = sum(path.stat().st_size for path in (corpus.folder / text_index.FOLDER).glob("*.bin"))
    text = "\0".join(document.text for document in Documents("stdlib"))
    _ = index.spelled
    searches = {}
    for name, needle in TEXTS.items():
        started, cpu = time.perf_counter(), time.process_time()
        found = index.find(needle)
        seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu
        read = sum(len(index.candidates(s, needle.encode())) for s in range(copies))
        assert len(found) == copies * text.count(needle), needle
        searches[name] = {
            "places": len(found),
            "blocks_read": read,
            "seconds": seconds,
            "cpu_seconds": cpu_seconds,
        }
    every = text_index.TextIndex(corpus, [[np.full_like(g, 255) for g in r] for r in index._groups])
    started, cpu = time.perf_counter(), time.process_time()
    every.find(TEXTS["nowhere"])
    unfiltered, unfiltered_cpu = time.perf_counter() - started, time.process_time() - cpu
    return {
        "tokens": corpus.tokens_in_all,
        "token_bytes": 2 * corpus.tokens_in_all,
        "text_bytes": copies * len(text.encode()),
        "blocks": sum(-(-s.tokens // text_index.BLOCK) for s in corpus.sources),
        "seconds_to_build": built,
        "cpu_seconds_to_build": built_cpu,
        "index_bytes": size,
        "index_bytes_per_token": size / corpus.tokens_in_all,
        "searches": searches,
        "seconds_without_the_filter": unfiltered,
        "cpu_seconds_without_the_filter": unfiltered_cpu,
        "peak_bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
    }


def main() -> None:
    """Read the arguments, measure, report."""
    parser = argparse.ArgumentParser(description="what finding a text costs")
    parser.add_argument("--tokens", type=float, default=6e7, help="of the corpus, at least")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the numbers there too")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        report("where", measure(Path(folder), int(options.tokens)), options.json)


if __name__ == "__main__":
    main()
