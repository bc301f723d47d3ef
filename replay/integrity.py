"""Examine a run: every byte that carries a hash is read again, and what carries none is listed.

    examine(runs, "demo").problems       # a sentence each; none: all that was checked is whole

Only the run's own folder and its corpus are read, whatever its header calls it. What was checked
and what was not stand beside the problems, with a count of files: "no problem" is said of what was
read, and of nothing else.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from forensics import identity
from forensics.data import order_file
from forensics.data.batches import order_path
from forensics.errors import ForensicsError
from forensics.progress import ProgressCallback, silent
from forensics.result_records import ResultRecord
from forensics.store import reader
from forensics.train import checkpoint
from forensics.train.run import Run, open_run
from replay.lineage import open_trajectory, recorded_digests

UNHASHED = "a result or a cache: it carries no hash"
SAMPLED = "too large to be read whole: their size and a sample of their bytes are as they were"
LEFT_OVER = "of a write that was cut off: nothing reads it"


@dataclass(frozen=True)
class Check:
    """One thing that was checked of a run."""

    what: str
    files: int  # that were read whole and hold what was written


@dataclass(frozen=True)
class Unchecked:
    """Files of a run's folder that were not checked."""

    what: str  # a file, or the folder that holds them
    files: int
    why: str


@dataclass(frozen=True)
class Examination(ResultRecord):
    """This machine, and a run's files beside what was written."""

    VERSION: ClassVar[int] = 1
    KIND: ClassVar[str] = "examination"
    AGAIN: ClassVar[str] = "run `forensics doctor` again"

    fingerprint: dict[str, Any]  # of this machine
    run: str | None = None
    header_name: str | None = None  # what its header calls it, where the folder has another name
    differs_from_run: tuple[str, ...] = ()  # fingerprint entries that the run's machine had other
    problems: tuple[str, ...] = ()  # what is damaged or missing, a sentence each
    checks: tuple[Check, ...] = ()
    unchecked: tuple[Unchecked, ...] = ()
    nonfinite_states: tuple[int, ...] = ()  # checkpoints that hold NaN or infinite numbers
    last_finite_state: int | None = None  # the last checkpoint that holds none

    checked: int = 0  # files that were read whole and hold what was written


def examine(runs: Path, name: str | None, progress: ProgressCallback = silent) -> Examination:
    """Return the machine's fingerprint; with a run, what reading all of its files again found.

    Errors: usage, missing, integrity (a header that cannot be read).
    """
    if name is None:
        return Examination(_this_machine())
    run = open_run(runs, name)
    try:
        here = run.fingerprint()
    except ForensicsError:  # it was trained on a device that this machine lacks
        here = _this_machine()
    tables = reader.read_tables(run.folder)
    saved = _checkpoints(run, progress)
    findings = [
        _lineage(run),
        *_data(run),
        _Finding(Check("tables", tables.files), [f"tables: {each}" for each in tables.problems]),
        saved.finding,
    ]
    nonfinite = [step for step in saved.whole if run.nonfinite_at(step).numbers]
    finite = [step for step in saved.whole if step not in nonfinite]
    checks = tuple(finding.check for finding in findings)
    written = json.loads((run.folder / "run.json").read_bytes()).get("name")
    return Examination(
        fingerprint=here,
        run=name,
        header_name=written if written != name else None,
        differs_from_run=(
            tuple(identity.fingerprint_difference(here, run.header.fingerprint))
            if run.header.shape  # a log alone is replayed nowhere
            else ()
        ),
        problems=tuple(problem for finding in findings for problem in finding.problems),
        checks=checks,
        unchecked=tuple(_unchecked(run, tables.unnamed)),
        nonfinite_states=tuple(nonfinite),
        last_finite_state=finite[-1] if finite else None,
        checked=sum(check.files for check in checks),
    )


@dataclass(frozen=True)
class _Finding:
    check: Check
    problems: list[str]


class _Saved(NamedTuple):
    finding: _Finding
    whole: list[int]  # steps of the checkpoints that hold what was written


