"""`forensics tokens RUN --exact --over-time`, and the causes in its list, as a user meets them."""

from __future__ import annotations

import json

import numpy as np
import pytest

from forensics.cli.main import main
from forensics.data.planted import PLANTED
from forensics.tokens.vocabulary import vocabulary
from forensics.train.run import Run


def call(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as e:
        main.main(list(arguments))
    out, err = capsys.readouterr()
    return int(e.value.code or 0), out, err


def test_both_questions_are_answered_as_json_and_in_words(
    planted_run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    common = [
        "tokens",
        f"{planted_run.name}@100",
        "--exact",
        "--over-time",
        "--runs",
        str(planted_run.runs),
    ]
    code, out, _ = call(capsys, *common, "--json")
    told = json.loads(out)
    assert (
        code == 0
        and told["exact"]["holds"]
        and told["exact"]["precision"] == told["exact"]["recall"] == 1.0
    )
    assert told["over_time"]["steps"] == [0, 50, 100] and told["step"] == 100
    code, out, _ = call(capsys, *common)
    assert (
        code == 0
        and told["exact"]["sentence"] in out
        and told["over_time"]["sentence"] in out
        and "Spearman" in out
    )


def test_a_test_that_does_not_hold_is_exit_code_1(
    planted_run: Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "forensics.tokens.exact.untouched", lambda run, step, progress: np.array([0])
    )
    code, out, _ = call(
        capsys, "tokens", planted_run.name, "--exact", "--runs", str(planted_run.runs)
    )
    assert code == 1 and "a defect of the data" in out


def test_what_is_no_run_has_no_data_to_ask(
    planted_run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = call(
        capsys, "tokens", "nothing.gguf", "--over-time", "--runs", str(planted_run.runs)
    )
    assert (
        code == 2 and err.startswith("error: --over-time: wanted a run of") and err.count("\n") == 1
    )


def test_the_list_names_each_tokens_cause_with_its_evidence_and_records_it(
    planted_run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    last = planted_run.last_step()
    code, out, _ = call(
        capsys, "tokens", planted_run.name, "--json", "--runs", str(planted_run.runs)
    )
    rows = {row["text"]: row for row in json.loads(out)["tokens"]}
    absent = [rows[f" {word}"] for word, times in PLANTED.items() if times == 0]
    assert code == 0 and all(
        row["cause"] == "tokenizer-only" and row["exposure_in"] == 0 for row in absent
    )
    assert absent[0]["causes"][0]["evidence"]["in_tokenizer_data"] == 24 * 12
    recorded = {row["text"]: row["cause"] for row in vocabulary(planted_run, last).to_pylist()}
    assert recorded[" zorvexil"] == "tokenizer-only" and recorded[" kwizzerbolt"] is None
