"""The metagradient: which sequence of a window moved a number, exact, through the optimizer.

    result = influence(run, 384, 400, target)    batches 384 … 399; the target is that of state 400
    result.by_sequence[k, i]                     d target / d w of slot i of batch 384 + k

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
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from forensics.errors import ForensicsError
from forensics.model.step_model import StepModel
from forensics.progress import ProgressCallback, silent
from forensics.step.batch import Batch, BatchStream
from forensics.step.observer import SILENT, Observer
from forensics.step.policy import Policy, StepPolicy
from forensics.step.result import StepResult
from forensics.step.state import Counters, TrainState
from forensics.train.advance import fold
from forensics.train.optimizers import RULES
from forensics.train.optimizers.rule import Adjoint
from forensics.train.run import Run
from replay.blame.adjoint import Smooth, Tape, TapedStep, step_back
from replay.blame.probe_target import TargetFunction, held_out_batch, probe_target
from replay.blame.result import Condition, Conditioning
from replay.blame.rules import TRUSTED
from replay.blame.window_memory import DTYPES, segment


@dataclass(frozen=True)
class Influence:
    """Influence of batches first … last−1 on the target at state `last`.

    K batches of B sequences of T targets.
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
    target: TargetFunction | None = None,
    *,
    stream: BatchStream | None = None,
    policy: Policy | None = None,
    start: TrainState | None = None,
    precision: str = "float32",
    tokens: bool = False,
    check: bool = True,
    progress: ProgressCallback = silent,
) -> Influence:
    """Differentiate target(θ at state `last`) by the weight of every sequence of the window.

    The window is batches first … last−1; with `check` the result is held against two replays.
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
    started = time.perf_counter()
    window = _Window(run, stream or run.stream, policy or run.policy, precision)
    _require_derivative(run, window, first, last)
    begin = window.cast(start if start is not None else run.state_at(first))
    assert begin.counters.step == first, f"the start is state {begin.counters.step}, not {first}"
    target = target or probe_target(run, held_out_batch(run))
    steps = last - first
    passes = _Passes(progress, 2 * steps + (2 * steps if check else 0))
    end = _backwards(window, begin, last, target, passes)
    by_sequence = end.by_token.sum(2)
    condition = (
        _check(window, begin, last, target, by_sequence, end.value, passes) if check else None
    )
    seconds = time.perf_counter() - started
    return Influence(
        first,
        last,
        end.value,
        by_sequence,
        end.by_token if tokens else None,
        condition,
        precision,
        seconds / statistics.median(window.seconds) if window.seconds else 0.0,
        seconds,
    )


def _require_derivative(run: Run, window: _Window, first: int, last: int) -> None:
    """Refuse a window with an update whose derivative says nothing. Errors: usage."""
    for step in range(first, last):
        rule = RULES[window.policy(Counters(step, step, step)).update_rule]
        if rule.no_influence:
            raise ForensicsError(
                "usage",
                f"wanted influences on steps {first}:{last} of {run.name}, found {rule.title} at"
                f" step {step}: {rule.no_influence}",
                "`replay fork` with removals and `replay matrix` ask the same by replays",
            )


class _Passes:
    """One bar over all passes."""

    def __init__(self, progress: ProgressCallback, total: int) -> None:
        self.progress, self.total, self.done = progress, total, 0

    def step(self, note: str) -> None:
        self.done += 1
        self.progress(min(self.done, self.total), self.total, note)


class _Window:
    """How the window's steps are run in a precision, what each did and how long it took."""

    def __init__(self, run: Run, stream: BatchStream, policy: Policy, precision: str) -> None:
        self.model: StepModel = run.model
        self.smooth = Smooth(run.shape, run.model.device)
        self.stream, self.dtype = stream, DTYPES[precision]
        self.run_policy = policy
        self.actions: dict[int, str] = {}
        self.seconds: list[float] = []

    def cast(self, state: TrainState) -> TrainState:
        """Copy a state in the window's precision."""
        groups = (state.params, state.exp_avg, state.exp_avg_sq)
        params, exp_avg, exp_avg_sq = (
            {name: tensor.to(self.dtype, copy=True) for name, tensor in group.items()}
            for group in groups
        )
        return TrainState(params, exp_avg, exp_avg_sq, state.counters, state.window)

    def policy(self, counters: Counters) -> StepPolicy:
        """Return the run's policy; in float64 nothing is cast to bf16."""
        policy = self.run_policy(counters)
        return replace(policy, precision="fp32") if self.dtype == torch.float64 else policy

    def walk(
        self, state: TrainState, stop: int, watch: Observer, passes: _Passes | None, note: str
    ) -> TrainState:
        """Take the state on to `stop`."""

        def after(state: TrainState, result: StepResult) -> None:
            self.actions[result.step] = result.action
            if result.action != "none":
                self.seconds.append(result.seconds)
            if passes is not None:
                passes.step(note)

        return fold(state, self.stream, self.policy, stop, self.model, watch, after)

    def walk_weighted(
        self, start: TrainState, stop: int, change: np.ndarray, passes: _Passes
    ) -> TrainState:
        """Walk from a copy of `start` with each sequence's weight times 1 + change, (K, B).

        What SkipStep did stays as it was.
        """
        first = start.counters.step

        def stream(step: int) -> Batch:
            batch = self.stream(step)
            factor = torch.from_numpy(1 + change[step - first])[:, None]
            weight = batch.weight * factor.to(batch.weight.device)
            return replace(batch, weight=weight.to(self.dtype))

        def policy(counters: Counters) -> StepPolicy:
            policy = replace(self.policy(counters), skip_step=False)
            skipped = self.actions[counters.step] == "skipped"
            return replace(policy, update="zero") if skipped else policy

        def after(state: TrainState, result: StepResult) -> None:
            passes.step("checking the influences by two replays")

        return fold(start.clone(), stream, policy, stop, self.model, SILENT, after)


