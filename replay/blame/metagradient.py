"""Which sequence of a window moved a number: the metagradient, exact, through the run's own
optimizer.

    found = influence(run, 384, 400, target)        batches 384 … 399; the target is measured at state 400
    found.by_sequence[k, i]                         d target / d w of slot i of batch 384 + k

w (1 for every sequence) is a sequence's weight in the loss, the denominator kept; removing the
sequence changes the target by about −1 times its influence (arXiv 2503.13751, 2504.16430). States
are recomputed by `advance`, bit for bit where precision is float32, and gone back over one at a
time (`adjoint.py`); what a window needs is 4 copies of the parameters for each step between two
kept states and 3 for each kept state, so every √K-th state is kept.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from forensics.errors import ForensicsError
from forensics.model.step_model import StepModel
from forensics.progress import ProgressCallback, silent
from forensics.step.batch import Batch, BatchStream
from forensics.step.observer import SILENT, Observer, Site
from forensics.step.policy import Policy, StepPolicy
from forensics.step.result import StepResult
from forensics.step.state import Counters, TrainState
from forensics.train.advance import advance, fold, token_losses
from forensics.train.optimizer import Adjoint
from forensics.train.run import Run
from replay.blame.adjoint import Smooth, Taken, Tape, step_back
from replay.blame.window_memory import DTYPES, segment, start_itemsize
from replay.compare.probe_sequences import Probe

Target = Callable[
    [dict[str, Tensor]], Tensor
]  # a differentiable number of the parameters, such as a probe loss

TRUSTED = 0.1  # relative error of the directional derivative up to which influences are believed


@dataclass(frozen=True)
class Condition:
    """The influences held against two replays: every weight moved by ±epsilon at random, then by
    the opposite.
    """

    epsilon: float
    predicted: float  # change of the target per unit of epsilon, by the influences
    measured: float  # by the replays
    relative_error: float  # |measured − predicted| / |predicted|
    ok: bool
    sentence: str


@dataclass(frozen=True)
class Influence:
    """Batches first … last−1, K of them, of B sequences of T tokens; the target is that of state
    `last`.
    """

    first: int
    last: int
    value: float
    by_sequence: np.ndarray  # (K, B) d target / d weight; 0 where the step moved nothing
    by_token: np.ndarray | None  # (K, B, T)
    condition: Condition | None  # None: not asked for
    precision: str  # float32 | float64
    # cost in steps of training: seconds over the median seconds of one of its own `advance`s
    advances: float
    seconds: float


def influence(
    run: Run,
    first: int,
    last: int,
    target: Target | None = None,
    *,
    stream: BatchStream | None = None,
    policy: Policy | None = None,
    start: TrainState | None = None,
    precision: str = "float32",
    tokens: bool = False,
    check: bool = True,
    progress: ProgressCallback = silent,
) -> Influence:
    """d target(θ at state `last`) / d weight of every sequence of batches first … last−1, with the
    check of conditioning.

    Without `target` it is the mean loss on the run's held-out sequences. `stream`, `policy` and
    `start` (a state `first`, left as it is) stand in for the run's own. In float32 the states are
    the run's to the bit, and a run that trains in bf16 is differentiated in float32 at them. In
    float64 the window is run again in float64 from the same start: well conditioned, but no bitwise
    replay. SkipStep's decisions are held fixed. Errors: usage, missing.
    """
    if precision not in DTYPES:
        raise ForensicsError(
            "usage", f"wanted precision float32 or float64, found {precision!r}", "try float64"
        )
    if not first < last:
        raise ForensicsError(
            "usage", f"wanted a window of at least one step, found {first}:{last}", "e.g. 384:400"
        )
    began = time.perf_counter()
    window = _Window(run, stream or run.stream, policy or run.policy, precision)
    begin = window.cast(start if start is not None else run.state_at(first))
    assert begin.counters.step == first, f"the start is state {begin.counters.step}, not {first}"
    target = target or probe_target(run, _held_out(run))
    steps = last - first
    report = _Progress(progress, 2 * steps + (2 * steps if check else 0))
    value, by_token = _backwards(window, begin, last, target, report)
    by_sequence = by_token.sum(2)
    condition = _check(window, begin, last, target, by_sequence, value, report) if check else None
    seconds = time.perf_counter() - began
    return Influence(
        first,
        last,
        value,
        by_sequence,
        by_token if tokens else None,
        condition,
        precision,
        seconds / statistics.median(window.seconds) if window.seconds else 0.0,
        seconds,
    )


class _Progress:
    """One bar over all passes."""

    def __init__(self, report: ProgressCallback, total: int) -> None:
        self.report, self.total, self.done = report, total, 0

    def step(self, note: str) -> None:
        self.done += 1
        self.report(min(self.done, self.total), self.total, note)


class _Window:
    """How the window's steps are taken, in the wanted precision; notes what each did and how long
    it took.
    """

    def __init__(self, run: Run, stream: BatchStream, policy: Policy, precision: str) -> None:
        self.model: StepModel = run.model
        self.smooth = Smooth(run.shape, run.model.device)
        self.stream, self.dtype = stream, DTYPES[precision]
        self.own_policy = policy
        self.actions: dict[int, str] = {}
        self.seconds: list[float] = []

    def cast(self, state: TrainState) -> TrainState:
        """A copy in the window's precision."""
        groups = (state.params, state.exp_avg, state.exp_avg_sq)
        params, m, v = (
            {n: t.to(self.dtype, copy=True) for n, t in group.items()} for group in groups
        )
        return TrainState(params, m, v, state.counters, state.window)

    def policy(self, counters: Counters) -> StepPolicy:
        own = self.own_policy(counters)
        return replace(own, precision="fp32") if self.dtype == torch.float64 else own

    def walk(
        self, state: TrainState, stop: int, watch: Observer, report: _Progress | None, note: str
    ) -> TrainState:
        def after(state: TrainState, result: StepResult) -> None:
            self.actions[result.step] = result.action
            if result.action != "none":
                self.seconds.append(result.seconds)
            if report is not None:
                report.step(note)

        return fold(state, self.stream, self.policy, stop, self.model, watch, after)

    def walk_weighted(
        self, start: TrainState, stop: int, change: np.ndarray, report: _Progress
    ) -> TrainState:
        """From a copy of `start`, each sequence's weight times 1 + change (K, B); what SkipStep did
        stays as it was.
        """
        first = start.counters.step

        def stream(step: int) -> Batch:
            batch = self.stream(step)
            factor = torch.from_numpy(1 + change[step - first])[:, None]
            return replace(
                batch, weight=(batch.weight * factor.to(batch.weight.device)).to(self.dtype)
            )

        def policy(counters: Counters) -> StepPolicy:
            own = replace(self.policy(counters), skip_step=False)
            return replace(own, update="zero") if self.actions[counters.step] == "skipped" else own

        def after(state: TrainState, result: StepResult) -> None:
            report.step("checking the influences by two replays")

        return fold(start.clone(), stream, policy, stop, self.model, SILENT, after)


