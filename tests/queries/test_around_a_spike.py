"""Golden results of the queries that the Spikes page reads: bands, first alarms, heat, the spread
of the excess.
"""

import math

import numpy as np
import pytest

from forensics.detect.spikes import band_at, robust
from forensics.store.writer import Writer
from queries import run
from tests.queries.conftest import begin


def rows(runs, name, **parameters):
    return run(runs, name, parameters).to_pylist()


def test_the_first_alarm_is_the_head_that_stays_out_and_not_the_tensor_that_came_back(runs):
    result = rows(runs, "first_alarms", run="base", step=150)
    head = next(row for row in result if row["kind"] == "head")
    assert (head["layer"], head["head"], head["step"], head["lead"], head["drifting"]) == (
        1,
        0,
        146,
        4,
        False,
    )
    assert (head["value"], head["baseline"]) == (20.0, 11.5)
    assert head["z"] == pytest.approx((20.0 - 11.5) / (1.4826 * 0.5))
    assert result[0] is head or result[0]["lead"] >= head["lead"]
    # w stood at 3.0 for one step alone, 147: two in a row are an alarm
    assert not [row for row in result if row["tensor"] == "w" and row["statistic"] == "rms_t"]
    assert {row["statistic"]: row["lead"] for row in result if row["kind"] == "step"} == {
        "loss": 0,
        "grad_norm": 0,
    }


def excursion(folder, outside):
    """A run of 200 steps whose one head is at 50 on the steps `outside`, else at 10 or 11."""
    folder.mkdir(parents=True)
    (folder / "run.json").write_text("{}")
    with Writer(folder) as writer:
        writer.append("runs", name=folder.name)
        steps = list(range(200))
        writer.append("steps", step=steps, loss=2.0, grad_norm=1.0)
        values = [50.0 if s in outside else 10.0 + s % 2 for s in steps]
        writer.append("heads", step=steps, layer=0, head=0, attn_logit_max=values)
    return folder.parent


@pytest.mark.parametrize(
    ("outside", "lead", "drifting"),
    [
        (range(170, 190), 10, False),
        (range(150, 155), None, None),  # back for 25 steps: another event
        ([*range(160, 165), *range(170, 190)], 20, False),  # a gap of 6 steps is one excursion
        ([*range(150, 155), *range(170, 190)], 10, False),  # one of 16 is two
        ([170], None, None),  # one step alone
        ([180], 0, False),  # the spike's own step counts alone
        (range(110, 190), 64, True),  # out since before the watch begins
    ],
)
def test_an_excursion_is_that_which_lasts_until_the_spike(tmp_path, outside, lead, drifting):
    result = rows(
        excursion(tmp_path / "runs" / "r", set(outside)), "first_alarms", run="r", step=180
    )
    assert [(row["lead"], row["drifting"]) for row in result if row["kind"] == "head"] == (
        [] if lead is None else [(lead, drifting)]
    )


def test_heat_is_the_z_against_the_row_s_own_past_in_steps_of_3_6_10_20_40(runs):
    cells = {
        (row["step"], row["layer"]): row for row in rows(runs, "layer_heat", run="base", step=150)
    }
    hot = cells[146, 1]
    assert (hot["head"], hot["value"], hot["baseline"]) == (0, 20.0, 11.5)
    assert hot["z"] == pytest.approx(8.5 / (1.4826 * 0.5)) and hot["level"] == 3
    assert (hot["offset"], hot["offset2"]) == (-4.5, -3.5)
    assert cells[145, 1]["level"] == 0 and cells[150, 1]["level"] == 5
    assert min(s for s, _ in cells) == 86 and max(s for s, _ in cells) == 182


def test_heads_of_a_layer_and_the_tensors_that_moved_first(runs):
    heads = rows(runs, "head_heat", run="base", step=150, layer=1)
    assert {row["head"] for row in heads} == {0, 1}
    assert max(abs(row["level"]) for row in heads if row["head"] == 1) == 0
    tensors = rows(runs, "tensor_heat", run="base", step=150, top=2)
    assert {row["tensor"] for row in tensors if row["place"] == 1} == {"w"}
    assert (
        next(
            row
            for row in tensors
            if row["step"] == 147 and row["statistic"] == "rms_t" and row["tensor"] == "w"
        )["level"]
        == 4
    )


