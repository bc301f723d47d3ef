"""Interventions together: what SQL chose is found where it went, nothing is put in twice, SkipStep
knows what came before, and forks of forks are the whole list at once.
"""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from forensics.errors import ForensicsError
from forensics.step.batch import Batch, BatchStream
from forensics.store.writer import replace_table
from forensics.train.run import Run
from replay.forks import run as fork_run
from replay.forks import spec
from replay.forks.draft import Draft, settled
from replay.forks.lockstep import arm_from, march
from replay.forks.spec import Spec
from replay.forks.statement import carried
from replay.interventions.base import Intervention
from replay.interventions.boost_token import BoostToken
from replay.interventions.composition import composed
from replay.interventions.corpus_search import sequences_of
from replay.interventions.edit_tokens import EditTokens
from replay.interventions.insertions import Insert, Replace
from replay.interventions.mask_tokens import MaskTokens
from replay.interventions.no_update import HoldParameters, Skip
from replay.interventions.order import Drop, Reorder, Repeat, Shuffle, Swap
from replay.interventions.policy import Betas, Clip, Freeze, LearningRate, SkipStep
from replay.interventions.registry import from_dict, to_dict
from replay.interventions.removal import RemoveDocuments, RemoveSequences
from replay.interventions.rows import followed, standing
from replay.interventions.skip_history import recorded_window
from replay.lineage import open_trajectory
from tests.replay.test_interventions import B, own_stream, same

T = 32


@pytest.fixture(scope="module")
def base(trained: Path) -> Run:  # nothing here writes to it
    return open_trajectory(trained, "base")


def built(run: Run, *interventions: dict[str, Any], **head: Any) -> Spec:
    return spec.build(
        run.runs, run, {"from": 75, "to": 90, "intervention": list(interventions), **head}
    )


# ---- rows that SQL chose

STEP = "select step, slot from sequences where step = {} and slot in (1, 2)"
FOUND = [
    ([{"kind": "drop", "window": "80:82"}], 84, [82]),
    ([{"kind": "swap", "a": 80, "b": 85}], 80, [85]),
    ([{"kind": "insert", "at": 80, "text": "to be"}], 80, [81]),
    ([{"kind": "repeat", "window": "80:82", "times": 2}], 81, [81, 83]),
    ([{"kind": "drop", "window": "76:77"}, {"kind": "swap", "a": 80, "b": 82}], 81, [82]),
    ([{"kind": "drop", "window": "80:82"}], 90, [88]),  # moved into the fork's window
    ([{"kind": "skip", "window": "80:82"}, {"kind": "lr-scale", "factor": 0.5}], 84, [84]),
]


@pytest.mark.parametrize(("before", "step", "stand"), FOUND)
def test_rows_chosen_by_sql_are_the_parents_wherever_they_stand(
    before: list[dict[str, Any]], step: int, stand: list[int], base: Run
) -> None:
    sql = STEP.format(step)
    made = built(base, *before, {"kind": "remove-sequences", "sql": sql, "how": "mask"})
    removal = made.interventions[-1]
    assert isinstance(removal, RemoveSequences)
    assert removal.at == tuple((s, b, 0, T) for s in stand for b in (1, 2))
    stream, _ = composed(made.interventions, base)
    for s in stand:
        assert torch.equal(stream(s).tokens[1:3], base.stream(step).tokens[1:3])
        assert torch.equal(stream(s).weight.sum(1) == 0, torch.tensor([0, 1, 1] + [0] * 5) > 0)
    again = spec.build(base.runs, base, spec.read_text(made.toml()))
    assert again.interventions == made.interventions  # what is written down is not carried again


