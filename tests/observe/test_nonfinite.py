"""NaN and inf, wherever they start: the first place is named, nothing crashes, and a run that broke
is still read.
"""

import json
import math
import warnings

import pytest
import torch

from forensics import config
from forensics.observe.recorder import Recorder
from forensics.store import reader
from forensics.store.writer import Writer
from forensics.train.advance import advance


@pytest.fixture
def record(tmp_path, make_shape, start_state, make_model, make_batch, make_policy):
    """`record(at_step_1, policies)` runs a tiny Llama under a recorder; tables by name and the
    results.
    """

    def go(plant=lambda state: None, policies=({},) * 3, spec=None):
        (tmp_path / "run.json").write_text("{}")
        shape = make_shape()
        state, model, results = start_state(shape), make_model(shape, 2), []
        with Writer(tmp_path) as writer:
            recorder = Recorder(writer, config.Record(**(spec or {})), model)
            for step, fields in enumerate(policies):
                if step == 1:
                    plant(state)
                batch = make_batch(vocabulary=shape.vocabulary, seed=step)
                results.append(advance(state, batch, make_policy(**fields), model, recorder))
            recorder.commit()
        tables = ("steps", "tensors", "events", "layers", "heads")
        return {table: reader.read(tmp_path, table).to_pylist() for table in tables}, results

    return go


def first(tables):
    return next((e["step"], e["kind"], e["tensor"]) for e in tables["events"])


@pytest.mark.parametrize("level", ["light", "dense"])
@pytest.mark.parametrize(
    ("tensor", "bad", "where"),
    [
        ("embed.weight", math.inf, "layers.0.resid_in"),
        ("layers.0.attn.k_proj.weight", -math.inf, "layers.0.attention logits"),
        ("layers.0.attn.v_proj.weight", math.nan, "layers.0.attn_out"),
        ("layers.1.mlp.gate.weight", math.nan, "layers.1.mlp_out"),
        ("unembed.weight", math.inf, "loss"),
    ],
)
def test_in_the_forward_the_first_site_is_named(tensor, bad, where, level, record):
    tables, results = record(lambda state: state.params[tensor].fill_(bad), spec={"level": level})
    assert first(tables) == (1, "nonfinite", where)
    assert not math.isfinite(results[1].loss)
    assert len(tables["steps"]) == 3 and len(tables["layers"]) == 6 and len(tables["heads"]) == 24


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_in_the_backward_alone_the_block_it_arrives_at_is_named(bad, record, monkeypatch):
    class Break(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.view_as(x)

        @staticmethod
        def backward(ctx, grad):
            return grad * bad

    from forensics.model.decoder import Decoder

    block, layers = Decoder.block, []

    def broken(self, x, *rest):
        layers.append(None)
        second = len(layers) in (6, 8)  # block 1 in step 1, of both micro-batches
        return block(self, Break.apply(x) if second else x, *rest)

    monkeypatch.setattr(Decoder, "block", broken)
    tables, results = record()
    assert (
        len(layers) >= 12
        and math.isfinite(results[1].loss)
        and not math.isfinite(results[1].grad_norm)
    )
    assert first(tables) == (1, "nonfinite", "layers.0.resid_grad")
    assert tables["events"][0]["value"] == results[1].loss


def test_in_the_backward_of_a_weight_alone_the_tensor_is_named(record):
    def huge(state):
        state.params["norm.weight"].mul_(1e25)
        state.params["unembed.weight"].mul_(1e-25)

    tables, results = record(huge)
    assert math.isfinite(results[1].loss) and first(tables) == (
        1,
        "nonfinite",
        "unembed.weight gradient",
    )


def test_in_the_update_the_first_tensor_is_named_and_the_step_after_goes_on(record):
    tables, results = record(policies=({}, {"learning_rate": 1e38}, {}))
    assert math.isfinite(results[1].loss) and math.isfinite(results[1].grad_norm)
    step, kind, where = first(tables)
    assert (step, kind) == (1, "nonfinite") and where.endswith(" update")
    assert math.isnan(results[2].loss) and len(tables["steps"]) == 3


def test_an_epsilon_that_is_0_in_fp32_breaks_the_update_of_rows_without_a_gradient_and_is_named(
    record,
):
    tables, results = record(policies=({"eps": 1e-300},) * 3)
    assert math.isfinite(results[0].loss) and first(tables) == (
        0,
        "nonfinite",
        "embed.weight update",
    )
    assert len(tables["steps"]) == 3


@pytest.mark.parametrize("eps", [1e-30, 1e-20, 1e15, 1e30, 1e160])
def test_an_extreme_epsilon_gives_no_nan_of_its_own(eps, record):
    tables, _ = record(policies=({"eps": eps},) * 3)
    assert tables["events"] == []
    for row in tables["tensors"]:
        assert all(v is None or isinstance(v, str) or math.isfinite(v) for v in row.values()), row


def test_a_run_that_goes_nan_finishes_with_all_its_rows_and_one_spike_of_each_metric(
    train_run, runs, monkeypatch
):
    import queries

    tiny = {
        "train.steps": 160,
        "train.batch": 2,
        "train.micro_batch": 2,
        "data.sequence_length": 8,
        "checkpoint.every": 0,
        "train.held_out_every": 0,
        "model.layers": 1,
        "model.width": 16,
        "train.learning_rate": 1e38,
        "train.warmup": 0,
        "train.min_lr": 1.0,
    }
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run = train_run("all-nan", **tiny)
    steps, events = run.table("steps").to_pylist(), run.table("events").to_pylist()
    assert run.header.status == "finished" and [row["step"] for row in steps] == list(range(160))
    assert sum(math.isnan(row["loss"]) for row in steps) >= 158 and run.saved_steps() == [0, 160]
    spikes = [
        (e["metric"], e["onset"], e["spike_kind"], e["recovered_at"])
        for e in events
        if e["kind"] == "spike"
    ]
    assert sorted(m for m, *_ in spikes) == ["grad_norm", "loss"]
    assert all(
        onset <= 2 and kind == "slow" and recovered is None for _, onset, kind, recovered in spikes
    )
    assert next(e for e in events if e["kind"] == "nonfinite")["tensor"].endswith(" update")
    listed = queries.run(runs, "spikes", {"run": "all-nan"}).to_pylist()
    assert sum(row["kind"] == "spike" for row in listed) == 2
    assert all(row["excess"] is None for row in listed if row["kind"] == "nonfinite")
    assert queries.run(runs, "run_summary", {"run": "all-nan"}).to_pylist()[0]["spikes"] == 2
    fired = {
        r["detector"]: r for r in queries.run(runs, "detectors", {"runs": "all-nan"}).to_pylist()
    }
    assert fired["skip_step"]["alarms"] >= 158 and fired["skip_step"]["spikes"] == 1
    assert json.loads((run.folder / "run.json").read_text())["status"] == "finished"
