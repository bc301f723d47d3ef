"""Where a step stops being finite, and with which sequences: causes planted by construction."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks import blame_plants
from benchmarks.blame_plants import AT, ODD, Plant
from forensics import config
from forensics.train.advance import advance
from forensics.train.loop import train
from replay.blame.nonfinite.place import STAGES, PlaceWatch
from replay.blame.nonfinite.result import NonFiniteResult
from replay.blame.nonfinite.search import blame_nonfinite
from replay.cli import main
from replay.lineage import open_trajectory


class Step:
    """One step of a small model whose weights a test may break."""

    def __init__(self, family, make_shape, make_model, make_batch, make_policy, start_state):
        self.shape = make_shape(family)
        self.model = make_model(self.shape, micro_batch=2)
        self.state = start_state(self.shape, scale=1.0)
        self.batch, self.policy = make_batch(4, 16), make_policy()
        self.batch.tokens[self.batch.tokens == 7] = 8
        self.batch.tokens[2, 5] = 7  # token 7 is at one place only

    def run(self) -> PlaceWatch:
        watch = PlaceWatch(self.model.decoder)
        advance(self.state, self.batch, self.policy, self.model, watch)
        return watch


@pytest.fixture
def step_of(make_shape, make_model, make_batch, make_policy, start_state):
    def build(family: str) -> Step:
        return Step(family, make_shape, make_model, make_batch, make_policy, start_state)

    return build


def test_a_step_that_is_finite_has_no_place(step_of):
    assert step_of("llama").run().first() is None


def test_an_embedding_that_overflows_with_its_position_is_found_at_that_token(step_of):
    step = step_of("gpt2")
    step.state.params["embed.weight"][7, 3] = 3e38
    step.state.params["positions.weight"][5, 3] = 3e38
    watch = step.run()
    place = watch.first()
    assert (place.tensor, place.slot, place.position) == ("embedding", 2, 5)
    assert place.element == (3,) and place.value == "inf" and STAGES[place.stage] == "forward"
    assert [p.slot for p in watch.by_slot()] == [2]


def test_a_product_of_gate_and_up_that_overflows_is_the_mlps_of_its_layer(step_of):
    step = step_of("llama")
    embed = step.state.params["embed.weight"]
    embed[:, 0], embed[7], embed[7, 0] = 0.0, 0.0, 1.0
    for name, tensor in step.state.params.items():
        if name.endswith(("attn.o_proj.weight", "mlp.down.weight")):
            tensor[0] = 0.0
    for part in ("up", "gate"):
        step.state.params[f"layers.1.mlp.{part}.weight"][:, 0] = 3e19
    norm = step.state.params["layers.1.mlp.norm.weight"]
    norm[0] = 1.0
    place = step.run().first()
    assert (place.tensor, place.slot, place.position) == ("layers.1.mlp_act", 2, 5)


def test_logits_of_attention_that_overflow_come_before_what_softmax_makes_of_them(step_of):
    step = step_of("llama")
    for part in ("q", "k"):
        step.state.params[f"layers.0.attn.{part}_proj.weight"].mul_(1e21)
    place = step.run().first()
    assert place.tensor == "layers.0.attention logits" and STAGES[place.stage] == "forward"


def test_a_readout_that_overflows_is_found_in_the_loss_of_its_first_target(step_of):
    step = step_of("llama")
    step.state.params["unembed.weight"].fill_(3e38)
    place = step.run().first()
    assert (place.tensor, place.slot, place.position) == ("loss", 0, 1)


def test_an_update_that_overflows_is_the_first_tensors(step_of):
    step = step_of("llama")
    step.policy = replace(step.policy, learning_rate=1e39)
    place = step.run().first()
    assert STAGES[place.stage] == "update" and place.tensor == "embed.weight update"
    assert place.slot == -1 and len(place.element) == 2


def test_gradients_come_after_the_forward_and_name_the_last_tensor_first(step_of):
    step = step_of("llama")
    step.batch = replace(step.batch, denominator=1e-39)
    place = step.run().first()
    assert STAGES[place.stage] in ("backward", "gradient")


# ---- planted runs


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("nonfinite")


@pytest.fixture(scope="module")
def document(planted: Path) -> tuple[Plant, NonFiniteResult]:
    plant = blame_plants.nan_document(1, planted)
    return plant, blame_nonfinite(planted, plant.run, plant.step, plant.of, math.nan)


def test_the_sequences_that_hold_the_token_are_blamed_and_no_other(document, planted):
    plant, result = document
    tokens = open_trajectory(planted, plant.run).stream(AT).tokens
    holders = (tokens[:, :-1] == ODD.encode()[0]).any(1).nonzero()[:, 0].tolist()
    assert result.verdict in plant.verdicts and result.first_step == AT
    assert sorted(slot.slot for slot in result.proof.removal) == holders
    assert {d.source for d in result.proof.documents} == {"planted"}
    assert result.proof.others_finite == 0 and result.proof.again == result.proof.draws
    assert result.proof.exhaustive or result.p <= 0.05


def test_the_place_is_the_mlp_of_layer_0_at_the_token(document, planted):
    plant, result = document
    place = result.place
    row = open_trajectory(planted, plant.run).stream(AT).tokens[place.slot].tolist()
    assert place.tensor == "layers.0.mlp_act" and place.value == "inf"
    assert row[place.position] == place.token == ODD.encode()[0]
    assert place.position == row.index(place.token) and place.document.source == "planted"
    assert "Cause: data." in result.sentence and "layers.0.mlp_act at token" in result.sentence


def test_a_rate_beyond_float32_is_state_or_schedule_and_the_policy_before_is_finite(planted):
    plant = blame_plants.nan_rate(1, planted)
    result = blame_nonfinite(planted, plant.run, plant.step, plant.of, math.nan)
    assert result.verdict == "policy" and result.reason == "another policy is finite"
    assert result.policy.finite and not any(trial.finite for trial in result.other_data)
    assert result.first_step < plant.step
    assert "is not finite already" in result.sentence and result.proof is None


def test_a_replay_that_is_finite_blames_the_hardware_and_no_data(planted):
    plant = blame_plants.nan_rate(1, planted)
    parent = plant.run.removesuffix("-fork")
    result = blame_nonfinite(planted, parent, AT - 20, "loss", math.nan)
    assert result.verdict == "numerics" and result.place is None and result.first_step is None
    assert "Nothing is said about the data." in result.sentence


def test_a_run_that_breaks_in_its_first_step_is_told_from_there(tmp_path):
    recipe = {
        "data": {"source": "stdlib/json", "tokenizer": "bytes", "sequence_length": 32},
        "model": {"layers": 1, "width": 16, "heads": 2},
        "train": {"steps": 4, "batch": 4, "threads": 1, "warmup": 0, "learning_rate": 1e39},
        "checkpoint": {"every": 2},
    }
    train(config.from_dict(recipe), name="huge", recipe_name="test", runs=tmp_path)
    result = blame_nonfinite(tmp_path, "huge", 2, "loss", math.nan)
    assert result.first_step == 0 and result.place.stage == "update" and result.place.slot is None
    assert result.verdict == "state or policy"


def test_the_command_finds_what_is_not_finite_by_itself_and_keeps_it(planted, document, capsys):
    plant, result = document
    with pytest.raises(SystemExit) as ended:
        main.main.main(
            ["blame", plant.run, "--runs", str(planted), "--spike", str(plant.step), "--json"]
        )
    answer = json.loads(capsys.readouterr().out)
    assert ended.value.code == 0 and answer["verdict"] == result.verdict
    kept = NonFiniteResult.read(planted / plant.run / f"nonfinite-{plant.step}.json")
    assert kept.place == result.place and kept.proof == result.proof
    with pytest.raises(SystemExit):
        main.main.main(["blame", plant.run, "--runs", str(planted), "--tokens"])
    assert "--tokens asks about a finite spike of the loss" in capsys.readouterr().err
    assert torch.is_grad_enabled()