@pytest.mark.parametrize(
    ("before", "step"),
    [
        ({"kind": "drop", "window": "80:82"}, 81),
        ({"kind": "replace", "window": "80:82", "text": "to be"}, 80),
        ({"kind": "insert", "at": 76, "text": "to be"}, 89),  # moved past the end
        ({"kind": "remove-sequences", "at": [[80, 1, 0, T]]}, 80),
        ({"kind": "replace", "window": "80:82", "batch": 20}, 80),
    ],
    ids=lambda each: each["kind"] if isinstance(each, dict) else "",
)
def test_rows_that_are_not_there_any_more_are_refused(
    before: dict[str, Any], step: int, base: Run
) -> None:
    words = f"remove-sequences: wanted rows that are seen in 75:90, found step {step}, slot 1"
    with pytest.raises(ForensicsError, match=words) as e:
        built(base, before, {"kind": "remove-sequences", "sql": STEP.format(step)})
    assert e.value.exit_code == 2


def test_a_rank_and_a_target_go_with_their_row(base: Run) -> None:
    drop = {"kind": "drop", "window": "80:82"}
    ranked = "select step, slot, -slot as rank from sequences where step = 84"
    made = built(base, drop, {"kind": "reorder", "window": "82:83", "sql": ranked})
    assert made.interventions[1].rows == tuple((82, b) for b in reversed(range(8)))  # type: ignore[attr-defined]
    target = "select step, slot, 5 as position from sequences where step = 84 and slot = 3"
    made = built(base, drop, {"kind": "mask-tokens", "sql": target})
    assert made.interventions[1].at == ((82, 3, 5),)  # type: ignore[attr-defined]
    edit = {"kind": "edit-tokens", "window": "84:85", "find": "e", "replace": "ee"}
    edited = next(b for b in range(8) if ord("e") in base.stream(84).tokens[b].tolist())
    sql = target.replace("slot = 3", f"slot = {edited}")
    with pytest.raises(ForensicsError, match="whose text an intervention before it edits"):
        built(base, edit, {"kind": "mask-tokens", "sql": sql})
    row = {"kind": "remove-sequences", "sql": STEP.format(84)}
    assert built(base, edit, row).interventions[1].at == ((84, 1, 0, T), (84, 2, 0, T))  # type: ignore[attr-defined]


def test_sequences_chosen_by_their_id_are_found_in_what_is_seen(base: Run) -> None:
    sequence = int(base.stream(84).sequence[3])
    by_id = {"kind": "remove-sequences", "sql": f"select {sequence} as sequence"}
    made = built(base, {"kind": "drop", "window": "80:82"}, by_id)
    assert (82, 3, 0, T) in made.interventions[1].at  # type: ignore[attr-defined]


def synthetic_run() -> Any:
    """What moving interventions ask of a run, over rows that are all different."""

    def make(ids: np.ndarray) -> Batch:
        rows = torch.from_numpy(ids)
        tokens = rows[:, None] * 10 + torch.arange(7)
        return Batch(tokens, torch.ones(len(ids), 6), 24.0, rows)

    batches = SimpleNamespace(make=make)
    return SimpleNamespace(
        batches=batches,
        recipe=SimpleNamespace(train=SimpleNamespace(batch=B)),
        stream=own_stream,
        policy=None,
    )


STEPS = st.integers(2, 10)
MOVES = st.one_of(
    st.tuples(STEPS, st.integers(1, 3)).map(lambda w: Drop(w[0], w[0] + w[1])),
    st.tuples(STEPS, STEPS).map(lambda w: Swap(*w)),
    st.tuples(STEPS, st.integers(1, 2)).map(lambda w: Repeat(w[0], w[0] + w[1], 2)),
    st.tuples(STEPS, st.integers(1, 2), st.integers(0, 99)).map(
        lambda w: Shuffle(w[0], w[0] + w[1], w[2])
    ),
    STEPS.map(lambda s: Insert(s, sequences=(9000, 9001, 9002, 9003, 9004))),
    st.tuples(STEPS, st.integers(20, 30)).map(lambda w: Replace(w[0], w[0] + 1, batch=w[1])),
    st.permutations([(5, 0), (5, 2), (6, 1), (6, 3)]).map(lambda p: Reorder(5, 7, tuple(p))),
    st.sets(st.tuples(STEPS, st.integers(0, B - 1)), min_size=1, max_size=6).map(
        lambda p: RemoveSequences(2, 11, tuple((s, b, 0, 6) for s, b in sorted(p)), "repack")
    ),
)


