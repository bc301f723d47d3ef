"""What is measured of a fork's arms after each step, each beside its own control."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from forensics.step.state import TrainState
from forensics.store.writer import Writer
from forensics.train.run import Run
from replay.compare import distances
from replay.compare.loss_barrier import barrier, probe_loss
from replay.compare.probe_sequences import Probe, Reading, unseen
from replay.forks.arms import CONTROL, FORK, PLACEBO, Arms
from replay.forks.spec import Spec

UNSEEN = 32  # sequences


class Comparison:
    """Measure all arms after each step; `notes` is all it remembers, as plain data."""

    def __init__(
        self, spec: Spec, parent: Run, start: TrainState, arms: Arms, writer: Writer
    ) -> None:
        self.spec, self.parent, self.arms, self.writer = spec, parent, arms, writer
        self.start = start.params
        self.decoders = arms.decoders
        self.every = spec.steps_between_probes
        streams = [arm.stream for arm in arms.by_name.values()]
        self.probe = Probe(parent)
        self.unseen = Probe(parent, ids=unseen(parent, streams, spec.first, spec.last, UNSEEN))
        self.readings: dict[str, Reading] = {}
        self.unseen_readings: dict[str, Reading] = {}
        self.notes: dict[str, Any] = {
            "difference": None,
            "series": {},
            "probed": [],
            "rows": [],
            "barriers": [],
            "losses": {CONTROL: [], FORK: []},  # (step, loss) of each step
        }

    def see(self, state: int, losses: Mapping[str, float | None]) -> None:
        """Measure every arm at `state`; `losses` are those of the step that led to it, by arm.

        Probes and barriers are read where they are due.
        """
        spec, notes = self.spec, self.notes
        params = {name: arm.state.params for name, arm in self.arms.by_name.items()}
        for name, series in notes["losses"].items():
            series.append((state - 1, losses[name]))
        read: dict[str, Reading] = {}
        fresh: dict[str, Reading] = {}
        if (state - spec.first) % self.every == 0 or state == spec.last:
            pairs = {CONTROL: (CONTROL, CONTROL), **self.arms.pairs}
            if self.probe.sequences:
                read = self.readings = self.probe.read_pairs(params, pairs, self.decoders)
            if self.unseen.sequences:
                fresh = self.unseen_readings = self.unseen.read_pairs(params, pairs, self.decoders)
        if read or fresh:
            notes["probed"].append(state)
        if notes["difference"] is None:
            difference = distances.first_difference(params[FORK], params[CONTROL])
            notes["difference"] = {"step": state - 1, **difference} if difference else None
        for name, (arm, control) in self.arms.pairs.items():
            self._note(state, name, params[arm], params[control], read, fresh)

    def _note(
        self,
        state: int,
        name: str,
        params: dict[str, Tensor],
        control: dict[str, Tensor],
        read: Mapping[str, Reading],
        fresh: Mapping[str, Reading],
    ) -> None:
        """Write one arm's rows of `divergence`, and remember what the result needs."""
        notes = self.notes
        apart = distances.distance(params, control, self.start)
        on_probes = read or fresh
        measures = {
            "loss_gap": read[name].loss_gap if read else None,
            "unseen_gap": fresh[name].loss_gap if fresh else None,
            "logit_kl": on_probes[name].logit_kl if on_probes else None,
            "barrier": self._barrier(state, name, params, control),
        }
        tensors = list(apart.l2)
        self.writer.append(
            "divergence",
            step=state,
            arm=name,
            tensor=tensors,
            layer=[distances.layer_of(tensor) for tensor in tensors],
            l2=[apart.l2[tensor] for tensor in tensors],
            cosine=[apart.cosine[tensor] for tensor in tensors],
            **{
                key: [value if tensor == "" else None for tensor in tensors]
                for key, value in measures.items()
            },
        )
        series = notes["series"].setdefault(name, {"l2": [], "kl": [], "cosine": []})
        series["l2"].append(apart.l2[""])
        series["cosine"].append(apart.cosine[""])
        if measures["logit_kl"] is not None:
            series["kl"].append(measures["logit_kl"])
        if name == FORK:
            notes["rows"].append({"step": state, **measures, "l2": apart.l2[""]})

    def _barrier(
        self, state: int, name: str, params: dict[str, Tensor], control: dict[str, Tensor]
    ) -> float | None:
        if state not in self.spec.barrier:
            return None
        highest = barrier(params, control, probe_loss(self.parent))
        self.notes["barriers"].append(
            {"step": state, "arm": name, "height": highest.height, "alpha": highest.alpha}
        )
        return highest.height

    def final_losses(self, unseen: bool = False) -> dict[str, Any]:
        """Return the fields of a LossGap from the last readings of one set."""
        readings = self.unseen_readings if unseen else self.readings
        if not readings:
            return {}
        control, fork = readings[CONTROL], readings[FORK]
        gaps = fork.by_sequence - control.by_sequence
        return {
            "loss_control": control.loss,
            "loss_fork": fork.loss,
            "loss_error": float(gaps.std(ddof=1) / math.sqrt(len(gaps))) if len(gaps) > 1 else None,
            "placebo_loss_gaps": tuple(readings[name].loss_gap for name in self.arms.of(PLACEBO)),
        }


def losses_by_step(notes: Mapping[str, Any], arm: str) -> dict[int, float | None]:
    """Return the training losses that an arm had, by step."""
    return {int(step): loss for step, loss in notes["losses"][arm]}
