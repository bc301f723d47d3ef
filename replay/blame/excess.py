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
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from forensics.detect.windows import MAD_TO_SIGMA, smallest_scale
from forensics.errors import ForensicsError
from forensics.step.batch import Batch
from forensics.step.result import StepResult
from forensics.step.state import TrainState
from forensics.train.advance import token_losses
from forensics.train.run import Run
from replay.blame.result import BlamedStep, Excess
from replay.compare.probe_sequences import Probe
from replay.lineage import checkpoint_at_or_before, lowest_state, root
from replay.verify import Report, Witness

PROBES = 32  # sequences of P
BEFORE = 8  # M, steps before the window that tell the usual gap
AFTER = 3  # steps after S in which a control that is not exact may still spike
RISEN = 0.05  # share of the state part above which P's loss has begun to rise
MARGIN = 2  # steps before that which are gone into too: moments carry a batch on
STATES = 2 << 30  # bytes of control states that are kept to start replays from
STATE_BYTES = 12  # of each parameter: itself and two moments in float32


@dataclass(frozen=True)
class CleanProbes:
    """Clean sequences on which the model itself is measured."""

    batch: Batch
    words: str  # where they come from


def clean_probes(run: Run, first: int) -> CleanProbes:
    """Choose held-out sequences; where none are held out, others that the window did not train on.

    Those are drawn after the run's end or, where the order ends there, before step `first`.
    Errors: missing.
    """
    held_out = Probe(run, PROBES)
    if held_out.batch is not None:
        return CleanProbes(held_out.batch, f"{held_out.sequences} held-out sequences")
    end = root(run).header.steps
    ids: list[int] = []
    try:
        for step in range(end, end + PROBES):
            ids += _corpus_ids(run, step)
            if len(ids) >= PROBES:
                break
        words = f"{min(len(ids), PROBES)} sequences drawn after the run's end (none were held out)"
    except ForensicsError:  # an order file ends with the run
        steps = range(max(0, first - PROBES), first)
        ids = [i for step in steps for i in _corpus_ids(run, step)][::-1]
        words = (
            f"{min(len(ids), PROBES)} sequences trained on before the window (none were held out,"
            " the order file ends)"
        )
    if not ids:
        raise ForensicsError(
            "missing",
            f"wanted clean sequences to measure {run.name} on, found none",
            "train with data.held_out above 0",
        )
    return CleanProbes(run.batches.make(np.array(ids[:PROBES])), words)


def _corpus_ids(run: Run, step: int) -> list[int]:
    """List the sequences of a batch that no intervention made."""
    return [i for i in run.stream(step).sequence.tolist() if i >= 0]


class WindowControl:
    """The window replayed unaltered, and what is measured along it.

    It holds states to start replays from, losses of the batches and of P at every state, and S
    itself.
    """

    def __init__(
        self,
        run: Run,
        first: int,
        last: int,
        probes: CleanProbes,
        on_step: Callable[[int, str], None],
        narrow: bool = True,
    ) -> None:
        """Replay from M steps before `first` = A to the loss of batch `last` = S. Errors: missing.

        `begin` is where causes are looked for from: with `narrow`, shortly before P's loss began to
        rise, else at A.
        """
        self.run, self.first, self.last, self.probes = run, first, last, probes
        self.start = max(lowest_state(run), first - BEFORE)
        self._on_step = on_step
        self._states: dict[int, TrainState] = {}
        self.losses: dict[int, float] = {}  # of batch k at θ_k
        self.probe: dict[int, float] = {}  # ℓ(P; θ_k)
        self.report = self._replay()
        self.batch = run.stream(last)
        self.ce = self.token_losses(self.state(last).params, self.batch)  # (B, T) of b_S at θ_S
        self.excess = self._excess()
        self.begin = self._begin() if narrow else first

    def token_losses(self, params: dict[str, Tensor], batch: Batch) -> Tensor:
        """Compute the cross-entropy (B, T) of a batch on the CPU, float64."""
        size = math.gcd(len(batch.tokens), self.run.model.micro_batch)
        precision = self.run.header.precision
        return token_losses(params, batch, self.run.model, precision, size).double().cpu()

    def probe_loss(self, params: dict[str, Tensor]) -> float:
        """Return the mean loss on P at these parameters, nats/token."""
        return float(self.token_losses(params, self.probes.batch).mean())

    def loss_of(self, ce: Tensor, batch: Batch) -> float:
        """Return the loss as it is recorded: Σ weight·ce / denominator."""
        return float((ce * batch.weight.double()).sum()) / batch.denominator

    def state(self, step: int) -> TrainState:
        """Return the control's own state at a step from `start` to `last`; not to be moved."""
        if step in self._states:
            return self._states[step]
        nearest = max(s for s in self._states if s <= step)
        return self.run.replay(self._states[nearest].clone(), step)

    def _replay(self) -> Report:
        run, S = self.run, self.last
        trained = min(run.header.steps, run.last_step())
        witness = Witness(run, self.start, min(S + AFTER, trained))
        checkpoint = checkpoint_at_or_before(run, self.start)
        note = f"to state {self.start} from checkpoint {checkpoint}"
        state = run.state_at(self.start, lambda state, result: self._on_step(1, note))
        state_bytes = STATE_BYTES * run.header.parameters
        stride = max(1, math.ceil((S - self.start) * state_bytes / STATES))

        def keep(state: TrainState) -> None:
            step = state.counters.step
            if step in (self.start, self.first, S) or (step - self.first) % stride == 0:
                self._states[step] = state.clone()
            self.probe[step] = self.probe_loss(state.params)

        def after(state: TrainState, result: StepResult) -> None:
            witness.see(state, result)
            if result.loss is not None:
                self.losses[result.step] = result.loss
            if state.counters.step <= S:
                keep(state)
                self._on_step(1, "control")

        keep(state)
        run.replay(state, S, after=after)
        # S's own loss is known once its step is taken; only a control that is not exact goes
        # further
        stop = S + 1 if witness.difference is None else min(S + AFTER, trained)
        run.replay(state, stop, after=after)
        return witness.report()

    def _excess(self) -> Excess:
        A, S = self.first, self.last
        gaps = self._gaps(A)
        # where the window starts at the first state, batches and probes usually cost the same
        usual = float(np.median(gaps or [0.0]))
        loss = self.loss_of(self.ce, self.batch)
        around = np.array(self._gaps(S) or [0.0])
        deviation = float(MAD_TO_SIGMA * np.median(np.abs(around - np.median(around))))
        data, state = loss - self.probe[S] - usual, self.probe[S] - self.probe[A]
        if not math.isfinite(state):  # the model itself is broken
            data, state = 0.0, math.inf
        elif not math.isfinite(data):
            data = math.inf
        scale = max(deviation, smallest_scale(loss))
        return Excess(data, state, loss, usual, self.probe[A], self.probe[S], scale)

    def _gaps(self, stop: int) -> list[float]:
        """List ℓ(b_k; θ_k) − ℓ(P; θ_k) from the replay's start up to step `stop`."""
        steps = [k for k in range(self.start, stop) if k in self.losses]
        return [self.losses[k] - self.probe[k] for k in steps]

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
        if self.report.bitwise or blamed.baseline is None or not blamed.is_spike:
            return False
        height, steps = blamed.value - blamed.baseline, range(self.last - 2, self.last + 3)
        if not math.isfinite(height):
            return all(math.isfinite(self.losses.get(k, 0.0)) for k in steps)
        heights = [self.losses[k] - blamed.baseline for k in steps if k in self.losses]
        return not any(0.5 <= replayed / height <= 2 for replayed in heights)
