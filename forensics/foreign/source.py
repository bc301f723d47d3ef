"""What lies at SOURCE: a run or a model that a reader knows, or a log alone."""

from __future__ import annotations

from pathlib import Path

from forensics.errors import ForensicsError, nearest
from forensics.formats import formats
from forensics.formats.foreign_run import ForeignRun
from forensics.formats.protocol import Format
from forensics.logs.read import kind_of

HUB = "hf:"  # a repository, or its local copy
LOG = "log"  # the format of a log alone
LOG_FILES = 64  # files of a folder that are tried as logs


def readers() -> list[Format]:
    """List the formats whose runs or models can be brought in."""
    return [known for known in formats() if known.read_run is not None]


def read_source(source: str, format_name: str | None) -> ForeignRun:
    """Read what lies at `source`, nothing of its weights yet; a log alone has no checkpoint.

    Errors: missing, data, usage (a format that is not known, or is not the source's).
    """
    path = _place(source)
    known = readers()
    if format_name == LOG:
        return _log_alone(path)
    if format_name is not None:
        chosen = next((each for each in known if each.kind == format_name), None)
        if chosen is None or chosen.read_run is None:
            raise ForensicsError(
                "usage",
                f"wanted a format, found {format_name!r}",
                nearest(format_name, [*(each.kind for each in known), LOG]),
            )
        return chosen.read_run(path)
    for each in known:
        if each.read_run is not None and each.recognises(path):
            return each.read_run(path)
    if _is_log(path):
        return _log_alone(path)
    raise ForensicsError("data", f"wanted a run or a model, found none in {path}", _looked_for())


def _place(source: str) -> Path:
    """Return the path that a source names. Errors: missing."""
    if source.startswith(HUB):
        from forensics.formats.huggingface_hub_name import local_folder

        return local_folder(source.removeprefix(HUB))
    path = Path(source).expanduser()
    if not path.exists():
        hint = "give the folder that holds its checkpoints, a file, or hf:ORG/NAME"
        raise ForensicsError("missing", f"wanted a run at {source}, found no such path", hint)
    return path


def _looked_for() -> str:
    """Tell what each format is recognised by."""
    known = [f"{each.kind}: {each.looks_for or each.title}" for each in readers()]
    return "looked for " + "; ".join([*known, f"{LOG}: a log that a tracker wrote"])


def _is_log(path: Path) -> bool:
    """Whether a file, or one of a folder's first files, is a log by its content."""
    if path.is_file():
        return kind_of(path) is not None
    files = sorted(each for each in path.rglob("*") if each.is_file())[:LOG_FILES]
    return any(kind_of(each) is not None for each in files)


def _log_alone(path: Path) -> ForeignRun:
    return ForeignRun(LOG, (), {}, logs=(path,))
