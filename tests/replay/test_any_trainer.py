"""Any trainer can be replayed: the code of docs/foreign.md, run as it stands, and our own runs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from forensics.errors import ForensicsError
from forensics.observe.attach import attach
from forensics.train.run import Run

EXAMPLE = Path(__file__).parents[2] / "docs" / "foreign.md"


@pytest.fixture(scope="module")
def example() -> dict:
    """The names that the document's blocks of code define."""
    names: dict = {}
    for block in re.findall(r"```python\n(.*?)```", EXAMPLE.read_text(encoding="utf-8"), re.DOTALL):
        exec(compile(block, str(EXAMPLE), "exec"), names)
    return names


def test_the_foreign_loop_replays_bit_for_bit_from_the_middle(example: dict) -> None:
    verdict = example["verify"](example["loop"], example["recorded"], 7, 15)
    assert verdict.bitwise and verdict.compared == 8 and verdict.first_difference is None


def test_a_difference_is_found_at_its_step(example: dict) -> None:
    recorded = dict(example["recorded"])
    recorded[11] = example["Row"](11, recorded[11].loss + 1e-7, recorded[11].digest)
    assert example["verify"](example["loop"], recorded, 7, 15).first_difference == 11
    assert not example["verify"](example["loop"], {}, 7, 15).bitwise


def test_a_swap_forks_from_its_step_on(example: dict) -> None:
    assert [pair.same_state for pair in example["pairs"]] == [True, True] + [False] * 6
    assert example["pairs"][0].loss_control == example["pairs"][0].loss_fork


def test_what_attach_sees_is_what_the_model_computes_and_changes_no_bit(example: dict) -> None:
    rows = example["rows"]
    assert rows["heads"]["layer"] == [0, 0, 1, 1] and rows["heads"]["head"] == [0, 1, 0, 1]
    assert len(rows["layers"]["resid_grad_rms"]) == 2 and all(
        x > 0 for x in rows["layers"]["resid_grad_rms"]
    )
    model, tokens = example["loop"].model, example["loop"].batch_at(3)
    plain = model(tokens).logits
    with attach(model) as seen:
        watched = model(tokens).logits
        found = seen.take()["heads"]
    assert torch.equal(plain, watched) and torch.equal(model(tokens).logits, plain)
    model.set_attn_implementation("eager")
    attentions = model(tokens, output_attentions=True).attentions
    model.set_attn_implementation("sdpa")
    for i, (layer, head) in enumerate(zip(found["layer"], found["head"])):
        p = attentions[layer][:, head].detach().double()
        entropy = -(p * p.clamp_min(1e-300).log()).sum(-1)
        assert found["attn_entropy_mean"][i] == pytest.approx(float(entropy.mean()), rel=1e-4)


def test_attach_refuses_what_is_no_transformer() -> None:
    with pytest.raises(ForensicsError, match="Linear"), attach(torch.nn.Linear(2, 2)):
        pass


def test_a_run_of_ours_is_replayable_too(example: dict, base: Run) -> None:
    ours = example["OfRun"](base)
    rows = {
        r["step"]: example["Row"](r["step"], r["loss"], r["state_digest"])
        for r in base.table("steps").to_pylist()
    }
    assert example["verify"](ours, rows, 30, 35).bitwise
    with pytest.raises(ValueError, match="A < B"):
        example["replay"](ours, 5, 5)
