"""Placebos are exchangeable with their fork: the same interventions, in a world where other data of
the order stands in the places they act on.
"""

from __future__ import annotations

import pytest
import torch

from forensics.step.batch import Batch
from forensics.train.run import Run
from replay.forks.arms import start_arms
from replay.interventions.base import Intervention
from replay.interventions.composition import composed
from replay.interventions.edit_tokens import EditTokens
from replay.interventions.insertions import Insert, Replace
from replay.interventions.mask_tokens import MaskTokens
from replay.interventions.no_update import HoldParameters, Skip, ZeroUpdate
from replay.interventions.order import Drop, Reorder, Repeat, Shuffle, Swap
from replay.interventions.placebo import exist, placebos_of
from replay.interventions.policy import LearningRate
from replay.interventions.removal import RemoveDocuments, RemoveSequences
from replay.interventions.state import Noise

FIRST, LAST = 75, 90
ROWS = ((80, 1, 0, 32), (80, 4, 0, 32), (81, 2, 0, 32))
IN_PLACE = [
    Drop(80, 82),
    Skip(80, 82),
    ZeroUpdate(80, 82),
    HoldParameters(80, 82),
    Swap(80, 83),
    Repeat(80, 82),
    RemoveSequences(80, 82, ROWS),
    RemoveSequences(80, 82, ROWS, "mask"),
    RemoveSequences(80, 82, ROWS, "repack"),
]
BROUGHT_IN = [
    Shuffle(80, 82),
    Reorder(80, 81, tuple((80, b) for b in range(8))),
    Replace(80, 82, batch=3),
    Replace(80, 82, text="x"),
    Insert(80, sequences=(1, 2)),
    MaskTokens(80, 82, (32,)),
]


def drawn(run: Run, *interventions: Intervention, count: int = 4, seed: int = 0):
    return placebos_of(interventions, run, FIRST, LAST, count, seed)


def same(a: Batch, b: Batch) -> bool:
    return torch.equal(a.tokens, b.tokens) and torch.equal(a.weight, b.weight)


def words(intervention: Intervention) -> str:
    return f"{intervention.kind}-{getattr(intervention, 'how', '')}"


@pytest.mark.parametrize("own", IN_PLACE, ids=words)
def test_a_placebos_world_differs_in_just_the_places_that_the_fork_acts_on(
    own: Intervention, read_only: Run
) -> None:
    places = {(slot.step, slot.slot) for slot in own.touches(read_only, read_only.stream)}
    for placebo in drawn(read_only, own):
        stream, policy = composed(placebo.world, read_only)
        assert policy is read_only.policy
        differing = {
            (step, slot)
            for step in range(FIRST, LAST)
            for slot in range(8)
            if stream(step).sequence[slot] != read_only.stream(step).sequence[slot]
        }
        assert differing == places


@pytest.mark.parametrize("own", IN_PLACE, ids=words)
def test_what_stands_there_instead_is_read_by_neither_arm_and_comes_from_other_batches_each_time(
    own: Intervention, read_only: Run
) -> None:
    streams = [read_only.stream, composed([own], read_only)[0]]
    consumed = {int(i) for s in streams for step in range(FIRST, LAST) for i in s(step).sequence}
    places = sorted({(s.step, s.slot) for s in own.touches(read_only, read_only.stream)})
    donors: list[int] = []
    placebos = [*drawn(read_only, own), *drawn(read_only, own, seed=4)]
    assert len(placebos) == 8
    for placebo in placebos:
        stream, _ = composed(placebo.world, read_only)
        assert not {int(stream(step).sequence[slot]) for step, slot in places} & consumed
        (world,) = placebo.world
        rows = {donor for _, (donor, _) in world.rows_from}
        donors += sorted(rows | {donor for _, donor in world.batches_from})
    assert min(donors) >= LAST and len(donors) == len(set(donors))


