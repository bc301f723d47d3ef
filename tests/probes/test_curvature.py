"""Curvature against the learning rate, and the spectral entropy of heads."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from forensics import config
from forensics.probes.curvature import ITERATIONS, Hessian, largest_eigenvalue
from forensics.probes.metrics import METRICS
from forensics.probes.runner import probe
from forensics.probes.view import View
from forensics.train.loop import train
from forensics.train.run import Run, open_run

RECIPE = {
    "data": {"source": "stdlib/json", "sequence_length": 16, "tokenizer": "bytes", "held_out": 4},
    "model": {"layers": 1, "width": 16, "heads": 2, "kv_heads": 1},
    "train": {"steps": 8, "batch": 4, "micro_batch": 2, "learning_rate": 1e-2, "z_loss": 1e-3},
    "checkpoint": {"every": 4},
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = tmp_path_factory.mktemp("curved")
    train(config.from_dict(RECIPE), name="small", recipe_name="test", runs=runs)
    return runs


@pytest.fixture(scope="module")
def run(runs: Path) -> Run:
    return open_run(runs, "small")


def view_at(run: Run, step: int) -> View:
    state = run.load(step)
    return View(step, state.params, run, None, state)


def test_lanczos_finds_the_largest_eigenvalue_and_not_the_most_negative() -> None:
    draw = torch.Generator().manual_seed(1)
    basis = torch.linalg.qr(torch.randn(30, 30, generator=draw, dtype=torch.float64)).Q
    values = torch.linspace(-9, 4, 30, dtype=torch.float64)
    matrix = basis @ torch.diag(values) @ basis.T

    def times(x: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        flat = matrix @ torch.cat([x["a"].reshape(-1), x["b"]])
        return {"a": flat[:20].view(4, 5), "b": flat[20:]}

    found = largest_eigenvalue(times, {"a": torch.Size((4, 5)), "b": torch.Size((10,))})
    assert found.value == pytest.approx(4.0, rel=2e-3)
    assert found.products <= ITERATIONS


def test_the_hessian_is_the_slope_of_the_gradient_and_symmetric(run: Run) -> None:
    view, batch = view_at(run, 4), run.batch_at(4)
    hessian = Hessian(view, batch, 1e-3)
    draw = torch.Generator().manual_seed(0)
    a, b = (
        {
            n: torch.randn(p.shape, generator=draw, dtype=torch.float64)
            for n, p in view.params.items()
        }
        for _ in range(2)
    )
    step = 1e-6
    ahead, behind = (
        Hessian(
            replace(
                view, params={n: p.double() + side * step * a[n] for n, p in view.params.items()}
            ),
            batch,
            1e-3,
        ).gradient
        for side in (1, -1)
    )
    product = hessian.times(a)
    for name, part in product.items():
        slope = (ahead[name] - behind[name]) / (2 * step)
        assert (part - slope).abs().max() < 1e-6 * part.abs().max(), name
    other = hessian.times(b)
    assert sum(float((product[n] * b[n]).sum()) for n in b) == pytest.approx(
        sum(float((other[n] * a[n]).sum()) for n in a), rel=1e-9
    )


def test_the_gradient_is_that_of_the_step_that_was_trained(run: Run) -> None:
    rows = run.table("steps", ["step", "grad_norm"]).to_pylist()
    gradient = Hessian(view_at(run, 4), run.batch_at(4), 1e-3).gradient
    norm = math.sqrt(sum(float(part.square().sum()) for part in gradient.values()))
    assert norm == pytest.approx(next(r["grad_norm"] for r in rows if r["step"] == 4), rel=1e-5)


def test_curvature_is_told_against_what_the_learning_rate_bears(runs: Path, run: Run) -> None:
    points = {p["step"]: p["value"] for p in probe(runs, "small", "curvature")["points"]}
    assert points[0] is None  # before the first update there is no second moment
    assert points[8] is None  # after the last one there is no next batch
    value = points[4]
    assert value["bears"] == pytest.approx(2 / run.policy(run.load(4).counters).learning_rate)
    assert value["largest_over_bears"] == pytest.approx(value["largest"] / value["bears"])
    assert value["largest"] > 0
    assert 1 <= value["products"] <= ITERATIONS


def test_the_spectral_entropy_is_one_of_equal_singular_values_and_zero_of_one(run: Run) -> None:
    view = view_at(run, 0)
    params = dict(view.params)
    K = 8
    q, k = torch.zeros(16, 16), torch.zeros(8, 16)
    q[:K, :K] = torch.eye(K)  # head 0: the identity on K directions
    q[K:, :1] = torch.ones(K, 1)  # head 1: one direction alone
    k[:, :K] = torch.eye(K)
    params |= {"layers.0.attn.q_proj.weight": q, "layers.0.attn.k_proj.weight": k}
    found = METRICS["qk-entropy"].measure(replace(view, params=params), None)
    assert found == pytest.approx(
        {"least": 0.0, "mean": 0.5, "layers.0.heads.0": 1.0, "layers.0.heads.1": 0.0}, abs=1e-12
    )
    trained = METRICS["qk-entropy"].measure(view_at(run, 8), None)
    assert isinstance(trained, dict) and 0.5 < trained["least"] <= 1
