"""Fixing a token by replay: what it takes, held against placebos, and what it costs, from one
state.
"""

from __future__ import annotations

import json

import numpy as np
import pytest

from forensics.errors import ForensicsError
from forensics.train.run import Run
from replay.cli.main import main
from replay.experiments import token_boost as module
from replay.experiments.boost_plan import plan_arms, sequences_read
from replay.experiments.boost_result import BoostResult, effect_of
from replay.experiments.token_boost import boost
from replay.interventions.corpus_search import holding, token_counts
from tests.tokens.conftest import planted_run  # noqa: F401

TIMES, SEEDS = (1, 8), 2


@pytest.fixture(scope="module")
def token(planted_run: Run) -> int:
    (id,) = planted_run.corpus.tokenizer.encode(" zorvexil").ids
    return id


@pytest.fixture(scope="module")
def made(planted_run: Run, token: int) -> dict:
    return boost(
        planted_run.runs, planted_run.name, token, first=100, last=140, times=TIMES, seeds=SEEDS
    ).to_document()


def arms(document: dict, kind: str, times: int) -> list[dict]:
    return [arm for arm in document["arms"] if arm["arm"] == kind and arm["times"] == times]


def test_there_is_one_control_and_for_each_number_as_many_boosted_arms_and_placebos_as_seeds(
    made: dict,
) -> None:
    assert made["control"]["bitwise"] and made["control"]["level"] == "exact"
    assert len(arms(made, "unmodified", 0)) == 1
    assert all(len(arms(made, kind, n)) == SEEDS for kind in ("boosted", "placebo") for n in TIMES)
    assert [row["times"] for row in made["summary"]] == list(TIMES)


def test_a_token_that_was_never_seen_is_learnt_from_the_sequences_that_hold_it(made: dict) -> None:
    control = made["arms"][0]
    assert made["exposure_in"] == 0 and made["text"] == " zorvexil" and control["positions"] > 0
    few, many = made["summary"]
    assert many["boosted"]["loss"] < few["boosted"]["loss"] < control["loss"]
    assert many["boosted"]["p"] > control["p"] and many["boosted"]["value"] > control["value"]
    assert many["boosted"]["loss"] < many["placebo"]["loss"]
    assert many["takes"]["change"] == pytest.approx(control["loss"] - many["boosted"]["loss"])
    assert (
        many["takes"]["placebos"] == SEEDS
        and "too few placebos to tell" in many["takes"]["verdict"]
    )


def test_no_arm_trains_on_the_contexts_and_no_placebo_on_the_token(
    planted_run: Run,
    token: int,
) -> None:
    plan = plan_arms(planted_run, token, 100, 140, list(TIMES), SEEDS)
    holders = set(holding(planted_run, token).tolist())
    assert set(plan.contexts) <= holders and plan.contexts
    for arm in plan.arms[1:]:
        come = set(arm["intervention"]["sequences"])
        assert (
            not come & set(plan.contexts) and len(arm["intervention"]["sequences"]) == arm["times"]
        )
        assert come <= holders if arm["arm"] == "boosted" else not come & holders
        assert arm["other"] != token
    assert not set(plan.contexts) & set(sequences_read(planted_run, 140).tolist())


def test_finished_arms_are_kept_and_the_document_too(
    planted_run: Run,
    token: int,
    made: dict,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "arm_of", lambda task: pytest.fail("it was kept"))
    again = boost(
        planted_run.runs, planted_run.name, token, first=100, last=140, times=TIMES, seeds=SEEDS
    )
    assert again.to_document() == made
    assert BoostResult.from_document(made, "boost") == again
    (path,) = planted_run.folder.glob("boost-*.json")
    assert json.loads(path.read_text())["token"] == token


def test_the_placebos_sizes_decide_about_causal_words() -> None:
    assert effect_of([3.0, 3.2, 2.9], [0.1, -0.2, 0.05]).causal
    assert not effect_of([0.3, 0.2, 0.4], [0.1, -0.2, 0.05]).causal
    assert effect_of([None], [0.1]) is None


def test_what_cannot_be_boosted_is_refused_in_one_line(planted_run: Run, token: int) -> None:
    runs, name = planted_run.runs, planted_run.name
    never = int(np.flatnonzero(token_counts(planted_run) == 0)[0])
    with pytest.raises(ForensicsError, match=f"holds token {never}"):
        boost(runs, name, never, first=100, last=140, times=(1,))
    with pytest.raises(ForensicsError, match="wanted ids below 800"):
        boost(runs, name, 900, first=100, last=140, times=(1,))
    with pytest.raises(ForensicsError, match="with 2000 sequences after it, found none"):
        boost(runs, name, token, times=(1000,))
    with pytest.raises(ForensicsError, match="wanted a window of planted, found 140:100"):
        boost(runs, name, token, first=140, last=100, times=(1,))


def call(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as e:
        main.main(list(arguments))
    out, err = capsys.readouterr()
    return int(e.value.code or 0), out, err


def test_the_command_tells_a_table_and_a_verdict(
    planted_run: Run,
    token: int,
    made: dict,
    capsys: pytest.CaptureFixture[str],
) -> None:
    common = [
        "boost",
        planted_run.name,
        "--token",
        str(token),
        "--from",
        "100",
        "--to",
        "140",
        "--times",
        "1,8",
        "--seeds",
        "2",
        "--runs",
        str(planted_run.runs),
    ]
    code, out, _ = call(capsys, *common)
    assert code == 0 and "' zorvexil'" in out and "unmodified" in out
    assert out.strip().splitlines()[-1] == made["verdict"]
    document = json.loads(call(capsys, *common, "--json")[1])
    assert document["summary"][1]["times"] == 8 and document["control"]["bitwise"]
    code, _, err = call(capsys, *common[:4], "--times", "few")
    assert code == 2 and err.startswith("error: wanted --times N,M,…, found 'few'")
