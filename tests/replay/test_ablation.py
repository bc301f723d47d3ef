"""`forensics ablate`: what differs is listed, taken over one at a time, and judged honestly."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from forensics import config
from forensics.errors import ForensicsError
from forensics.store import reader
from replay.experiments import ablation, ablation_result
from replay.experiments.ablation import ablate, changes_of, differences, explicit, plan
from replay.experiments.ablation_result import AblationArm, AblationResult, effects_of

TINY = """
[data]
source = "stdlib/json"
tokenizer = "bytes"
sequence_length = 32
held_out = 4
[model]
family = "llama"
layers = 1
width = 16
heads = 2
[train]
steps = 12
batch = 2
warmup = 2
threads = 1
schedule = "constant"
[checkpoint]
every = 0
"""


@pytest.fixture(scope="module")
def recipes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recipes")
    (folder / "a.toml").write_text(TINY)
    b = TINY.replace('"llama"', '"olmo2"').replace("steps = 12", "steps = 20\neps = 1e-6")
    (folder / "b.toml").write_text(b)
    return folder


@pytest.fixture(scope="module")
def finished(recipes, tmp_path_factory):
    runs = tmp_path_factory.mktemp("runs")
    return runs, ablate(runs, recipes / "a.toml", recipes / "b.toml", steps=8)


def test_a_family_is_taken_apart_into_its_knobs(recipes):
    a, b = (explicit(config.load(recipes / name)) for name in ("a.toml", "b.toml"))
    listed = {d.key: (d.a, d.b, bool(d.not_varied)) for d in differences(a, b)}
    assert listed == {
        "model.norm": ("pre", "post", False),
        "model.norm_eps": (1e-5, 1e-6, False),
        "model.qk_norm": ("none", "whole", False),
        "model.rope_theta": (1e4, 5e5, False),
        "train.eps": (1e-8, 1e-6, False),
        "train.steps": (12, 20, True),
    }


def test_keys_that_make_no_sense_apart_travel_together():
    a = explicit(config.load("demo-quick"))
    b = json.loads(json.dumps(a))
    b["data"]["sources"] = {"clean": "stdlib"}
    b["data"]["phases"] = []
    b["train"]["clip"] = 1.0
    assert {change.keys for change in changes_of(differences(a, b))} == {
        ("data.phases", "data.sources"),
        ("train.clip",),
    }


def test_arms_are_a_then_each_difference_then_b(finished):
    _, result = finished
    assert [arm.changed for arm in result.arms] == [
        (),
        ("model.norm",),
        ("model.norm_eps",),
        ("model.qk_norm",),
        ("model.rope_theta",),
        ("train.eps",),
        ("model.norm", "model.norm_eps", "model.qk_norm", "model.rope_theta", "train.eps"),
    ]
    assert result.steps == 8 and all(arm.diverged is False for arm in result.arms)


def test_each_arm_is_a_run_with_exactly_these_keys_of_b(finished, recipes):
    runs, result = finished
    a, b = (explicit(config.load(recipes / name)) for name in ("a.toml", "b.toml"))
    for arm in result.arms:
        trained = json.loads((runs / arm.run / "run.json").read_text())["config"]
        wanted = json.loads(json.dumps(a))
        wanted["train"]["steps"] = 8
        for key in arm.changed:
            section, name = key.split(".")
            wanted[section][name] = b[section][name]
        assert trained == wanted
        losses = reader.read(runs / arm.run, "steps", ["loss"])["loss"].to_pylist()
        assert arm.final_loss == pytest.approx(np.mean(losses[-10:]), abs=1e-12)


def test_finished_arms_are_not_trained_again(finished, recipes, monkeypatch):
    runs, result = finished
    monkeypatch.setattr("forensics.train.loop.train", lambda *a, **k: pytest.fail("trained"))
    again = ablate(runs, recipes / "a.toml", recipes / "b.toml", steps=8)
    assert again == result
    kept = sorted((runs / result.arms[0].run).glob("ablation-*.json"))
    assert AblationResult.read(kept[0]) == result


def test_a_dry_run_names_the_runs_and_trains_none(finished, recipes, tmp_path):
    _, result = finished
    planned = plan(tmp_path, recipes / "a.toml", recipes / "b.toml", steps=8)
    assert [arm.run for arm in planned.arms] == [arm.run for arm in result.arms]
    assert not list(tmp_path.iterdir())


def test_pairs_take_two_over(recipes, tmp_path):
    planned = plan(tmp_path, recipes / "a.toml", recipes / "b.toml", pairs=True, seeds=2)
    sizes = [len(arm.changed) for arm in planned.arms if arm.seed == 0]
    assert sizes == [0, *[1] * 5, *[2] * 10, 5]
    assert len(planned.arms) == 2 * len(sizes)


def test_a_change_without_effect_alone_is_said_and_not_trained(tmp_path):
    for name, text in (("a", ""), ("b", "weight_decay = 0.0\ndecay_embeddings = false\n")):
        (tmp_path / f"{name}.toml").write_text(TINY.replace("warmup", f"{text}warmup"))
    planned = plan(tmp_path / "runs", tmp_path / "a.toml", tmp_path / "b.toml")
    assert [(arm.changed, bool(arm.refused)) for arm in planned.arms] == [
        ((), False),
        (("train.decay_embeddings",), False),
        (("train.weight_decay",), False),
        (("train.decay_embeddings", "train.weight_decay"), False),
    ]
    (tmp_path / "a.toml").write_text(TINY.replace("warmup", "weight_decay = 0.0\nwarmup"))
    (tmp_path / "b.toml").write_text(
        TINY.replace("warmup", "weight_decay = 0.0\ndecay_embeddings = false\nclip = 2.0\nwarmup")
    )
    planned = plan(tmp_path / "runs", tmp_path / "a.toml", tmp_path / "b.toml")
    assert [arm.refused for arm in planned.arms if arm.refused] == [
        "train.decay_embeddings has no effect alone: train.weight_decay = 0 decays nothing"
    ]


def test_two_equal_recipes_are_refused(recipes, tmp_path):
    (tmp_path / "c.toml").write_text(TINY.replace("steps = 12", "steps = 13"))
    with pytest.raises(ForensicsError, match=r"a and c equal but for train.steps"):
        ablate(tmp_path, recipes / "a.toml", tmp_path / "c.toml")


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        ([5.0] * 10 + [4.0] * 20, False),
        ([5.0] * 10 + [4.0] * 10 + [5.01] * 10, True),
        ([5.0] * 10 + [4.0] * 10 + [4.99] * 10, False),
        ([5.0] * 20 + [math.nan], True),
        ([5.0, math.inf, *[4.0] * 20], False),
    ],
)
def test_a_run_diverged_where_it_ends_a_nat_above_its_lowest(losses, expected):
    assert ablation.diverged(np.array(losses)) is expected


def arm(changed: tuple[str, ...], seed: int, loss: float) -> AblationArm:
    return AblationArm(changed, seed, "r", None, None, None, loss, None, False, "")


def test_one_seed_shows_no_p():
    effects = effects_of([arm((), 0, 1.0), arm(("x",), 0, 2.0)])
    assert [(e.median, e.p, e.least_p) for e in effects] == [(1.0, None, None)]


def test_one_change_over_five_seeds_is_judged_by_all_signs():
    arms = [arm((), s, 1.0 + s) for s in range(5)] + [arm(("x",), s, 1.5 + s) for s in range(5)]
    (effect,) = effects_of(arms)
    assert (effect.median, effect.p, effect.least_p) == (0.5, 2 / 32, 2 / 32)
    assert effect.finding == "not shown"


def test_six_seeds_that_agree_show_one_change_and_say_so():
    arms = [arm((), s, 1.0 + s) for s in range(6)] + [arm(("x",), s, 1.5 + s) for s in range(6)]
    (effect,) = effects_of(arms)
    assert (effect.p, effect.finding) == (2 / 64, "shown")


def test_what_two_changes_do_beyond_their_sum():
    losses = {(): 1.0, ("x",): 1.25, ("y",): 1.5, ("x", "y"): 3.0}
    effects = {
        e.changed: e.beyond_sum for e in effects_of([arm(c, 0, v) for c, v in losses.items()])
    }
    assert effects == {("x",): None, ("y",): None, ("x", "y"): 3.0 - 1.0 - 0.25 - 0.5}


def test_p_of_changes_that_do_nothing_is_not_small_too_often():
    """Six arms that are draws of one skewed distribution, three seeds: the least p of the five."""
    random = np.random.default_rng(7)
    alarms = 0
    for _ in range(200):
        values = random.exponential(size=(3, 6))
        arms = [
            arm((f"k{c}",) if c else (), s, float(values[s, c])) for s in range(3) for c in range(6)
        ]
        alarms += min(e.p for e in effects_of(arms) if e.p is not None) <= 0.05
    assert alarms <= 18  # 5 % of 200 is 10; P(more than 18) is 0.5 %


def test_a_loss_that_is_not_finite_takes_its_seed_out_of_the_effect(monkeypatch):
    monkeypatch.setattr(ablation_result, "SHUFFLES", 100)
    arms = [arm((), s, 1.0) for s in range(2)] + [arm(("x",), 0, math.nan), arm(("x",), 1, 2.0)]
    (effect,) = effects_of(arms)
    assert (effect.seeds, effect.median, effect.p) == (1, 1.0, None)
