"""Real replays with something taken away."""

from __future__ import annotations

import math

import numpy as np
import pytest

from benchmarks.blame_study import AT
from replay.blame import deletion, rules
from replay.blame.bisect import DeltaDebugging, bisect
from replay.blame.deletion import Suspect
from replay.blame.window_replays import ExcessLeft, WindowReplays
from replay.interventions.row_removal import Removal, removed
from replay.interventions.rows import Slot


def test_data_and_state_parts_add_up_to_the_loss_above_an_ordinary_batch(hurt):
    control, excess = hurt.control, hurt.control.excess
    assert control.stretch.report.bitwise
    recorded = hurt.run.table("steps", ["step", "loss"]).to_pylist()[control.last]["loss"]
    assert excess.loss == pytest.approx(recorded, abs=1e-6)
    assert excess.total == pytest.approx(
        recorded - excess.probe_before - excess.usual_gap, abs=1e-6
    )
    assert excess.state > 0.3 and abs(excess.data) < 0.15  # the batch is clean, the model is hurt


def test_removing_nothing_leaves_the_controls_own_excess(hurt):
    left = hurt.without(frozenset())
    assert (left.data, left.state) == (hurt.control.excess.data, hurt.control.excess.state)


def test_a_removal_is_the_masked_stream_replayed_from_the_first_touched_step(hurt):
    S, rows = hurt.control.last, [hurt.row(AT + 1, 0), hurt.row(AT + 2, 3)]
    before, steps = hurt.replays, hurt.steps
    left = hurt.without(rows)
    assert (hurt.replays, hurt.steps) == (before + 1, steps + S - (AT + 1))
    stream = removed(hurt.run.stream, hurt.run, Removal(rows, frozenset()), "mask", AT + 1)
    end = hurt.run.state_at(AT + 1)
    from forensics.train.advance import fold

    fold(end, stream, hurt.run.policy, S, hurt.run.model)
    assert left.state == pytest.approx(
        hurt.control.probe_loss(end.params) - hurt.control.excess.probe_before, abs=0
    )


def test_what_was_replayed_once_is_known(hurt):
    rows = [hurt.row(AT + 3, 0)]
    first, count = hurt.without(rows), hurt.replays
    assert hurt.without(reversed(rows)) == first and hurt.replays == count and hurt.cost(rows) == 0


def test_in_the_spikes_own_batch_what_goes_gives_way_to_the_ordinary_and_costs_no_step(hurt):
    S, steps = hurt.control.last, hurt.steps
    left = hurt.without(hurt.rows([S]))
    assert left.data == pytest.approx(0.0, abs=1e-9) and left.state == hurt.control.excess.state
    assert hurt.steps == steps


def test_influences_of_the_spikes_own_batch_are_what_its_removals_take_away(hurt):
    S, influence = hurt.control.last, hurt.control.batch_influence()
    for slot in (0, 5):
        assert hurt.excess_removed([hurt.row(S, slot)]) == pytest.approx(
            float(influence[slot].sum()), abs=1e-9
        )
    part = Slot(S, 2, 10, 20)
    assert hurt.excess_removed([part]) == pytest.approx(float(influence[2, 10:20].sum()), abs=1e-9)


def test_causes_are_looked_for_from_shortly_before_the_probes_loss_rose(hurt):
    control = hurt.control
    assert control.first == control.last - 16 and AT - 3 <= control.begin <= AT
    assert control.probe[control.begin] < control.probe[control.last] - 0.3


def test_random_removals_are_other_sequences_of_the_same_steps_where_these_leave_a_choice(hurt):
    few = frozenset([hurt.row(AT, 0), hurt.row(AT, 1), Slot(AT + 2, 4, 8, 16)])
    drawn = [deletion.at_random(hurt, few, seed) for seed in range(5)]
    assert len(set(drawn)) == 5
    for other in drawn:
        assert sorted(s.step for s in other) == [AT, AT, AT + 2] and not {
            (s.step, s.slot) for s in other
        } & {(AT, 0), (AT, 1), (AT + 2, 4)}
        assert [(s.first, s.last) for s in other if s.step == AT + 2] == [(8, 16)]
    half = frozenset(hurt.row(AT, i) for i in range(8))  # the other half is no choice
    assert len({deletion.at_random(hurt, half, seed) for seed in range(5)}) == 5
    most = frozenset(hurt.rows(range(hurt.control.begin, hurt.control.last)))
    assert deletion.at_random(hurt, most, 0) is None


