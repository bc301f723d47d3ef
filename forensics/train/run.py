"""A run on disk, opened: its recipe, its stream, its policy, and its exact state at any step.

    runs/<run>/run.json · checkpoints/step-NNNNNN/ · tables/<table>/ · ../_data/<corpus>/

A fork is a run with another stream and another policy (`replay` makes those); everything else is
the same.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sysconfig
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

from forensics import config, identity
from forensics.data.batches import Batches, own_stream
from forensics.data.shards import TOKENIZER, Corpus, open_corpus
from forensics.errors import ForensicsError, nearest
from forensics.model.decoder import Decoder
from forensics.model.shape import Shape
from forensics.model.step_model import StepModel
from forensics.step.batch import Batch, BatchStream
from forensics.step.observer import SILENT, Observer
from forensics.step.policy import Policy
from forensics.step.result import StepResult
from forensics.step.state import Nonfinite, TrainState
from forensics.store import reader
from forensics.train import checkpoint
from forensics.train.advance import fold
from forensics.train.header import Header, read_header
from forensics.train.optimizer import decayed_names
from forensics.train.prefetch import Prefetch
from forensics.train.schedule import own_policy
from forensics.train.warm_moments import warmed


class Run:
    """Open one run or fork for reading and for replay.

    `stream` and `policy` may be replaced by a fork's own.
    """

    def __init__(self, runs: Path, header: Header) -> None:
        self.runs = runs
        self.header = header
        self.name = header.name
        self.folder = runs / header.name
        self.recipe = config.from_dict(header.config)
        self.policy: Policy = own_policy(self.recipe.train, header.precision)
        self.stream: BatchStream = self._own_batch
        self.parent: Run | None = None  # of a fork that was opened with its lineage
        # batches that the moments of a state saved without any are made of; 0: it has none then
        self.warm_moments = 0

    @cached_property
    def shape(self) -> Shape:
        """Return the shape of the run's decoder. Errors: missing, where there is a log alone."""
        self._require_model()
        return Shape(**self.header.shape)

    def _require_model(self) -> None:
        """Refuse what a log alone does not hold. Errors: missing."""
        if not self.header.shape:
            raise ForensicsError(
                "missing",
                f"wanted the model of {self.name}, found a run that is a log alone",
                f"what was logged is there: `forensics spikes {self.name}`, and the tables `steps`"
                " and `metrics`",
            )

    @cached_property
    def corpus(self) -> Corpus:
        """Open the run's corpus; what of it changed on disk cannot be read.

        Errors: missing, integrity.
        """
        if not self.header.corpus:
            raise self._without_data()
        corpus = open_corpus(self.runs / "_data" / self.header.corpus)
        if corpus.hash != self.header.corpus:
            raise ForensicsError(
                "integrity",
                f"{self.name} was trained on corpus {self.header.corpus}, found {corpus.hash} in"
                " its folder",
                "restore the folder from a copy",
            )
        return corpus

    def _without_data(self) -> ForensicsError:
        """Say what a run lacks whose data is not here, and how to give it."""
        if not self.header.shape:
            hint = (
                f"what was logged is there: `forensics spikes {self.name}`, and the tables `steps`"
                " and `metrics`"
            )
        elif (self.header.origin or {}).get("trained", True):
            hint = "import it again with --data PATH of its token files"
        else:
            hint = "import it again with --data of a text, --batch and --sequence-length"
        return ForensicsError(
            "missing", f"wanted the data of {self.name}, found a run without its data", hint
        )

    @property
    def tokenizer_file(self) -> Path | None:
        """Return its tokenizer.json; None: a run without its data that has none.

        Errors: integrity, missing.
        """
        if self.header.corpus:
            return self.corpus.tokenizer_file
        alone = self.folder / TOKENIZER
        return alone if alone.is_file() else None

    @cached_property
    def batches(self) -> Batches:
        """Return the stream of the run's own recipe.

        Errors: integrity, where the order is no longer the run's; missing, where it is not known.
        """
        if self.header.corpus and not self.header.order:
            why = (self.header.origin or {}).get("order_why", "")
            raise ForensicsError(
                "missing",
                f"wanted the batches of {self.name}, found no order of them"
                + (f": {why}" if why else ""),
                "import it again with --order FILE, if its ids were written down",
            )
        batches = own_stream(self.corpus, self.recipe.data, self.recipe.train)
        if batches.order.fingerprint != self.header.order:
            raise ForensicsError(
                "integrity",
                f"the data order of {self.name} is not the one it was trained in",
                "the order file or this software changed; `forensics doctor` tells versions",
            )
        return batches

    def _own_batch(self, step: int) -> Batch:
        return self.batches.batch_at(step)

    @cached_property
    def model(self) -> StepModel:
        """Build the model under the run's own determinism switches.

        The switches hold for the whole process from here on.
        """
        enable_determinism_for(self.header.device, self.header.threads)
        return build_model(self.recipe, self.shape, self.header.device, self.header.eot)

    def batch_at(self, step: int) -> Batch:
        """Return this run's batch at `step`. Errors: missing, for a step outside the run."""
        if not 0 <= step < self.header.steps:
            raise ForensicsError(
                "missing",
                f"wanted a step of {self.name}, found {step}",
                f"it has steps 0 to {self.header.steps - 1}",
            )
        return self.stream(step)

    def saved_steps(self) -> list[int]:
        """List the steps of the complete checkpoints, in order."""
        return checkpoint.saved_steps(self.folder / "checkpoints")

    def last_step(self) -> int:
        """Return the step of the last checkpoint. Errors: missing."""
        saved = self.saved_steps()
        if not saved:
            self._require_model()
            raise ForensicsError(
                "missing",
                f"{self.name} has no checkpoint",
                "was it interrupted before state 0 was written?",
            )
        return saved[-1]

    def load(self, step: int) -> TrainState:
        """Load the state of a checkpoint. Errors: missing, integrity."""
        if step not in self.saved_steps():
            self._require_model()
            raise ForensicsError(
                "missing",
                f"wanted a checkpoint of {self.name} at {step}, found none",
                f"saved: {_listed(self.saved_steps())}",
            )
        state, shape = checkpoint.load(
            self.folder / "checkpoints" / checkpoint.name_of(step), self.header.device
        )
        if shape != self.shape:
            raise ForensicsError(
                "integrity",
                f"checkpoint {step} of {self.name} holds another architecture",
                "see `forensics doctor`",
            )
        return state

    def nonfinite_at(self, step: int) -> Nonfinite:
        """Return how many numbers of a saved state are NaN or infinite.

        Errors: missing, integrity.
        """
        return checkpoint.nonfinite(self.folder / "checkpoints" / checkpoint.name_of(step))

    def last_finite_step(self) -> int | None:
        """Return the step of the last checkpoint whose every number is finite; None: none is."""
        saved = reversed(self.saved_steps())
        return next((step for step in saved if not self.nonfinite_at(step).numbers), None)

    def checkpoint_before(self, step: int) -> int:
        """Return the latest checkpoint at or before `step`. Errors: missing."""
        earlier = [s for s in self.saved_steps() if s <= step]
        if not earlier:
            self._require_model()
            raise ForensicsError(
                "missing",
                f"{self.name} has no checkpoint at or before step {step}",
                f"saved: {_listed(self.saved_steps())}",
            )
        return earlier[-1]

    def state_at(
        self, step: int, after: Callable[[TrainState, StepResult], None] | None = None
    ) -> TrainState:
        """Restore the exact state after `step` updates: load a checkpoint, then replay."""
        if self.parent is not None and step < self.header.first_step:
            return self.parent.state_at(step, after)
        if not self.header.first_step <= step <= self.header.steps:
            raise ForensicsError(
                "missing",
                f"wanted a state of {self.name}, found {step}",
                f"it has states {self.header.first_step} to {self.header.steps}",
            )
        enable_determinism_for(
            self.header.device, self.header.threads
        )  # before a state is brought to a GPU
        state = self.load(self.checkpoint_before(step))
        if self.warm_moments and not state.has_moments:
            state = warmed(state, self.warm_moments, self.stream, self.policy, self.model)
        return self.replay(state, step, after=after)

    def replay(
        self,
        state: TrainState,
        stop: int,
        watch: Observer = SILENT,
        after: Callable[[TrainState, StepResult], None] | None = None,
    ) -> TrainState:
        """Fold this run's own stream and policy from `state` to `stop`, in place.

        Batches are made ahead, as in training.
        """
        with Prefetch(self.stream, stop, self.header.device) as stream:
            return fold(state, stream, self.policy, stop, self.model, watch, after)

    def table(self, name: str, columns: list[str] | None = None) -> Any:
        """Read a table of this run's own window as pyarrow, by its manifest."""
        return reader.read(self.folder, name, columns)

    def fingerprint(self) -> dict[str, Any]:
        """Return this machine's fingerprint, under this run's settings."""
        device = self.model.device  # building the model sets the switches that are reported
        return current_fingerprint(self.recipe, device, self.header.precision, self.header.threads)


