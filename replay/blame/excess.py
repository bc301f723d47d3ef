"""What is to be explained: the excess of a spike at S, its data part and its state part.

With probe sequences P, window A … S−1 and M steps before it (docs/formulas.md, "Blame"), measured
on an unaltered replay of the window:

    data part  = [ℓ(b_S; θ_S) − ℓ(P; θ_S)] − usual gap
    state part = ℓ(P; θ_S) − ℓ(P; θ_A)
    usual gap  = median of ℓ(b_k; θ_k) − ℓ(P; θ_k), A−M ≤ k < A

Their sum is the recorded loss less that of an ordinary batch at θ_A: ℓ(b_S; θ_S) − [ℓ(P; θ_A) +
usual gap].
"""

from __future__ import annotations

import math

import numpy as np
from torch import Tensor

from forensics.detect.windows import MAD_TO_SIGMA, smallest_scale
from forensics.step.batch import Batch
from forensics.step.state import TrainState
from forensics.train.run import Run
from replay.blame.result import BlamedStep, Excess
from replay.blame.rules import BEFORE, MARGIN, RISEN
from replay.blame.stretch import CleanProbes, Stretch


class WindowControl:
    """A window of a stretch: S itself, what it stands above, and where causes are looked for."""

    def __init__(
        self, stretch: Stretch, first: int, last: int, narrow: bool = True, begin: int | None = None
    ) -> None:
        """Measure batch `last` = S against state `first` = A.

        `begin` is where causes are looked for from; left out, it is found: with `narrow`, shortly
        before P's loss began to rise, else at A.
        """
        self.stretch, self.first, self.last = stretch, first, last
        self.batch = self.run.stream(last)
        self.ce = stretch.token_losses(self.state(last).params, self.batch)  # (B, T) of b_S at θ_S
        self.excess = self._excess()
        if begin is None:
            begin = self._begin() if narrow else first
        self.begin = begin

    @property
    def run(self) -> Run:
        """The run or fork that is replayed."""
        return self.stretch.run

    @property
    def start(self) -> int:
        """The first state of the stretch."""
        return self.stretch.start

    @property
    def probe(self) -> dict[int, float]:
        """ℓ(P; θ_k) along the stretch."""
        return self.stretch.probe

    @property
    def probes(self) -> CleanProbes:
        """The sequences P."""
        return self.stretch.probes

    def state(self, step: int) -> TrainState:
        """Return the control's own state at a step from `start` to `last`; not to be moved."""
        return self.stretch.state(step)

    def token_losses(self, params: dict[str, Tensor], batch: Batch) -> Tensor:
        """Compute the cross-entropy (B, T) of a batch on the CPU, float64."""
        return self.stretch.token_losses(params, batch)

    def probe_loss(self, params: dict[str, Tensor]) -> float:
        """Return the mean loss on P at these parameters, nats/token."""
        return self.stretch.probe_loss(params)

    def loss_of(self, ce: Tensor, batch: Batch) -> float:
        """Return the loss as it is recorded: Σ weight·ce / denominator."""
        return float((ce * batch.weight.double()).sum()) / batch.denominator

    def _excess(self) -> Excess:
        A, S, probe = self.first, self.last, self.probe
        # where the window starts at the first state, batches and probes usually cost the same
        usual = float(np.median(self.stretch.gaps(A - BEFORE, A) or [0.0]))
        loss = self.loss_of(self.ce, self.batch)
        around = np.array(self.stretch.gaps(A - BEFORE, S) or [0.0])
        deviation = float(MAD_TO_SIGMA * np.median(np.abs(around - np.median(around))))
        data, state = loss - probe[S] - usual, probe[S] - probe[A]
        if not math.isfinite(state):  # the model itself is broken
            data, state = 0.0, math.inf
        elif not math.isfinite(data):
            data = math.inf
        scale = max(deviation, smallest_scale(loss))
        return Excess(data, state, loss, usual, probe[A], probe[S], scale)

    def _begin(self) -> int:
        """Return MARGIN steps before the last state at which P's loss had hardly risen.

        What came earlier did not raise it.
        """
        unhurt = self.excess.probe_before + RISEN * max(self.excess.state, 0.0)
        calm = [k for k in range(self.first, self.last) if self.probe[k] <= unhurt]
        return max(self.first, (calm[-1] if calm else self.first) - MARGIN)

    def worst_update(self) -> int:
        """Return the update of the window after which P's loss rose most; S−1: none is known."""
        rises = {k: self.probe[k + 1] - self.probe[k] for k in range(self.begin, self.last)}
        return max(rises, key=lambda k: rises[k]) if rises else self.last - 1

    def batch_influence(self) -> Tensor:
        """Return (B, T) in nats: what each target of b_S adds to the data part.

        It is held against a target of an ordinary batch at θ_S.
        """
        ordinary = self.probe[self.last] + self.excess.usual_gap
        influence = (self.ce - ordinary) * self.batch.weight.double() / self.batch.denominator
        return influence.nan_to_num(0.0, 0.0, 0.0)

    def recorded_absent(self, blamed: BlamedStep) -> bool:
        """Whether the recorded spike is missing from this control.

        It is there within ±2 steps and a factor 2 of its height.
        """
        if self.stretch.report.bitwise or blamed.baseline is None or not blamed.is_spike:
            return False
        losses = self.stretch.losses
        height, steps = blamed.value - blamed.baseline, range(self.last - 2, self.last + 3)
        if not math.isfinite(height):
            return all(math.isfinite(losses.get(k, 0.0)) for k in steps)
        heights = [losses[k] - blamed.baseline for k in steps if k in losses]
        return not any(0.5 <= replayed / height <= 2 for replayed in heights)
