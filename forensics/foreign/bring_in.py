"""Bring a run in that was made elsewhere: all of it, or nothing.

    import_run("peers/olmo1/checkpoints", Path("runs"), "olmo", ImportOptions(data=(Path("data"),)))

It is put together in a folder of another name, and given its own when it is whole. A checkpoint is
converted tensor by tensor; nothing of the source's is run.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import re
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from forensics import config, identity
from forensics.data.shards import TOKENIZER
from forensics.data.tokenize import bytes_tokenizer, load_tokenizer
from forensics.errors import ForensicsError
from forensics.foreign.data import ImportedData, bring_in
from forensics.foreign.logged_run import write_log
from forensics.foreign.logits import compare_logits
from forensics.foreign.options import ImportOptions
from forensics.foreign.recipe import recipe_of, says
from forensics.foreign.result import ImportedCheckpoint, ImportedLog, ImportedRun
from forensics.foreign.source import HUB, LOG, read_source
from forensics.foreign.stages import choose
from forensics.foreign.tensors import check_tensors, vocabulary_of
from forensics.formats.foreign_run import ForeignCheckpoint, ForeignRun
from forensics.logs.log_rows import step_span
from forensics.logs.log_table import LogTable
from forensics.logs.read import read_logs
from forensics.model.compare_transformers import LogitComparison
from forensics.model.knobs import shape_of
from forensics.model.shape import Shape, parameter_shapes
from forensics.progress import ProgressCallback, silent
from forensics.store.reader import check_run_name
from forensics.store.writer import Writer, link_table
from forensics.train.header import Header, now, write_header
from forensics.train.imported_checkpoint import WrittenImport, link_to, moments_of, write
from forensics.train.origin import Origin, absolute
from forensics.train.run import current_fingerprint, enable_determinism_for, open_run

UNNAMED = "imported"  # a run whose source has no name that a folder could bear


def import_run(
    source: str,
    runs: Path,
    name: str | None = None,
    options: ImportOptions | None = None,
    progress: ProgressCallback = silent,
    arguments: Sequence[str] = (),
) -> ImportedRun:
    """Bring in what lies at `source` as `runs/name`; numbered after the source without a name.

    Errors: usage (a name that is there, flags that contradict), missing, data, config, storage.
    """
    started = time.perf_counter()
    options = options or ImportOptions()
    name = _free_name(runs, source, name)
    foreign = read_source(source, options.format)
    if foreign.format == LOG:
        options.refuse_for_log()
    incoming = _Incoming(source, foreign, options, runs, progress)
    with _staging(runs, name) as staging:
        header = incoming.write(staging, name, list(arguments))
        result = incoming.result(staging, header)
        _put_in_place(staging / name, runs / name)
    return dataclasses.replace(result, seconds=time.perf_counter() - started)


def _free_name(runs: Path, source: str, name: str | None) -> str:
    """Return the name to give: the one asked for, or one made of the source's. Errors: usage."""
    if name is not None:
        check_run_name(name)
        if (runs / name).exists():
            raise ForensicsError(
                "usage",
                f"wanted a new run, found {name} in {runs}",
                "--name gives it another name",
            )
        return name
    parts = [part for part in source.removeprefix(HUB).rstrip("/").split("/") if part]
    last = parts[-1] if parts else ""
    if last in ("checkpoints", "safetensors") and len(parts) > 1:  # says nothing of the run
        last = parts[-2]
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", last.partition(".")[0]).strip("._-") or UNNAMED
    number, free = 2, stem
    while (runs / free).exists():
        free, number = f"{stem}-{number}", number + 1
    return check_run_name(free)


@contextlib.contextmanager
def _staging(runs: Path, name: str) -> Iterator[Path]:
    """Yield a folder of runs to put the run together in; it is gone afterwards."""
    folder = runs / f".import-{name}-{os.getpid()}"
    try:
        folder.mkdir(parents=True)
        yield folder
    except OSError as e:
        raise ForensicsError(
            "storage",
            f"cannot write to {runs}: {e.strerror or e}",
            "free space there, or choose another --runs",
        ) from e
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _put_in_place(whole: Path, final: Path) -> None:
    """Give the run its name. Errors: usage, where another import was first."""
    try:
        os.rename(whole, final)
    except OSError:
        if not final.exists():
            raise
        raise ForensicsError(
            "usage", f"wanted a new run, found {final.name} by now", "--name gives it another name"
        ) from None