def open_run(runs: Path, name: str) -> Run:
    """Open a run: its header and all that follows from it.

    Errors: usage (a bad name), missing, integrity.
    """
    reader.check_run_name(name)
    try:
        return Run(runs, read_header(runs, name))
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        raise ForensicsError(
            "missing",
            f"wanted run {name!r}, found none in {runs}",
            nearest(name, reader.runs_in(runs)) + " (`forensics list`)",
        ) from None
    except TypeError as e:
        raise ForensicsError(
            "integrity", f"run.json of {name} is damaged: {e}", "restore it from a copy"
        ) from None


def enable_determinism_for(device: str, threads: int) -> None:
    """Make this process deterministic for a run of this device.

    Errors: device, where this machine lacks it.
    """
    identity.device_for(device)
    identity.enable_determinism(threads)


def build_model(recipe: config.Recipe, shape: Shape, device: str, eot: int) -> StepModel:
    """Build the decoder and what else a step needs that is no state.

    Errors: device, where a compiler is wanted and missing.
    """
    check_compiler(device, recipe.train.compile)
    decoder = Decoder(
        shape, device, compiled=recipe.train.compile, recompute=recipe.train.checkpoint_activations
    )
    decayed = decayed_names(decoder.names, recipe.train.undecayed, recipe.train.decay_embeddings)
    return StepModel(decoder, recipe.micro_batch, recipe.train.optimizer, decayed, device, eot)