class _TargetInfluence(NamedTuple):
    value: float  # of the target
    by_token: np.ndarray  # (K, B, T), its derivative by each token's weight


def _backwards(
    window: _Window, start: TrainState, last: int, target: TargetFunction, passes: _Passes
) -> _TargetInfluence:
    """Run the window forwards, then back by segments."""
    first = start.counters.step
    itemsize = next(iter(start.params.values())).element_size()
    length = segment(sum(p.numel() for p in start.params.values()), last - first, itemsize)
    starts = list(range(first, last, length))
    state, segment_starts = start.clone(), []
    for step in starts[1:]:
        segment_starts.append(state.clone())
        window.walk(state, step, SILENT, passes, "forwards")
    taped: list[TapedStep] = []
    window.walk(state, last, Tape(taped), passes, "forwards")
    value, adjoint = _at_the_end(target, state)
    del state
    by_step: dict[int, np.ndarray] = {}
    while True:
        while taped:
            step_taken = taped.pop()
            by_token = step_back(step_taken, adjoint, window.model, window.smooth)
            if by_token is not None:
                by_step[step_taken.step] = by_token.double().cpu().numpy()
            passes.step("backwards")
        if not segment_starts:
            break
        begin = segment_starts.pop()
        window.walk(begin, starts[len(segment_starts) + 1], Tape(taped), None, "")
    shape = next(iter(by_step.values())).shape if by_step else window.stream(first).weight.shape
    nothing = np.zeros(tuple(shape))
    return _TargetInfluence(
        value, np.stack([by_step.get(step, nothing) for step in range(first, last)])
    )


class _End(NamedTuple):
    value: float  # of the target
    adjoint: Adjoint  # of the last state


