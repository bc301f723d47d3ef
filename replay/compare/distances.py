"""How a replay stands to what was recorded, and how far two arms are apart.

`Witness` holds a replayed control against its parent's rows, bit for bit. `distances` and `Probe`
measure fork − control, as FORMULAS.md defines it: never fork − recorded parent.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from forensics.detect.spikes import phase_restarts, robust
from forensics.identity import fingerprint_difference
from forensics.model.decoder import unembedding
from forensics.model.loss import chunks
from forensics.step import sums
from forensics.step.state import TrainState
from forensics.train import checkpoint
from forensics.train.advance import StepResult, documents
from forensics.train.run import Run

COMPARED = ("loss", "grad_norm")


@dataclass
class Report:
    """What a witness says of the window it saw."""

    bitwise: bool
    level: str  # exact | reproduces | absent
    steps: int
    compared: int  # steps of which something was recorded
    first_difference: dict[str, Any] | None
    max_abs_difference: float  # nats, of a recorded loss
    fingerprint_equal: bool
    fingerprint_differs: list[str]

    def sentence(self) -> str:
        if self.bitwise:
            return f"bit for bit: {self.compared:,} recorded steps compared, none differs"
        if not self.compared:
            return "nothing was recorded to compare with"
        where = self.first_difference or {}
        return (
            f"tolerance only: step {where.get('step')} differs first ({where.get('what')}), "
            f"losses by at most {self.max_abs_difference:.3g} nats"
        )


class Witness:
    """Compares each replayed step with the recorded one: loss, gradient norm, digest; tensors where
    a state was saved.
    """

    def __init__(self, run: Run, first: int, last: int) -> None:
        self.run, self.first, self.last = run, first, last
        self.recorded = recorded_steps(run, first, last)
        self.saved = {s for s in run.saved_steps() if first < s <= last}
        self.losses: dict[int, float | None] = {}
        self.compared = 0
        self.gap = 0.0
        self.difference: dict[str, Any] | None = None

    def see(self, state: TrainState, result: StepResult) -> None:
        """`after` of a fold; states must be the run's own."""
        step = result.step
        self.losses[step] = result.loss
        row = self.recorded.get(step)
        if row is not None:
            self.compared += 1
            for name in COMPARED:
                own, theirs = getattr(result, name), row[name]
                if not _same(own, theirs):
                    self._differs(step, name, None)
                if (
                    name == "loss"
                    and own is not None
                    and theirs is not None
                    and math.isfinite(own - theirs)
                ):
                    self.gap = max(self.gap, abs(own - theirs))
            digest = row["state_digest"]
            if digest is not None and digest != state.digest():
                self._differs(step, "state_digest", self._tensor(state))
        if state.counters.step in self.saved and self.difference is None:
            if row is None or row["state_digest"] is None:
                self.compared += row is None
            wrong = self._tensor(state)
            if wrong is not None:
                self._differs(step, "checkpoint", wrong)

    def _differs(self, step: int, what: str, tensor: str | None) -> None:
        if self.difference is None:
            layer = (
                tensor.split("layers.")[1].split(".")[0] if tensor and "layers." in tensor else None
            )
            self.difference = {
                "step": step,
                "what": what,
                "tensor": tensor,
                "layer": int(layer) if layer else None,
            }

    def _tensor(self, state: TrainState) -> str | None:
        """The first tensor that differs from the saved state of this step, if one was saved and it
        does.
        """
        step = state.counters.step
        if step not in self.saved:
            return None
        path = self.run.folder / "checkpoints" / checkpoint.name_of(step) / "state.json"
        hashes = json.loads(path.read_bytes())["tensors"]
        return next(
            (name for name, hash_ in checkpoint.tensor_hashes(state) if hashes.get(name) != hash_),
            None,
        )

    def report(self) -> Report:
        own = self.run.fingerprint()
        differs = fingerprint_difference(own, self.run.header.fingerprint)
        bitwise = self.difference is None and self.compared > 0
        return Report(
            bitwise=bitwise,
            level="exact" if bitwise else self._level(),
            steps=self.last - self.first,
            compared=self.compared,
            first_difference=self.difference,
            max_abs_difference=self.gap,
            fingerprint_equal=not differs,
            fingerprint_differs=differs,
        )

    def _level(self) -> str:
        """reproduces: each spike of the window again within ±2 steps, its excess within a factor 2;
        else absent.
        """
        history = recorded_steps(self.run, 0, self.last)
        past = [s for s in sorted(history) if s < min(self.losses)]
        restarts = phase_restarts([(p.until, p.mix) for p in self.run.recipe.data.phases])
        steps = past + sorted(self.losses)
        theirs = robust(
            [history[s]["loss"] if s in history else None for s in steps],
            steps=steps,
            restarts=restarts,
        )
        ours = robust(
            [history[s]["loss"] for s in past] + [self.losses[s] for s in sorted(self.losses)],
            steps=steps,
            restarts=restarts,
        )
        for spike in (
            s for s in theirs if self.first <= s.step < self.last and s.baseline is not None
        ):
            excess = spike.value - (spike.baseline or 0.0)
            if not any(
                abs(s.step - spike.step) <= 2
                and 0.5 <= (s.value - (s.baseline or 0.0)) / excess <= 2
                for s in ours
            ):
                return "absent"
        return "reproduces"


