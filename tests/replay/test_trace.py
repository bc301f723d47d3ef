"""The microscope: the traced step is the step, its events are in order, and the update's parts add
up.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from forensics.errors import ForensicsError
from forensics.train.run import Run
from replay.step import artifacts, perfetto, step_watch, trace, trace_events, update_split
from replay.step.result import StepTrace


@pytest.fixture(scope="module")
def traced(trained: Path) -> StepTrace:
    return trace.trace(trained, "base", 81)


def test_the_traced_step_is_the_recorded_step(traced: StepTrace) -> None:
    assert traced.exact is True


def test_events_come_in_the_order_of_the_step(traced: StepTrace) -> None:
    events = [e for e in traced.events if e.phase != "update"]
    names = [e.name for e in events]
    forward = [f"layers.{i}.{k} forward" for i in range(2) for k in ("attn", "mlp")]
    backward = [name.replace("forward", "backward") for name in reversed(forward)]
    assert names == [*forward, "loss", *backward, "clipping", "next batch"]
    # two micro-batches share an event, which starts with the first of them
    starts = [e.start for e in events]
    assert starts[:4] == sorted(starts[:4]) and starts[-1] == max(starts)
    assert all(e.seconds >= 0 for e in traced.events)


def test_every_event_has_finite_numbers_beside_a_baseline(traced: StepTrace) -> None:
    for event in traced.events:
        assert event.values and set(event.values) <= set(event.baseline)
        for name, value in event.values.items():
            if value is not None and event.baseline[name]:
                assert math.isfinite(value)
    ratios = [row.ratio for row in traced.largest]
    assert ratios == sorted(ratios, reverse=True) and len(ratios) > 20


def test_the_numbers_are_the_recorders_own(traced: StepTrace, trained: Path) -> None:
    from replay.lineage import open_trajectory

    run = open_trajectory(trained, "base")
    rows = [r for r in run.table("tensors").to_pylist() if r["step"] == 81]
    updates = {
        e.name.removesuffix(" update"): e.values for e in traced.events if e.phase == "update"
    }
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
    assert len(spans) == len(traced.events) and {e["cat"] for e in spans} == {
        "forward",
        "loss",
        "backward",
        "clip",
        "update",
        "next",
    }
    assert all(e["dur"] > 0 and e["ts"] >= 0 for e in spans)


def test_a_kept_trace_is_the_trace_and_one_of_another_version_a_clear_error(
    traced: StepTrace, trained: Path
) -> None:
    path = artifacts.trace_of(trained / "base", 81)
    assert StepTrace.read(path) == traced
    with pytest.raises(ForensicsError, match="wanted a trace of version 1, found version 0"):
        StepTrace.from_document(traced.to_document() | {"version": 0}, path.name)


@pytest.mark.parametrize("step", [0, 100, 500])
def test_a_step_without_one_before_it_is_refused(step: int, trained: Path) -> None:
    with pytest.raises(ForensicsError, match="one before it"):
        trace.trace(trained, "base", step)


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