class _Incoming:
    """One import: everything that can be refused is read here, before a byte is written."""

    def __init__(
        self,
        source: str,
        foreign: ForeignRun,
        options: ImportOptions,
        runs: Path,
        progress: ProgressCallback,
    ) -> None:
        self.source = source if source.startswith(HUB) else absolute(Path(source))
        self.foreign, self.options, self.runs, self.progress = foreign, options, runs, progress
        self.chosen = choose(foreign, options)
        self.logs = options.logs or foreign.logs
        self.log: LogTable | None = None
        if self.logs:
            trainer = None if foreign.format == LOG else foreign.format
            self.log = read_logs(
                self.logs, run=options.log_run, trainer=trainer, step_base=options.log_step_base
            )
        last_logged = step_span(self.log)[1] if self.log else 0
        last_saved = max((checkpoint.step for checkpoint in self.checkpoints), default=0)
        self.recipe = recipe_of(foreign, options, max(last_logged, last_saved))
        self.shape = self._shape()
        self.data = self._data()
        self.recipe = self.data.recipe
        self.written: list[WrittenImport] = []

    @property
    def checkpoints(self) -> tuple[ForeignCheckpoint, ...]:
        """Return the states that are brought in."""
        return self.chosen.checkpoints

    @property
    def parameters(self) -> int:
        """Count the numbers of the decoder; 0 of a log alone."""
        shapes = parameter_shapes(self.shape) if self.shape else {}
        return sum(math.prod(size) for size in shapes.values())

    @property
    def trained(self) -> bool:
        """Whether a training is known: else it is a model alone."""
        return self.foreign.format == LOG or "train" in self.foreign.recipe

    def _shape(self) -> Shape | None:
        """Decide the decoder and hold every checkpoint against it. Errors: config, data."""
        if not self.checkpoints:
            return None
        model, T = self.recipe.model, self.recipe.data.sequence_length
        shape = shape_of(model, vocabulary_of(self.checkpoints[0]), T)
        for checkpoint in self.checkpoints:
            check_tensors(checkpoint, shape, self.foreign.unplaced)
        return shape

    def _data(self) -> ImportedData:
        if self.shape is None:
            return ImportedData(self.recipe)
        return bring_in(
            self.foreign,
            self.options,
            self.checkpoints,
            self.recipe,
            self.shape,
            self.runs,
            self.progress,
        )

    def write(self, staging: Path, name: str, arguments: list[str]) -> Header:
        """Write the whole run below `staging`. Errors: storage, data."""
        header = self._header(name, arguments)
        write_header(staging, header)
        folder = staging / name
        if self.data.corpus is not None:
            link_table(folder, "documents", self.data.corpus.documents_file)
        elif self.data.tokenizer == "bytes":
            bytes_tokenizer().save(str(folder / TOKENIZER))
        elif self.data.tokenizer:
            load_tokenizer(self.data.tokenizer).save(str(folder / TOKENIZER))
        if self.log is not None:
            write_log(folder, self.log)
        self._write_checkpoints(folder)
        return header

    def _write_checkpoints(self, folder: Path) -> None:
        read = 0 if self.options.link else sum(map(self._tensors_a_number, self.checkpoints))
        total = self.parameters * read
        done = 0

        def count(numbers: int) -> None:
            nonlocal done
            done += numbers
            self.progress(done, total or None, "converting")

        with Writer(folder) as writer:
            for checkpoint in self.checkpoints:
                assert self.shape is not None, "a checkpoint has a shape"
                link = None
                if self.options.link:
                    self.progress(0, None, f"hashing the files of state {checkpoint.step}")
                    link = link_to(checkpoint, self.foreign.format, self.chosen.place(checkpoint))
                moments = moments_of(checkpoint, self.trained)
                written = write(
                    folder / "checkpoints", checkpoint, self.shape, moments, link, count
                )
                self.written.append(written)
                writer.append(
                    "checkpoints",
                    step=checkpoint.step,
                    path=str(written.path.relative_to(folder)),
                    digest=written.digest,
                    bytes=written.bytes,
                    nonfinite=written.nonfinite,
                    reason="imported",
                    created=now(),
                )

    def _tensors_a_number(self, checkpoint: ForeignCheckpoint) -> int:
        """Count how many tensors are read for each parameter: it, and its moments."""
        return 1 if moments_of(checkpoint, self.trained) == "none" else 3

    def _header(self, name: str, arguments: list[str]) -> Header:
        train = self.recipe.train
        device = identity.device_for(train.device)
        precision = identity.precision_for(train.precision, device)
        threads = identity.thread_count(train.threads)
        enable_determinism_for(device, threads)
        fingerprint = current_fingerprint(self.recipe, device, precision, threads)
        known = config.to_dict(self.recipe) if self.shape else {}  # a log says nothing of it
        return Header(
            name=name,
            recipe=self.foreign.format,
            config=json.loads(json.dumps(known)),
            # a log alone has no step before its first row
            first_step=step_span(self.log)[0] if self.log and not self.shape else 0,
            steps=train.steps,
            corpus=self.data.corpus.hash if self.data.corpus else "",
            corpus_sources=list(self.data.sources),
            order=self.data.order_fingerprint,
            shape=dataclasses.asdict(self.shape) if self.shape else {},
            parameters=self.parameters,
            eot=self.data.eot,
            device=device,
            precision=precision,
            threads=threads,
            fingerprint=fingerprint,
            arguments=arguments,
            created=now(),
            git_commit=fingerprint["git_commit"],
            status="finished",
            origin=self._origin().to_document(),
        )

    def _origin(self) -> Origin:
        without = [c.step for c in self.checkpoints if moments_of(c, self.trained) == "none"]
        return Origin(
            format=self.foreign.format,
            source=self.source,
            linked=self.options.link,
            stage=self.chosen.stage,
            stages=self.chosen.stages,
            order=self.data.order,
            order_why=self.data.order_why,
            data=self.data.files,
            tokenizer=self.data.tokenizer,
            logs=tuple(absolute(path) for path in self.logs),
            logged_steps=self.log.summary.steps if self.log else 0,
            without_moments=tuple(without),
            trained=self.trained,
            notes=self._notes(),
            unplaced=self.foreign.unplaced,
        )

    def _notes(self) -> tuple[str, ...]:
        of_log = self.log.summary.notes if self.log else ()
        return (*self.foreign.notes, *self.chosen.notes, *self.data.notes, *of_log)

    def result(self, staging: Path, header: Header) -> ImportedRun:
        """Make the record, the logits compared last."""
        origin = self._origin()
        return ImportedRun(
            run=header.name,
            format=origin.format,
            source=origin.source,
            parameters=header.parameters,
            checkpoints=tuple(self._row(checkpoint) for checkpoint in self.checkpoints),
            order=origin.order,
            batch=self._said("train", "batch"),
            sequence_length=self._said("data", "sequence_length"),
            log=self._log(),
            unplaced=origin.unplaced,
            steps=header.steps,
            linked=origin.linked,
            stage=origin.stage,
            stages=origin.stages,
            order_why=origin.order_why,
            data=origin.data,
            tokens=self.data.corpus.tokens_in_all if self.data.corpus else None,
            logits=self._logits(staging, header.name),
            notes=origin.notes,
            seconds=0.0,
        )

    def _said(self, section: str, key: str) -> Any:
        if not says(self.foreign, self.options, section, key):
            return None
        return getattr(getattr(self.recipe, section), key)

    def _row(self, checkpoint: ForeignCheckpoint) -> ImportedCheckpoint:
        batch, T = self._said("train", "batch"), self._said("data", "sequence_length")
        tokens = checkpoint.tokens
        if tokens is None and batch is not None and T is not None:
            tokens = checkpoint.step * batch * T
        moments = moments_of(checkpoint, self.trained) != "none"
        return ImportedCheckpoint(checkpoint.step, checkpoint.stage, tokens, moments)

    def _log(self) -> ImportedLog | None:
        if self.log is None:
            return None
        summary, (first, end) = self.log.summary, step_span(self.log)
        return ImportedLog(
            steps=summary.steps,
            metrics=summary.metrics,
            repeated=summary.repeated,
            nonfinite=summary.nonfinite,
            first=first if summary.steps else None,
            last=end - 1 if summary.steps else None,
        )

    def _logits(self, staging: Path, name: str) -> LogitComparison:
        if not self.checkpoints:
            return LogitComparison(None, why_not="a log has no weights")
        self.progress(0, None, "comparing logits with transformers'")
        foreign = self.foreign
        return compare_logits(
            open_run(staging, name),
            self.checkpoints[-1],
            foreign.format,
            dict(foreign.configuration) if foreign.format == "folder" else None,
        )