@given(moves=st.lists(MOVES, max_size=4))
def test_every_row_is_followed_to_all_the_places_where_it_stands(
    moves: list[Intervention],
) -> None:
    run, stream = synthetic_run(), followed(own_stream)
    for move in moves:
        stream = move.stream(stream, run)
    found = standing(stream, 2, 12)
    for own, places in found.items():
        assert {int(stream(s).sequence[b]) for s, b in places} == {own[0] * B + own[1]}
    everywhere = [(s, b) for s in range(2, 12) for b in range(B) if stream(s).sequence[b] < 9000]
    assert sorted(place for places in found.values() for place in places) == everywhere


@given(moves=st.lists(MOVES, min_size=1, max_size=3), step=STEPS, slot=st.integers(0, B - 1))
def test_a_row_is_carried_or_refused_and_never_another(
    moves: list[Intervention], step: int, slot: int
) -> None:
    draft = Draft(synthetic_run(), 2, 12)
    for move in moves:
        draft.add(move)
    stand = [
        (s, b)
        for s in range(2, 12)
        for b in range(B)
        if int(draft.stream(s).sequence[b]) == step * B + slot
    ]
    rows = {"step": [step], "slot": [slot]}
    if stand:
        there = carried(rows, draft, (2, 12), "x")
        assert list(zip(there["step"], there["slot"])) == stand
    else:
        with pytest.raises(ForensicsError, match=f"found step {step}, slot {slot}"):
            carried(rows, draft, (2, 12), "x")


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    parts=st.lists(
        st.one_of(
            st.tuples(st.integers(76, 84), st.integers(1, 2)).map(
                lambda w: Drop(w[0], w[0] + w[1])
            ),
            st.tuples(st.integers(76, 88), st.integers(76, 88)).map(lambda w: Swap(*w)),
            st.integers(76, 88).map(lambda s: Insert(s, sequences=(1, 2, 3))),
            st.integers(76, 88).map(lambda s: MaskTokens(s, s + 1, (32,))),
            st.integers(76, 88).map(lambda s: EditTokens(s, s + 1, "e", "§§")),
        ),
        min_size=2,
        max_size=4,
    ),
    cut=st.integers(1, 3),
)
def test_a_fork_of_a_fork_is_both_lists_in_one(
    parts: list[Intervention], cut: int, base: Run
) -> None:
    child = copy.copy(base)
    child.stream, child.policy = composed(parts[:cut], base)
    stream, _ = composed(parts[cut:], child)
    whole, _ = composed(parts, base)
    assert all(same(stream(s), whole(s)) for s in range(75, 92))


# ---- what comes in the place of what goes


def put_in(interventions: tuple[Intervention, ...], run: Run, first: int, last: int) -> list[int]:
    """Ids that removals put in, in all of them."""
    stream: BatchStream = run.stream
    ids: list[int] = []
    for intervention in interventions:
        after = intervention.stream(stream, run)
        if isinstance(intervention, RemoveSequences | RemoveDocuments):
            ids += [
                int(new)
                for s in range(first, last)
                for old, new in zip(stream(s).sequence, after(s).sequence)
                if old != new
            ]
        stream = after
    return ids


PLACES = st.sets(st.tuples(st.integers(80, 84), st.integers(0, 7)), min_size=1, max_size=6)


def removing(places: set[tuple[int, int]]) -> RemoveSequences:
    return RemoveSequences(75, 90, tuple((s, b, 0, T) for s, b in sorted(places)))


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(one=PLACES, two=PLACES, dropped=st.integers(0, 2), last=st.integers(90, 112))
def test_what_two_removals_put_in_is_never_the_same_and_never_read_by_the_fork(
    one: set[tuple[int, int]], two: set[tuple[int, int]], dropped: int, last: int, base: Run
) -> None:
    drop = [Drop(76, 76 + dropped)] if dropped else []
    made = settled([*drop, removing(one), removing(two)], base, 75, last)
    ids = put_in(made, base, 75, last)
    assert len(ids) == len(set(ids)) == len(one) + len(two)
    read = {int(i) for s in range(max(100, last + dropped)) for i in base.stream(s).sequence}
    assert not read & set(ids)
    stream, _ = composed(made, base)
    seen = [int(i) for s in range(75, last) for i in stream(s).sequence]
    assert len(seen) == len(set(seen))


