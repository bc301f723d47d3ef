"""One sequence through every head at exact states, the losses of single tokens, and what is kept of
them.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from forensics.errors import ForensicsError
from forensics.train.run import Run
from replay.step import artifacts, batch_contents, trace
from replay.step.attention import attention


def test_the_weights_are_those_of_the_recorded_states(base: Run, runs: Path) -> None:
    found = attention(runs, "base", 81, slot=3, lens=False)
    assert found.states == (65, 81, 97) and found.exact == (True, True, True)
    about, array = artifacts.read(artifacts.attention_of(base.folder, 81, 3))
    assert {k: about[k] for k in ("run", "step", "slot", "states", "block")} == {
        "run": "base",
        "step": 81,
        "slot": 3,
        "states": [65, 81, 97],
        "block": 1,
    }
    assert about["tokens"] == base.batch_at(81).tokens[3].tolist()
    weights = array("weights")
    assert weights.shape == (3, 2, 2, 32, 32)
    np.testing.assert_allclose(weights.sum(-1), 1.0, atol=1e-5)
    np.testing.assert_array_equal(array("weights", 1, 0, 1), weights[1, 0, 1])
    assert (np.triu(weights[0, 0, 0], 1) == 0).all()


def test_over_the_whole_batch_the_largest_logit_is_the_recorded_one(base: Run, runs: Path) -> None:
    slots = [
        attention(runs, "base", 81, slot=slot, states=[81], lens=False).heads for slot in range(8)
    ]
    recorded = {
        (r["layer"], r["head"]): r for r in base.table("heads").to_pylist() if r["step"] == 81
    }
    assert len(recorded) == 4
    for i, head in enumerate(slots[0]):
        largest = max(heads[i].logit_max[0] for heads in slots)
        assert largest == pytest.approx(recorded[head.layer, head.head]["attn_logit_max"], rel=1e-5)
        assert head.moved == (0.0,)


def test_without_a_slot_it_is_the_worst_and_the_ends_of_the_run_bound_the_states(
    base: Run, runs: Path
) -> None:
    rows = [r for r in base.table("sequences").to_pylist() if r["step"] == 95]
    found = attention(runs, "base", 95, lens=False)
    assert found.slot == max(rows, key=lambda r: r["loss"])["slot"]
    assert found.states == (79, 95, 100)
    assert attention(runs, "base", 0, lens=False).states == (0, 16)
    assert any(h.moved[1] > 0 for h in found.heads)


def test_the_lens_of_the_last_layer_is_the_models_own_loss(base: Run, runs: Path) -> None:
    found = attention(runs, "base", 81, slot=2, states=[81])
    own = batch_contents.token_losses_at(runs, "base", 81)
    _, array = artifacts.read(artifacts.attention_of(base.folder, 81, 2))
    losses = next(s for s in own.sequences if s.slot == 2).token_losses
    assert (
        array("lens_loss").shape
        == array("lens_top").shape
        == array("lens_top_p").shape
        == (1, 3, 32)
    )
    np.testing.assert_allclose(array("lens_loss")[0, -1], losses, atol=1e-4)
    assert found.lens_loss[0][-1] == pytest.approx(np.mean(losses), abs=1e-4)
    assert ((array("lens_top_p") > 1 / 257) & (array("lens_top_p") <= 1)).all()


def test_an_architecture_without_a_bridge_has_its_patterns_and_the_reason(
    runs: Path, monkeypatch
) -> None:
    def refused(*_: object) -> None:
        raise ForensicsError(
            "config", "no Hugging Face form keeps attention inside documents", "leave it out"
        )

    monkeypatch.setattr("replay.step.attention.bridge", refused)
    found = attention(runs, "base", 81, states=[80, 81])
    assert found.lens is False and found.lens_loss is None
    assert found.why.startswith("no Hugging Face form")
    assert found.heads and found.exact == (True, True)


@pytest.mark.parametrize(
    ("step", "slot", "states", "kind"),
    [
        (81, 8, None, "usage"),
        (81, -1, None, "usage"),
        (100, None, None, "missing"),
        (81, 0, [101], "missing"),
        (81, 0, [], "usage"),
        (81, 0, [1, 2, 3, 4, 5, 6], "usage"),
    ],
)
def test_what_cannot_be_looked_at_is_an_error_of_one_line(
    runs: Path, step: int, slot: int | None, states: list[int] | None, kind: str
) -> None:
    with pytest.raises(ForensicsError) as e:
        attention(runs, "base", step, slot, states, lens=False)
    assert e.value.kind == kind


def test_the_losses_of_tokens_are_those_of_their_sequences(base: Run, runs: Path) -> None:
    found = batch_contents.token_losses_at(runs, "base", 81)
    assert found.exact is True
    _, array = artifacts.read(artifacts.token_losses_of(base.folder, 81))
    for each in found.sequences:
        assert np.mean(each.token_losses) == pytest.approx(each.loss, rel=1e-5)
        assert len(each.token_losses) == len(each.tokens) - 1
        np.testing.assert_array_equal(array("losses", each.slot), np.float32(each.token_losses))
    with pytest.raises(ForensicsError, match="wanted a step"):
        batch_contents.token_losses_at(runs, "base", 100)


def test_a_trace_is_kept_as_it_was_told(base: Run, runs: Path) -> None:
    told = trace.trace(runs, "base", 81)
    document = json.loads(artifacts.trace_of(base.folder, 81).read_bytes())
    assert [e["name"] for e in document["events"]] == [e.name for e in told.events]
    assert document["layer_blame"]["rise_batch"] == told.layer_blame.rise_batch


def test_a_damaged_file_is_told_and_a_full_disk_is_an_error(base: Run, runs: Path) -> None:
    path = artifacts.token_losses_of(base.folder, 1)
    artifacts.write(path, {"losses": np.arange(6, dtype=np.float32).reshape(2, 3)}, {"exact": None})
    about, array = artifacts.read(path)
    assert about == {"exact": None} and array("losses", 1, 2) == 5.0
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(ForensicsError) as e:
        artifacts.read(path)
    assert e.value.kind == "integrity"
    blocked = base.folder / "run.json" / "x.safetensors"
    with pytest.raises(ForensicsError) as e:
        artifacts.write(blocked, {"losses": np.zeros(1, np.float32)}, {})
    assert e.value.kind == "storage"
