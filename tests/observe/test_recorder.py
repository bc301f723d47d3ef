"""What the recorder writes: complete rows, right numbers, and never a bit of difference."""

import math

import pytest
import torch

from forensics import config
from forensics.model.shape import parameter_shapes
from forensics.observe import recorder
from forensics.observe.recorder import Recorder
from forensics.records import TABLES
from forensics.statistics import layers
from forensics.store import reader
from forensics.store.writer import Writer
from forensics.train.advance import advance

# columns that are NULL by their definition: at the first update, or until something else measures
# them
LATE = {
    "steps": {"held_out_loss"},
    "tensors": {"staleness", "gss_share", "update_ratio", "update_ratio_no_decay"},
}
DENSE = {"resid_max", "act_max", "lens_loss", "lens_entropy", "lens_kl"}


@pytest.fixture
def record(tmp_path, make_shape, start_state, make_model, make_batch, make_policy):
    """`record(level="light", …)` runs 3 steps under a recorder; returns its tables, the states'
    digests and the results.
    """
    count = iter(range(100))

    def go(
        family="llama",
        steps=3,
        prepare=lambda state, batch: None,
        policy=None,
        spec=None,
        micro_batch=2,
        later=False,
        **knobs,
    ):
        folder = tmp_path / f"run{next(count)}"
        folder.mkdir()
        (folder / "run.json").write_text("{}")
        shape = make_shape(family, **knobs)
        state, model = start_state(shape), make_model(shape, micro_batch)
        digests, results = [], []
        with Writer(folder) as writer:
            recorder = Recorder(writer, config.Record(**(spec or {})), model)
            recorder.later = later
            for step in range(steps):
                batch = make_batch(vocabulary=shape.vocabulary, seed=step)
                prepare(state, batch)
                results.append(advance(state, batch, (policy or make_policy)(), model, recorder))
                digests.append(state.digest())
            recorder.commit()
        return {t: reader.read(folder, t).to_pylist() for t in TABLES}, digests, results

    return go


def empty(rows, table):
    """Columns that hold a NULL in some row."""
    return {c.name for c in TABLES[table].columns if any(row[c.name] is None for row in rows)}


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen3"])
def test_light_rows_are_complete(family, record):
    tables, digests, results = record(family)
    assert (
        len(tables["steps"]) == 3
        and len(tables["layers"]) == 3 * 2
        and len(tables["heads"]) == 3 * 2 * 4
    )
    assert len(tables["sequences"]) == 3 * 4 and len(tables["tensors"]) == 3 * len(
        results[0].grad_norms
    )
    assert tables["tokens"] == [] and tables["events"] == []
    assert empty(tables["steps"], "steps") == LATE["steps"]
    assert empty(tables["layers"], "layers") == DENSE
    assert empty(tables["heads"], "heads") == empty(tables["sequences"], "sequences") == set()
    assert empty(tables["tensors"], "tensors") <= LATE["tensors"]
    assert empty([row for row in tables["tensors"] if row["step"] > 0], "tensors") == set()
    assert [row["state_digest"] for row in tables["steps"]] == digests


@pytest.mark.parametrize("knobs", [{}, {"document_mask": True}], ids=["plain", "documents"])
def test_rows_that_are_made_beside_the_next_step_are_the_same(knobs, record):
    """As on a GPU: what a step found is handed over at its end, and read when the next one's work
    is out.
    """

    def told(tables):
        return {
            t: [{k: repr(v) for k, v in row.items() if not k.startswith("seconds")} for row in rows]
            for t, rows in tables.items()
        }

    for spec in ({}, {"level": "dense"}, {"level": "off"}, {"every": {"heads": 2, "sequences": 3}}):
        (now, digests, _), (later, other, _) = (
            record(spec=spec, later=how, **knobs) for how in (False, True)
        )
        assert told(later) == told(now) and other == digests, spec


def test_dense_rows_are_complete_and_a_window_is_dense_only_inside(record):
    tables, _, _ = record(spec={"level": "dense"})
    assert empty(tables["layers"], "layers") == empty(tables["tokens"], "tokens") == set()
    assert len(tables["tokens"]) == 3 * 4 * 16
    tables, _, _ = record(spec={"dense": ("1:2",)})
    assert {row["step"] for row in tables["tokens"]} == {1}
    assert {row["step"] for row in tables["layers"] if row["lens_kl"] is not None} == {1}


