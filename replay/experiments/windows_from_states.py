"""Does the whole window spike from there too? PaLM's test: the same batches from other states.

windows(runs, "demo", 398, 406, [200, 390])

The document is `windows-<hash>.json` in the run's folder, for the app.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from forensics.progress import ProgressCallback, silent
from forensics.step.state import TrainState
from forensics.store.resumable import Kept
from forensics.train.advance import advance
from forensics.train.run import Run
from replay.compare.medians import median_of_present, spread_of_present
from replay.compare.probe_sequences import Probe
from replay.experiments.matrix_parts import SIGMAS
from replay.experiments.matrix_scope import (
    applied,
    batch_of,
    identity_of,
    probed,
    require,
    scope_of,
)
from replay.experiments.results import WindowFromState, WindowsResult
from replay.lineage import open_trajectory
from replay.result_files import keep_result

SHORTEST = 16  # placebo steps that a median and a MAD are taken of


def windows(
    runs: Path,
    name: str,
    first: int | None = None,
    last: int | None = None,
    states: Sequence[int] | None = None,
    progress: ProgressCallback = silent,
    spike: int | None = None,
) -> WindowsResult:
    """Run the whole window of batches from each state, beside as many placebo batches.

    Per state: the losses on the way, `sigma` of their highest against the placebos' (median and
    1.4826·MAD of at least 16 steps), `spiked` where that is above 6 or not finite, and `jump`, the
    loss on the probe set after the window less that after as many placebo batches: the part that
    stays in the state. Errors: usage, missing, integrity.
    """
    run = open_trajectory(runs, name)
    scope = scope_of(run, first, last, states, spike)
    require(run, scope)
    first, last, states = scope.first, scope.last, list(scope.stepping)
    finished = Kept(run.folder / "matrix", f"window {first}:{last} {identity_of(run)}")
    probe, length = Probe(run), last - first
    control = max(length, SHORTEST)
    total = len(states) * (length + control)
    judged = []
    for i, s in enumerate(states):
        row = finished.get(str(s))
        if row is None:
            state = run.state_at(s)
            computed = i * (length + control)
            end = run.header.steps
            placebo, after_placebo = _run_over(
                run, state, range(end, end + control), length, probe, computed, total, progress
            )
            losses, after = _run_over(
                run, state, range(first, last), length, probe, computed + control, total, progress
            )
            row = {
                "losses": losses,
                "placebo": placebo,
                "after": after,
                "after_placebo": after_placebo,
            }
            finished.put(str(s), row)
        progress((i + 1) * (length + control), total, f"state {s}")
        judged.append(_judged(s, first < s, row))
    result = WindowsResult(
        run=name,
        batches=(first, last),
        states=tuple(states),
        probe_sequences=probe.sequences,
        windows=tuple(judged),
    )
    identity = f"{identity_of(run)} window {first}:{last} {states}"
    keep_result(run.folder, "windows", identity, result)
    return result


def _judged(state: int, consumed: bool, row: dict[str, Any]) -> WindowFromState:
    losses, placebo = row["losses"], row["placebo"]
    median, scale = median_of_present(placebo), spread_of_present(placebo)
    finite = all(math.isfinite(x) for x in losses)
    peak = max(losses) if finite else math.inf
    sigma = (peak - median) / scale if finite and median is not None and scale else None
    jump = None if row["after"] is None else row["after"] - row["after_placebo"]
    return WindowFromState(
        state=state,
        consumed=consumed,
        losses=tuple(losses),
        peak=peak,
        placebo_median=median,
        sigma=sigma,
        spiked=not finite or (sigma is not None and sigma > SIGMAS),
        jump=jump,
    )


def _run_over(
    run: Run,
    start: TrainState,
    batches: range,
    length: int,
    probe: Probe,
    done: int,
    total: int,
    progress: ProgressCallback,
) -> tuple[list[float], float | None]:
    """Losses along these batches from a copy of `start`, and the probe loss after `length` of
    them.
    """
    state, losses, after = start.clone(), [], None
    for i, b in enumerate(batches):
        result = advance(state, batch_of(run, b), applied(run, state), run.model)
        assert result.loss is not None
        losses.append(result.loss)
        if i + 1 == length:
            after = probed(state, probe)
        progress(done + i + 1, total, f"state {start.counters.step}")
    return losses, after
