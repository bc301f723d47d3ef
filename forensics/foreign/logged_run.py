"""The log of a run made elsewhere, brought into its tables: rows, and the spikes that they hold.

write_log(runs / "theirs", read_logs([path]))   # after its header was written
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from forensics.detect.spikes import robust
from forensics.logs.log_rows import STEP_COLUMNS, write_rows
from forensics.logs.log_table import LogTable, Series
from forensics.store.writer import Writer
from forensics.train.header import now

WATCHED = ("loss", "grad_norm")  # as training watches them


def write_log(run_folder: Path, table: LogTable) -> None:
    """Write a log into `steps` and `metrics`, and what the detectors find in it into `events`.

    Once for a run. Errors: storage.
    """
    write_rows(run_folder, table)
    with Writer(run_folder) as writer:
        for metric in WATCHED:
            series = table.series(metric)
            if series is not None:
                _write_spikes(writer, table, metric, series)
        for metric in STEP_COLUMNS:
            series = table.series(metric)
            if series is not None:
                _write_nonfinite(writer, table, metric, series)


def _write_spikes(writer: Writer, table: LogTable, metric: str, series: Series) -> None:
    steps = table.batches(metric)
    inside = steps >= 0
    for spike in robust(
        series.values[inside].tolist(), metric=metric, steps=steps[inside].tolist()
    ):
        writer.append(
            "events",
            step=spike.step,
            kind="spike",
            metric=metric,
            value=spike.value,
            baseline=spike.baseline,
            sigma=spike.sigma,
            # which kind it is, the steps between two rows would have to tell
            spike_kind=spike.kind if table.summary.every == 1 else None,
            onset=spike.onset,
            recovered_at=spike.recovered_at,
            created=now(),
        )


def _write_nonfinite(writer: Writer, table: LogTable, metric: str, series: Series) -> None:
    """Write an event for each value that is not finite, as training does for each such step."""
    steps = table.batches(metric)
    odd = ~np.isfinite(series.values) & (steps >= 0)
    if bool(odd.any()):
        writer.append(
            "events",
            step=steps[odd],
            kind="nonfinite",
            metric=metric,
            value=series.values[odd],
            text=f"{table.columns[metric]}, as logged",
            created=now(),
        )
