"""One log, or several files of one run, read whoever wrote them: recognised by content.

read_logs([Path("wandb_export.csv")])               LogTable
read_logs([Path("runs/tb")], run="baseline")        one of several runs in it
runs_in_logs([Path("chart.csv")])                   ["baseline", "qk-norm"]
"""

from __future__ import annotations

import gzip
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from forensics.errors import ForensicsError, first_line, nearest
from forensics.logs import (
    console_log,
    json_log,
    tabular,
    tensorboard_events,
    trackio_store,
    wandb_file,
)
from forensics.logs.log_table import LogTable
from forensics.logs.logged_rows import LoggedRows
from forensics.logs.merge import merged

HEAD = 1 << 16  # bytes by which a file is recognised
MOST_REFUSED = 3  # files of a folder that are named as no logs
SUFFIXES = (
    "csv",
    "tsv",
    "json",
    "jsonl",
    "ndjson",
    "parquet",
    "arrow",
    "db",
    "txt",
    "log",
    "wandb",
)


@dataclass(frozen=True)
class LogKind:
    """One kind of log file."""

    kind: str
    title: str  # with its article
    recognises: Callable[[bytes, str], bool]  # of the first bytes, and of them as text
    read: Callable[[Path], list[LoggedRows]]


def _is_json(_: bytes, text: str) -> bool:
    return text.lstrip()[:1] in ("{", "[")


def _is_delimited(_: bytes, text: str) -> bool:
    first = text.lstrip("\n").partition("\n")[0]
    marks = max(first.count(","), first.count("\t"))
    return bool(marks) and not console_log.looks_printed(first + "\n" + first)


KINDS = (
    LogKind(
        "trackio",
        "a trackio project",
        lambda head, _: head.startswith(trackio_store.MAGIC),
        trackio_store.read_trackio,
    ),
    LogKind(
        "parquet",
        "a Parquet or Arrow table",
        lambda head, _: head.startswith((b"PAR1", b"ARROW1")),
        tabular.read_parquet,
    ),
    LogKind(
        "tensorboard",
        "a TensorBoard event file",
        lambda head, _: tensorboard_events.is_event_file(head),
        tensorboard_events.read_events,
    ),
    LogKind(
        "wandb",
        "wandb's file of an offline run",
        lambda head, _: head.startswith(wandb_file.MAGIC),
        wandb_file.read_wandb,
    ),
    LogKind(
        "console",
        "lines that a trainer printed",
        lambda _, text: console_log.looks_printed(text),
        console_log.read_printed,
    ),
    LogKind("json", "JSON, a line a row or whole", _is_json, json_log.read_json),
    LogKind("csv", "comma-separated values", _is_delimited, tabular.read_delimited),
    LogKind(
        "table",
        "a table by blanks",
        lambda _, text: console_log.looks_blank_separated(text),
        console_log.read_blank_separated,
    ),
)


def read_logs(
    paths: Sequence[Path],
    *,
    run: str | None = None,
    trainer: str | None = None,
    step_base: int | None = None,
) -> LogTable:
    """Read one run's log from files or folders, later ones over earlier ones.

    `run` chooses among several in them; `trainer` is the `kind` of the reader of its checkpoints,
    `step_base` the number of its first step, where the caller knows them. Errors: missing, data,
    usage (several runs, or none of that name).
    """
    logged = _logged(paths)
    names = list(dict.fromkeys(rows.run for rows in logged))
    chosen = _chosen(names, run)
    if chosen is not None:
        logged = [rows for rows in logged if rows.run in ("", chosen)]
    table = merged(logged, step_base, trainer)
    if not table.metrics:
        raise ForensicsError(
            "data",
            f"wanted metrics by step in {', '.join(map(str, paths))}, found none",
            "is this the whole log?",
        )
    return table


def runs_in_logs(paths: Sequence[Path]) -> list[str]:
    """List the runs that log files name, in order. Errors: missing, data."""
    return list(dict.fromkeys(rows.run for rows in _logged(paths) if rows.run))


