"""The store under load: bytes of a long run, what the run waits for, and how fast it is read again.

    python -m benchmarks.store [--steps 10000] [--json benchmarks/results/store.json]

A run of 12 layers of 12 heads at B = 16 with every light table, through the background writer: 1.44
M rows of heads, 1.1 M of tensors. Values are random walks with the noise that the field's curves
have. First as fast as the writer takes it: bytes, steps per second, reading. Then 1,000 steps of 20
ms (such a model takes 50 on a GPU, seconds on a CPU), written in the background and in the run's
own thread: what a step waits for.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.rounds import interleaved, report
from forensics.records import LIGHT, ROLLUPS, TABLES
from forensics.rollup_schema import NUMERIC
from forensics.store import manifest
from forensics.store.reader import connect
from forensics.store.writer import Writer

L, H, B = 12, 12, 16
FLUSH_EVERY, SAVE_EVERY = 50, 1000
PACE = 0.02  # seconds of a step
PER_LAYER = ("norm1", "q", "k", "v", "o", "norm2", "gate", "up", "down")
NAMES = [
    "embedding",
    *(f"layers.{i}.{kind}.weight" for i in range(L) for kind in PER_LAYER),
    "norm",
]  # 110
# relative change from one step to the next, and relative noise around the walk
SMOOTH, NOISY = (1e-4, 0.0), (5e-3, 0.05)
SMOOTH_COLUMNS = {"param_norm", "exp_avg_sq_norm", "lr"}
CONSTANT = {
    "unseen_share": 0.0,
    "clip_scale": 1.0,
    "weight": 1024.0,
}  # of sequences; shares that are 0 in most runs
DENSE = {"resid_max", "act_max", "lens_loss", "lens_entropy", "lens_kl"}


def walks(table: str, steps: int, rows: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Make every recorded column as (steps, rows): level · exp(random walk) · (1 + noise)."""
    columns = {}
    for column in TABLES[table].columns:
        if (
            column.name in TABLES[table].key
            or column.name in DENSE
            or column.type not in NUMERIC
            or not column.type.startswith("float")
        ):
            continue
        if column.name in CONSTANT:
            columns[column.name] = np.full((steps, rows), CONSTANT[column.name], column.type)
            continue
        walk, noise = SMOOTH if column.name in SMOOTH_COLUMNS else NOISY
        walk_values = rng.standard_normal((steps, rows), np.float32)
        walk_values *= walk
        np.cumsum(walk_values, axis=0, out=walk_values)
        np.exp(walk_values, out=walk_values)
        walk_values *= np.exp(rng.normal(0, 2, rows)).astype(np.float32)
        if noise:
            walk_values *= 1 + noise * rng.standard_normal((steps, rows), np.float32)
        wide = walk_values.astype(column.type)
        columns[column.name] = (
            wide * (1 + 1e-9 * rng.random(wide.shape)) if column.type == "float64" else wide
        )
    return columns


def make(steps: int) -> dict[str, dict[str, np.ndarray]]:
    """Make every light table's columns."""
    rng = np.random.default_rng(0)
    rows = {"steps": 1, "layers": L, "heads": L * H, "tensors": len(NAMES), "sequences": B}
    data = {table: walks(table, steps, count, rng) for table, count in rows.items()}
    data["tensors"]["gss_share"] *= rng.random((steps, len(NAMES))) < 0.01
    data["sequences"]["repeat_share"] = (rng.integers(0, 40, (steps, B)) / 1024).astype(np.float32)
    data["sequences"]["sequence"] = rng.permutation(steps * B).reshape(steps, B)
    return data