def check_compiler(device: str, compiled: bool) -> None:
    """Check that the C or C++ compiler that torch calls is there. Errors: device.

    torch.compile writes C++ for the CPU; on CUDA the launchers of Triton's kernels are C, ours too.
    """
    if not (compiled or (device == "cuda" and importlib.util.find_spec("triton"))):
        return
    setting, usual = ("CC", ("gcc", "clang")) if device == "cuda" else ("CXX", ("g++",))
    names = (os.environ[setting],) if os.environ.get(setting) else usual
    # Debian's own Python names another scheme by default, under which no header lies
    scheme = sysconfig.get_default_scheme().replace("posix_local", "posix_prefix")
    headers = Path(sysconfig.get_path("include", scheme)) / "Python.h"
    if not any(map(shutil.which, names)):
        lacking = (
            f"{setting}={names[0]}, which cannot be run"
            if names != usual
            else f"no {' or '.join(names)}"
        )
    elif not headers.is_file():
        lacking = f"no {headers}"
    else:
        return
    need, hint = ("train.compile wants", "--set train.compile=false")
    if device == "cuda":
        need, hint = (
            "training on CUDA wants",
            "install gcc and Python's headers, or --set train.device=cpu",
        )
    raise ForensicsError("device", f"{need} a compiler and Python's headers, found {lacking}", hint)


def current_fingerprint(
    recipe: config.Recipe, device: str, precision: str, threads: int
) -> dict[str, Any]:
    """Return this machine's fingerprint under a recipe's settings."""
    return identity.fingerprint(
        device=device,
        threads=threads,
        compiled=recipe.train.compile,
        optimizer=recipe.train.optimizer,
        precision=precision,
    )


def _listed(steps: list[int]) -> str:
    shown = [str(step) for step in steps]
    return ", ".join(shown if len(shown) <= 12 else [*shown[:6], "…", *shown[-5:]]) or "none"
