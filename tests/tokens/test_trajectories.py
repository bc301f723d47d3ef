"""Indicators over checkpoints beside exposure: when a token left the band of never-seen ones, and
what is forecast.
"""

from __future__ import annotations

import numpy as np
import pytest

from forensics.data.planted import PLANTED
from forensics.errors import ForensicsError
from forensics.tokens import trajectories as module
from forensics.tokens.exposure import ledger
from forensics.tokens.trajectories import (
    band,
    exposure_needed,
    hindsight,
    story_of,
    trained_at,
    trajectories,
)
from forensics.tokens.vocabulary import vocabulary
from forensics.train.run import Run

NEVER = 10


def history_of(need: np.ndarray, rate: np.ndarray, steps: list[int]) -> module.History:
    """Tokens whose indicator leaves the band once they were seen `need` times, beside NEVER that
    never are.
    """
    found = []
    for step in steps:
        met = np.concatenate([(rate * step).astype(int), np.zeros(NEVER, int)])
        value = np.where(met[:-NEVER] >= need, 3.0, 1.0)
        found.append((step, np.concatenate([value, np.linspace(1.0, 2.0, NEVER)]), met))
    return found


@pytest.fixture
def history() -> module.History:
    rate = np.array([10, 5, 2, 1, 0.5, 0.2, 0.1])
    return history_of(np.full(7, 20.0), rate, [0, 2, 5, 10, 20, 50, 100])


def bands(history: module.History) -> list[module.Band]:
    return [found for _, value, met in history if (found := band(value, met)) is not None]


def test_a_token_is_trained_at_the_checkpoint_from_which_it_stays_above_the_band(
    history: module.History,
) -> None:
    assert trained_at(history, bands(history)).tolist()[:7] == [2, 5, 10, 20, 50, 100, -1]
    history[3][1][0] = 1.5  # back in the band at 10
    assert trained_at(history, bands(history))[0] == 20
    history[-1][1][0] = 2.0  # as high as the band is not above it
    assert trained_at(history, bands(history))[0] == -1


def test_what_half_of_them_needed_lies_between_the_exposures_before_and_after(
    history: module.History,
) -> None:
    needed = exposure_needed(history, trained_at(history, bands(history)))
    assert needed is not None and needed["half"] is not None and 10 <= needed["half"] <= 25
    assert needed["quarter"] <= needed["half"] <= needed["three_quarters"]
    assert exposure_needed(history[:1], np.full(17, -1)) is None


def test_tokens_left_behind_are_forecast_from_their_rate(history: module.History) -> None:
    told = story_of(history, np.arange(17), np.arange(17) < 7, [str(i) for i in range(17)], 1000)
    (late,) = told["behind"]
    assert late["id"] == 6 and late["exposure"] == 10 and late["rate"] == pytest.approx(0.1)
    assert late["expected_at"] == np.ceil(100 + (told["needed"]["half"] - 10) / 0.1)
    assert late["expected_early"] <= late["expected_at"] <= late["expected_late"]
    assert told["trained_at"][1] == {"step": 2, "tokens": 1} and told["token_trained_at"][4] == 50
    assert (
        "6 of 7 tokens are trained" in told["sentence"]
        and "1 were seen and are not trained" in told["sentence"]
    )


def test_the_forecast_of_the_middle_is_held_against_what_came(history: module.History) -> None:
    found = hindsight(history, bands(history), trained_at(history, bands(history)))
    assert found == {
        "made_at": 10,
        "until": 100,
        "tokens": 4,
        "said_trained": 3,
        "said_and_came": 3,
        "said_not": 1,
        "said_not_and_came": 0,
    }


def test_without_never_seen_tokens_there_is_no_band_and_it_says_so(history: module.History) -> None:
    few = [(step, value[:-5], met[:-5]) for step, value, met in history]
    told = story_of(few, np.arange(12), np.ones(12, bool), [None] * 12, 100)
    assert told["bands"] is None and told["behind"] == [] and "cannot be told" in told["sentence"]


def test_a_runs_document_is_what_its_checkpoints_and_its_ledger_say(
    planted_run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = trajectories(planted_run, resamples=20)
    assert told["steps"] == planted_run.saved_steps() and told["indicator"] == "input-norm"
    last = told["over_time"][-1]
    assert [row["indicator"] for row in last["indicators"]] == [
        "cosine",
        "cosine-centred",
        "cosine-without-pc",
        "euclidean",
        "input-norm",
    ]
    assert told["over_time"][0]["indicators"][0]["spearman"] is None, "nothing was seen at state 0"
    never = next(
        s
        for row in last["indicators"]
        if row["indicator"] == "input-norm"
        for s in row["scores"]
        if s["exposure"] == 0
    )
    assert (
        never["auc"] > 0.8 and never["auc_interval"][0] <= never["auc"] <= never["auc_interval"][1]
    )
    ids = {word: planted_run.corpus.tokenizer.encode(f" {word}").ids[0] for word in PLANTED}
    assert (
        ids["kwizzerbolt"] in told["token_trained_at"]
        and ids["zorvexil"] not in told["token_trained_at"]
    )
    met = ledger(planted_run, planted_run.last_step())
    assert not set(told["reference"]["ids"]) & set(np.flatnonzero(met.exposure_in).tolist())
    rows = vocabulary(planted_run, told["steps"][-1]).to_pylist()
    norm = planted_run.load(told["steps"][-1]).params["embed.weight"].norm(dim=1)
    assert (
        rows[300]["indicator"] == pytest.approx(float(norm[300]))
        and rows[300]["exposure_in"] == met.exposure_in[300]
    )
    monkeypatch.setattr(module, "weights_of", lambda *_: pytest.fail("it was kept"))
    assert trajectories(planted_run, resamples=20) == told


def test_a_checkpoint_that_was_not_saved_is_refused(tiny_run: Run) -> None:
    with pytest.raises(ForensicsError, match="wanted a checkpoint of tiny at 7, found none"):
        trajectories(tiny_run, [0, 7])


def test_a_tied_run_is_judged_by_its_distance_to_unused_rows(train_run) -> None:
    told = trajectories(
        train_run("tied-over-time", **{"model.tied": True, "train.steps": 20}), resamples=5
    )
    assert told["indicator"] == "cosine" and told["reference"]["kind"] == "exposure"
    assert told["over_time"][-1]["indicators"][0]["scores"][0]["auc"] > 0.9
