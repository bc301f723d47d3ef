"""Interventions: what each moves and what it leaves alone, and that together they compose."""

from __future__ import annotations

import dataclasses
import json
import math
import tomllib

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from forensics.errors import ForensicsError
from forensics.sequence_window import window_of
from forensics.step.batch import Batch
from forensics.train.advance import advance
from forensics.train.run import Run
from replay.forks.spec import Spec
from replay.interventions import corpus_search
from replay.interventions.add_qk_norm import AddQKNorm
from replay.interventions.another_optimizer import AnotherOptimizer
from replay.interventions.base import KINDS, Intervention
from replay.interventions.boost_token import BoostToken, another_token
from replay.interventions.composition import composed
from replay.interventions.corpus_search import holding, sequences_of, token_counts
from replay.interventions.edit_tokens import EditTokens
from replay.interventions.insertions import Insert, Replace
from replay.interventions.mask_tokens import MaskTokens
from replay.interventions.no_update import HoldParameters, Skip, SkipFrozen, ZeroUpdate
from replay.interventions.order import Drop, Reorder, Repeat, Shuffle, Swap
from replay.interventions.policy import (
    Betas,
    Clip,
    Epsilon,
    Freeze,
    LearningRate,
    Precision,
    SkipStep,
    WeightDecay,
    ZLoss,
)
from replay.interventions.registry import from_dict, to_dict
from replay.interventions.removal import RemoveDocuments, RemoveSequences
from replay.interventions.row_removal import _repacked
from replay.interventions.state import Noise, ResetMoments, Transplant, UnitInLastPlace

B, T = 4, 6


def own_stream(s: int) -> Batch:
    """Batch s, whose every token tells where it comes from."""
    ids = torch.arange(s * B, (s + 1) * B)
    return Batch(ids[:, None] * 10 + torch.arange(T + 1), torch.ones(B, T), float(B * T), ids, s)


EACH = [
    Drop(3, 5),
    Skip(3, 5),
    SkipFrozen(3, 5),
    ZeroUpdate(3, 5),
    HoldParameters(3, 5),
    Swap(3, 7),
    LearningRate(3, 5, 0.5),
    RemoveDocuments(3, 5, (1, 2), "mask", "select 1"),
    RemoveSequences(3, 5, ((3, 1, 0, 6),), "replace"),
    MaskTokens(3, 5, (7, 9)),
    MaskTokens(3, 5, at=((3, 0, 1), (4, 2, 0)), renormalise=True),
    UnitInLastPlace(3),
    Repeat(3, 5, 3),
    Reorder(3, 5, ((4, 1), (3, 0)), "select 'ä\\ \"q\"'"),
    Shuffle(3, 5, 7, True),
    Replace(3, 5, batch=9),
    Replace(3, 5, text="one\n\ttwo \x7f 🦭"),
    Replace(3, 5, sequences=(4, 2)),
    Insert(3, text="to be"),
    Insert(3, sequences=(1,)),
    EditTokens(3, 5, "old", ""),
    BoostToken(3, 5, 17, 2, 1, (8, 9), ((3, 0), (4, 1))),
    Clip(3, 5, 0.0),
    Betas(3, 5, (0.8, 0.99)),
    Epsilon(3, 5, 1e-06),
    WeightDecay(3, 5, 0.0),
    ZLoss(3, 5, 1e-4),
    SkipStep(3, 5, True),
    Freeze(3, 5, ("embed.*",)),
    Precision(3, 5, "bf16"),
    AnotherOptimizer(3, 5, "muon"),
    AddQKNorm("whole"),
    ResetMoments(("layers.0.*",)),
    ResetMoments(counter=True),
    Noise(1e-3, 4),
    Transplant("base@50", ("embed.weight",), True),
]