def _this_machine() -> dict[str, Any]:
    device = identity.device_for("auto")
    threads = identity.thread_count(0)
    identity.enable_determinism(threads)
    return identity.fingerprint(
        device=device,
        threads=threads,
        compiled=False,
        optimizer="fused",
        precision=identity.precision_for("auto", device),
    )


def _lineage(run: Run) -> _Finding:
    """Check that a fork's ancestors are there and are the runs that it left."""
    try:
        open_trajectory(run.runs, run.name)
        problems = []
    except ForensicsError as e:
        problems = [f"lineage: {e.message}"]
    return _Finding(Check("header and lineage", 0 if problems else 1), problems)


def _data(run: Run) -> Iterator[_Finding]:
    """Hash every file of the corpus, and make the order again; a log alone has neither."""
    if not run.header.corpus:
        return
    try:
        corpus = run.corpus
    except ForensicsError as e:
        yield _Finding(Check("data", 0), [f"data: {e.message}"])
        return
    problems = [f"data: {problem}" for problem in corpus.verify()]
    whole = len(corpus.hashes) - corpus.sampled
    yield _Finding(Check("data", max(whole - len(problems), 0)), problems)
    try:
        run.batches  # noqa: B018  # makes the order and compares its fingerprint
    except ForensicsError as e:
        if not problems:
            yield _Finding(Check("order", 0), [f"order: {e.message}"])
        return
    order = order_path(corpus, run.recipe.data.order_file)
    if order.endswith(".json"):
        damaged = [f"order: {problem}" for problem in order_file.verify(Path(order))]
        yield _Finding(Check("order", 0 if damaged else 1), damaged)


def _checkpoints(run: Run, progress: ProgressCallback) -> _Saved:
    """Load every checkpoint, and hold its digest against those that were recorded of the state."""
    folder = run.folder / "checkpoints"
    try:
        recorded = recorded_digests(run)
        listed = set(run.table("checkpoints", ["step"])["step"].to_pylist())
    except ForensicsError:  # told as a damaged table
        recorded, listed = {}, set()
    saved, files = run.saved_steps(), 0
    problems: list[str] = []
    complete = []
    for i, step in enumerate(saved):
        path = folder / checkpoint.name_of(step)
        damaged = checkpoint.verify(path)
        problems += [f"checkpoints: {problem}" for problem in damaged]
        if not damaged:
            complete.append(step)
            files += sum(1 for file in path.iterdir() if file.is_file())
            # of weights that lie elsewhere none is kept: their files' hashes are
            digest = json.loads((path / "state.json").read_bytes()).get("digest")
            if recorded.get(step, digest) != digest:
                problems.append(
                    f"checkpoints: {path.name} holds a state of digest {digest}, recorded was"
                    f" {recorded[step]}"
                )
        progress(i + 1, len(saved), "")
    problems += [
        f"checkpoints: {path.name} has no manifest"
        for path in sorted(folder.glob("step-*"))
        if not (path / "manifest.json").is_file()
    ]
    problems += [
        f"checkpoints: {checkpoint.name_of(step)} was saved and is no longer there"
        for step in sorted(listed - set(saved))
        if not (folder / checkpoint.name_of(step)).exists()
    ]
    return _Saved(_Finding(Check("checkpoints", files), problems), complete)


def _unchecked(run: Run, unnamed: list[Path]) -> Iterator[Unchecked]:
    """Yield what lies in the run's folder and carries no hash."""
    with contextlib.suppress(ForensicsError):  # no corpus: told as a problem
        if run.header.corpus and run.corpus.sampled:
            yield Unchecked("data", run.corpus.sampled, SAMPLED)
    if unnamed:
        yield Unchecked("tables", len(unnamed), LEFT_OVER)
    hidden = [path for path in (run.folder / "checkpoints").glob(".step-*") if path.is_dir()]
    if hidden:
        yield Unchecked("checkpoints", sum(map(_files_of, hidden)), LEFT_OVER)
    for path in sorted(run.folder.iterdir()):
        if path.name not in ("run.json", "tables", "checkpoints"):
            yield Unchecked(path.name, _files_of(path), UNHASHED)


def _files_of(path: Path) -> int:
    return sum(each.is_file() for each in path.rglob("*")) if path.is_dir() else 1
