"""Blame of a text's loss: the data that taught it comes first, chance is called chance, and how
good the influences are is measured.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from forensics import config
from forensics.errors import ForensicsError
from forensics.train.advance import token_losses
from forensics.train.loop import train
from replay.blame.query import investigate
from replay.blame.query.datamodel_score import datamodel_score
from replay.blame.query.investigate import Asked, QueryOptions, ask
from replay.blame.query.page import html_page
from replay.blame.query.removal_test import choose_sets, enough, try_removal
from replay.blame.query.result import InfluenceResult, SubsetChange
from replay.blame.query.text import query_of_file, query_of_text, windows
from replay.cli import main
from replay.interventions.rows import Slot
from replay.lineage import open_trajectory

TAUGHT = "tree note seat rain "  # what only the planted document holds
AT, LAST = 60, 72  # batches 60 to 63 hold one planted sequence each


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that reads TAUGHT in one sequence of each of four batches and nowhere else."""
    folder = tmp_path_factory.mktemp("taught")
    (folder / "planted.txt").write_text(TAUGHT * 100)
    recipe = {
        "data": {
            "sequence_length": 32,
            "tokenizer": "bytes",
            "sources": {"clean": "stdlib/json", "planted": str(folder / "planted.txt")},
            "phases": [
                {"until": AT, "mix": {"clean": 1.0}},
                {"until": AT + 4, "mix": {"clean": 0.875, "planted": 0.125}},
                {"mix": {"clean": 1.0}},
            ],
        },
        "model": {"layers": 1, "width": 24, "heads": 2},
        "train": {
            "steps": LAST,
            "batch": 8,
            "threads": 1,
            "warmup": 5,
            "learning_rate": 5e-3,
            "schedule": "cosine",
        },
        "checkpoint": {"every": 10},
    }
    train(config.from_dict(recipe), name="taught", recipe_name="test", runs=folder / "runs")
    return folder / "runs"


@pytest.fixture(scope="module")
def asked(taught: Path) -> Asked:
    options = QueryOptions(window=(AT - 2, AT + 6), validate=12, tokens=True)
    return ask(taught, "taught", lambda run: query_of_text(run, TAUGHT), options)


def test_what_taught_a_text_lowers_its_loss_and_leaving_it_out_proves_that(asked):
    result = asked.result
    lowering = [sequence for sequence in result.sequences if sequence.influence < 0][:8]
    assert [sequence.source for sequence in result.sequences[:4]] == ["planted"] * 4
    assert {sequence.step for sequence in lowering[:4]} == set(range(AT, AT + 4))
    lower = result.removals[0]
    assert lower.direction == "lower" and lower.finding == "beyond"
    assert len(lower.random) >= enough(2) and lower.corrected_p <= 0.05
    assert {(s.step, s.slot) for s in lower.removal} == {(s.step, s.slot) for s in lowering}
    assert lower.measured > 0
    assert "So these sequences lowered it." in result.sentence
    assert result.sources[0].source == "planted" and result.sources[0].influence < 0
    assert result.control.bitwise


def test_influences_foretell_what_leaving_random_tenths_out_does(asked):
    score = asked.result.validation
    assert score.score > 0.8 and score.low > 0 and score.p < 0.01
    assert score.slope == pytest.approx(1.0, abs=0.2)
    assert len(score.subsets) == 12 and {s.sequences for s in score.subsets} == {6}


def test_every_sequence_document_and_batch_of_the_window_has_its_influence(asked):
    result = asked.result
    total = sum(sequence.influence for sequence in result.sequences)
    assert len(result.sequences) == 8 * 8
    assert total == pytest.approx(sum(step.influence for step in result.steps))
    assert total == pytest.approx(sum(d.influence for d in result.documents), abs=1e-6)
    first = result.candidates[0]
    assert sum(x or 0.0 for x in first.token_influence) == pytest.approx(first.influence)
    assert [s.influence for s in result.sequences[:16]] == [c.influence for c in result.candidates]


def test_the_loss_is_the_texts_own_at_the_state_that_is_asked_about(taught):
    run = open_trajectory(taught, "taught")
    options = QueryOptions(at=20, window=4, placebos=1)
    result = ask(taught, "taught", lambda run: query_of_text(run, TAUGHT), options).result
    query = query_of_text(run, TAUGHT)
    ce = token_losses(run.state_at(20).params, query.batch, run.model, "fp32")
    assert result.window == (16, 20) and result.at == 20
    assert result.loss == pytest.approx(float(ce.mean()), rel=1e-6)
    assert {removal.finding for removal in result.removals} <= {
        "too few random removals",
        "not beyond random removals",
    }