def recorded_steps(run: Run, first: int, last: int) -> dict[int, dict[str, Any]]:
    """Rows of `steps` along the run's lineage, by step."""
    import pyarrow.compute as pc

    found: dict[int, dict[str, Any]] = {}
    if run.parent is not None and first < run.header.first_step:
        found = recorded_steps(run.parent, first, min(last, run.header.first_step))
    table = run.table("steps", ["step", *COMPARED, "state_digest"])
    column = table["step"]
    rows = table.filter(pc.and_(pc.greater_equal(column, first), pc.less(column, last))).to_pylist()
    return found | {row["step"]: row for row in rows}


def _same(a: float | None, b: float | None) -> bool:
    if a is None or b is None:
        return a is b
    return a == b or (math.isnan(a) and math.isnan(b))


@dataclass
class Distance:
    """Of one arm from the control: the whole (""), each tensor, and each layer (`layers.<i>.*`)."""

    l2: dict[str, float] = field(default_factory=dict)
    cosine: dict[str, float] = field(default_factory=dict)


@torch.no_grad()
def distance(
    arm: dict[str, Tensor], control: dict[str, Tensor], start: dict[str, Tensor]
) -> Distance:
    """‖θ_arm − θ_control‖₂, and the cosine of the two displacements from the start; NaN where one
    has not moved.
    """
    found = Distance()
    sums_of: dict[str, np.ndarray] = {"": np.zeros(4)}
    for name in control:
        mine = np.zeros(4)
        for a, c, s in sums.blocks(arm[name], control[name], start[name]):
            moved_a, moved_c = a - s, c - s
            mine += [
                _sum((a - c).square_()),
                _sum(moved_a * moved_c),
                _sum(moved_a.square_()),
                _sum(moved_c.square_()),
            ]
        sums_of[name] = mine
        sums_of[""] += mine
        layer = layer_of(name)
        if layer is not None:
            whole = sums_of.setdefault(f"layers.{layer}.*", np.zeros(4))
            whole += mine
    for name, parts in sums_of.items():
        found.l2[name], found.cosine[name] = math.sqrt(parts[0]), _cosine(parts)
    return found


def layer_of(tensor: str) -> int | None:
    """The layer that a tensor's name names; None for embeddings, the last norm and the empty
    name.
    """
    return int(tensor.split(".")[1]) if tensor.startswith("layers.") else None


def _sum(x: Tensor) -> float:
    return float(x.sum(1, dtype=torch.float64).sum())


def _cosine(parts: np.ndarray) -> float:
    size = math.sqrt(parts[2] * parts[3])
    return float(parts[1] / size) if size > 0 else math.nan


def first_difference(arm: dict[str, Tensor], control: dict[str, Tensor]) -> dict[str, Any] | None:
    """The first tensor, in the order of the forward, that differs in a bit, and its first such
    element.
    """
    for name in control:
        if not torch.equal(arm[name], control[name]):
            element = int((arm[name] != control[name]).reshape(-1).nonzero()[0])
            return {"tensor": name, "layer": layer_of(name), "element": element}
    return None


@dataclass
class Reading:
    """An arm on the probe set."""

    loss: float
    by_sequence: np.ndarray  # (n,)
    logit_kl: float  # mean KL(control ‖ arm), nats; 0 for the control