def _at_the_end(target: TargetFunction, state: TrainState) -> _End:
    params = {name: p.detach().requires_grad_(True) for name, p in state.params.items()}
    with torch.enable_grad():
        value = target(params)
        grads: tuple[Tensor | None, ...]
        if value.requires_grad:
            grads = torch.autograd.grad(value, list(params.values()), allow_unused=True)
        else:
            grads = (None,) * len(params)
    theta = {
        name: torch.zeros_like(param) if grad is None else grad.to(param.dtype).clone()
        for (name, param), grad in zip(state.params.items(), grads)
    }
    zeros = ({name: torch.zeros_like(p) for name, p in state.params.items()} for _ in range(2))
    return _End(float(value.detach()), Adjoint(theta, *zeros))


def _check(
    window: _Window,
    start: TrainState,
    last: int,
    target: TargetFunction,
    by_sequence: np.ndarray,
    value: float,
    passes: _Passes,
) -> Condition:
    """Hold the influences against two replays with all weights moved by ±ε·(random signs)."""
    size = float(np.linalg.norm(by_sequence))
    if not math.isfinite(value) or not math.isfinite(size):
        return _condition(0.0, math.nan, math.nan, math.nan, "not finite")
    if size == 0:
        return _condition(0.0, 0.0, 0.0, 0.0, "nothing moves it")
    direction = _direction(by_sequence, size)
    # far enough that the two targets differ by more than their rounding, near enough to be a
    # derivative
    float32 = window.dtype == torch.float32
    share, lowest = (1e-4, 1e-3) if float32 else (1e-6, 1e-4)
    epsilon = float(np.clip(share * max(abs(value), 1e-3) / size, lowest, 0.1))
    ends = []
    for sign in (1.0, -1.0):
        end = window.walk_weighted(start, last, sign * epsilon * direction.signs, passes)
        with torch.no_grad():
            ends.append(float(target(end.params)))
    measured = (ends[0] - ends[1]) / (2 * epsilon)
    error = abs(measured - direction.predicted) / abs(direction.predicted)
    finding: Conditioning = (
        "agrees" if error <= TRUSTED else "ill-conditioned" if float32 else "not smooth"
    )
    return _condition(epsilon, direction.predicted, measured, error, finding)


def _condition(
    epsilon: float, predicted: float, measured: float, error: float, finding: Conditioning
) -> Condition:
    sentences: dict[Conditioning, str] = {
        "agrees": (
            "The influences agree with two replays of shifted weights (relative error"
            f" {error:.1g})."
        ),
        "ill-conditioned": (
            "The influences are badly conditioned here: two replays of shifted weights differ from"
            f" them by {error:.0%}. Try float64, or trust the replays alone."
        ),
        "not smooth": (
            "The target is no smooth function of the weights here: two replays of shifted weights"
            f" differ from the influences by {error:.0%}. Trust the replays alone."
        ),
        "not finite": (
            "The target or an influence is not a finite number: what the window does to it can be"
            " told by replays only."
        ),
        "nothing moves it": "No weight of the window moves the target.",
    }
    ok = finding in ("agrees", "nothing moves it")
    return Condition(epsilon, predicted, measured, error, ok, finding, sentences[finding])


class _Direction(NamedTuple):
    signs: np.ndarray  # (K, B), ±1
    predicted: float  # Σ signs·influence


def _direction(by_sequence: np.ndarray, size: float) -> _Direction:
    """Draw signs along which the influences add up to ‖influences‖₂ (`size`) or more.

    A third of all signs do. Where they cancel by chance, a small error of each is a large one of
    their sum.
    """
    rng, best = np.random.default_rng(0), _Direction(np.zeros(0), 0.0)
    for _ in range(100):
        signs = rng.choice((-1.0, 1.0), by_sequence.shape)
        predicted = float((signs * by_sequence).sum())
        if abs(predicted) > abs(best.predicted):
            best = _Direction(signs, predicted)
        if abs(best.predicted) >= size:
            break
    return best