def _backwards(
    window: _Window, start: TrainState, last: int, target: Target, report: _Progress
) -> tuple[float, np.ndarray]:
    """The target's value and its derivative by each token's weight, (K, B, T): forwards, then back
    by segments.
    """
    first = start.counters.step
    length = segment(
        sum(p.numel() for p in start.params.values()), last - first, start_itemsize(start)
    )
    starts = list(range(first, last, length))
    state, kept = start.clone(), []
    for s in starts[1:]:
        kept.append(state.clone())
        window.walk(state, s, SILENT, report, "forwards")
    taken: list[Taken] = []
    window.walk(state, last, Tape(taken), report, "forwards")
    value, adjoint = _at_the_end(target, state)
    del state
    found: dict[int, np.ndarray] = {}
    while True:
        while taken:
            step = taken.pop()
            along = step_back(step, adjoint, window.model, window.smooth)
            if along is not None:
                found[step.step] = along.double().cpu().numpy()
            report.step("backwards")
        if not kept:
            break
        begin = kept.pop()
        window.walk(begin, starts[len(kept) + 1], Tape(taken), None, "")
    shape = next(iter(found.values())).shape if found else window.stream(first).weight.shape
    nothing = np.zeros(tuple(shape))
    return value, np.stack([found.get(s, nothing) for s in range(first, last)])


def _at_the_end(target: Target, state: TrainState) -> tuple[float, Adjoint]:
    params = {n: p.detach().requires_grad_(True) for n, p in state.params.items()}
    with torch.enable_grad():
        value = target(params)
        grads: tuple[Tensor | None, ...]
        if value.requires_grad:
            grads = torch.autograd.grad(value, list(params.values()), allow_unused=True)
        else:
            grads = (None,) * len(params)
    theta = {
        n: torch.zeros_like(p) if g is None else g.to(p.dtype).clone()
        for (n, p), g in zip(state.params.items(), grads)
    }
    zeros = ({n: torch.zeros_like(p) for n, p in state.params.items()} for _ in range(2))
    return float(value.detach()), Adjoint(theta, *zeros)