# flags of `replay fork 2:9` and what they say; kinds whose flags take SQL are tried in test_spec.py
FLAGS: list[tuple[list[str], Intervention]] = [
    (["--drop", "3:5"], Drop(3, 5)),
    (["--swap", "3,7"], Swap(3, 7)),
    (["--repeat", "3:5@4"], Repeat(3, 5, 4)),
    (["--shuffle", "3:5"], Shuffle(3, 5)),
    (["--shuffle", "3:5@9"], Shuffle(3, 5, 9)),
    (["--replace", "3:5=7"], Replace(3, 5, 7)),
    (["--replace-text", "3:5=a=b"], Replace(3, 5, text="a=b")),
    (["--insert", "3=a@b"], Insert(3, "a@b")),
    (["--edit", "a@1=>b@3:5"], EditTokens(3, 5, "a@1", "b")),
    (["--boost-token", "7", "--times", "3"], BoostToken(2, 9, 7, 3)),
    (["--skip", "3:5"], Skip(3, 5)),
    (["--skip-frozen", "3:5"], SkipFrozen(3, 5)),
    (["--zero-update", "3:5"], ZeroUpdate(3, 5)),
    (["--hold-parameters", "3:5"], HoldParameters(3, 5)),
    (["--lr-scale", "0.5@3:5"], LearningRate(3, 5, 0.5)),
    (["--clip", "0"], Clip(2, 9, 0.0)),
    (["--betas", "0.8,0.9@3:5"], Betas(3, 5, (0.8, 0.9))),
    (["--eps", "1e-6@3:5"], Epsilon(3, 5, 1e-6)),
    (["--weight-decay", "0@3:5"], WeightDecay(3, 5, 0.0)),
    (["--z-loss", "1e-4@3:5"], ZLoss(3, 5, 1e-4)),
    (["--skip-step", "on@3:5"], SkipStep(3, 5, True)),
    (["--skip-step", "off"], SkipStep(2, 9, False)),
    (["--freeze", "embed.*@3:5"], Freeze(3, 5, ("embed.*",))),
    (["--precision", "fp32@3:5"], Precision(3, 5, "fp32")),
    (["--optimizer", "lion@3:5"], AnotherOptimizer(3, 5, "lion")),
    (["--qk-norm"], AddQKNorm()),
    (["--qk-norm", "whole"], AddQKNorm("whole")),
    (["--reset-moments"], ResetMoments()),
    (["--reset-moments", "embed.*"], ResetMoments(("embed.*",))),
    (["--reset-moments", "--reset-counter"], ResetMoments(counter=True)),
    (["--noise", "0.1@4"], Noise(0.1, 4)),
    (["--ulp", "3"], UnitInLastPlace(3)),
    (
        ["--transplant", "base@50:embed.*", "--with-moments"],
        Transplant("base@50", ("embed.*",), True),
    ),
    (["--transplant", "base@50"], Transplant("base@50")),
]
BY_SQL = {"reorder", "remove-documents", "remove-sequences", "mask-tokens"}


@pytest.mark.parametrize("intervention", EACH, ids=lambda i: i.kind)
def test_each_goes_through_json_and_comes_back_the_same(intervention: Intervention) -> None:
    assert from_dict(json.loads(json.dumps(to_dict(intervention)))) == intervention
    assert "\n" not in intervention.sentence()


@pytest.mark.parametrize("intervention", EACH, ids=lambda i: i.kind)
def test_each_goes_through_toml_and_comes_back_the_same(intervention: Intervention) -> None:
    spec = Spec("base", 3, 9, (intervention,), placebos=2)
    raw = tomllib.loads(spec.toml())
    assert from_dict(raw["intervention"][0]) == intervention
    assert (raw["parent"], raw["from"], raw["to"], raw["placebos"]) == ("base", 3, 9, 2)


def test_every_kind_is_tried_above() -> None:
    assert {i.kind for i in EACH} == set(KINDS)


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        ({"kind": "skp"}, "did you mean 'skip'"),
        ({"kind": "skip", "window": "5:3"}, "A < B"),
        ({"kind": "skip", "first": 3}, "'last' is missing"),
        ({"kind": "lr-scale", "window": "1:2", "factr": 1.0}, "did you mean 'factor'"),
        ({"kind": "swap", "a": "x", "b": 1}, "wanted a whole number"),
    ],
)
def test_a_malformed_intervention_is_refused_by_name(raw: dict, words: str) -> None:
    with pytest.raises(ForensicsError, match=words.replace("(", "\\(")):
        from_dict(raw)