def test_sizes_double_and_stop_at_half_of_the_window():
    assert deletion.sizes(100, 1000) == [1, 2, 4, 8, 16, 32, 64, 100]
    assert deletion.sizes(100, 24) == [1, 2, 4, 8, 12]
    assert deletion.sizes(1, 2) == [1] and deletion.sizes(0, 100) == []


class Additive(WindowReplays):
    """Removals whose effects add up, without a replay."""

    def __init__(self, effects: dict[Slot, float], excess: float) -> None:
        self.effects, self.excess, self.replays = effects, excess, 0

    def without(self, removal, note="", replaced=False):
        return ExcessLeft(0.0, 0.0)

    def excess_removed(self, removal, note="", replaced=False):
        self.replays += 1
        return sum(self.effects.get(slot, 0.0) for slot in set(removal))


def slot(i: int) -> Slot:
    return Slot(i, 0, 0, 8)


def test_a_removal_is_beyond_random_ones_where_it_takes_half_of_the_excess_more():
    def beyond(removed, random):
        suspect = Suspect("strongest", (slot(0),))
        return deletion.judge_removal(Additive({}, 1.0), suspect, removed, random).beyond_random

    assert beyond(0.9, [0.1, -0.1, 0.0])
    assert not beyond(0.9, [0.5] * 19)  # 0.4 more is less than half
    assert not beyond(0.9, [0.0] * 18 + [0.95])  # one of them takes more
    assert beyond(0.9, [-0.4, -0.77, -0.5])  # those that make it worse take nothing away
    assert not beyond(0.9, [])  # nothing to hold it against
    # where any removal moves the loss as far, up or down, one that lowers it shows nothing
    assert not beyond(0.9, [0.2, -4.0, -1.0])
    assert not beyond(0.9, [0.1, -math.inf, 0.0])


def test_where_the_loss_is_a_matter_of_chance_a_random_set_leads_random_removals_rarely():
    """Losses after a removal are drawn alike (exponential, as heavy as those of β₂ = 0), and the
    set is one more of them: with 19 random removals it is beyond them never in 2,000 draws.
    """
    draws = np.random.default_rng(0).exponential(size=(2000, 20))
    beyond = [deletion.leads(1.0 - d[0], list(1.0 - d[1:]), 1.0) for d in draws]
    few = [deletion.leads(1.0 - d[0], list(1.0 - d[1:4]), 1.0) for d in draws]
    assert sum(beyond) == 0 and sum(few) < 0.05 * len(few)


@pytest.mark.parametrize("guilty", [{3}, {0, 15}, {4, 5, 11}])
def test_delta_debugging_ends_with_exactly_the_guilty(guilty):
    replays = Additive({slot(i): 1.0 / len(guilty) for i in guilty}, 1.0)
    search = DeltaDebugging(replays, 10_000, lambda _: None)
    assert search.minimal([[slot(i)] for i in range(16)], "steps") == [
        [slot(i)] for i in sorted(guilty)
    ]


def test_delta_debugging_keeps_to_its_budget_and_to_what_still_works():
    replays = Additive({slot(i): 1 / 3 for i in (1, 9, 13)}, 1.0)
    search = DeltaDebugging(replays, 6, lambda _: None)
    left = search.minimal([[slot(i)] for i in range(16)], "steps")
    assert replays.replays <= 8 and search.takes_spike_away(left)


def test_bisection_finds_the_damaged_document_in_a_real_run(hurt):
    found = bisect(hurt, budget=60)
    assert found is not None and found.excess_removed >= rules.AWAY * hurt.excess
    assert found.excess_removed == hurt.excess_removed(found.removal, "", found.replaced)
    table = hurt.run.corpus.documents
    planted = [d for d in found.documents if table["source"][d].as_py() == "planted"]
    assert planted and set(found.steps) <= set(range(AT - 2, AT + 5))
