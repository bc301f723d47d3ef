"""The page of ablations names only what is shown, and draws a dot per seed."""

from __future__ import annotations

import pytest

from app.views.ablations import page
from replay.experiments.ablation_result import (
    AblationArm,
    AblationResult,
    Difference,
    effects_of,
)
from replay.result_files import keep_result


def ablation(shift: float, seeds: int = 6) -> AblationResult:
    """x lowers the held-out loss by `shift` in every seed, y does nothing."""

    def arm(changed: tuple[str, ...], seed: int, held_out: float) -> AblationArm:
        return AblationArm(changed, seed, "base", None, None, None, None, held_out, False, "")

    arms = [
        arm(changed, seed, 3.0 + 0.01 * seed - down)
        for seed in range(seeds)
        for changed, down in (
            ((), 0.0),
            (("train.x",), shift),
            (("train.y",), 0.001 * (-1) ** seed),
            (("train.x", "train.y"), shift),
        )
    ]
    return AblationResult(
        a="plain",
        b="better",
        steps=200,
        seeds=seeds,
        pairs=False,
        differences=(
            Difference("train.x", 1, 2, ""),
            Difference("train.y", 1, 2, ""),
            Difference("train.seed", 0, 1, "--seeds varies it"),
        ),
        arms=tuple(arms),
        effects=tuple(effects_of(arms)),
        notes=("A note.",),
    )


def test_a_change_that_lowers_the_loss_in_six_seeds_is_named_and_the_other_is_not() -> None:
    result = ablation(0.2)
    assert page.title_of(result) == "Of the changes from plain to better, train.x make a difference"
    sentence = "".join(map(str, page.sentence_of(result)))
    assert "24 runs of 200 steps, 6 seeds of each" in sentence
    assert "train.x: held-out loss at the end -0.2 nats" in sentence and "train.y" not in sentence


def test_one_seed_shows_nothing_and_says_so() -> None:
    result = ablation(0.2, seeds=1)
    assert page.title_of(result) == (
        "No single change from plain to better is shown to make a difference"
    )
    assert "One seed shows no p" in "".join(map(str, page.sentence_of(result)))


@pytest.fixture
def runs(tmp_path, monkeypatch):
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "run.json").write_text('{"name": "base"}')
    monkeypatch.setenv("FORENSICS_RUNS", str(tmp_path))
    return tmp_path


def test_what_an_ablation_kept_is_found_in_its_first_run(runs) -> None:
    result = ablation(0.1, seeds=2)
    keep_result(runs / "base", "ablation", "key", result)
    assert [kept.content for kept in page.kept_ablations()] == [result]