def test_the_first_removal_of_a_short_fork_draws_as_it_always_did(base: Run) -> None:
    alone = removing({(80, 1)})
    assert settled([alone], base, 75, 100) == (alone,)
    assert to_dict(alone).keys().isdisjoint({"draws"})
    [_, second] = settled([alone, removing({(81, 1)})], base, 75, 100)
    assert second.draws is not None and from_dict(to_dict(second)) == second  # type: ignore[attr-defined]
    with pytest.raises(ForensicsError, match="no draws, or those of this very fork"):
        settled([dataclasses.replace(alone, draws=(3, 4))], base, 75, 100)


def test_a_fork_of_a_fork_puts_in_what_no_one_before_it_did(runs: Path) -> None:
    base = open_trajectory(runs, "base")
    first = RemoveSequences(80, 82, ((80, 1, 0, T), (81, 2, 0, T)))
    fork_run.fork(Spec("base", 78, 84, (first,), name="one"), runs)
    one = open_trajectory(runs, "one")
    assert one.header.steps < base.header.steps
    places = tuple((82, b, 0, T) for b in range(8))
    child = Spec("one", 81, 104, (RemoveSequences(81, 90, places),), name="two")
    fork_run.fork(child, runs)
    two = open_trajectory(runs, "two")
    put = two.stream(82).sequence.tolist()
    before = {int(i) for s in range(104) for i in base.stream(s).sequence}
    before |= {int(one.stream(80).sequence[1]), int(one.stream(81).sequence[2])}
    assert len(set(put)) == 8 and not set(put) & before
    assert fork_run.fork(child, runs).fork == "two"  # found done: it is settled the same each time


def test_a_token_is_boosted_where_the_stream_that_is_given_lacks_it(base: Run) -> None:
    token = ord("{")
    made = built(
        base,
        {"kind": "drop", "window": "80:82"},
        {"kind": "boost-token", "window": "82:84", "token": token, "times": 6},
    )
    boost = made.interventions[1]
    assert isinstance(boost, BoostToken)
    dropped, _ = composed(made.interventions[:1], base)
    assert not any(token in dropped(s).tokens[b, 1:] for s, b in boost.at)


# ---- SkipStep


def watching(run: Run) -> Run:
    """The run with SkipStep's window filled at every step, and nothing judged."""
    observed = copy.copy(run)
    usual = run.policy
    observed.policy = lambda counters: dataclasses.replace(usual(counters), watch_skip=True)
    return observed


def test_skip_step_begins_as_if_it_had_watched_the_parent(base: Run) -> None:
    observed = watching(base)
    state = observed.replay(base.load(0), 75)
    assert recorded_window(base, 75) == state.window and len(state.window.losses) == 75
    plain = base.load(75)
    assert state.digest() != plain.digest()
    plain.window = state.window
    assert state.digest() == plain.digest()  # watching changes nothing else


def test_skip_step_judges_its_first_step_by_all_that_came_before(base: Run) -> None:
    made = built(
        base,
        {"kind": "skip-step", "on": True, "window": "79:83"},
        {"kind": "z-loss", "value": 1000.0, "window": "81:82"},  # a gradient as none before
        to=84,
    )
    assert made.interventions[0] == SkipStep(79, 83, True, watched=True)
    start = base.state_at(75)
    arms = {
        "control": arm_from(start, watching(base), made.interventions[1:]),
        "fork": arm_from(start, base, made.interventions),
    }
    arms["control"].state.window = recorded_window(base, 75)
    judged: dict[int, str] = {}
    losses: list[float] = []
    for state, results in march(arms, 75, 84):
        own = results["control"]
        assert own.loss is not None and own.grad_norm is not None
        if all(r == "apply" for r in judged.values()):  # until the first skip both are the same
            judged[state - 1] = results["fork"].action
            losses.append(own.loss)  # the fork's own steps before its window count as well
            assert arms["fork"].state.window.losses[-len(losses) :] == tuple(losses)
    assert judged[80] == "apply" and judged[81] == "skipped"
    old, _ = composed([SkipStep(79, 83, True)], base)
    assert same(old(80), base.stream(80))


