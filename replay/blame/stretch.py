"""A stretch of the run replayed unaltered, and what is measured along it.

    stretch = Stretch(run, 376, 400, probes, on_step)
    stretch.state(390), stretch.probe[390], stretch.losses[390]

Windows share it: the spike's has one of its own, with a witness, and windows without a spike that
lie side by side share another (replay/blame/null_windows.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from forensics.errors import ForensicsError
from forensics.step.batch import Batch
from forensics.step.policy import StepPolicy
from forensics.step.result import StepResult
from forensics.step.state import TrainState
from forensics.train.advance import token_losses
from forensics.train.run import Run
from replay.blame.rules import AFTER, PROBES
from replay.compare.probe_sequences import Probe
from replay.lineage import checkpoint_at_or_before, lowest_state, root
from replay.verify import Report, Witness

STATES = 2 << 30  # bytes of states that are kept to start replays from
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


class Stretch:
    """States start … stop of the run's own replay, and batch `stop` at the last of them."""

    report: Report  # of the witness, where there is one

    def __init__(
        self,
        run: Run,
        start: int,
        stop: int,
        probes: CleanProbes,
        on_step: Callable[[int, str], None],
        keep: Collection[int] = (),
        witness: bool = True,
        known: Stretch | None = None,
        note: str = "control",
    ) -> None:
        """Replay from state max(`start`, the lowest) to the loss of batch `stop`. Errors: missing.

        `keep` are states that are held whatever their bytes; `witness` compares every step with the
        recorded one, and goes on a little where they differ. What lies in `known` is not replayed
        again.
        """
        self.run, self.stop, self.probes = run, stop, probes
        self.start = max(lowest_state(run), start)
        self._keep = {self.start, stop, *keep}
        self._states: dict[int, TrainState] = {}
        self.losses: dict[int, float] = {}  # of batch k at θ_k
        self.probe: dict[int, float] = {}  # ℓ(P; θ_k)
        self.policies: dict[int, StepPolicy] = {}
        self._on_step, self._note = on_step, note
        self.steps = 0  # that were replayed, from the checkpoint on
        if known is None or not known.start <= stop <= known.stop:
            self._replay(stop, witness)
            return
        if self.start < known.start:
            self._keep.add(known.start)
            self._replay(known.start, witness)
        self._take(known)

    def token_losses(self, params: dict[str, Tensor], batch: Batch) -> Tensor:
        """Compute the cross-entropy (B, T) of a batch on the CPU, float64."""
        size = math.gcd(len(batch.tokens), self.run.model.micro_batch)
        precision = self.run.header.precision
        return token_losses(params, batch, self.run.model, precision, size).double().cpu()

    def probe_loss(self, params: dict[str, Tensor]) -> float:
        """Return the mean loss on P at these parameters, nats/token."""
        return float(self.token_losses(params, self.probes.batch).mean())

    def state(self, step: int) -> TrainState:
        """Return the run's own state at a step from `start` to `stop`; not to be moved."""
        if step in self._states:
            return self._states[step]
        nearest = max(s for s in self._states if s <= step)
        return self.run.replay(self._states[nearest].clone(), step)

    def gaps(self, first: int, stop: int) -> list[float]:
        """List ℓ(b_k; θ_k) − ℓ(P; θ_k) of the steps first … stop−1 of the stretch."""
        steps = [k for k in range(max(first, self.start), stop) if k in self.losses]
        return [self.losses[k] - self.probe[k] for k in steps]

    def _take(self, known: Stretch) -> None:
        """Take over what another stretch replayed and measured."""
        self._states |= known._states
        self.losses |= known.losses
        self.probe |= known.probe
        self.policies |= known.policies

    def _replay(self, S: int, with_witness: bool) -> None:
        run = self.run
        trained = min(run.header.steps, run.last_step())
        witness = Witness(run, self.start, min(S + AFTER, trained)) if with_witness else None
        checkpoint = checkpoint_at_or_before(run, self.start)
        note = f"to state {self.start} from checkpoint {checkpoint}"

        def before(state: TrainState, result: StepResult) -> None:
            self.steps += 1
            self._on_step(1, note)

        state = run.state_at(self.start, before)
        state_bytes = STATE_BYTES * run.header.parameters
        stride = max(1, math.ceil((S - self.start) * state_bytes / STATES))

        def keep(state: TrainState) -> None:
            step = state.counters.step
            if step in self._keep or (step - self.start) % stride == 0:
                self._states[step] = state.clone()
            self.probe[step] = self.probe_loss(state.params)

        def after(state: TrainState, result: StepResult) -> None:
            if witness is not None:
                witness.see(state, result)
            if result.loss is not None:
                self.losses[result.step] = result.loss
            self.policies[result.step] = result.policy
            self.steps += 1
            if state.counters.step <= S:
                keep(state)
                self._on_step(1, self._note)

        keep(state)
        run.replay(state, S, after=after)
        if witness is None:
            return
        # S's own loss is known once its step is taken; only a control that is not exact goes
        # further
        stop = S + 1 if witness.difference is None else min(S + AFTER, trained)
        run.replay(state, stop, after=after)
        self.report = witness.report()