def test_the_result_is_kept_whole_and_read_again(asked, taught):
    kept = sorted((taught / "taught").glob("influence-*.json"))
    results = [InfluenceResult.read(path) for path in kept]
    assert asked.result.to_document() in [result.to_document() for result in results]
    page = html_page(asked.result, [asked.candidate_text(c) for c in asked.result.candidates[:2]])
    assert asked.result.removals[0].sentence in page.replace("&#x27;", "'")


def test_an_interrupt_keeps_the_influences_and_says_so(taught, monkeypatch):
    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(investigate, "try_removal", interrupted)
    options = QueryOptions(window=2)
    result = ask(taught, "taught", lambda run: query_of_text(run, "def f("), options).result
    assert result.interrupted and result.candidates and not result.removals
    assert "interrupted before anything was left out" in result.sentence


# ---- the text


def test_a_file_is_cut_into_windows_that_predict_every_token_once(taught, tmp_path):
    run = open_trajectory(taught, "taught")
    text = "".join(chr(97 + i % 26) for i in range(100))
    (tmp_path / "eval.txt").write_text(text)
    query = query_of_file(run, tmp_path / "eval.txt")
    about = query.description
    assert (about.tokens, about.windows, about.texts) == (99, 4, 1)  # 32 + 32 + 32 + 3 targets
    targets = query.batch.tokens[:, 1:][query.batch.weight > 0]
    assert run.corpus.decode(targets.tolist()) == text[1:]
    (tmp_path / "eval.jsonl").write_text(
        "\n".join(json.dumps({"text": t}) for t in ("one text", "", "and another")).replace(
            '{"text": ""}', ""
        )
    )
    lines = query_of_file(run, tmp_path / "eval.jsonl").description
    assert (lines.tokens, lines.windows, lines.texts) == (7 + 10, 2, 2)


def test_padding_changes_no_loss(taught, tmp_path):
    """Texts of three lengths in one batch: their mean is that of each by itself, by tokens."""
    run = open_trajectory(taught, "taught")
    texts = ["def f(x):", "import json", "x = 1"]
    (tmp_path / "eval.jsonl").write_text("\n".join(json.dumps({"text": t}) for t in texts))
    params = run.state_at(20).params

    def mean(query):
        ce = token_losses(params, query.batch, run.model, "fp32", len(query.batch.tokens))
        return float((ce * query.batch.weight).sum()), query.description.tokens

    alone = [mean(query_of_text(run, text)) for text in texts]
    total, tokens = mean(query_of_file(run, tmp_path / "eval.jsonl"))
    assert tokens == sum(count for _, count in alone)
    assert total == pytest.approx(sum(loss for loss, _ in alone), rel=1e-5)


def test_windows_share_one_token_and_none_is_without_a_target():
    assert windows(list(range(7)), 3) == [[0, 1, 2, 3], [3, 4, 5, 6]]
    assert windows(list(range(8)), 3) == [[0, 1, 2, 3], [3, 4, 5, 6], [6, 7]]


@pytest.mark.parametrize(
    "name, content, error",
    [
        ("a.txt", "", "a.txt: wanted a text of at least 2 tokens, found 0"),
        ("a.txt", "x", "a.txt: wanted a text of at least 2 tokens, found 1"),
        ("a.jsonl", "", "wanted a text in every line, found no line"),
        ("a.jsonl", '{"text": "abc"}\n{"text": "x"}', "a.jsonl:2: wanted a text of at least 2"),
        ("a.jsonl", '{"text": 3}', "a.jsonl:1: wanted an object with a `text`"),
        ("a.jsonl", '{"text": "abc"', "a.jsonl:1 is no JSON"),
        ("a.txt", b"\xff\xfe", "a.txt is not UTF-8"),
    ],
)
def test_a_file_without_a_text_to_read_is_refused_in_one_line(
    taught, tmp_path, name, content, error
):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ForensicsError) as refused:
        query_of_file(open_trajectory(taught, "taught"), path)
    assert error in refused.value.message and "\n" not in refused.value.message