@pytest.mark.parametrize("slope", [0.02, 0.1])
def test_a_drift_since_the_start_is_no_first_mover(tmp_path, slope):
    noise = np.random.default_rng(0).normal(0, 0.3, 400)
    for name, jump in (("drifts", 0.0), ("jumps", 80.0)):
        folder = begin(tmp_path / "runs", name)
        values = 5 + slope * np.arange(400) + noise
        values[340:] += jump
        with Writer(folder) as writer:
            steps = list(range(400))
            writer.append("steps", step=steps, loss=2.0, grad_norm=1.0)
            writer.append("heads", step=steps, layer=0, head=0, attn_logit_max=values.tolist())
    runs = tmp_path / "runs"
    for step in (200, 250, 300, 350):  # wherever one looks, the drift alone has moved nothing
        found = rows(runs, "first_alarms", run="drifts", step=step)
        assert [row["step"] for row in found if not row["drifting"]] == []
    (head,) = rows(runs, "first_to_move", run="jumps", step=350)
    assert (head["moved_at"], head["kind"]) == (340, "head")


def test_the_excess_of_a_batch_by_sequence(runs):
    result = rows(runs, "excess_by_sequence", run="base", step=150)
    assert [row["slot"] for row in result] == [2, 3, 1, 0]
    assert result[0]["baseline"] == pytest.approx(3.005)
    assert result[0]["excess"] == pytest.approx((9.0 - 3.005) * 8, rel=1e-6)
    assert sum(row["share"] for row in result) == pytest.approx(1)
    assert [row["apart"] for row in result] == [True, False, False, False]
    assert result[0]["batch_excess"] == pytest.approx((3.0 + 3.1 + 9.0 + 3.3) / 4 - 3.005, rel=1e-6)


def test_the_baseline_of_a_step_is_the_band_that_the_detector_judges_it_by(tmp_path):
    losses = 9 * np.exp(-np.arange(300) / 80) + np.random.default_rng(0).normal(0, 0.05, 300)
    losses[200] += 3.0
    folder = begin(tmp_path / "runs", "r")
    with Writer(folder) as writer:
        writer.append("steps", step=list(range(300)), loss=losses.tolist())
        writer.append("sequences", step=list(range(300)), slot=0, sequence=0, loss=9.0, weight=1.0)
        (spike,) = robust(losses)
        writer.append(
            "events",
            step=200,
            kind="spike",
            metric="loss",
            baseline=spike.baseline,
            onset=200,
            recovered_at=201,
        )
    steps = list(range(300))
    for step in (17, 40, 100, 200, 201, 230, 299):
        (row,) = rows(tmp_path / "runs", "excess_by_sequence", run="r", step=step)
        expected = band_at(step, losses, steps=steps)
        assert expected is not None
        assert row["baseline"] == pytest.approx(expected.centre, rel=1e-12), step
    assert rows(tmp_path / "runs", "excess_by_sequence", run="r", step=16)[0]["baseline"] is None


def test_bands_keep_the_largest_and_the_smallest(runs):
    for name in ("loss_band", "loss_band_by100"):
        band = rows(runs, name, run="base", every=100)
        assert [(row["step"], row["step2"], row["low"], row["high"]) for row in band] == [
            (0, 100, 3.0, 3.01),
            (100, 200, 3.0, 6.0),
        ]
        assert math.isclose(band[0]["mean"], 3.005, abs_tol=1e-3)
    fork = rows(runs, "loss_band", run="fork", every=10)
    assert [row["high"] for row in fork if row["step"] >= 140] == [2.5, 2.5]
    assert [
        (row["step"], row["low"]) for row in rows(runs, "loss_band_by100", run="fork", every=100)
    ] == [
        (0, 3.0),
        (100, 2.5),
    ]


def test_sequences_apart_stand_out_of_the_cloud_before(runs):
    dots = rows(runs, "sequences_around", run="base", step=150, before=20, after=2)
    assert [(dot["step"], dot["slot"]) for dot in dots if dot["apart"]] == [(150, 2)]
    assert len(dots) == 23 * 4
    (middle,) = rows(runs, "steps_around", run="base", step=150, before=0, after=0)
    assert (middle["offset"], middle["loss"]) == (0, 6.0)


def test_health_and_marks_of_all_runs(runs):
    health = {row["run"]: row for row in rows(runs, "run_health")}
    assert (
        health["base"]["loss_spikes"],
        health["base"]["nonfinite"],
        health["base"]["notes"],
    ) == (1, 1, 1)
    assert (health["fork"]["loss_spikes"], health["fork"]["control_bitwise"]) == (0, True)
    assert [
        (mark["step"], mark["kind"]) for mark in rows(runs, "run_marks") if mark["run"] == "base"
    ] == [
        (150, "fast"),
        (180, "nonfinite"),
    ]
