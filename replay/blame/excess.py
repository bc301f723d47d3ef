"""What is to be explained: the excess of a spike at S, its data part and its state part, from an
exact control.

With clean probes P, window A … S−1 and M steps before it (docs/formulas.md, "Blame"):

    data part  = [ℓ(b_S; θ_S) − ℓ(P; θ_S)] − usual gap      usual gap = median of ℓ(b_k; θ_k) − ℓ(P; θ_k), A−M ≤ k < A
    state part = ℓ(P; θ_S) − ℓ(P; θ_A)

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
from replay.blame.blamed_step import Asked
from replay.compare.probe_sequences import Probe
from replay.interventions.registry import from_dict
from replay.verify import Report, Witness

PROBES = 32  # sequences of P
BEFORE = 8  # M, steps before the window that tell the usual gap
AFTER = 3  # steps after S in which a control that is not exact may still spike
RISEN = 0.05  # share of the state part above which P's loss has begun to rise
MARGIN = 2  # steps before that which are gone into too: moments carry a batch on
STATES = 2 << 30  # bytes of control states that are kept to start replays from


@dataclass(frozen=True)
class Probes:
    """Clean sequences on which the model itself is measured."""

    batch: Batch
    words: str


def clean_probes(run: Run, first: int) -> Probes:
    """Held-out sequences; where none were held out, those drawn after the run's end, or else before
    step `first`.
    """
    held_out = Probe(run, PROBES)
    if held_out.batch is not None:
        return Probes(held_out.batch, f"{held_out.sequences} held-out sequences")
    end = root(run).header.steps
    ids: list[int] = []
    try:
        for step in range(end, end + PROBES):
            ids += [i for i in run.stream(step).sequence.tolist() if i >= 0]
            if len(ids) >= PROBES:
                break
        words = f"{min(len(ids), PROBES)} sequences drawn after the run's end (none were held out)"
    except ForensicsError:  # an order file ends with the run
        ids = [
            i
            for s in range(max(0, first - PROBES), first)
            for i in run.stream(s).sequence.tolist()
            if i >= 0
        ][::-1]
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
    return Probes(run.batches.make(np.array(ids[:PROBES])), words)


def root(run: Run) -> Run:
    """The run of its own that a fork comes from."""
    return root(run.parent) if run.parent is not None else run


def lowest(run: Run) -> int:
    """The first state from which this run's stream and policy lead to its own states.

    A fork agrees with its parent below its start, unless it moved the state there.
    """
    if run.parent is None:
        return run.header.first_step
    if any(from_dict(each).alters() == "state" for each in run.header.interventions or []):
        return run.header.first_step
    return lowest(run.parent)


def checkpoint_at_or_before(run: Run, step: int) -> int | None:
    """The latest saved state at or before `step` along the lineage; None where there is none."""
    own = [s for s in run.saved_steps() if s <= step]
    if own:
        return own[-1]
    return checkpoint_at_or_before(run.parent, step) if run.parent is not None else None


@dataclass(frozen=True)
class Excess:
    """In nats; `data` + `state` is `total`. `scale` is 1.4826·MAD of the gaps before S: how odd
    batches usually are.
    """

    data: float
    state: float
    loss: float  # ℓ(b_S; θ_S) of the control
    usual_gap: float
    probe_before: float  # ℓ(P; θ_A)
    probe_at: float  # ℓ(P; θ_S)
    scale: float

    @property
    def total(self) -> float:
        return self.data + self.state


class Control:
    """The window replayed unaltered: states to start from, losses of the batches and of P at every
    state, and S itself.
    """

    def __init__(
        self,
        run: Run,
        first: int,
        last: int,
        probes: Probes,
        did: Callable[[int, str], None],
        narrow: bool = True,
    ) -> None:
        """Replays from M steps before `first` = A to the loss of batch `last` = S. Errors: missing.

        `begin` is where causes are looked for from: with `narrow`, shortly before P's loss began to
        rise, else at A.
        """
        self.run, self.first, self.last, self.probes = run, first, last, probes
        self.start = max(lowest(run), first - BEFORE)
        self._did = did
        self._states: dict[int, TrainState] = {}
        self.losses: dict[int, float] = {}  # of batch k at θ_k
        self.probe: dict[int, float] = {}  # ℓ(P; θ_k)
        self.report = self._replay()
        self.batch = run.stream(last)
        self.ce = self.token_losses(self.state(last).params, self.batch)  # (B, T) of b_S at θ_S
        self.excess = self._excess()
        self.begin = self._begin() if narrow else first

    def token_losses(self, params: dict[str, Tensor], batch: Batch) -> Tensor:
        """(B, T) cross-entropy on the CPU, float64."""
        size = math.gcd(len(batch.tokens), self.run.model.micro_batch)
        return (
            token_losses(params, batch, self.run.model, self.run.header.precision, size)
            .double()
            .cpu()
        )

    def probe_loss(self, params: dict[str, Tensor]) -> float:
        return float(self.token_losses(params, self.probes.batch).mean())

    def loss_of(self, ce: Tensor, batch: Batch) -> float:
        """The recorded loss: Σ weight·ce / denominator."""
        return float((ce * batch.weight.double()).sum()) / batch.denominator

    def state(self, step: int) -> TrainState:
        """The control's own state at a step from `start` to `last`; not to be moved."""
        if step not in self._states:
            near = max(s for s in self._states if s <= step)
            state = self._states[near].clone()
            return self.run.replay(state, step)
        return self._states[step]

    def _replay(self) -> Report:
        run, S = self.run, self.last
        trained = min(run.header.steps, run.last_step())
        witness = Witness(run, self.start, min(S + AFTER, trained))
        lead = checkpoint_at_or_before(run, self.start)
        state = run.state_at(
            self.start, lambda s, r: self._did(1, f"to state {self.start} from checkpoint {lead}")
        )
        each = 12 * run.header.parameters
        stride = max(1, math.ceil((S - self.start) * each / STATES))

        def keep(state: TrainState) -> None:
            at = state.counters.step
            if at in (self.start, self.first, S) or (at - self.first) % stride == 0:
                self._states[at] = state.clone()
            self.probe[at] = self.probe_loss(state.params)

        def after(state: TrainState, result: StepResult) -> None:
            witness.see(state, result)
            if result.loss is not None:
                self.losses[result.step] = result.loss
            if state.counters.step <= S:
                keep(state)
                self._did(1, "control")

        keep(state)
        run.replay(state, S, after=after)
        # S's own loss is known once its step is taken; only a control that is not exact goes
        # further
        stop = S + 1 if witness.difference is None else min(S + AFTER, trained)
        run.replay(state, stop, after=after)
        return witness.report()

    def _excess(self) -> Excess:
        S, A = self.last, self.first
        gaps = [self.losses[k] - self.probe[k] for k in range(self.start, A) if k in self.losses]
        if (
            not gaps
        ):  # the window starts at the first state: what is usual is that both cost the same
            gaps = [0.0]
        usual = float(np.median(gaps))
        loss = self.loss_of(self.ce, self.batch)
        spread = [self.losses[k] - self.probe[k] for k in range(self.start, S) if k in self.losses]
        around = np.array(spread or [0.0])
        scale = max(
            float(MAD_TO_SIGMA * np.median(np.abs(around - np.median(around)))),
            smallest_scale(loss),
        )
        data, state = loss - self.probe[S] - usual, self.probe[S] - self.probe[A]
        if not math.isfinite(state):  # the model itself is broken
            data, state = 0.0, math.inf
        elif not math.isfinite(data):
            data = math.inf
        return Excess(data, state, loss, usual, self.probe[A], self.probe[S], scale)

    def _begin(self) -> int:
        """MARGIN steps before the last state at which P's loss had hardly risen: what came earlier
        did not raise it.
        """
        unhurt = self.excess.probe_before + RISEN * max(self.excess.state, 0.0)
        calm = [k for k in range(self.first, self.last) if self.probe[k] <= unhurt]
        return max(self.first, (calm[-1] if calm else self.first) - MARGIN)

    def worst_update(self) -> int:
        """The update of the window after which P's loss rose most; S−1 where none is known."""
        rises = {k: self.probe[k + 1] - self.probe[k] for k in range(self.begin, self.last)}
        return max(rises, key=lambda k: rises[k]) if rises else self.last - 1

    def own_influence(self) -> Tensor:
        """(B, T) in nats: what each target of b_S adds to the data part, against one of an ordinary
        batch at θ_S.
        """
        ordinary = self.probe[self.last] + self.excess.usual_gap
        return (
            (self.ce - ordinary) * self.batch.weight.double() / self.batch.denominator
        ).nan_to_num(0.0, 0.0, 0.0)

    def recorded_absent(self, asked: Asked) -> bool:
        """Whether the recorded spike is missing from this control: within ±2 steps and a factor 2
        of its excess.
        """
        if self.report.bitwise or asked.baseline is None or not asked.spike:
            return False
        height = asked.value - asked.baseline
        if not math.isfinite(height):
            return all(
                math.isfinite(self.losses.get(k, 0.0)) for k in range(self.last - 2, self.last + 3)
            )
        near = [
            self.losses[k] - asked.baseline
            for k in range(self.last - 2, self.last + 3)
            if k in self.losses
        ]
        return not any(0.5 <= x / height <= 2 for x in near)