@pytest.mark.parametrize("own", IN_PLACE, ids=words)
def test_a_placebo_whose_data_leaves_no_trace_is_the_fork_itself_and_any_other_has_its_own_arm(
    own: Intervention, read_only: Run
) -> None:
    (placebo,) = drawn(read_only, own, count=1)
    assert (placebo.interventions is None) == own.erases()
    arms = start_arms(read_only.load(50), read_only, (own,), [placebo])
    arm, control = arms.pairs["placebo-0"]
    assert control == "world-0" and arm == ("fork" if own.erases() else "placebo-0")
    # the proof of it: the batches are equal
    if own.erases() and own.alters() == "stream":
        world, _ = composed((*placebo.world, own.placed(read_only)), read_only)
        fork, _ = composed([own], read_only)
        assert all(same(world(step), fork(step)) for step in range(FIRST, LAST))


def test_policy_state_and_edit_stay_in_every_placebo(read_only: Run) -> None:
    rate, noise = LearningRate(80, 84, 2.0), Noise(0.01)
    edit = EditTokens(75, 90, "a", "b")
    fork = (rate, noise, edit, RemoveSequences(80, 82, ROWS, "mask"))
    for placebo in drawn(read_only, *fork):
        assert placebo.interventions is not None
        assert [i for i in placebo.interventions if i in fork] == list(fork)
        assert not any(i in fork for i in placebo.world)  # its control trains as the parent did


def test_what_touches_no_data_has_no_placebo(read_only: Run) -> None:
    fork = (LearningRate(80, 84, 2.0), Noise(0.01), EditTokens(75, 90, "a", "b"))
    assert not exist(fork) and drawn(read_only, *fork) == []


def test_documents_are_removed_by_their_places_where_their_text_no_longer_stands(
    base: Run,
) -> None:
    document = base.batches.provenance(base.stream(80))[3][0].document
    own = RemoveDocuments(80, 81, (document,), "mask")
    slots = own.touches(base, base.stream)
    (placebo,) = drawn(base, own, count=1)
    altered, _ = composed(placebo.interventions, base)
    world, _ = composed(placebo.world, base)
    for slot in slots:
        weight = altered(slot.step).weight[slot.slot]
        assert not weight[slot.first : slot.last].any()
        assert int(weight.sum()) == int(world(80).weight[slot.slot].sum()) - sum(
            s.last - s.first for s in slots if s.slot == slot.slot
        )


@pytest.mark.parametrize("own", BROUGHT_IN, ids=lambda i: i.kind)
def test_what_comes_in_is_drawn_anew_beside_the_forks_own_control(
    own: Intervention, read_only: Run
) -> None:
    placebos = drawn(read_only, own)
    assert len(placebos) == 4 and all(placebo.world == () for placebo in placebos)
    others = [placebo.interventions for placebo in placebos]
    assert len(set(others)) == 4 and (own,) not in others
    for (other,) in others:
        other.check(read_only, FIRST, LAST)
        assert other.kind == own.kind
        before = own.touches(read_only, read_only.stream)
        after = other.touches(read_only, read_only.stream)
        assert len(after) == len(before) or own.kind == "reorder"


def test_sequences_that_come_in_had_been_met_as_often_as_the_forks_own(read_only: Run) -> None:
    met = read_only.stream(10).sequence[:2].tolist()
    fresh = read_only.stream(LAST + 5).sequence[:1].tolist()
    trained = {int(i) for step in range(FIRST) for i in read_only.stream(step).sequence}
    for placebo in drawn(read_only, Insert(80, sequences=(*met, *fresh))):
        (other,) = placebo.interventions
        assert sum(sequence in trained for sequence in other.sequences) == 2


def test_masked_targets_are_redrawn_step_by_step_among_all_that_weigh(read_only: Run) -> None:
    own = MaskTokens(80, 82, (32,))
    for placebo in drawn(read_only, own):
        (other,) = placebo.interventions
        for step in (80, 81):
            batch = read_only.stream(step)
            assert other.masked(step, batch).sum() == own.masked(step, batch).sum()


def test_a_phase_that_is_over_gives_way_to_the_runs_usual_mix(base: Run) -> None:
    """The damaged phase of this run is steps 80 and 81: nothing after it is damaged."""
    damaged = [s.name for s in base.corpus.sources].index("damaged")
    (placebo,) = drawn(base, Drop(80, 82), count=1)
    world, _ = composed(placebo.world, base)
    sources = base.batches.order.source_of(world(80).sequence.numpy())
    assert damaged not in sources