# What exactly moves at a step under each name: (batch asked for, schedule, updates, moments,
# parameters)
SKIPS = {
    "skip": (Skip(50, 51), False, 1, 0, False, False),
    "skip-frozen": (SkipFrozen(50, 51), False, 0, 0, False, False),
    "zero-update": (ZeroUpdate(50, 51), True, 1, 0, False, False),
    "hold-parameters": (HoldParameters(50, 51), True, 1, 1, True, False),
    "drop": (Drop(50, 51), True, 1, 1, True, True),
    "mask": (MaskTokens(50, 51, tuple(range(257))), True, 1, 1, True, True),
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
        assert (
            batch is not None
            and torch.equal(batch.tokens, base.stream(51).tokens)
            and batch.origin == 51
        )
    if name == "mask":
        assert (
            batch is not None
            and batch.weight.sum() == 0
            and batch.denominator == base.stream(50).denominator
        )
        assert result.loss == 0.0 and result.grad_norm == 0.0


def test_a_zero_update_lets_no_nan_through(base: Run) -> None:
    state = base.state_at(50)
    before = state.clone()
    policy = dataclasses.replace(
        composed([ZeroUpdate(50, 51)], base)[1](state.counters), z_loss=float("nan")
    )
    result = advance(state, base.stream(50), policy, base.model)
    assert not np.isfinite(result.grad_norm or 0.0)
    assert all(torch.equal(state.params[n], before.params[n]) for n in state.params)


@given(st.lists(st.tuples(st.integers(0, 19), st.integers(0, 19)), max_size=8))
def test_swaps_undone_in_reverse_order_are_the_identity(pairs: list[tuple[int, int]]) -> None:
    stream = own_stream
    for a, b in [*pairs, *reversed(pairs)]:
        stream = Swap(a, b).stream(stream, None)  # type: ignore[arg-type]
    for s in range(20):
        assert torch.equal(stream(s).tokens, own_stream(s).tokens)


@given(st.integers(0, 10), st.integers(1, 5), st.integers(0, 10), st.integers(1, 5))
def test_drops_compose_in_the_order_they_are_given(a: int, m: int, b: int, n: int) -> None:
    stream = Drop(b, b + n).stream(Drop(a, a + m).stream(own_stream, None), None)  # type: ignore[arg-type]
    left = [s for s in range(60) if not a <= s < a + m]
    left = [s for i, s in enumerate(left) if not b <= i < b + n]
    assert [stream(s).origin for s in range(30)] == left[:30]


@given(st.sets(st.tuples(st.integers(2, 8), st.integers(0, B - 1)), max_size=12))
def test_a_repack_is_the_rest_of_the_rows_in_their_order(gone: set[tuple[int, int]]) -> None:
    stream = _repacked(own_stream, sorted(gone), 2)
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
        s.document
        for spans in run.batches.provenance(run.stream(80))
        for s in spans
        if s.document in damaged(run)
    ]
    return max(set(found), key=found.count)


def holders(run: Run, batch: Batch, documents: tuple[int, ...]) -> list[int]:
    return [
        slot
        for slot, spans in enumerate(run.batches.provenance(batch))
        if any(s.document in documents for s in spans)
    ]


def test_replacing_documents_changes_only_the_rows_that_held_them(base: Run) -> None:
    documents = damaged(base)
    stream, _ = composed([RemoveDocuments(80, 82, documents)], base)
    for step in range(78, 84):
        old, new = base.stream(step), stream(step)
        touched = holders(base, old, documents)
        assert bool(touched) == (step in (80, 81))
        assert not holders(base, new, documents)
        kept = [b for b in range(len(old.tokens)) if b not in touched]
        assert torch.equal(new.tokens[kept], old.tokens[kept]) and torch.equal(
            new.sequence[kept], old.sequence[kept]
        )
        assert new.denominator == old.denominator


