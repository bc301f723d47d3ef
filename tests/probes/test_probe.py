"""One metric over all checkpoints."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from forensics import config
from forensics.cli.main import main
from forensics.errors import ForensicsError
from forensics.probes import runner
from forensics.probes.metrics import METRICS, linear_cka
from forensics.probes.runner import probe
from forensics.train.loop import train
from forensics.train.run import Run, open_run

RECIPE = {
    "data": {"source": "stdlib/json", "sequence_length": 32, "tokenizer": "bytes", "held_out": 4},
    "model": {"layers": 2, "width": 16, "heads": 2, "document_mask": True},
    "train": {"steps": 12, "batch": 4, "micro_batch": 2, "learning_rate": 1e-2},
    "checkpoint": {"every": 4},
}


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = tmp_path_factory.mktemp("probed")
    train(config.from_dict(RECIPE), name="small", recipe_name="test", runs=runs)
    return runs


@pytest.fixture
def runs(trained: Path, tmp_path: Path) -> Iterator[Path]:
    shutil.copytree(trained, tmp_path / "runs")
    yield tmp_path / "runs"


@pytest.fixture
def run(runs: Path) -> Run:
    return open_run(runs, "small")


def values(runs: Path, what: str, **more: object) -> dict[int, float | dict[str, float]]:
    return {p["step"]: p["value"] for p in probe(runs, "small", what, **more)["points"]}  # type: ignore[arg-type]


def test_held_out_loss_falls_over_the_checkpoints_to_what_training_recorded(
    runs: Path, run: Run
) -> None:
    found = values(runs, "loss")
    assert list(found) == [0, 4, 8, 12] and found[12] < found[0]  # type: ignore[operator]
    assert found[12] == run.table("steps", ["held_out_loss"]).to_pylist()[-1]["held_out_loss"]


def test_a_text_is_read_in_the_runs_own_tokens(runs: Path, tmp_path: Path) -> None:
    text = tmp_path / "passage.txt"
    text.write_text("def encode(self, o):\n    return repr(o)\n" * 3)
    found = values(runs, "loss", text=text)
    assert 0 < found[12] < found[0] < 1.1 * math.log(257)  # type: ignore[operator]
    text.write_text("ab")  # shorter than a sequence: one short one
    assert set(values(runs, "loss", text=text)) == set(found)


def test_norms_are_those_of_the_tensors_and_their_groups_add_up(runs: Path, run: Run) -> None:
    tensors, groups = values(runs, "norms")[8], values(runs, "group-norms")[8]
    assert isinstance(tensors, dict) and isinstance(groups, dict)
    params = run.load(8).params
    for name, p in params.items():
        assert tensors[name] == pytest.approx(float(p.double().norm()))
    top = [groups[g] for g in groups if not g.startswith("layers.")]
    assert math.sqrt(sum(x * x for x in top)) == pytest.approx(tensors["all"])
    assert {"embeddings", "attention", "mlp", "norms", "unembed", "layers.1.mlp"} <= set(groups)


def test_attention_is_as_the_recorder_defines_it_for_every_head(runs: Path) -> None:
    found = values(runs, "attention")[4]
    assert isinstance(found, dict)
    entropies = [v for k, v in found.items() if k.endswith(".entropy")]
    assert len(entropies) == 4 and all(0 < e < math.log(32) for e in entropies)
    assert found["entropy_mean"] == pytest.approx(sum(entropies) / 4)
    assert found["logit_max"] == max(v for k, v in found.items() if k.endswith(".logit_max"))


def test_effective_rank_counts_the_directions_of_a_matrix(runs: Path, run: Run) -> None:
    low = torch.zeros(8, 8)
    low[0, 0] = low[1, 1] = 3.0
    view = runner.View(0, {"w": low, "eye": torch.eye(5), "gain": torch.ones(5)}, run, None)
    found = METRICS["effective-rank"].measure(view, None)
    assert found == pytest.approx({"w": 2.0, "eye": 5.0, "mean": 3.5})
    assert 1 < values(runs, "effective-rank")[0]["mean"] <= 16  # type: ignore[index]


def test_cka_is_one_up_to_rotation_and_scale_and_small_between_strangers() -> None:
    torch.manual_seed(0)
    x = torch.randn(500, 6)
    x -= x.mean(0)
    turn = torch.linalg.qr(torch.randn(6, 6)).Q
    assert linear_cka(x, 3 * x @ turn) == pytest.approx(1.0, abs=1e-6)
    y = torch.randn(500, 6)
    assert linear_cka(x, y - y.mean(0)) < 0.1


def test_cka_goes_from_each_checkpoint_to_the_one_before_it_also_when_resumed(runs: Path) -> None:
    whole = values(runs, "cka")
    assert whole[0] is None and all(0 < whole[s] <= 1 + 1e-9 for s in (4, 8, 12))  # type: ignore[operator]
    shutil.rmtree(runs / "small" / "probes")
    values(runs, "cka", steps="0:9")  # as if it had been cut off
    assert values(runs, "cka") == whole
    assert values(runs, "cka", steps="4,12")[12] != whole[12]  # 12 beside 4, not beside 8


def test_finished_checkpoints_are_not_read_again(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = values(runs, "loss", steps="0,4")
    read: list[int] = []
    load = Run.load
    monkeypatch.setattr(Run, "load", lambda self, step: read.append(step) or load(self, step))
    again = values(runs, "loss")
    assert read == [8, 12] and {s: again[s] for s in first} == first


def test_a_function_of_the_users_gets_params_model_and_run(runs: Path, tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "import torch\ndef biggest(params, model, run):\n    return {n: p.abs().max() for n, p in"
        " params.items() if model.decoder.shape.layers == run.shape.layers}\ndef one(params, model,"
        " run):\n    return 1\n"
    )
    found = values(runs, f"{file}:biggest", steps="12")[12]
    assert isinstance(found, dict) and found["embed.weight"] > 0
    assert values(runs, f"{file}:one", steps="12") == {12: 1.0}
    file.write_text("def one(params, model, run):\n    return 2\n")
    assert values(runs, f"{file}:one", steps="12") == {12: 2.0}  # another function: measured anew


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (
            "def f(params, model, run):\n    return 1 / 0\n",
            "failed at checkpoint 0: ZeroDivisionError",
        ),
        ("def f(params, model, run):\n    return 'x'\n", "found str"),
        ("def g(params, model, run):\n    return 1\n", "no function 'f'"),
        ("import nothing_of_this_name\n", "cannot be imported"),
    ],
)
def test_a_function_that_cannot_be_used_is_told_in_one_line(
    runs: Path, tmp_path: Path, body: str, said: str
) -> None:
    file = tmp_path / "mine.py"
    file.write_text(body)
    with pytest.raises(ForensicsError, match=said) as e:
        probe(runs, "small", f"{file}:f")
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    ("what", "more", "said"),
    [
        ("lost", {}, "did you mean 'loss'"),
        ("nowhere.py:f", {}, "nowhere.py"),
        ("loss", {"steps": "5"}, "saved: 0, 4, 8, 12"),
        ("loss", {"steps": "5:7"}, "5:7"),
        ("loss", {"steps": "x"}, "--steps"),
        ("loss", {"text": Path("nowhere.txt")}, "nowhere.txt"),
        ("norms", {"text": Path("nowhere.txt")}, "reads no text"),
    ],
)
def test_what_is_not_there_is_refused_in_one_line(
    trained: Path, what: str, more: dict, said: str
) -> None:
    with pytest.raises(ForensicsError, match=said):
        probe(trained, "small", what, **more)


def test_a_run_that_holds_nothing_out_asks_for_a_text(tmp_path: Path) -> None:
    recipe = json.loads(json.dumps(RECIPE))
    recipe["data"]["held_out"], recipe["train"]["steps"] = 0, 1
    train(config.from_dict(recipe), name="bare", recipe_name="test", runs=tmp_path)
    with pytest.raises(ForensicsError, match="holds nothing out"):
        probe(tmp_path, "bare", "loss")


def test_the_command_tells_the_points(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as e:
        main(["probe", "small", "loss", "--steps", "0,12", "--runs", str(runs), "--json"])
    told = json.loads(capsys.readouterr().out)
    assert (
        not e.value.code
        and told["probe"] == "loss"
        and [p["step"] for p in told["points"]] == [0, 12]
    )
    with pytest.raises(SystemExit):
        main(["probe", "small", "norms", "--runs", str(runs)])
    assert "embed.weight" in capsys.readouterr().out