def kind_of(path: Path) -> LogKind | None:
    """Recognise a log file by its first bytes; None: it is none that is known. Errors: missing."""
    try:
        with path.open("rb") as file:
            head = file.read(HEAD)
        if head.startswith(b"\x1f\x8b"):
            with gzip.open(path) as unpacked:
                head = unpacked.read(HEAD)
    except (OSError, EOFError) as e:
        raise ForensicsError(
            "missing", f"wanted a log at {path}, found {getattr(e, 'strerror', None) or e}", ""
        ) from None
    text = "" if b"\x00" in head else head.decode("utf-8-sig", "replace")
    return next((kind for kind in KINDS if kind.recognises(head, text)), None)


def _logged(paths: Sequence[Path]) -> list[LoggedRows]:
    """Read all files. Errors: missing, data."""
    logged: list[LoggedRows] = []
    for path in paths:
        if path.is_dir():
            logged += _of_folder(path)
        else:
            logged += _of_file(path)
    return logged


def _of_folder(folder: Path) -> list[LoggedRows]:
    """Read a folder: event files below it, a run a folder; else the logs that lie in it.

    Beside a log, what is none (a configuration in JSON) is left out and noted. Errors: missing,
    data.
    """
    events = tensorboard_events.event_files(folder)
    if events:
        return [
            rows
            for path in events
            for rows in tensorboard_events.read_events(path, _run_of(folder, path))
        ]
    offline = [path for path in folder.rglob("*.wandb") if path.is_file()]
    files = sorted(offline, key=lambda path: path.stat().st_mtime) or sorted(
        path for path in folder.iterdir() if path.is_file() and _suffix(path) in SUFFIXES
    )
    read: list[LoggedRows] = []
    refused: list[ForensicsError] = []
    for path in files:
        try:
            read += _of_file(path)
        except ForensicsError as e:
            refused.append(e)
    if read and refused:
        note = f"left out, for {'they are' if len(refused) > 1 else 'it is'} no log: " + "; ".join(
            each.message for each in refused[:MOST_REFUSED]
        )
        read[0] = replace(read[0], notes=(*read[0].notes, note))
    if not read:
        raise (
            refused[0]
            if refused
            else ForensicsError(
                "missing",
                f"wanted a log in {folder}, found no event file, and nothing that ends in"
                f" {', '.join(SUFFIXES)}",
                "name the file itself",
            )
        )
    return read


def _run_of(folder: Path, path: Path) -> str:
    place = path.parent.relative_to(folder).as_posix()
    return "" if place == "." else place


def _suffix(path: Path) -> str:
    return path.name.removesuffix(".gz").rpartition(".")[2].lower()


def _of_file(path: Path) -> list[LoggedRows]:
    if not path.is_file():
        found = "no such file" if not path.exists() else "what is no file"
        raise ForensicsError("missing", f"wanted a log at {path}, found {found}", "")
    if not path.stat().st_size:
        raise ForensicsError(
            "data", f"wanted a log in {path.name}, found an empty file", "is it still being copied?"
        )
    kind = kind_of(path)
    if kind is None:
        raise ForensicsError(
            "data",
            f"wanted a log, found {path.name}, which is none of these: "
            + ", ".join(each.title for each in KINDS),
            "export a CSV with a column `step`",
        )
    try:
        return kind.read(path)
    except UnicodeError as e:
        raise ForensicsError(
            "data", f"wanted names in UTF-8 in {path.name}, found: {first_line(e)}", "copy it again"
        ) from None


def _chosen(names: Sequence[str], run: str | None) -> str | None:
    """Choose the run of this name, or the only one. Errors: usage."""
    named = [name for name in names if name]
    if run is None:
        if len(names) > 1:
            listed = ", ".join(name or "one without a name" for name in names[:8])
            more = f" and {len(names) - 8} more" * (len(names) > 8)
            raise ForensicsError(
                "usage",
                f"wanted the log of one run, found {len(names)} in it: {listed}{more}",
                "--log-run NAME chooses one",
            )
        return None
    alike = [run] if run in named else [name for name in named if run in name]
    if len(alike) != 1:
        raise ForensicsError(
            "usage",
            f"wanted one run of the log called {run!r}, found {len(alike) or 'none'}",
            nearest(run, named),
        )
    return alike[0]