def test_what_comes_in_their_place_is_the_sources_next_draw_after_the_end(base: Run) -> None:
    clean = base.corpus.documents.to_pydict()["source"].index("clean")
    stream, _ = composed([RemoveDocuments(0, 100, (clean,))], base)
    order = base.batches.order
    coming = [
        i
        for i in order.draws(0, order.drawn(0, 100), 400).tolist()
        if i not in set(sequences_of(base, frozenset({clean})).tolist())
    ]
    new = [
        int(b)
        for s in range(100)
        for a, b in zip(base.stream(s).sequence, stream(s).sequence)
        if a != b
    ]
    assert new and new == coming[: len(new)]


def test_masking_a_document_weighs_exactly_its_targets_at_zero(base: Run) -> None:
    document = read_most(base)
    stream, _ = composed([RemoveDocuments(80, 82, (document,), "mask")], base)
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


def test_a_unit_in_the_last_place_moves_every_parameter_by_just_that(base: Run) -> None:
    state = base.load(50)
    before = state.clone()
    UnitInLastPlace(0).state(state, base)
    for name, theta in state.params.items():
        old = before.params[name]
        assert (
            (theta == torch.nextafter(old, old + 1)) | (theta == torch.nextafter(old, old - 1))
        ).all()


@pytest.mark.parametrize(
    ("intervention", "words"),
    [
        (Skip(10, 20), "inside 75:90"),
        (Swap(80, 95), "inside 75:90"),
        (LearningRate(80, 81, -1.0), "at least 0"),
        (RemoveDocuments(80, 82, ()), "no document"),
        (RemoveDocuments(80, 82, (10**6,)), "found id 1000000"),
        (RemoveDocuments(80, 82, (0,), "burn"), "replace, mask, repack"),
        (MaskTokens(80, 82, (999,)), "below 257"),
        (MaskTokens(80, 82), "no token"),
        (MaskTokens(80, 82, at=((85, 0, 0),)), "inside 80:82"),
        (MaskTokens(80, 82, at=((80, 0, 32),)), "below 32"),
        (RemoveSequences(80, 82, ((80, 8, 0, 32),)), "below 8"),
        (Repeat(80, 82, 1), "2 times or more"),
        (Repeat(80, 95, 2), "inside 75:90"),
        (Reorder(80, 82, ((83, 0),)), "inside 80:82"),
        (Reorder(80, 82, ((80, 0), (80, 0))), "each row once"),
        (Replace(80, 82), "one of batch, text and sequences"),
        (Replace(80, 82, batch=99), "0 to 98"),
        (Replace(80, 82, batch=1, text="x"), "found batch and text"),
        (Replace(80, 82, sequences=(10**6,)), "found id 1000000"),
        (Insert(95, text="x"), "inside 75:90"),
        (Insert(80), "either text or sequences"),
        (EditTokens(80, 82, "", "x"), "text to find"),
        (EditTokens(80, 82, "x", "x"), "another text"),
        (BoostToken(80, 82, 257, 1), "below 257"),
        (BoostToken(80, 82, 1, 1), "no sequence .* holds token 1"),
        (BoostToken(80, 82, 101, 99), "99 sequences of 80:82 without"),
        (Clip(80, 82, -1.0), "at least 0"),
        (Epsilon(80, 82, 0.0), "more than 0"),
        (Betas(80, 82, (0.9, 1.0)), r"\[0, 1\)"),
        (Freeze(80, 82, ("embed.weigth",)), "did you mean 'embed.weight'"),
        (Precision(80, 82, "fp31"), "did you mean 'fp32'"),
        (Precision(80, 82, "bf16"), "needs CUDA"),
        (ResetMoments(("norm.*",), counter=True), "all tensors|is called"),
        (ResetMoments(("embed.weight",), counter=True), "all tensors"),
        (Noise(0.0), "more than 0"),
        (Transplant("base"), "RUN@STEP"),
        (Transplant("base@51"), "saved: 0, 25, 50, 75, 100"),
        (Transplant("bade@50"), "did you mean 'base'"),
    ],
)
def test_what_makes_no_sense_is_refused_before_a_step_runs(
    intervention: Intervention, words: str, base: Run
) -> None:
    with pytest.raises(ForensicsError, match=words):
        intervention.check(base, 75, 90)


