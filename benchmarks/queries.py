"""Named queries on a large synthetic run: 10,000 steps × 12 layers × 12 heads, 110 tensors.

    python -m benchmarks.queries [--rounds 7] [--json benchmarks/results/queries-cpu.json]

Every named query that a run alone can answer (without forks, documents and vocabulary), median of
interleaved rounds, warm; the whole of its rows is fetched. The app's own queries at ten times the
size: `python -m benchmarks.app`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.rounds import interleaved, report
from benchmarks.store import make, record, sizes
from forensics.store.writer import replace_table
from queries import QueryEntry

ALONE = {
    "steps",
    "layers",
    "heads",
    "tensors",
    "sequences",
    "steps_by100",
    "layers_by100",
    "heads_by100",
    "tensors_by100",
    "runs",
    "events",
    "checkpoints",
}
# What the synthetic run records has no spike, no drift and no NaN.
MAY_BE_EMPTY = {"spikes", "run_marks", "skipstep_would_skip", "first_alarms", "first_to_move"}
VALUES = {"layer": 7, "head": 3, "tensor": "layers.7.q.weight", "fork": "r", "limit": 20}


def arguments(query: QueryEntry, steps: int) -> dict[str, Any] | None:
    """Return values for what has no default, or None where one cannot be told."""
    values = VALUES | {
        "run": "r",
        "runs": "r",
        "step": steps // 2 + 7,
        "first": steps // 2,
        "last": steps // 2 + 40,
    }
    needed = [
        parameter.name for parameter in query.parameters.values() if parameter.default is None
    ]
    return {name: values[name] for name in needed} if set(needed) <= values.keys() else None


def measure(steps: int, rounds: int) -> dict[str, Any]:
    """Time every named query that a run alone can answer."""
    import queries

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "r"
        folder.mkdir()
        header = {"name": "r", "config": {"data": {"phases": []}}, "corpus_sources": []}
        (folder / "run.json").write_text(json.dumps(header))
        record(folder, make(steps), steps, 0.0, True)
        replace_table(folder, "runs", {"name": ["r"], "steps": [steps]})  # `lineage` reads it
        con = queries.connect(name)
        questions: dict[str, Callable[[], Any]] = {}
        rows_returned: dict[str, int] = {}
        for query, entry in queries.catalog().items():
            values = arguments(entry, steps)
            if values is None or not queries.tables_of(query) <= ALONE:
                continue

            def ask(query: str = query, values: dict[str, Any] = values) -> Any:
                return queries.run(con, query, values)

            rows_returned[query], questions[query] = ask().num_rows, ask
        empty = [
            query
            for query, rows in rows_returned.items()
            if rows == 0 and query not in MAY_BE_EMPTY
        ]
        assert not empty, f"nothing is measured where no row comes out: {', '.join(empty)}"
        seconds = interleaved(questions, rounds)
        rows = sum(table["rows"] for table in sizes(folder).values())
    return {
        "steps": steps,
        "rows": rows,
        "rounds": rounds,
        "milliseconds": {
            query_name: round(statistics.median(times) * 1e3, 1)
            for query_name, times in seconds.items()
        },
        "rows_returned": rows_returned,
        "slowest_milliseconds": round(
            max(statistics.median(times) for times in seconds.values()) * 1e3, 1
        ),
    }


def main() -> None:
    """Read the arguments, measure, report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    report("queries", measure(options.steps, options.rounds), options.json)


if __name__ == "__main__":
    main()