def _check(
    window: _Window,
    start: TrainState,
    last: int,
    target: Target,
    by_sequence: np.ndarray,
    value: float,
    report: _Progress,
) -> Condition:
    """Two replays with all weights moved by ±ε·(random signs), against what the influences
    predict.
    """
    size = float(np.linalg.norm(by_sequence))
    if not math.isfinite(value) or not math.isfinite(size):
        return Condition(
            0.0,
            math.nan,
            math.nan,
            math.nan,
            False,
            "the target or an influence is not a finite number: "
            "what the window does to it can be told by replays only",
        )
    if size == 0:
        return Condition(0.0, 0.0, 0.0, 0.0, True, "no weight of the window moves the target")
    signs, predicted = _direction(by_sequence, size)
    # far enough that the two targets differ by more than their rounding, near enough to be a
    # derivative
    wanted, low = (1e-4, 1e-3) if window.dtype == torch.float32 else (1e-6, 1e-4)
    epsilon = float(np.clip(wanted * max(abs(value), 1e-3) / size, low, 0.1))
    ends = []
    for sign in (1.0, -1.0):
        end = window.walk_weighted(start, last, sign * epsilon * signs, report)
        with torch.no_grad():
            ends.append(float(target(end.params)))
    measured = (ends[0] - ends[1]) / (2 * epsilon)
    error = abs(measured - predicted) / abs(predicted)
    ok = bool(error <= TRUSTED)
    if ok:
        sentence = (
            f"the influences agree with two replays of shifted weights (relative error {error:.1g})"
        )
    elif window.dtype == torch.float32:
        sentence = (
            "the influences are badly conditioned here: two replays of shifted weights differ from"
            f" them by {error:.0%}; try float64, or trust the replays alone"
        )
    else:
        sentence = (
            "the target is no smooth function of the weights here: two replays of shifted weights"
            f" differ from the influences by {error:.0%}; trust the replays alone"
        )
    return Condition(epsilon, predicted, measured, error, ok, sentence)


def _direction(by_sequence: np.ndarray, size: float) -> tuple[np.ndarray, float]:
    """Random signs (K, B) along which the influences add up to ‖influences‖₂ (`size`) or more, and
    that sum.

    A third of all signs do. Where they cancel by chance, a small error of each is a large one of
    their sum.
    """
    rng, signs, predicted = np.random.default_rng(0), np.zeros(0), 0.0
    for _ in range(100):
        drawn = rng.choice((-1.0, 1.0), by_sequence.shape)
        along = float((drawn * by_sequence).sum())
        if abs(along) > abs(predicted):
            signs, predicted = drawn, along
        if abs(predicted) >= size:
            break
    return signs, predicted


class _Gradients:
    """An observer that keeps a step's gradients."""

    wants: frozenset[str] = frozenset()

    def __init__(self) -> None:
        self.grads: dict[str, Tensor] = {}

    def begin(self, state: TrainState, policy: StepPolicy) -> None: ...
    def tap(self, site: Site, x: Tensor) -> None: ...
    def end(self, state: TrainState, result: StepResult) -> None: ...

    def gradients(self, state: TrainState, grads: dict[str, Tensor], result: StepResult) -> None:
        self.grads = grads


class _MeanLoss(torch.autograd.Function):
    """The loss of a batch with its gradient, by the training step's own forward and backward."""

    @staticmethod
    def forward(
        ctx: Any, batch: Batch, model: StepModel, names: tuple[str, ...], *tensors: Tensor
    ) -> Tensor:  # type: ignore[override]
        state = TrainState(dict(zip(names, (t.detach() for t in tensors))), {}, {})
        watch = _Gradients()
        with torch.enable_grad():
            result = advance(state, batch, _MEASURE, model, watch)
        assert result.loss is not None
        ctx.grads = [watch.grads[n] for n in names]
        return torch.tensor(result.loss, dtype=torch.float64)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        scale = float(grad)
        return (None, None, None, *(g * scale for g in ctx.grads))


# a forward and backward that moves nothing: of these fields only z_loss, frozen, precision and
# update are read
_MEASURE = StepPolicy(
    0.0, (0.0, 0.0), 1.0, 0.0, 0.0, 0.0, frozenset(), "fp32", "zero", False, False
)


def probe_target(run: Run, batch: Batch) -> Target:
    """The mean loss on the counted tokens of `batch`, nats, differentiable; a micro-batch at a
    time.
    """
    counted = float(batch.weight.sum())
    if not counted:
        raise ForensicsError(
            "missing", "wanted probe sequences with counted tokens, found none", "give a probe set"
        )
    probe = replace(batch, denominator=counted)
    B = len(batch.tokens)
    size = next(n for n in range(min(run.model.micro_batch, B), 0, -1) if B % n == 0)
    model = replace(run.model, micro_batch=size)

    def target(params: dict[str, Tensor]) -> Tensor:
        if torch.is_grad_enabled() and any(p.requires_grad for p in params.values()):
            return _MeanLoss.apply(probe, model, tuple(params), *params.values())
        ce = token_losses(params, probe, model, "fp32")
        return (ce.double() * probe.weight.to(ce.device)).sum() / counted

    return target


def _held_out(run: Run) -> Batch:
    probe = Probe(run).batch
    if probe is None:
        raise ForensicsError(
            "missing",
            f"{run.name} holds no sequences out, so there is nothing to measure it on",
            "train with --set data.held_out=64, or give a target",
        )
    return probe