def test_a_held_out_sequence_is_never_trained_on(base: Run) -> None:
    held_out = int(base.batches.order.held_out[0])
    for each in (Replace(80, 82, sequences=(held_out,)), Insert(80, sequences=(held_out,))):
        with pytest.raises(ForensicsError, match="held out"):
            each.check(base, 75, 90)
    assert not set(holding(base, 101).tolist()) & set(base.batches.order.held_out.tolist())


def test_a_transplant_from_another_shape_is_refused(base: Run) -> None:
    document = json.loads((base.folder / "run.json").read_text())
    document["name"] = "wide"
    document["shape"]["mlp_width"] += 8
    other = base.runs / "wide"
    (other / "checkpoints" / "step-000050").mkdir(parents=True)
    (other / "checkpoints" / "step-000050" / "manifest.json").write_text("{}")
    (other / "run.json").write_text(json.dumps(document))
    with pytest.raises(ForensicsError, match="of shape"):
        Transplant("wide@50").check(base, 75, 90)
    Transplant("wide@50", ("embed.weight",)).check(base, 75, 90)


@pytest.mark.parametrize(
    "lost",
    [
        [Drop(80, 82), Swap(80, 85)],
        [Swap(80, 85), Drop(85, 86)],
        [EditTokens(80, 82, "a", "b"), Drop(79, 83)],
        [Drop(79, 83), MaskTokens(80, 82, (5,))],
        [Skip(80, 84), Drop(83, 84)],
        [
            EditTokens(80, 81, "a", "b"),
            Repeat(77, 78, 3),
            Drop(82, 83),
        ],  # 80 stands at 82 by then
    ],
)
def test_an_intervention_on_a_batch_that_another_drops_is_refused(
    lost: list[Intervention], base: Run
) -> None:
    with pytest.raises(ForensicsError, match="which the drop of"):
        Spec("base", 75, 90, tuple(lost)).check(base)


def test_dropping_what_was_added_or_part_of_a_window_is_no_contradiction(base: Run) -> None:
    for fine in (
        [Repeat(80, 82, 2), Drop(82, 84)],
        [Insert(80, text="x"), Drop(80, 81)],
        [EditTokens(80, 84, "a", "b"), Drop(83, 84)],
        [Swap(80, 85), Insert(79, text="x"), Drop(80, 81)],  # 79 stands there
        [LearningRate(80, 82, 0.5), Drop(80, 82)],
    ):
        Spec("base", 75, 90, tuple(fine)).check(base)


def same(a: Batch, b: Batch) -> bool:
    tensors = all(
        torch.equal(getattr(a, k), getattr(b, k)) for k in ("tokens", "weight", "sequence")
    )
    return tensors and a.denominator == b.denominator


WINDOWS = st.tuples(st.integers(76, 84), st.integers(1, 3)).map(lambda w: (w[0], w[0] + w[1]))
TEXTS = st.sampled_from(["to be", "x" * 700, "sel", "é"])


