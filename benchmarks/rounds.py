"""Interleaved rounds: every contestant once per round in a shuffled order; medians and ratios.

These machines are noisy; a contestant measured alone meets another machine than the one measured
beside it.
"""

from __future__ import annotations

import datetime
import json
import math
import platform
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def interleaved(
    contestants: dict[str, Callable[[], Any]], rounds: int, warm: int = 1, until: float = math.inf
) -> dict[str, list[float]]:
    """Time each call, in seconds by contestant; the first `warm` rounds are not counted.

    No round begins after `until`, but for three.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    shuffle = random.Random(0).shuffle
    for r in range(warm + rounds):
        if r >= warm + 3 and time.perf_counter() > until:
            break
        names = list(contestants)
        shuffle(names)
        for name in names:
            started = time.perf_counter()
            contestants[name]()
            if r >= warm:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def ratios(seconds: dict[str, list[float]], base: str) -> dict[str, float]:
    """Return the median over rounds of each contestant's seconds over the base's of that round."""
    return {
        name: statistics.median(a / b for a, b in zip(times, seconds[base]))
        for name, times in seconds.items()
    }


def medians(seconds: dict[str, list[float]]) -> dict[str, float]:
    """Return each contestant's median seconds."""
    return {name: statistics.median(s) for name, s in seconds.items()}


def report(name: str, document: dict[str, Any], path: Path | None) -> None:
    """Print as a table; with a path, write JSON with device and date."""
    import torch

    from forensics import identity

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    cpu = f"{identity.cpu_model()}, {identity.thread_count(0)} cores"
    device = document.get("device") or gpu or cpu
    record = {
        "benchmark": name,
        "device": device,
        "date": datetime.date.today().isoformat(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    } | document
    print(f"{name} · {device}")
    for key, value in document.items():
        print(f"  {key}: {value}")
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(record, indent=1) + "\n")