def record(
    folder: Path, data: dict[str, dict[str, np.ndarray]], steps: int, pace: float, background: bool
) -> dict:
    """Write the run: append at every step as the recorder does, flush every 50.

    The writer is drained where a checkpoint would be written.
    """
    layer, head = (
        np.repeat(np.arange(L, dtype=np.int32), H),
        np.tile(np.arange(H, dtype=np.int32), L),
    )
    slots = np.arange(B, dtype=np.int32)
    appends, flushes, drains = [], [], []
    began = time.perf_counter()
    with Writer(folder, background=background) as writer:
        for step in range(steps):
            # lists for what the recorder hands over as lists
            tensors = {column: values[step].tolist() for column, values in data["tensors"].items()}
            layers = {column: values[step].tolist() for column, values in data["layers"].items()}
            row = {column: float(values[step, 0]) for column, values in data["steps"].items()}
            row["state_digest"] = os.urandom(16).hex()
            started = time.perf_counter()
            writer.append("tensors", step=step, tensor=list(NAMES), **tensors)
            writer.append(
                "heads",
                step=step,
                layer=layer,
                head=head,
                **{column: values[step] for column, values in data["heads"].items()},
            )
            writer.append("layers", step=step, layer=list(range(L)), **layers)
            writer.append(
                "sequences",
                step=step,
                slot=slots,
                **{column: values[step] for column, values in data["sequences"].items()},
            )
            writer.append(
                "steps",
                step=step,
                tokens=B * 1024,
                schedule=step,
                updates=step,
                update="apply",
                **row,
            )
            ended = time.perf_counter()
            appends.append(ended - started)
            if (step + 1) % SAVE_EVERY == 0:
                writer.drain()
                drains.append(time.perf_counter() - ended)
            elif (step + 1) % FLUSH_EVERY == 0:
                writer.flush()
                flushes.append(time.perf_counter() - ended)
            time.sleep(max(0.0, pace - (time.perf_counter() - started)))
    seconds = time.perf_counter() - began
    return {
        "append_ms": {"median": _ms(statistics.median(appends)), "longest": _ms(max(appends))},
        "flush_ms": {"median": _ms(statistics.median(flushes)), "longest": _ms(max(flushes))},
        "drain_at_checkpoint_ms": (
            {
                "median": _ms(statistics.median(drains)),
                "longest": _ms(max(drains)),
            }
            if drains
            else {}
        ),
        "kept_the_run_s": round(sum(appends) + sum(flushes), 3),
        "steps_per_second": round(steps / seconds),
    }


def _ms(seconds: float) -> float:
    return round(seconds * 1e3, 3)


def sizes(folder: Path) -> dict[str, Any]:
    """Return rows, parts and bytes of each table."""
    by_table = {}
    for table in (*LIGHT, *(spec.name for spec in ROLLUPS.values())):
        parts = manifest.load(folder, table, fresh=True).parts
        by_table[table] = {
            "rows": sum(part.rows for part in parts),
            "parts": len(parts),
            "bytes": sum(part.bytes for part in parts),
        }
    return by_table


def readings(runs: Path, steps: int, rounds: int = 7) -> dict[str, float]:
    """Time readings, median milliseconds; the connection is made once, as the app does."""
    con = connect(runs)
    middle = steps // 2 + 7
    overview = (
        "select bucket, layer, head, attn_logit_max_max, attn_entropy_mean_min from heads_by100"
    )
    from_rows = (
        "select step // 100 * 100 as bucket, layer, head, max(attn_logit_max),"
        " min(attn_entropy_mean) from heads group by all"
    )
    statements = {
        "one step's heads": f"select * from heads where run = 'r' and step = {middle}",
        "one step's tensors": f"select * from tensors where run = 'r' and step = {middle}",
        "one head's series": (
            "select step, attn_logit_max from heads where run = 'r' and layer = 7 and head = 3"
        ),
        "one head, every column": "select * from heads where run = 'r' and layer = 7 and head = 3",
        "one tensor's series": (
            "select step, grad_norm from tensors where run = 'r' and tensor = 'layers.7.q.weight'"
        ),
        "all losses": "select step, loss from steps where run = 'r'",
        "overview of all heads, roll-up": overview,
        "the same from the rows": from_rows,
        "overview of steps, roll-up": (
            "select bucket, loss_min, loss_mean, loss_max from steps_by100"
        ),
    }

    def ask(sql: str) -> Callable[[], Any]:
        return lambda: con.sql(sql).to_arrow_table()

    seconds = interleaved({name: ask(sql) for name, sql in statements.items()}, rounds)
    return {name: round(statistics.median(times) * 1e3, 1) for name, times in seconds.items()}


def main() -> None:
    """Read the arguments, measure, report."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    data = make(options.steps)
    with tempfile.TemporaryDirectory() as name:
        folders = {kind: Path(name) / kind / "r" for kind in ("whole", "background", "own thread")}
        for folder in folders.values():
            folder.mkdir(parents=True)
            (folder / "run.json").write_text("{}")
        unpaced = record(folders["whole"], data, options.steps, 0.0, True)
        tables = sizes(folders["whole"])
        short = min(1000, options.steps)
        report(
            "store",
            {
                "shapes": {
                    "layers": L,
                    "heads": H,
                    "batch": B,
                    "tensors": len(NAMES),
                    "steps": options.steps,
                },
                "megabytes": round(sum(table["bytes"] for table in tables.values()) / 1e6, 1),
                "tables": tables,
                "written_steps_per_second": unpaced["steps_per_second"],
                "reading_ms": readings(folders["whole"].parent, options.steps),
                "steps_of_20_ms": {
                    kind: record(folders[kind], data, short, PACE, kind == "background")
                    for kind in ("background", "own thread")
                },
            },
            options.json,
        )


if __name__ == "__main__":
    main()