class Probe:
    """A fixed set of sequences that no arm trains on: the run's held-out ones, or those of
    `ids`.
    """

    def __init__(self, run: Run, limit: int = 64, ids: np.ndarray | None = None) -> None:
        self.run = run
        ids = run.batches.order.held_out if ids is None else ids
        if len(ids) > limit:
            ids = ids[np.linspace(0, len(ids) - 1, limit).astype(np.int64)]
        self.batch = run.batches.make(ids) if len(ids) else None
        self.sequences = len(ids)

    @torch.no_grad()
    def read(
        self, control: dict[str, Tensor], arms: dict[str, dict[str, Tensor]]
    ) -> dict[str, Reading]:
        """The control (under the name "control") and each arm; one forward each, logits in
        chunks.
        """
        assert self.batch is not None, "callers ask `sequences` first"
        model = self.run.model
        everyone = {"control": control, **arms}
        losses: dict[str, list[Tensor]] = {name: [] for name in everyone}
        kl: dict[str, list[Tensor]] = {name: [] for name in everyone}
        for tokens in self.batch.tokens.split(max(1, model.micro_batch)):
            tokens = tokens.to(model.device)
            inputs, targets = tokens[:, :-1], tokens[:, 1:].reshape(-1)
            docs = documents(inputs, model)
            hidden = {
                n: model.decoder.hidden(p, inputs, documents_BT=docs).reshape(len(targets), -1)
                for n, p in everyone.items()
            }
            parts: dict[str, list[Tensor]] = {name: [] for name in everyone}
            for rows in chunks(len(targets)):
                base: Tensor | None = None
                for name, params in everyone.items():
                    log_p = (hidden[name][rows] @ unembedding(params).T).float().log_softmax(1)
                    parts[name].append(-log_p.gather(1, targets[rows, None])[:, 0])
                    if base is None:
                        base = log_p
                    else:
                        kl[name].append((base.exp() * (base - log_p)).sum(1))
            for name in everyone:
                losses[name].append(torch.cat(parts[name]).view(len(tokens), -1).double().mean(1))
        found = {}
        for name in everyone:
            by_sequence = torch.cat(losses[name]).cpu().numpy()
            # rounding can leave a KL of equal distributions a hair below 0
            mean_kl = max(0.0, float(torch.cat(kl[name]).double().mean())) if kl[name] else 0.0
            found[name] = Reading(float(by_sequence.mean()), by_sequence, mean_kl)
        return found


@dataclass(frozen=True)
class Effect:
    """How a fork's distance stands to those of its placebos."""

    placebos: int
    effect: float | None  # d / median(placebos)
    p: float | None  # (1 + #{placebo ≥ d}) / (N + 1)
    largest: float | None  # of the placebos
    words: str

    @property
    def causal(self) -> bool:
        return self.words.startswith("beyond")


def effect(d: float, placebos: list[float]) -> Effect:
    """The rule for causal words: p ≤ 0.05, or with 3 or more placebos at least 5 times the largest
    of them.
    """
    N = len(placebos)
    if N == 0:
        return Effect(0, None, None, None, "no placebo was run: no effect is claimed")
    median = float(np.median(placebos))
    p = (1 + sum(x >= d for x in placebos)) / (N + 1)
    times = d / median if median > 0 else math.inf if d > 0 else math.nan
    if p <= 0.05 or (N >= 3 and d > 0 and d >= 5 * max(placebos)):
        words = f"beyond the placebos (N = {N})"
    elif N < 3:
        words = f"too few placebos to tell (N = {N})"
    else:
        words = f"not distinguishable from the placebos (N = {N})"
    return Effect(N, times, p, max(placebos), words)


def time_to_reconverge(
    steps: list[int], d: list[float], placebos: list[list[float]], start: int
) -> int | None:
    """Steps from `start` until d stays at or below the placebos' 95th percentile; None: not within
    the window.
    """
    if not placebos or not steps:
        return None
    limit = np.percentile(np.array(placebos), 95, axis=0)
    below = np.array(d) <= limit
    if not below[-1]:
        return None
    outside = np.flatnonzero(~below)
    return steps[int(outside[-1]) + 1 if len(outside) else 0] - start