def test_off_records_the_steps_alone_and_every_thins_a_table(record):
    tables, digests, _ = record(spec={"level": "off"})
    assert [
        len(tables[t]) for t in ("steps", "layers", "heads", "tensors", "sequences", "tokens")
    ] == [
        3,
        0,
        0,
        0,
        0,
        0,
    ]
    assert [row["state_digest"] for row in tables["steps"]] == digests
    assert all(row["loss"] is not None and row["grad_norm"] is not None for row in tables["steps"])
    tables, _, _ = record(spec={"every": {"heads": 2, "tensors": 3}})
    assert {row["step"] for row in tables["heads"]} == {0, 2}
    assert {row["step"] for row in tables["tensors"]} == {0}
    assert {row["step"] for row in tables["layers"]} == {0, 1, 2}


@pytest.mark.parametrize("document_mask", [False, True])
@pytest.mark.parametrize("family", ["llama", "gpt_neox"])
def test_no_level_of_recording_changes_a_bit(
    family, document_mask, record, make_shape, start_state, make_model, make_batch, make_policy
):
    knobs = {"document_mask": document_mask}
    seen = [
        record(family, spec={"level": level}, **knobs)[1] for level in ("off", "light", "dense")
    ]
    shape = make_shape(family, **knobs)
    state, model = start_state(shape), make_model(shape, 2)
    plain = []
    for step in range(3):
        advance(state, make_batch(seed=step), make_policy(), model)
        plain.append(state.digest())
    assert seen == [plain] * 3


def test_numbers_are_those_of_the_step(record):
    tables, _, results = record(spec={"level": "dense"}, micro_batch=1)
    for row, result in zip(tables["steps"], results):
        assert (row["loss"], row["grad_norm"], row["clip_scale"]) == (
            result.loss,
            result.grad_norm,
            result.clip_scale,
        )
        assert row["tokens"] == 64 and row["updates"] == row["schedule"] == row["step"]
        mine = [t for t in tables["tensors"] if t["step"] == row["step"]]
        assert math.hypot(*[t["grad_norm"] for t in mine]) == pytest.approx(
            row["grad_norm"], rel=1e-6
        )
        assert math.hypot(*[t["update_norm"] for t in mine]) == pytest.approx(
            row["update_norm"], rel=1e-6
        )
        sequences = [s["loss"] for s in tables["sequences"] if s["step"] == row["step"]]
        assert sum(sequences) / 4 == pytest.approx(row["loss"], rel=1e-6)
        tokens = [t for t in tables["tokens"] if t["step"] == row["step"]]
        assert [t["token"] for t in tokens] == result.batch.tokens[:, 1:].flatten().tolist()
        assert [t["loss"] for t in tokens] == pytest.approx(result.ce.flatten().tolist())
        last = next(r for r in tables["layers"] if r["step"] == row["step"] and r["layer"] == 1)
        assert last["lens_loss"] == pytest.approx(row["loss"], rel=1e-5) and last["lens_kl"] == 0
        first = next(r for r in tables["layers"] if r["step"] == row["step"] and r["layer"] == 0)
        assert last["resid_rms_in"] == first["resid_rms_out"]
        assert first["resid_max"] > first["resid_rms_out"] > 0
        # no x is above the largest, so mean x⁴ ≤ max² · mean x²
        assert 1 < first["act_kurtosis"] < (first["resid_max"] / first["resid_rms_out"]) ** 2


def test_the_kurtosis_of_a_normal_stream_is_three_and_of_one_large_element_many():
    statistic = next(each for each in layers.STATISTICS if each.column == "act_kurtosis")
    rms = next(each for each in layers.STATISTICS if each.column == "resid_rms_out")
    normal = torch.randn(64, 1024, generator=torch.Generator().manual_seed(0))
    spiky = torch.zeros(1, 1000)
    spiky[0, 3] = -7.0
    for x, kurtosis in ((normal, 3.0), (100 * normal, 3.0), (spiky, 1000.0)):
        tap = recorder._Tap(x)
        fourth = statistic.finish(float(statistic.measure(tap)), x.numel())
        root = rms.finish(float(rms.measure(tap)), x.numel())
        assert fourth / root**statistic.over.power == pytest.approx(kurtosis, rel=0.03)


def test_micro_batches_give_the_same_rows_to_rounding(record):
    whole, parts = record(micro_batch=4, steps=1)[0], record(micro_batch=1, steps=1)[0]
    for table in ("steps", "layers", "heads", "sequences"):
        for a, b in zip(whole[table], parts[table]):
            for column, value in a.items():
                if isinstance(value, float) and column != "seconds":
                    assert b[column] == pytest.approx(value, rel=1e-4, abs=1e-6), (table, column)