@st.composite
def with_inverse(draw: st.DrawFn) -> tuple[Intervention, Intervention]:
    """An intervention and the one that undoes it; no text of the corpus holds the characters that
    edits write.
    """
    first, last = draw(WINDOWS)
    which = draw(st.sampled_from(["swap", "edit", "shuffle", "reorder", "repeat", "insert"]))
    if which == "swap":
        swap = Swap(first, draw(st.integers(76, 88)))
        return swap, swap
    if which == "edit":
        find = draw(st.sampled_from(["self", "e", "\n", "return ", "def "]))
        new = draw(st.sampled_from(["§", "¤" * 5, "¥¥", "🦭🦭"]))
        return EditTokens(70, 100, find, new), EditTokens(70, 100, new, find)
    if which == "shuffle":
        seed = draw(st.integers(0, 2**40))
        return Shuffle(first, last, seed), Shuffle(first, last, seed, True)
    if which == "reorder":
        place = [(s, b) for s in range(first, last) for b in range(8)]
        order = draw(st.permutations(place))
        back = dict(zip(order, place))
        return Reorder(first, last, tuple(order)), Reorder(
            first, last, tuple(back[p] for p in place)
        )
    if which == "repeat":
        times = draw(st.integers(2, 3))
        return Repeat(first, last, times), Drop(last, last + (times - 1) * (last - first))
    text = draw(TEXTS)
    n = math.ceil(
        math.ceil(len(text.encode()) / 32) / 8
    )  # bytes, 32 to a sequence, 8 sequences to a batch
    return Insert(first, text=text), Drop(first, first + n)


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(pairs=st.lists(with_inverse(), min_size=1, max_size=3))
def test_interventions_undone_in_reverse_order_are_the_parents_stream_bit_for_bit(
    pairs: list[tuple[Intervention, Intervention]], read_only: Run
) -> None:
    finds = [do.find for do, _ in pairs if isinstance(do, EditTokens)]
    written = [do.replace for do, _ in pairs if isinstance(do, EditTokens)]
    if len(set(written)) < len(written) or len(set(finds)) < len(finds):
        # two edits that write the same cannot be told apart in the text: it does not round-trip
        return
    stream, _ = composed(
        [*(do for do, _ in pairs), *(undo for _, undo in reversed(pairs))], read_only
    )
    for s in range(75, 92):
        assert same(stream(s), read_only.stream(s)), f"batch {s}"


def test_an_edit_moves_through_swaps_and_masks_and_is_undone_where_it_came_to(
    read_only: Run,
) -> None:
    there, back = EditTokens(80, 81, "e", "¤¤¤"), EditTokens(84, 85, "¤¤¤", "e")
    mask = MaskTokens(84, 85, at=((84, 2, 5), (84, 3, 0)))
    stream, _ = composed([there, Swap(80, 84), mask, back], read_only)
    wanted, _ = composed([Swap(80, 84), mask], read_only)
    assert all(same(stream(s), wanted(s)) for s in range(78, 88))
    assert not same(composed([there], read_only)[0](80), read_only.stream(80))


def test_an_edited_sequence_keeps_its_length_by_the_rule(read_only: Run) -> None:
    corpus, T = read_only.corpus, 32
    old = read_only.stream(50)
    row = next(b for b in range(8) if b" " in bytes(t for t in old.tokens[b].tolist() if t < 256))
    before = old.tokens[row].tolist()
    longer = composed([EditTokens(50, 51, " ", "__")], read_only)[0](50)
    spelled = [t for x in before for t in ((95, 95) if x == 32 else (x,))]
    assert longer.tokens[row].tolist() == spelled[: T + 1] and longer.sequence[row] == -1
    shorter = composed([EditTokens(50, 51, " ", "")], read_only)[0](50)
    left = [t for t in before if t != 32]
    at = (
        (int(old.sequence[row]) - corpus.layout(window_of("shared", T)).first_sequence[0]) * T
        + T
        + 1
    )
    follows = corpus.tokens(0, at, at + T + 1 - len(left)).tolist()
    assert shorter.tokens[row].tolist() == left + follows
    untouched = [b for b in range(8) if 32 not in old.tokens[b].tolist()]
    assert torch.equal(longer.tokens[untouched], old.tokens[untouched])
    assert torch.equal(longer.sequence[untouched], old.sequence[untouched])


