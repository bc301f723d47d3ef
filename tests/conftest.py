"""What the tests share: one tiny run, small decoders and batches of random tokens."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
import torch

from forensics import config, identity
from forensics.config import UNDECAYED
from forensics.model.decoder import Decoder
from forensics.model.initialize import initialize
from forensics.model.knobs import shape_of
from forensics.model.shape import Shape
from forensics.model.step_model import StepModel
from forensics.step.batch import Batch
from forensics.step.policy import StepPolicy
from forensics.step.state import TrainState
from forensics.train.optimizer import decayed_names

# A busy machine is no defect of a test: how long an example takes says nothing about what it shows.
with contextlib.suppress(
    ImportError
):  # a machine that only runs the GPU's tests (benchmarks/gpu.sh) may lack it
    from hypothesis import HealthCheck, settings

    settings.register_profile(
        "patient", deadline=None, suppress_health_check=[HealthCheck.too_slow]
    )
    settings.load_profile("patient")

TINY = {
    "data": {"source": "stdlib/json", "tokenizer": "bytes", "sequence_length": 32, "held_out": 4},
    "model": {"family": "llama", "layers": 2, "width": 32, "heads": 2},
    "train": {
        "steps": 30,
        "batch": 4,
        "micro_batch": 2,
        "learning_rate": 1e-2,
        "warmup": 4,
        "threads": 1,
        "device": "cpu",
        "held_out_every": 10,
    },
    "checkpoint": {"every": 10},
    "record": {"flush_every": 7},
}


# With `--dist loadfile` a long file that begins last keeps one core waiting: these begin first.
LONGEST_FIRST = (
    "replay/blame/test_blame.py",
    "app/test_forks_in_a_browser.py",
    "app/test_browser.py",
    "replay/test_engine.py",
    "train/test_loop.py",
    "tokens/test_tokens_command.py",
    "queries/test_notebooks.py",
    "app/test_attention.py",
    "replay/blame/test_norm.py",
    "replay/blame/test_nonfinite.py",
    "replay/blame/test_metagradient.py",
    "app/test_tokens_page.py",
    "app/test_batch.py",
    "model/test_loss_kernel.py",
    "queries/test_queries.py",
    "replay/test_composition.py",
    "replay/test_sweep.py",
    "replay/test_matrix.py",
    "app/test_pages.py",
    "app/test_forks_page.py",
    "store/test_sandbox.py",
    "store/test_background.py",
    "replay/test_spec.py",
    "replay/blame/test_query.py",
    "replay/blame/test_evidence.py",
    "train/test_advance.py",
    "train/test_compiled.py",
    "observe/test_kernels.py",
    "app/test_fork_windows.py",
)


def pytest_configure(config: pytest.Config) -> None:
    """Keep xdist from sorting files by how many tests they hold, which puts the longest last."""
    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the tests of the longest files first; within a file they keep their order."""
    folder = Path(__file__).parent
    place = {folder / name: i for i, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: place.get(item.path, len(place)))


@pytest.fixture(autouse=True)
def _deterministic():
    """Every test runs under the switches that a run is trained under, whatever the test before it
    set.
    """
    identity.enable_determinism(1)


@pytest.fixture(scope="session")
def recipe_of():
    """`recipe_of(**{"train.steps": 12})`: the tiny recipe with some keys set."""

    def build(**settings) -> config.Recipe:
        raw = {section: dict(keys) for section, keys in TINY.items()}
        for dotted, value in settings.items():
            section, key = dotted.split(".", 1)
            raw[section][key] = value
        return config.from_dict(raw)

    return build


@pytest.fixture(scope="session")
def runs(tmp_path_factory):
    """A folder of runs that holds `tiny`; tests add runs under other names and leave `tiny` as it
    is.
    """
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="session")
def train_run(runs, recipe_of):
    """`train_run("name", **{"train.steps": 12})` trains a run from the tiny recipe and opens it."""
    from forensics.train.loop import train
    from forensics.train.run import open_run

    def build(name: str, *, resume: bool = False, **settings):
        train(recipe_of(**settings), name=name, recipe_name="tiny", runs=runs, resume=resume)
        return open_run(runs, name)

    return build


@pytest.fixture(scope="session")
def tiny_run(train_run):
    """30 steps of a 2-layer byte-level Llama on the source of `json`; checkpoints at 0, 10, 20, 30,
    light recording.
    """
    return train_run("tiny")


@pytest.fixture(scope="session")
def make_shape():
    """`make_shape("olmo2", tied=True)`: a 2-layer decoder of 32 numbers and 4 heads over 61
    tokens.
    """

    def build(family: str = "llama", *, vocabulary: int = 61, length: int = 16, **knobs) -> Shape:
        knobs = {"layers": 2, "width": 32, "heads": 4} | knobs
        return shape_of(config.Model(family=family, **knobs), vocabulary, length)

    return build


@pytest.fixture(scope="session")
def random_params():
    """`random_params(shape, seed)`: every tensor random, gains and biases too, so that each of them
    matters.
    """

    def build(shape: Shape, seed: int = 0, scale: float = 4.0) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(seed)
        params = initialize(shape, "normal", seed)
        for name, p in params.items():
            if name.endswith(".bias") or "norm" in name:
                p.add_(torch.randn(p.shape, generator=generator), alpha=0.2)
            else:
                p.mul_(scale)
        return params

    return build


@pytest.fixture(scope="session")
def make_batch():
    """`make_batch(B, T, vocabulary, seed)`: random tokens, every weight 1."""

    def build(B: int = 4, T: int = 16, vocabulary: int = 61, seed: int = 0) -> Batch:
        tokens = torch.randint(
            0, vocabulary, (B, T + 1), generator=torch.Generator().manual_seed(seed)
        )
        return Batch(tokens, torch.ones(B, T), float(B * T), torch.arange(B), origin=seed)

    return build


@pytest.fixture(scope="session")
def make_model():
    """`make_model(shape, micro_batch=2)`: what `advance` needs beside the state."""

    def build(shape: Shape, micro_batch: int = 4, optimizer: str = "fused", **decoder) -> StepModel:
        built = Decoder(shape, **decoder)
        return StepModel(
            built,
            micro_batch,
            optimizer,
            decayed_names(built.names, UNDECAYED, True),
            "cpu",
            shape.vocabulary - 1,
        )

    return build


@pytest.fixture(scope="session")
def start_state(random_params):
    """`start_state(shape)`: state 0 with random parameters."""

    def build(shape: Shape, seed: int = 0, scale: float = 1.0) -> TrainState:
        return TrainState.start(random_params(shape, seed, scale))

    return build


@pytest.fixture(scope="session")
def make_policy():
    """`make_policy(clip=0.0)`: a plain AdamW step with some fields set."""

    def build(**fields) -> StepPolicy:
        plain = {
            "learning_rate": 1e-3,
            "betas": (0.9, 0.95),
            "eps": 1e-8,
            "weight_decay": 0.1,
            "clip": 1.0,
            "z_loss": 0.0,
            "frozen": frozenset(),
            "precision": "fp32",
            "update": "apply",
            "advance_schedule": True,
            "skip_step": False,
        }
        return StepPolicy(**(plain | fields))

    return build