@pytest.mark.parametrize(
    "flags, error",
    [
        (["--query", ""], "wanted a query of at least 2 tokens, found 0"),
        (["--query", "x"], "wanted a query of at least 2 tokens, found 1"),
        (["--query", "x" * 34], "at most 33 tokens (the context of taught), found 34"),
        (["--query", "abc", "--eval", "f.txt"], "wanted one text"),
        (["--query", "abc", "--spike", "3"], "--spike asks about a spike, --query about a text"),
        (["--query", "abc", "--method", "bisect", "--force"], "--method, --force asks about a"),
        (["--at", "3"], "--at asks about a text, found none"),
        (["--validate"], "--validate asks about a text, found none"),
        (["--window", "3:5"], "a spike's window ends at the spike"),
        (["--query", "abc", "--at", "99"], "wanted a state of taught after its first step"),
        (["--query", "abc", "--at", "9", "--window", "5:12"], "wanted a window before state 9"),
        (["--query", "abc", "--window", "5:5"], "A:B with A < B"),
    ],
)
def test_flags_that_contradict_each_other_are_refused_by_name(taught, capsys, flags, error):
    with pytest.raises(SystemExit) as refused:
        main.main.main(["blame", "taught", "--runs", str(taught), *flags])
    out, err = capsys.readouterr()
    assert refused.value.code != 0 and not out
    assert error in err and len(err.strip().splitlines()) == 1


def test_the_command_answers_in_one_document(taught, capsys):
    flags = ["--query", TAUGHT, "--window", "2", "--placebos", "2", "--json"]
    with pytest.raises(SystemExit) as ended:
        main.main.main(["blame", "taught", "--runs", str(taught), *flags])
    document = json.loads(capsys.readouterr().out)
    assert ended.value.code == 0
    assert {"loss", "at", "window", "removals", "sequences", "documents", "validation"} <= set(
        document
    )


# ---- what chance does


class LinearReplays:
    """A window of 4 batches of 8 sequences, each of which moves the loss by its own effect."""

    def __init__(self, seed: int) -> None:
        self.effects = {
            Slot(step, slot, 0, 4): float(x)
            for (step, slot), x in zip(
                np.ndindex(4, 8), np.random.default_rng(seed).standard_normal(32)
            )
        }

    def rows(self, steps=None):
        return [row for row in self.effects if steps is None or row.step in steps]

    def change(self, removal, note=""):
        return -sum(self.effects[row] for row in removal)


def outcomes(replays, influence, number=None, seed=0):
    last = {}
    for chosen in choose_sets(influence):
        try_removal(
            replays,
            chosen,
            2,
            number,
            seed,
            lambda removal: last.update({removal.direction: removal}),
        )
    return last


def test_influences_that_say_nothing_are_called_proved_at_most_at_their_level():
    """300 times influences drawn by chance: the share called beyond is no more than 5 %, for both
    sets of a result together.
    """
    beyond = 0
    for seed in range(300):
        rng = np.random.default_rng(10_000 + seed)
        replays = LinearReplays(seed)
        influence = {row: float(rng.standard_normal()) for row in replays.rows()}
        removals = outcomes(replays, influence, seed=seed)
        beyond += any(removal.finding == "beyond" for removal in removals.values())
    assert beyond / 300 <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / 300)


def test_true_influences_are_beyond_random_removals_whose_sets_are_distinct():
    replays = LinearReplays(0)
    removals = outcomes(replays, replays.effects)
    assert {removal.finding for removal in removals.values()} == {"beyond"}
    for removal in removals.values():
        assert removal.measured == pytest.approx(removal.predicted)
        assert len(removal.random) == enough(2) == len(set(removal.random))


def test_an_effect_of_the_other_sign_proves_nothing():
    replays = LinearReplays(0)
    removals = outcomes(replays, {row: -effect for row, effect in replays.effects.items()})
    assert {r.finding for r in removals.values()} == {"not beyond random removals"}


def test_a_score_needs_variation_and_its_interval_holds_no_more_than_it_showed():
    rng = np.random.default_rng(0)
    x = rng.standard_normal(32)
    noise = rng.standard_normal(32)
    good = datamodel_score([SubsetChange(3, float(a), float(2 * a)) for a in x])
    chance = datamodel_score([SubsetChange(3, float(a), float(b)) for a, b in zip(x, noise)])
    still = datamodel_score([SubsetChange(3, float(a), 0.0) for a in x])
    assert good.score == 1.0 and good.slope == pytest.approx(2.0) and good.low == 1.0
    assert chance.low < 0 < chance.high and "cannot be told from noise" in chance.sentence
    assert still.score is None and "does not vary" in still.sentence
    assert torch.is_grad_enabled()
