"""Interventions: what each moves and what it leaves alone, and that together they compose."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from forensics.data.batches import Batch
from forensics.errors import ForensicsError
from forensics.train.advance import advance
from forensics.train.run import Run
from replay import interventions as iv
from replay import slots
from replay.interventions import composed, from_dict, to_dict

B, T = 4, 6


def own_stream(s: int) -> Batch:
    """Batch s, whose every token tells where it comes from."""
    ids = torch.arange(s * B, (s + 1) * B)
    return Batch(ids[:, None] * 10 + torch.arange(T + 1), torch.ones(B, T), float(B * T), ids, s)


EACH = [
    iv.Drop(3, 5), iv.Skip(3, 5), iv.SkipFrozen(3, 5), iv.ZeroUpdate(3, 5), iv.HoldParameters(3, 5), iv.Swap(3, 7),
    iv.LearningRate(3, 5, 0.5), iv.RemoveDocuments(3, 5, (1, 2), "mask", "select 1"), iv.RemoveSequences(3, 5, ((3, 1, 0, 6),), "replace"),
    iv.MaskTokens(3, 5, (7, 9)), iv.UnitInLastPlace(3),
]  # fmt: skip


@pytest.mark.parametrize("intervention", EACH, ids=lambda i: i.kind)
def test_each_goes_through_json_and_comes_back_the_same(intervention: iv.Intervention) -> None:
    assert from_dict(json.loads(json.dumps(to_dict(intervention)))) == intervention
    assert intervention.sentence()


def test_every_kind_is_tried_above() -> None:
    assert {i.kind for i in EACH} == set(iv.KINDS)


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        ({"kind": "skp"}, "did you mean 'skip'"),
        ({"kind": "skip", "window": "5:3"}, "A < B"),
        ({"kind": "skip", "first": 3}, "'last' is missing"),
        ({"kind": "lr-scale", "window": "1:2", "factr": 1.0}, "did you mean 'factor'"),
        ({"kind": "swap", "a": "x", "b": 1}, "wanted int"),
    ],
)
def test_a_malformed_intervention_is_refused_by_name(raw: dict, words: str) -> None:
    with pytest.raises(ForensicsError, match=words.replace("(", "\\(")):
        from_dict(raw)


# What exactly moves at a step under each name: (batch asked for, schedule, updates, moments, parameters)
SKIPS = {
    "skip": (iv.Skip(50, 51), False, 1, 0, False, False),
    "skip-frozen": (iv.SkipFrozen(50, 51), False, 0, 0, False, False),
    "zero-update": (iv.ZeroUpdate(50, 51), True, 1, 0, False, False),
    "hold-parameters": (iv.HoldParameters(50, 51), True, 1, 1, True, False),
    "drop": (iv.Drop(50, 51), True, 1, 1, True, True),
    "mask": (iv.MaskTokens(50, 51, tuple(range(257))), True, 1, 1, True, True),
}


@pytest.mark.parametrize("name", SKIPS)
def test_the_table_of_skips_holds_in_every_column(name: str, base: Run) -> None:
    intervention, asked, schedule, updates, moments, parameters = SKIPS[name]
    stream, policy = composed([intervention], base)
    state = base.state_at(50)
    before = state.clone()
    step_policy = policy(state.counters)
    batch = stream(50) if step_policy.update != "none" else None
    assert (batch is not None) == asked
    result = advance(state, batch, step_policy, base.model)
    assert state.counters.step == before.counters.step + 1
    assert state.counters.schedule == before.counters.schedule + schedule
    assert state.counters.updates == before.counters.updates + updates
    moved = [
        any(not torch.equal(getattr(state, g)[n], getattr(before, g)[n]) for n in state.params)
        for g in ("exp_avg", "exp_avg_sq", "params")
    ]
    assert moved == [moments, moments, parameters]
    assert (result.loss is None) == (not asked)
    if name == "drop":
        assert batch is not None and torch.equal(batch.tokens, base.stream(51).tokens) and batch.origin == 51
    if name == "mask":
        assert batch is not None and batch.weight.sum() == 0 and batch.denominator == base.stream(50).denominator
        assert result.loss == 0.0 and result.grad_norm == 0.0


def test_a_zero_update_lets_no_nan_through(base: Run) -> None:
    state = base.state_at(50)
    before = state.clone()
    policy = dataclasses.replace(composed([iv.ZeroUpdate(50, 51)], base)[1](state.counters), z_loss=float("nan"))
    result = advance(state, base.stream(50), policy, base.model)
    assert not np.isfinite(result.grad_norm or 0.0)
    assert all(torch.equal(state.params[n], before.params[n]) for n in state.params)


@given(st.lists(st.tuples(st.integers(0, 19), st.integers(0, 19)), max_size=8))
def test_swaps_undone_in_reverse_order_are_the_identity(pairs: list[tuple[int, int]]) -> None:
    stream = own_stream
    for a, b in [*pairs, *reversed(pairs)]:
        stream = iv.Swap(a, b).stream(stream, None)  # type: ignore[arg-type]
    for s in range(20):
        assert torch.equal(stream(s).tokens, own_stream(s).tokens)


@given(st.integers(0, 10), st.integers(1, 5), st.integers(0, 10), st.integers(1, 5))
def test_drops_compose_in_the_order_they_are_given(a: int, m: int, b: int, n: int) -> None:
    stream = iv.Drop(b, b + n).stream(iv.Drop(a, a + m).stream(own_stream, None), None)  # type: ignore[arg-type]
    left = [s for s in range(60) if not a <= s < a + m]
    left = [s for i, s in enumerate(left) if not b <= i < b + n]
    assert [stream(s).origin for s in range(30)] == left[:30]


@given(st.sets(st.tuples(st.integers(2, 8), st.integers(0, B - 1)), max_size=12))
def test_a_repack_is_the_rest_of_the_rows_in_their_order(gone: set[tuple[int, int]]) -> None:
    stream = slots._repacked(own_stream, sorted(gone), 2)
    rows = [s * B + b for s in range(2, 30) for b in range(B) if (s, b) not in gone]
    got = torch.cat([stream(s).sequence for s in range(2, 20)]).tolist()
    assert got == rows[: len(got)]
    assert torch.equal(stream(1).tokens, own_stream(1).tokens)


def damaged(run: Run) -> tuple[int, ...]:
    table = run.corpus.documents.to_pydict()
    return tuple(d for d, s in zip(table["document"], table["source"]) if s == "damaged")


def read_most(run: Run) -> int:
    """The damaged document that batch 80 holds most of."""
    found = [
        s.document for spans in run.batches.provenance(run.stream(80)) for s in spans if s.document in damaged(run)
    ]
    return max(set(found), key=found.count)


def holders(run: Run, batch: Batch, documents: tuple[int, ...]) -> list[int]:
    return [
        slot for slot, spans in enumerate(run.batches.provenance(batch)) if any(s.document in documents for s in spans)
    ]


def test_replacing_documents_changes_only_the_rows_that_held_them(base: Run) -> None:
    documents = damaged(base)
    stream, _ = composed([iv.RemoveDocuments(80, 82, documents)], base)
    for step in range(78, 84):
        old, new = base.stream(step), stream(step)
        touched = holders(base, old, documents)
        assert bool(touched) == (step in (80, 81))
        assert not holders(base, new, documents)
        kept = [b for b in range(len(old.tokens)) if b not in touched]
        assert torch.equal(new.tokens[kept], old.tokens[kept]) and torch.equal(new.sequence[kept], old.sequence[kept])
        assert new.denominator == old.denominator


def test_what_comes_in_their_place_is_the_sources_next_draw_after_the_end(base: Run) -> None:
    clean = base.corpus.documents.to_pydict()["source"].index("clean")
    stream, _ = composed([iv.RemoveDocuments(0, 100, (clean,))], base)
    order = base.batches.order
    coming = [
        i
        for i in order.draws(0, order.drawn(0, 100), 400).tolist()
        if i not in set(slots.sequences_of(base, frozenset({clean})).tolist())
    ]
    new = [int(b) for s in range(100) for a, b in zip(base.stream(s).sequence, stream(s).sequence) if a != b]
    assert new and new == coming[: len(new)]


def test_masking_a_document_weighs_exactly_its_targets_at_zero(base: Run) -> None:
    document = read_most(base)
    stream, _ = composed([iv.RemoveDocuments(80, 82, (document,), "mask")], base)
    some = 0
    for step in (80, 81):
        old, new = base.stream(step), stream(step)
        assert torch.equal(old.tokens, new.tokens) and old.denominator == new.denominator
        for slot, spans in enumerate(base.batches.provenance(old)):
            own = torch.zeros(old.tokens.shape[1], dtype=torch.bool)
            for span in spans:
                if span.document == document:
                    own[span.start : span.stop] = True
            assert torch.equal(new.weight[slot] == 0, own[1:])
            some += int(own[1:].sum())
    assert some > 0


@pytest.mark.parametrize("how", slots.HOWS)
def test_a_placebo_takes_as_many_other_sequences_of_the_same_steps(how: str, base: Run) -> None:
    real = iv.RemoveDocuments(80, 82, (read_most(base),), how)
    touched = real.touches(base, base.stream)
    placebo = real.placebo(base, base.stream, 75, 90, seed=1)
    assert isinstance(placebo, iv.RemoveSequences) and placebo.how == how
    chosen = placebo.touches(base, base.stream)
    inside = [slot for slot in touched if slot.step < 82]
    assert sorted((s.step, s.first, s.last) for s in chosen) == sorted((s.step, s.first, s.last) for s in inside)
    assert not {(s.step, s.slot) for s in chosen} & {(s.step, s.slot) for s in touched}
    assert placebo != real.placebo(base, base.stream, 75, 90, seed=2)


def test_a_unit_in_the_last_place_moves_every_parameter_by_just_that(base: Run) -> None:
    state = base.load(50)
    before = state.clone()
    iv.UnitInLastPlace(0).state(state, base)
    for name, theta in state.params.items():
        old = before.params[name]
        assert ((theta == torch.nextafter(old, old + 1)) | (theta == torch.nextafter(old, old - 1))).all()


@pytest.mark.parametrize(
    ("intervention", "words"),
    [
        (iv.Skip(10, 20), "inside 75:90"),
        (iv.Swap(80, 95), "inside 75:90"),
        (iv.LearningRate(80, 81, -1.0), "at least 0"),
        (iv.RemoveDocuments(80, 82, ()), "no document"),
        (iv.RemoveDocuments(80, 82, (10**6,)), "found id 1000000"),
        (iv.RemoveDocuments(80, 82, (0,), "burn"), "replace, mask, repack"),
        (iv.MaskTokens(80, 82, (999,)), "below 257"),
    ],
)
def test_what_makes_no_sense_is_refused_before_a_step_runs(
    intervention: iv.Intervention, words: str, base: Run
) -> None:
    with pytest.raises(ForensicsError, match=words):
        intervention.check(base, 75, 90)