def test_replacing_by_a_batch_a_text_or_sequences_yields_just_these(read_only: Run) -> None:
    stream, _ = composed([Replace(80, 82, batch=10)], read_only)
    assert [stream(s).origin for s in (79, 80, 81, 82)] == [79, 10, 11, 82]
    text = composed([Replace(80, 82, text="abc")], read_only)[0]
    ring = [97, 98, 99, 256]
    flat = torch.cat(
        [text(80).tokens[:, :-1].reshape(-1), text(81).tokens[:, :-1].reshape(-1)]
    ).tolist()
    assert flat == [ring[i % 4] for i in range(len(flat))] and (text(81).sequence == -1).all()
    assert torch.equal(
        text(80).tokens[1:, 0], text(80).tokens[:-1, -1]
    )  # neighbours share one token
    chosen = composed([Replace(80, 82, sequences=(5, 3, 9))], read_only)[0]
    assert torch.cat([chosen(80).sequence, chosen(81).sequence]).tolist() == [
        (5, 3, 9)[i % 3] for i in range(16)
    ]


def test_a_repeat_comes_again_and_the_rest_moves_back(read_only: Run) -> None:
    stream, _ = composed([Repeat(80, 82, 3)], read_only)
    assert [stream(s).origin for s in range(79, 88)] == [79, 80, 81, 80, 81, 80, 81, 82, 83]
    inserted, _ = composed([Insert(80, sequences=tuple(range(9)))], read_only)
    assert [inserted(s).origin for s in range(79, 84)] == [79, None, None, 80, 81]


def test_a_shuffle_moves_every_sequence_of_the_window_and_no_other(read_only: Run) -> None:
    stream, _ = composed([Shuffle(80, 83, 1)], read_only)
    ids = [
        torch.cat([f(s).sequence for s in (80, 81, 82)]).tolist()
        for f in (stream, read_only.stream)
    ]
    assert ids[0] != ids[1] and sorted(ids[0]) == sorted(ids[1])
    assert same(stream(79), read_only.stream(79)) and same(stream(83), read_only.stream(83))


def test_a_renormalised_mask_divides_by_the_weight_that_is_left(read_only: Run) -> None:
    kept, _ = composed([MaskTokens(80, 81, (32,))], read_only)
    scaled, _ = composed([MaskTokens(80, 81, (32,), renormalise=True)], read_only)
    assert torch.equal(kept(80).weight, scaled(80).weight) and 0 < kept(80).weight.sum() < 256
    assert kept(80).denominator == 256.0 and scaled(80).denominator == float(kept(80).weight.sum())
    nothing, _ = composed([MaskTokens(80, 81, tuple(range(257)), renormalise=True)], read_only)
    assert nothing(80).denominator == 256.0
    at, _ = composed([MaskTokens(80, 81, at=((80, 2, 5),))], read_only)
    assert (at(80).weight == 0).nonzero().tolist() == [[2, 5]]


def test_a_boosted_token_comes_in_as_many_sequences_as_asked(read_only: Run) -> None:
    token = ord("{")
    own = BoostToken(80, 82, token, 4).resolved(read_only)
    stream, _ = composed([own], read_only)
    changed = [
        (s, b)
        for s in range(79, 84)
        for b in range(8)
        if stream(s).sequence[b] != read_only.stream(s).sequence[b]
    ]
    assert (
        len(own.at) == 4 and set(changed) <= set(own.at) and all(80 <= s < 82 for s, _ in changed)
    )
    for s, b in own.at:
        assert token in stream(s).tokens[b, 1:] and token not in read_only.stream(s).tokens[b, 1:]
    assert BoostToken(80, 82, token, 4, seed=1).resolved(read_only) != own
    placebo = another_token(own, read_only, 75, 90, 0)
    counts = token_counts(read_only)
    assert isinstance(placebo, BoostToken) and placebo.token != token and placebo.times == 4
    assert 0.3 < counts[placebo.token] / counts[token] < 3