def test_skip_step_of_a_fork_that_ran_without_a_history_is_what_it_was(base: Run) -> None:
    before = base.load(75)
    state = before.clone()
    SkipStep(75, 80, True).state(state, base)
    assert state.window == before.window and not SkipStep(75, 80, True).moves_start()
    assert SkipStep(75, 80, True, watched=True).moves_start()


def test_skip_step_over_steps_that_were_not_recorded_is_refused(runs: Path) -> None:
    base = open_trajectory(runs, "base")
    rows = base.table("steps").to_pydict()
    replace_table(
        base.folder,
        "steps",
        {name: [v for s, v in zip(rows["step"], column) if s % 2] for name, column in rows.items()},
    )
    base = open_trajectory(runs, "base")
    with pytest.raises(ForensicsError, match="recorded loss and gradient norm of step 74 of base"):
        built(base, {"kind": "skip-step", "on": True})
    assert built(base, {"kind": "skip-step", "on": False}).interventions[0].watched is None  # type: ignore[attr-defined]


def test_documents_that_one_removal_takes_do_not_come_in_by_another(base: Run) -> None:
    clean = [
        d
        for d, source in enumerate(base.corpus.documents["source"].to_pylist())
        if source == "clean"
    ]
    one, two = (RemoveDocuments(75, 90, (d,)) for d in clean[:2])
    rows = removing({(s, b) for s in range(80, 85) for b in range(8)})
    made = settled([one, two, rows], base, 75, 90)
    assert [i.without for i in made] == [(clean[1],), (clean[0],), tuple(clean[:2])]  # type: ignore[attr-defined]
    stream, _ = composed(made, base)
    gone = set(sequences_of(base, frozenset(clean[:2])).tolist())
    assert not gone & {int(i) for s in range(75, 90) for i in stream(s).sequence}
    alone = composed([one, RemoveDocuments(75, 90, clean[1:2]), rows], base)[0]  # as it once was
    assert gone & {int(i) for s in range(75, 90) for i in alone(s).sequence}


# ---- policies that contradict each other

HALVED = LearningRate(75, 90, 0.5)


@pytest.mark.parametrize(
    "contradicting",
    [
        [Clip(80, 84, 0.5), Clip(80, 84, 1.5)],
        [Clip(80, 82, 0.5), HALVED, Clip(75, 90, 1.5)],
        [Skip(80, 82), HoldParameters(80, 82)],
        [SkipStep(80, 84, True), SkipStep(80, 84, False)],
        [Betas(80, 84, (0.8, 0.9)), Betas(75, 90, (0.7, 0.9))],
    ],
    ids=lambda each: each[0].kind,
)
def test_a_policy_of_which_another_leaves_nothing_is_refused(
    contradicting: list[Intervention], base: Run
) -> None:
    with pytest.raises(ForensicsError, match=f"{contradicting[0].kind}: another .* leaves nothing"):
        Spec("base", 75, 90, tuple(contradicting)).check(base)


def test_policies_that_add_up_or_hold_in_part_are_no_contradiction(base: Run) -> None:
    for fine in (
        [HALVED, HALVED],
        [HALVED, LearningRate(80, 82, 0.0)],
        [Clip(75, 90, 0.5), Clip(80, 82, 1.5)],
        [Freeze(80, 82, ("embed.*",)), Freeze(80, 82, ("*",))],
        [Skip(80, 82), Skip(80, 84)],
        [Clip(80, 82, 1.0), Clip(80, 82, 1.5)],  # the first is the run's own
    ):
        Spec("base", 75, 90, tuple(fine)).check(base)
