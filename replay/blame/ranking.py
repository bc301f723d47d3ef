"""Rank a window's sequences: the metagradient of the state part, and batch S's own share.

Blame's window and the windows without a spike that it is held against are ranked by the same
functions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from replay.blame.candidates import Influences
from replay.blame.excess import WindowControl
from replay.blame.probe_target import probe_target

if TYPE_CHECKING:
    from replay.blame.metagradient import Influence


def own_influences(control: WindowControl) -> Influences:
    """Return what batch S adds to the data part; the batches before it are not looked at."""
    B, T = control.batch.weight.shape
    length = control.last - control.begin
    influences = Influences(
        control.begin, np.zeros((length + 1, B, T)), np.zeros((length + 1, B), bool)
    )
    influences.by_token[-1] = control.batch_influence().numpy()
    influences.known[-1] = True
    return influences


def add_metagradient(
    influences: Influences,
    control: WindowControl,
    on_step: Callable[[int, str], None],
    precision: str = "float32",
    check: bool = True,
) -> Influence:
    """Add the influence of batches begin … S−1 on P's loss at θ_S, in nats."""
    from replay.blame.metagradient import influence

    counted = [0]

    def progress(done: int, total: int | None, note: str = "") -> None:
        on_step(max(0, done - counted[0]), f"metagradient, {note}")
        counted[0] = done

    window_influence = influence(
        control.run,
        control.begin,
        control.last,
        probe_target(control.run, control.probes.batch),
        start=control.state(control.begin),
        precision=precision,
        tokens=True,
        check=check,
        progress=progress,
    )
    assert window_influence.by_token is not None, "tokens were asked for"
    influences.by_token[:-1] = window_influence.by_token
    influences.known[:-1] = True
    return window_influence