def test_the_scan_for_a_token_finds_what_reading_every_sequence_finds(
    read_only: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corpus_search, "CHUNK", 1000)
    layout = read_only.corpus.layout(read_only.recipe.data.cut)
    tokens = read_only.corpus.sequences(
        np.arange(sum(layout.n_sequences)), read_only.recipe.data.cut
    )
    held_out = set(read_only.batches.order.held_out.tolist())
    wanted = [
        i for i in np.flatnonzero((tokens[:, 1:] == ord("{")).any(1)).tolist() if i not in held_out
    ]
    assert holding(read_only, ord("{")).tolist() == wanted


POLICIES = [
    (Clip(80, 82, 0.25), {"clip": 0.25}),
    (Betas(80, 82, (0.5, 0.6)), {"betas": (0.5, 0.6)}),
    (Epsilon(80, 82, 1e-3), {"eps": 1e-3}),
    (WeightDecay(80, 82, 0.0), {"weight_decay": 0.0}),
    (ZLoss(80, 82, 0.1), {"z_loss": 0.1}),
    (SkipStep(80, 82, True), {"skip_step": True}),
    (Freeze(80, 82, ("embed.*",)), {"frozen": frozenset({"embed.weight"})}),
    (Precision(80, 82, "fp32"), {"precision": "fp32"}),
]


@pytest.mark.parametrize(("own", "wanted"), POLICIES, ids=lambda x: getattr(x, "kind", ""))
def test_a_policy_holds_in_its_window_and_nowhere_else(
    own: Intervention, wanted: dict, read_only: Run
) -> None:
    _, policy = composed([own], read_only)
    for step in (79, 80, 81, 82):
        counters = dataclasses.replace(read_only.load(75).counters, step=step)
        plain = read_only.policy(counters)
        assert policy(counters) == (
            dataclasses.replace(plain, **wanted) if 80 <= step < 82 else plain
        )


def test_frozen_tensors_keep_parameters_and_moments(read_only: Run) -> None:
    state = read_only.load(75)
    before = state.clone()
    _, policy = composed([Freeze(75, 76, ("layers.0.*",))], read_only)
    advance(state, read_only.stream(75), policy(state.counters), read_only.model)
    for name in state.params:
        for group in ("params", "exp_avg", "exp_avg_sq"):
            moved = not torch.equal(getattr(state, group)[name], getattr(before, group)[name])
            assert moved != name.startswith("layers.0."), name


def test_state_interventions_alter_just_what_they_name(read_only: Run) -> None:
    old, donor = read_only.load(75), read_only.load(50)

    def after(own: Intervention) -> tuple[object, set[str]]:
        own.check(read_only, 75, 90)
        state = old.clone()
        own.state(state, read_only)
        kinds = dict(old.tensors())
        return state, {
            name for name, tensor in state.tensors() if not torch.equal(tensor, kinds[name])
        }

    state, moved = after(ResetMoments())
    assert all(not t.any() for n, t in state.tensors() if n.startswith("exp_")) and not any(
        n.startswith("params") for n in moved
    )
    assert state.counters == old.counters
    state, moved = after(ResetMoments(counter=True))
    assert state.counters == dataclasses.replace(old.counters, updates=0)
    _, moved = after(ResetMoments(("embed.weight",)))
    assert moved == {"exp_avg/embed.weight", "exp_avg_sq/embed.weight"}
    state, moved = after(Noise(0.01, 3))
    assert moved == {f"params/{name}" for name in old.params}
    embed = old.params["embed.weight"]
    assert (
        (state.params["embed.weight"] - embed).square().mean() / embed.square().mean()
    ).sqrt() == pytest.approx(0.01, rel=0.05)
    assert torch.equal(
        after(Noise(0.01, 3))[0].params["embed.weight"], state.params["embed.weight"]
    )
    state, moved = after(Transplant("base@50", ("embed.*",)))
    assert moved == {"params/embed.weight"} and torch.equal(
        state.params["embed.weight"], donor.params["embed.weight"]
    )
    _, moved = after(Transplant("base@50", ("embed.*",), True))
    assert moved == {"params/embed.weight", "exp_avg/embed.weight", "exp_avg_sq/embed.weight"}