def test_a_masked_sequence_has_no_loss_and_its_tokens_do_not_count(record):
    def mask(state, batch):
        batch.weight[2] = 0.0

    tables, _, _ = record(prepare=mask)
    assert [row["loss"] is None for row in tables["sequences"]] == [
        slot == 2 for _ in range(3) for slot in range(4)
    ]
    assert all(row["tokens"] == 48 for row in tables["steps"])
    assert all(row["weight"] == 0 for row in tables["sequences"] if row["slot"] == 2)


def test_a_step_that_computes_nothing_has_a_row_with_a_null_loss(record, make_policy):
    tables, _, _ = record(policy=lambda: make_policy(update="none"))
    assert [row["update"] for row in tables["steps"]] == ["none"] * 3
    assert all(
        row["loss"] is None and row["grad_norm"] is None and row["state_digest"]
        for row in tables["steps"]
    )
    assert tables["layers"] == tables["tensors"] == tables["sequences"] == []


def test_frozen_tensors_have_no_row_and_all_of_them_may_be_frozen(record, make_policy, make_shape):
    names = frozenset(parameter_shapes(make_shape()))
    some = names - {"norm.weight", "layers.0.mlp.up.weight"}
    tables, _, _ = record(policy=lambda: make_policy(frozen=some))
    assert {row["tensor"] for row in tables["tensors"]} == names - some
    for frozen in (names - {"unembed.weight"}, names):
        tables, _, results = record(policy=lambda frozen=frozen: make_policy(frozen=frozen))
        assert {row["tensor"] for row in tables["tensors"]} == names - frozen
        assert all(row["loss"] is not None for row in tables["steps"])
    assert all(result.grad_norm == 0.0 for result in results)


@pytest.mark.parametrize(
    ("tensor", "first"),
    [
        ("layers.1.attn.q_proj.weight", "layers.1.attention logits"),
        ("layers.0.mlp.down.weight", "layers.0.mlp_out"),
        ("norm.weight", "loss"),
    ],
)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_the_first_place_that_shows_a_nan_becomes_an_event_and_nothing_crashes(
    tensor, first, bad, record
):
    def plant(state, batch):
        if state.counters.step == 1:
            state.params[tensor].view(-1)[0] = bad

    tables, _, results = record(prepare=plant, spec={"level": "dense"})
    events = tables["events"]
    assert [e["step"] for e in events] == [1, 2]
    assert all(e["kind"] == "nonfinite" for e in events)
    assert events[0]["tensor"] == first
    assert not math.isfinite(results[1].loss) and not math.isfinite(tables["steps"][1]["loss"])


def test_a_gradient_that_overflows_names_the_tensor(record):
    def plant(state, batch):
        if (
            state.counters.step == 1
        ):  # the logits stay as they are, the unembedding's gradient is as large as the stream
            state.params["norm.weight"].mul_(1e25)
            state.params["unembed.weight"].mul_(1e-25)

    tables, _, results = record(prepare=plant)
    assert math.isfinite(results[1].loss) and not math.isfinite(results[1].grad_norm)
    assert (tables["events"][0]["step"], tables["events"][0]["tensor"]) == (
        1,
        "unembed.weight gradient",
    )


def test_recorded_numbers_do_not_change_with_the_number_of_threads(
    make_shape, start_state, make_model, make_batch, make_policy, tmp_path
):
    shape = make_shape("llama", layers=1, width=192, vocabulary=300, length=128)
    rows = {}
    for threads in (1, 2, 3, 4):
        torch.set_num_threads(threads)
        folder = tmp_path / str(threads)
        folder.mkdir()
        (folder / "run.json").write_text("{}")
        state, model = start_state(shape), make_model(shape, 8)
        with Writer(folder) as writer:
            recorder = Recorder(writer, config.Record(level="dense"), model)
            for step in range(2):
                advance(state, make_batch(8, 127, 300, step), make_policy(), model, recorder)
            recorder.commit()
        rows[threads] = {
            t: reader.read(folder, t).to_pylist()
            for t in ("steps", "layers", "heads", "tensors", "sequences", "tokens")
        }
        for row in rows[threads]["steps"]:
            del row["seconds"]
    for threads in (2, 3, 4):
        for table in rows[1]:
            assert rows[threads][table] == rows[1][table], (threads, table)
