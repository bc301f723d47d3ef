"""The microscope: the traced step is the step, its events are in order, and the update's parts add
up.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from forensics import config
from forensics.errors import ForensicsError
from forensics.model import decoder
from forensics.model.shape import parameter_shapes
from forensics.train.loop import train
from forensics.train.run import Run
from replay.step import (
    artifacts,
    perfetto,
    saved_tensors,
    step_clock,
    step_watch,
    trace,
    trace_conclusion,
    trace_events,
    update_split,
)
from replay.step.result import LayerBlame, StepTrace, TensorEffect


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the raw gradients and activations of the traced step go."""
    return tmp_path_factory.mktemp("saved") / "step-81"


@pytest.fixture(scope="module")
def traced_runs(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the runs folder, in which traces are kept."""
    copy = tmp_path_factory.mktemp("traced") / "runs"
    shutil.copytree(trained, copy)
    return copy


@pytest.fixture(scope="module")
def traced(traced_runs: Path, saved: Path) -> StepTrace:
    return trace.trace(traced_runs, "base", 81, save_gradients=saved)


def test_the_traced_step_is_the_recorded_step(traced: StepTrace) -> None:
    assert traced.exact is True


def test_events_come_in_the_order_of_the_step(traced: StepTrace) -> None:
    events = [e for e in traced.events if e.phase != "update"]
    names = [e.name for e in events]
    forward = [f"layers.{i}.{k} forward" for i in range(2) for k in ("attn", "mlp")]
    backward = [name.replace("forward", "backward") for name in reversed(forward)]
    assert names == [*forward, "loss", *backward, "clipping", "next batch"]
    # two micro-batches share an event, which starts with the first of them
    timed = [e for e in traced.events if e.seconds is not None]
    starts = [e.start for e in timed]
    assert starts[:4] == sorted(starts[:4]) and starts[-1] == max(starts)
    assert all(e.seconds > 0 for e in timed)


def test_what_no_clock_measured_by_itself_has_no_time(traced: StepTrace, base: Run) -> None:
    """One call updates all tensors: equal slices of it would be a guess drawn as a measurement."""
    timed = {e.name for e in traced.events if e.seconds is not None}
    assert {e.name for e in traced.events if e.phase == "update"} - timed == {
        f"{tensor} update" for tensor in parameter_shapes(base.shape)
    }
    assert "update" in timed and not {"clipping", "next batch"} & timed
    assert all((e.start is None) == (e.seconds is None) for e in traced.events)


def test_every_event_has_finite_numbers_beside_a_baseline(traced: StepTrace) -> None:
    for event in traced.events:
        assert bool(event.values) == (event.name != "update")  # whose numbers are by tensor
        assert set(event.values) <= set(event.baseline)
        for name, value in event.values.items():
            if value is not None and event.baseline[name]:
                assert math.isfinite(value)
    ratios = [row.ratio for row in traced.largest]
    assert ratios == sorted(ratios, reverse=True) and len(ratios) > 20


def test_the_numbers_are_the_recorders_own(traced: StepTrace, traced_runs: Path) -> None:
    from replay.lineage import open_trajectory

    run = open_trajectory(traced_runs, "base")
    rows = [r for r in run.table("tensors").to_pylist() if r["step"] == 81]
    updates = {
        e.name.removesuffix(" update"): e.values for e in traced.events if e.phase == "update"
    }  # the timed event of them all has no numbers
    for row in rows:
        for column in ("grad_norm", "rms_t", "staleness", "update_ratio"):
            assert updates[row["tensor"]][column] == pytest.approx(row[column], rel=1e-6)
    heads = [r for r in run.table("heads").to_pylist() if r["step"] == 81 and r["layer"] == 1]
    attention = next(e for e in traced.events if e.name == "layers.1.attn forward").values
    assert attention["attn_logit_max"] == pytest.approx(
        max(r["attn_logit_max"] for r in heads), rel=1e-6
    )
    step = next(r for r in run.table("steps").to_pylist() if r["step"] == 81)
    assert next(e for e in traced.events if e.name == "loss").values["loss"] == step["loss"]
    following = next(r for r in run.table("steps").to_pylist() if r["step"] == 82)
    assert traced.events[-1].values["loss"] == pytest.approx(following["loss"], rel=1e-6)


def test_the_worst_tokens_are_the_worst(traced: StepTrace) -> None:
    worst = next(e for e in traced.events if e.phase == "loss").detail
    losses = [token.loss for token in worst]
    assert len(worst) == trace_events.WORST_TOKENS and losses == sorted(losses, reverse=True)


def test_memory_and_data_add_up_to_the_update(base: Run) -> None:
    before = base.state_at(80)
    after = before.clone()
    base.replay(after, 81)
    found = update_split.split_update(
        before, after, base.policy(before.counters), base.model, base.stream
    )
    assert before.digest() == base.state_at(80).digest()
    for name, theta in found.moved(1, 1).items():
        torch.testing.assert_close(theta, after.params[name], rtol=0, atol=1e-6)
    # with betas (0.9, 0.95) and a gradient of 0, the moments alone would have moved it by
    # −lr·m̂'/(√v̂'+ε), and decay
    name, t, policy = (
        "layers.0.mlp.up.weight",
        before.counters.updates + 1,
        base.policy(before.counters),
    )
    m, v = before.exp_avg[name].double() * 0.9, before.exp_avg_sq[name].double() * 0.95
    step = (
        m / (1 - 0.9**t) / ((v / (1 - 0.95**t)).sqrt() + policy.eps)
        + policy.weight_decay * before.params[name].double()
    )
    torch.testing.assert_close(
        found.memory[name].double(), -policy.learning_rate * step, rtol=1e-3, atol=1e-7
    )


def test_the_line_scan_runs_through_both_states(traced: StepTrace) -> None:
    scan, blame = {row.alpha: row for row in traced.line_scan}, traced.layer_blame
    assert scan[1.0].batch - scan[0.0].batch == pytest.approx(blame.rise_batch, abs=1e-9)
    assert scan[1.0].probe - scan[0.0].probe == pytest.approx(blame.rise_probe, abs=1e-9)
    assert {effect.tensor for effect in blame.tensors} >= {
        "embed.weight",
        "unembed.weight",
        "layers.1.attn.q_proj.weight",
    }


def test_perfetto_gets_one_row_per_phase_and_plain_json(traced: StepTrace, tmp_path: Path) -> None:
    perfetto.write_perfetto(traced, tmp_path / "t.json")
    document = json.loads(
        (tmp_path / "t.json").read_text(), parse_constant=lambda x: pytest.fail(x)
    )
    spans = [e for e in document["traceEvents"] if e["ph"] == "X"]
    timed = [e for e in traced.events if e.seconds is not None]
    assert [e["name"] for e in spans] == [e.name for e in timed]
    assert {e["cat"] for e in spans} == {"forward", "loss", "backward", "update"}
    rows = [e["args"]["name"] for e in document["traceEvents"] if e["name"] == "thread_name"]
    assert rows == ["forward", "loss", "backward", "clip", "update", "next"]
    assert all(e["dur"] > 0 and e["ts"] >= 0 for e in spans)
    # the numbers of what has no time of its own stand with the update, which has
    update = next(e for e in spans if e["name"] == "update")["args"]
    assert {"clipping: grad_norm", "next batch: loss", "embed.weight update: rms_t"} <= set(update)


def test_a_kept_trace_is_the_trace_and_one_of_another_version_a_clear_error(
    traced: StepTrace, traced_runs: Path
) -> None:
    path = artifacts.trace_of(traced_runs / "base", 81)
    assert StepTrace.read(path) == traced
    with pytest.raises(ForensicsError, match="wanted a trace of version 2, found version 0"):
        StepTrace.from_document(traced.to_document() | {"version": 0}, path.name)


@pytest.mark.parametrize("step", [0, 100, 500])
def test_a_step_without_one_before_it_is_refused(step: int, traced_runs: Path) -> None:
    with pytest.raises(ForensicsError, match="one before it"):
        trace.trace(traced_runs, "base", step)


@pytest.mark.parametrize("minimum", [False, True])
def test_a_nan_of_any_micro_batch_stays_one(minimum):
    """min and max would pass over it, and the first place that broke with it."""
    for order in ((1.0, math.nan, 2.0), (math.nan, 1.0), (1.0, math.nan)):
        values = {}
        for value in order:
            step_watch.merge_extreme(values, "x", value, minimum)
        assert math.isnan(values["x"]), order
    values = {}
    for value in (1.0, math.inf, -2.0):
        step_watch.merge_extreme(values, "x", value, minimum)
    assert values["x"] == (-2.0 if minimum else math.inf)


# ---- as the run ran


@dataclass
class FakeEvent:
    """An event of a device whose time goes on by 5 ms with each."""

    now: ClassVar[float] = 0.0
    at: float = -1.0
    waited: bool = False

    def record(self) -> None:
        FakeEvent.now += 5.0
        self.at = FakeEvent.now

    def synchronize(self) -> None:
        self.waited = True

    def elapsed_time(self, later: FakeEvent) -> float:
        assert later.waited, "the device has passed it"
        return later.at - self.at


def test_a_gpu_is_timed_by_its_own_events_and_a_cpu_by_the_hosts_clock() -> None:
    assert isinstance(step_clock.clock_for("cpu"), step_clock.HostClock)
    assert isinstance(step_clock.clock_for("cuda"), step_clock.DeviceClock)
    marks = step_clock.Marks(step_clock.DeviceClock(FakeEvent))
    for label in (None, "a", "b", None, "a", None):
        marks.mark(label)
    spans = marks.spans()
    assert set(spans) == {"a", "b"}
    assert spans["a"] == pytest.approx((0.005, 0.010)) and spans["b"] == pytest.approx(
        (0.010, 0.005)
    )


def test_the_timed_pass_takes_no_tensor_and_leads_to_the_same_state(base: Run) -> None:
    assert step_clock.TimedWatch.wants == frozenset()
    state = base.state_at(80)
    timed = state.clone()
    base.replay(state, 81)
    spans = trace._timed(base, timed)
    assert timed.digest() == state.digest()
    assert [name for name in spans if "forward" in name] == [
        f"layers.{i}.{kind} forward" for i in range(2) for kind in ("attn", "mlp")
    ]
    assert spans["update"].start == max(span.start for span in spans.values())


class Blocks:
    """Stands for the compiler: the same block, its calls counted."""

    calls = 0

    def __init__(self, block: Callable[..., Any]) -> None:
        self.block = block

    def __call__(self, *inputs: Any) -> Any:
        Blocks.calls += 1
        return self.block(*inputs)


SMALL: dict[str, Any] = {
    "data": {"source": "stdlib/json", "tokenizer": "bytes", "sequence_length": 32, "held_out": 2},
    "model": {"layers": 2, "width": 16, "heads": 2},
    "train": {"steps": 4, "batch": 4, "micro_batch": 2, "threads": 1, "warmup": 1},
    "checkpoint": {"every": 0},
}


@pytest.mark.parametrize("way", ["compile", "checkpoint_activations"])
def test_a_compiled_or_recomputing_run_is_traced_as_it_ran_block_by_block(
    way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its sub-layers are no longer there to be watched one by one; to run it eagerly would be
    another step, and other bits.
    """
    monkeypatch.setattr(decoder, "_compiled", Blocks)
    recipe = config.from_dict(SMALL | {"train": SMALL["train"] | {way: True}})
    train(recipe, name="small", recipe_name="test", runs=tmp_path)
    Blocks.calls = 0
    found = trace.trace(tmp_path, "small", 2)
    assert found.exact is True and found.grain == "block"
    assert (found.compiled, found.recomputed) == (way == "compile", way != "compile")
    layers = [f"layers.{i}.block" for i in range(2)]
    names = [e.name for e in found.events if e.phase in ("forward", "loss", "backward")]
    backward = [f"{name} backward" for name in reversed(layers)]
    assert names == [*(f"{name} forward" for name in layers), "loss", *backward]
    assert all(e.seconds for e in found.events if e.phase in ("forward", "loss", "backward"))
    assert all(e.values["grad_rms"] for e in found.events if e.phase == "backward")
    if way == "compile":
        passes, micro_batches = 4, 2  # of two steps, counted and timed
        assert Blocks.calls >= passes * micro_batches * len(layers), "the run's own graphs"


# ---- the raw tensors


def test_the_saved_gradients_are_the_steps_own(traced: StepTrace, saved: Path, base: Run) -> None:
    gradients = load_file(saved / "gradients.safetensors")
    assert set(gradients) == set(parameter_shapes(base.shape)) and traced.saved == str(saved)
    recorded = {r["tensor"]: r for r in base.table("tensors").to_pylist() if r["step"] == 81}
    index = json.loads((saved / "index.json").read_text())
    for name, gradient in gradients.items():
        norm = float(gradient.double().norm())
        assert norm == pytest.approx(recorded[name]["grad_norm"], rel=1e-6)
        entry = index["gradients"][name]
        assert entry["norm"] == pytest.approx(norm) and entry["shape"] == list(gradient.shape)
    step = base.table("steps").to_pylist()[81]
    together = math.sqrt(sum(float(x.double().square().sum()) for x in gradients.values()))
    assert together == pytest.approx(step["grad_norm"], rel=1e-6) == index["grad_norm"]
    assert (index["run"], index["step"], index["loss"]) == ("base", 81, step["loss"])


def test_the_saved_activations_are_whole_and_have_the_recorded_norms(
    traced: StepTrace, saved: Path, base: Run
) -> None:
    activations = load_file(saved / "activations.safetensors")
    B, T, D, H = 8, 32, 32, 2
    assert activations["layers.0.resid_in"].shape == (B, T, D)
    assert activations["layers.1.q"].shape == (B, H, T, D // H)
    layers = [r for r in base.table("layers").to_pylist() if r["step"] == 81]
    for row in layers:
        for column in ("resid_in", "resid_out", "attn_out", "mlp_out", "resid_grad"):
            x = activations[f"layers.{row['layer']}.{column}"]
            if row.get(f"{column}_rms") is not None:
                rms = float(x.double().square().mean().sqrt())
                assert rms == pytest.approx(row[f"{column}_rms"], rel=1e-5)
    index = json.loads((saved / "index.json").read_text())
    assert set(index["activations"]) == set(activations)


def test_a_folder_that_is_there_is_refused_before_anything_runs_and_left_alone(
    traced_runs: Path, tmp_path: Path
) -> None:
    there = tmp_path / "there"
    there.mkdir()
    with pytest.raises(ForensicsError, match="not there yet"):
        trace.trace(traced_runs, "base", 81, save_gradients=there)
    assert not any(there.iterdir())


def test_a_write_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = saved_tensors.SavedTensors()
    kept.take_gradients({"w": torch.ones(2)}, {"w": math.sqrt(2)})

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(ForensicsError, match="No space left"):
        kept.write(tmp_path / "dest", {})
    assert not any(tmp_path.iterdir())


# ---- the conclusion


def blame(rise: float, memory: float, data: float, **alone: tuple[float, float]) -> LayerBlame:
    """An update by its parts, and by tensor what it does alone and all others without it."""
    effects = tuple(
        TensorEffect(name, None, x, None, without, None) for name, (x, without) in alone.items()
    )
    return LayerBlame(rise, None, memory, None, data, None, effects)


ORDINARY = [0.1, -0.1] * 20  # differences of two steps: 0.148 of them is one scale


@pytest.mark.parametrize(
    ("rise", "parts", "verdict", "part", "tensor"),
    [
        (
            1.0,
            blame(0.9, 0.1, 0.8, embed=(0.7, 0.1), norm=(0.1, 0.8)),
            "update",
            "gradient",
            "embed",
        ),
        (1.0, blame(0.9, 0.8, 0.1, embed=(0.7, 0.8)), "update", "moments", None),
        (1.0, blame(0.9, 0.6, 0.6), "update", "both", None),
        (1.0, blame(0.2, 0.1, 0.1), "not the update", None, None),
        (1.0, blame(-0.2, 0.1, -0.3), "not the update", None, None),
        (0.2, blame(0.2, 0.0, 0.2), "no rise", None, None),
        (-1.0, blame(-1.0, 0.0, -1.0), "no rise", None, None),
        (math.inf, blame(0.3, 0.0, 0.3), "not finite", None, None),
        (1.0, blame(math.nan, 0.0, 0.3), "not finite", None, None),
    ],
)
def test_the_conclusion_names_the_part_of_the_update_that_carries_the_rise_or_says_it_is_not_its(
    rise: float, parts: LayerBlame, verdict: str, part: str | None, tensor: str | None
) -> None:
    found = trace_conclusion.conclude(2.0, 2.0 + rise, ORDINARY, parts)
    assert (found.verdict, found.part, found.tensor) == (verdict, part, tensor)


def test_a_step_that_stands_among_the_usual_differences_of_two_steps_is_no_rise(
    traced: StepTrace,
) -> None:
    """Batch 81 is damaged, but as far above batch 80 as ordinary batches are from one another."""
    assert traced.conclusion.verdict == "no rise"
    said = trace_conclusion.sentence(traced)
    assert said.startswith("No rise beyond the usual: the loss of step 81 stands +0.265 nats/token")


def test_the_usual_difference_of_two_steps_is_of_the_128_before_along_the_lineage(
    base: Run,
) -> None:
    losses = base.table("steps", ["step", "loss"]).to_pydict()["loss"]
    found = trace_conclusion.recorded_differences(base, 81)
    assert found == pytest.approx(np.diff(losses[:81]).tolist())
