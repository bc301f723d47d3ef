"""What blame's evidence must hold: the window, what stands in, the null, the policy, the rules."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import pytest

from benchmarks.blame_study import AT
from forensics.step.state import Counters
from replay.blame import rules
from replay.blame.blamed_step import the_spike
from replay.blame.excess import WindowControl
from replay.blame.investigate import BlameOptions, blame
from replay.blame.null_windows import WindowsWithoutSpike, searched
from replay.blame.policy_changes import as_before, changed_fields
from replay.blame.ranking import own_influences
from replay.blame.stretch import Stretch, clean_probes
from replay.blame.window_choice import choose_window
from replay.blame.window_replays import WindowReplays
from replay.lineage import open_trajectory

DEFINITIONS = Path(__file__).parents[3] / "docs" / "formulas.md"


def test_every_number_that_decides_is_in_the_result_and_has_a_row_in_the_formulas(blamed):
    rows = [line.split("|") for line in DEFINITIONS.read_text().splitlines()]
    written = {row[1].strip(): row for row in rows if len(row) == 6}
    for rule in rules.RULES:
        _, _, value, unit, reason, _ = written[f"`{rule.name}`"]
        assert float(value) == rule.value and unit.strip() == rule.unit and reason.strip()
    constants = {name for name in vars(rules) if name.isupper()} - {"RULES"}
    assert {rule.name for rule in rules.RULES} == constants
    assert blamed("damaged document", 1, "peak").rules == rules.RULES


def test_the_window_goes_back_to_where_the_run_was_calm_unless_it_is_given(made, planted_runs):
    name, _ = made("damaged document", 1)
    run = open_trajectory(planted_runs, name)
    late = the_spike(run, AT + 12, True)
    window = choose_window(run, late, None)
    assert window.calm == AT - 1 and window.first < AT - 1 and window.reaches_calm
    assert not choose_window(run, late, 4).reaches_calm
    assert choose_window(run, the_spike(run, None, False), None).first == AT - rules.WINDOW


def test_a_cause_before_the_window_is_named_as_such_and_where_to_look(made, planted_runs):
    name, _ = made("damaged document", 1)
    d = blame(planted_runs, name, AT + 5, BlameOptions(window=1, force=True))
    assert (d.verdict, d.reason) == ("before the window", "worse before the window")
    assert d.look_from == d.calm == AT - 1 and d.sentence.endswith(f"Look from step {AT - 1}.")
    assert d.proof is None and not d.trials.other_data


def test_what_stands_in_for_junk_is_never_of_the_same_source(made, planted_runs):
    """The run would draw the planted document next, in a quarter of every batch."""
    name, _ = made("duplicate outside", 1)
    run = open_trajectory(planted_runs, name)
    stretch = Stretch(
        run, AT - 24, AT, clean_probes(run, AT - 24), lambda n, note: None, witness=False
    )
    replays = WindowReplays(WindowControl(stretch, AT - 16, AT), lambda n, note: None)
    table = run.corpus.documents["source"].to_pylist()

    def sources(batch):
        return {table[span.document] for spans in run.batches.provenance(batch) for span in spans}

    junk = [
        row
        for row in replays.rows([AT])
        if any(table[s.document] == "planted" for s in replays.document_stretches(row))
    ]
    assert 0 < len(junk) < 16
    avoided = replays.avoided(junk)
    assert avoided.sources == {"planted"}
    assert any("planted" in sources(replays.other_batch(AT, draw)) for draw in range(3))
    for draw in range(3):
        assert sources(replays.other_batch(AT, draw, avoided)) == {"clean"}
    clean = [row for row in replays.rows([AT]) if row not in junk]
    assert replays.avoided(clean[:2]).sources == frozenset()  # the most of what is ordinary


def test_the_level_of_an_ordinary_target_leaves_the_suspects_source_out(made, planted_runs):
    """P and the batches before the window hold the planted document here; its level does not."""
    name, _ = made("duplicate outside", 1)
    run, last = open_trajectory(planted_runs, name), AT - 46  # 110 holds it, 4 steps before
    probes = clean_probes(run, last)
    half = run.stream(AT)  # half of it is planted
    mixed = dataclasses.replace(probes, batch=half)
    stretch = Stretch(run, last - 8, last, mixed, lambda n, note: None, witness=False)
    replays = WindowReplays(WindowControl(stretch, last - 3, last), lambda n, note: None)
    table = run.corpus.documents["source"].to_pylist()
    planted = [document for document, source in enumerate(table) if source == "planted"]
    params = stretch.state(last).params
    avoided = replays.stand_ins.avoiding(planted)
    plain = stretch.probe_loss(params) + replays.control.excess.usual_gap
    level = replays.stand_ins.ordinary(params, stretch.probe_loss(params), avoided)
    assert level == pytest.approx(replays.control.excess.loss, abs=0.1)  # batch `last` is clean
    assert plain > level + 0.2 or plain < level - 0.2


def test_windows_without_a_spike_match_in_length_and_share_no_searched_batch(blamed, hurt):
    run, control, depth = hurt.run, hurt.control, 4
    spike = the_spike(run, None, False)
    windows = WindowsWithoutSpike(run, control, AT - 1, depth, [], lambda n, note: None)
    before, after = windows.ends()
    assert before[0] < control.begin and not after
    assert all(a - b == depth + 1 for a, b in itertools.pairwise(before))
    assert min(before) - windows.length >= run.recipe.train.warmup
    null = blamed("damaged document", 1, "aftermath").proof.null
    assert [w.step for w in null.windows] == [
        null.windows[0].step - i * (null.depth + 1) for i in range(len(null.windows))
    ]
    assert null.rule == "factor" and null.p == null.least_p == 1 / (len(null.windows) + 1)
    assert all(w.step < spike.step for w in null.windows)


def test_a_search_without_a_spike_ends_where_its_rank_is_known(hurt):
    run, last = hurt.run, AT - 10
    stretch = Stretch(
        run, last - 24, last, hurt.control.probes, lambda n, note: None, witness=False
    )
    control = WindowControl(stretch, last - 16, last, begin=last)
    replays = WindowReplays(control, lambda n, note: None)
    largest = searched(replays, own_influences(control), 1e9)
    assert largest.complete and 0 < largest.excess_removed < 0.2
    early = searched(replays, own_influences(control), largest.excess_removed / 2)
    assert not early.complete and early.excess_removed >= largest.excess_removed / 2
    assert replays.replays == 0  # a batch alone takes no step


def test_each_setting_that_changed_is_listed_and_put_back(make_policy):
    plain = make_policy(learning_rate=1e-2, weight_decay=0.1)
    other = dataclasses.replace(
        plain, learning_rate=2e-2, betas=(0.9, 0.5), frozen=frozenset({"embed.weight"})
    )
    slow = dataclasses.replace(plain, learning_rate=1.4e-2)  # a schedule's own movement
    changes = changed_fields([plain] * 3, {10: plain, 11: other, 12: slow})
    assert [(c.field, c.first) for c in changes] == [
        ("learning_rate", 11),
        ("betas", 11),
        ("frozen", 11),
    ]
    assert changes[0].shown == ("0.01", "0.02") and changes[2].shown == ("none", "embed.weight")
    back = as_before(lambda counters: other, changes)(Counters())
    assert back == plain
    assert changed_fields([], {10: plain, 11: plain}) == []
