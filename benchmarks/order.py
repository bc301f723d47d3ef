"""python -m benchmarks.order [--json FILE]: the order's cost beside an index shuffled up front.

A batch of 512 ids from 10⁶, 10⁹ and 10¹² sequences, and the memory that takes; beside it what OLMo
does, a uint32 index shuffled by PCG64, at 10⁷ and 10⁸. Rounds are interleaved, so that a busy
moment falls on all; medians.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(
    0, str(Path(__file__).resolve().parent.parent)
)  # so that `python benchmarks/order.py` works too

from benchmarks.rounds import report
from forensics.config import Data
from forensics.data.order import Order, make_order

BATCH = 512
SIZES = (10**6, 10**9, 10**12)
INDEX_SIZES = (10**7, 10**8)
ROUNDS = 200  # of one batch each


def shuffled_index(size: int, seed: int = 0) -> np.ndarray:
    """Build the order of one epoch as OLMo's `IterableDataset` does: (size,) uint32."""
    index = np.arange(size, dtype=np.uint32)
    np.random.Generator(np.random.PCG64(seed)).shuffle(index)
    return index


def measure_orders() -> list[dict[str, Any]]:
    """Time the keyed order at each size."""
    orders: dict[int, Order] = {}
    build: dict[int, float] = {}
    for size in SIZES:
        start = time.perf_counter()
        orders[size] = make_order(Data(), ["main"], [size], [0], BATCH, seed=0)
        build[size] = time.perf_counter() - start
        orders[size].sequence_ids(0)
    seconds: dict[int, list[float]] = {size: [] for size in SIZES}
    for i in range(ROUNDS):
        for size, order in orders.items():
            start = time.perf_counter()
            order.sequence_ids(i * 4_999_999)
            seconds[size].append(time.perf_counter() - start)
    return [
        {
            "order": "forensics",
            "sequences": size,
            "build_seconds": build[size],
            "batch_milliseconds": 1e3 * statistics.median(seconds[size]),
            "batch_milliseconds_fastest": 1e3 * min(seconds[size]),
            "bytes": _peak_bytes(orders[size]),
        }
        for size in SIZES
    ]


def _peak_bytes(order: Order) -> int:
    """Return the most bytes that a thousand batches hold at once, beyond the order itself."""
    tracemalloc.start()
    for step in range(1000):
        order.sequence_ids(step)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def measure_indices(rounds: int) -> list[dict[str, Any]]:
    """Time the shuffled index at each size."""
    seconds: dict[int, list[float]] = {size: [] for size in INDEX_SIZES}
    reads: dict[int, list[float]] = {size: [] for size in INDEX_SIZES}
    size_of: dict[int, int] = {}
    for _ in range(rounds):
        for size in INDEX_SIZES:
            start = time.perf_counter()
            index = shuffled_index(size)
            seconds[size].append(time.perf_counter() - start)
            start = time.perf_counter()
            index[BATCH * 7 : BATCH * 8].astype(np.int64)
            reads[size].append(time.perf_counter() - start)
            size_of[size] = index.nbytes
    return [
        {
            "order": "shuffled index",
            "sequences": size,
            "build_seconds": statistics.median(seconds[size]),
            "batch_milliseconds": 1e3 * statistics.median(reads[size]),
            "batch_milliseconds_fastest": 1e3 * min(reads[size]),
            "bytes": size_of[size],
        }
        for size in INDEX_SIZES
    ]


def main() -> None:
    """Read the arguments, measure, report."""
    parser = argparse.ArgumentParser(description="what the order costs")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the numbers there too")
    parser.add_argument("--rounds", type=int, default=3, help="of building the shuffled indices")
    arguments = parser.parse_args()
    rows = measure_orders() + measure_indices(arguments.rounds)
    if arguments.json:
        report("order", {"batch": BATCH, "rows": rows}, arguments.json)
    print(f"{'order':<15} {'sequences':>15} {'build s':>10} {'batch ms':>9} {'bytes':>12}")
    for row in rows:
        print(
            f"{row['order']:<15} {row['sequences']:>15,} {row['build_seconds']:>10.4f} "
            f"{row['batch_milliseconds']:>9.3f} {row['bytes']:>12,}"
        )


if __name__ == "__main__":
    main()
