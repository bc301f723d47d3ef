"""What each token was exposed to, exactly: counted from the data order, the shards and what every
step did.

    ledger(run, 300).exposure_grad      (V,) int64
    ledgers(run, run.saved_steps())     one pass over order and shards for all of them

A step is *applied* where its update moved the parameters (`steps.update` is apply). Steps of a run
are taken from its own stream; below a fork's first step they are its ancestors'. Memory: a few
numbers for each token and each state asked for, 4 bytes for each sequence of the corpus, and a
fixed number of tokens at a time.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from forensics.errors import ForensicsError
from forensics.progress import ProgressCallback, silent
from forensics.store import result_cache
from forensics.tokens.applied_steps import moves
from forensics.tokens.document_counts import documents_met
from forensics.tokens.exposure_tally import Counts, Tally, stretches
from forensics.train.run import Run

CHUNK = 1 << 19  # tokens counted together
FIELDS = ("exposure_in", "exposure_out", "exposure_grad", "documents", "first_step", "last_step")
VERSION = 1  # of what is kept


@dataclass(frozen=True, eq=False)
class Exposure:
    """Of every token id, up to state `step`: (V,) int64 each. A token is met as an input or as a
    counted target.

    exposure_in: times it was an input in applied steps. exposure_out: times it was a target whose
    weight is not 0 in applied steps. exposure_grad: input positions from which a counted target is
    reachable (not before it; under a document mask in the same document), in steps whose gradient
    the optimizer took: applied ones, and those that held the parameters, because the moments keep
    the gradient and move the row later; not where the embedding was frozen. documents: distinct
    documents of the corpus it was met in; text that an intervention made is no document of it.
    """

    step: int
    exposure_in: np.ndarray
    exposure_out: np.ndarray
    exposure_grad: np.ndarray
    documents: np.ndarray
    first_step: np.ndarray  # −1: never met in an applied step
    last_step: np.ndarray

    @property
    def never(self) -> np.ndarray:
        """Ids (n,) that no gradient of the input embedding ever reached."""
        return np.flatnonzero(self.exposure_grad == 0)

    @property
    def never_met(self) -> np.ndarray:
        """Ids (n,) that were neither an input whose gradient counted nor a counted target:
        references of any kind.
        """
        return np.flatnonzero(
            (self.exposure_grad == 0) & (self.exposure_in == 0) & (self.exposure_out == 0)
        )


def ledger(run: Run, step: int, progress: ProgressCallback = silent) -> Exposure:
    """Return the exposure of every token up to state `step` of a run or fork. Errors: missing,
    integrity.

    A fork must be opened with its lineage (replay.lineage.open_trajectory).
    """
    return ledgers(run, [step], progress)[0]


def ledgers(run: Run, steps: Sequence[int], progress: ProgressCallback = silent) -> list[Exposure]:
    """Return the same at several states, in their order.

    Kept beside the run, so that asking again is quick.
    """
    ledger_of: dict[int, Exposure] = {
        step: ledger_then for step in set(steps) if (ledger_then := _kept(run, step)) is not None
    }
    missing_steps = sorted(set(steps) - ledger_of.keys())
    if missing_steps:
        _require_trained(run, missing_steps[-1])
        for ledger_then in _count(run, missing_steps, progress):
            ledger_of[ledger_then.step] = ledger_then
            _keep(run, ledger_then)
    return [ledger_of[step] for step in steps]


def _require_trained(run: Run, step: int) -> None:
    if step < 0 or step > run.last_step():
        raise ForensicsError(
            "missing",
            f"wanted the exposure of {run.name} up to step {step}, found it trained to "
            f"{run.last_step()}",
            f"a step from 0 to {run.last_step()}",
        )


def _count(run: Run, steps: list[int], progress: ProgressCallback) -> list[Exposure]:
    """At these states, ascending: one pass over the batches, then one over the corpus for the
    documents.
    """
    cut = run.recipe.data.cut
    tally = Tally(run.shape.vocabulary, sum(run.corpus.layout(cut).n_sequences), len(steps))
    windows = moves(run, steps[-1])
    total = sum(len(window.steps) for window in windows)
    steps_done, counts_at = 0, dict[int, Counts]()
    counts = tally.counts_so_far()
    for window in windows:
        for stretch in stretches(window, steps, CHUNK):
            tally.add(window, stretch)
            if stretch.complete:
                counts_at[stretch.state] = tally.counts_so_far()
            steps_done += stretch.high - stretch.low
            progress(steps_done, total, "counting tokens")
    documents = documents_met(run.corpus, cut, tally, progress, CHUNK)
    exposures = []
    for state, step in enumerate(steps):
        # where no step led here since the state before, nothing was added
        counts = counts_at.get(state, counts)
        exposures.append(
            Exposure(
                step,
                exposure_in=counts.inputs,
                exposure_out=counts.targets,
                exposure_grad=counts.reached,
                documents=documents[state],
                first_step=counts.first_step,
                last_step=counts.last_step,
            )
        )
    return exposures


def path_of(run: Run, step: int) -> Path:
    """Return where the exposure at a state is kept."""
    identity: list[Any] = [VERSION]
    ancestor: Run | None = run
    while ancestor is not None:
        identity.append(
            (
                ancestor.name,
                ancestor.header.created,
                ancestor.header.order,
                ancestor.header.corpus,
                ancestor.header.interventions,
            )
        )
        ancestor = ancestor.parent
    return result_cache.path_of(run.folder / "exposure", f"{step:06d}-", repr(identity), ".npy")


def _kept(run: Run, step: int) -> Exposure | None:
    arrays = result_cache.read_array(path_of(run, step))
    if arrays is None or arrays.shape != (len(FIELDS), run.shape.vocabulary):
        return None
    return Exposure(step, *arrays)


def _keep(run: Run, exposure: Exposure) -> None:
    arrays = np.stack([getattr(exposure, name) for name in FIELDS])
    with contextlib.suppress(ForensicsError):  # a folder that may not be written is read anyway
        result_cache.write_array(path_of(run, exposure.step), arrays)
