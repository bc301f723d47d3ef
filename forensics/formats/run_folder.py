"""Where a run's checkpoints lie: the folder itself, those in it, those one folder deeper."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path

from forensics.errors import ForensicsError
from forensics.formats.foreign_run import ForeignCheckpoint

DEPTH = 2  # folders below the one that was named
LOG_SUFFIXES = (".csv", ".jsonl", ".parquet")
LOG_HEAD = 1 << 16  # bytes of a .json file in which a log names its loss
STEP_IN_NAME = re.compile(r"(?:step|iter|global_step)[-_]?0*(\d+)")


def folders(path: Path, is_one: Callable[[Path], bool]) -> list[Path]:
    """Return the folders that `is_one` knows, from the first depth that has any, by name.

    Links to a folder that is there already (OLMo's `latest`) are left out.
    """
    level = [path] if path.is_dir() else []
    for _ in range(DEPTH + 1):
        known = [folder for folder in level if is_one(folder)]
        if known:
            return list({folder.resolve(): folder for folder in reversed(known)}.values())[::-1]
        level = [child for folder in level for child in _children(folder)]
    return []


def _children(folder: Path) -> list[Path]:
    try:
        return sorted(child for child in folder.iterdir() if child.is_dir())
    except OSError:
        return []


def step_in_name(name: str) -> int | None:
    """Return the step that a folder's or file's name says; None where it says none."""
    found = STEP_IN_NAME.search(name)
    return int(found[1]) if found else None


def by_step(checkpoints: Iterable[ForeignCheckpoint]) -> tuple[ForeignCheckpoint, ...]:
    """Order checkpoints by stage and step; of two of one step the one that knows more is kept."""
    kept: dict[tuple[str, int], ForeignCheckpoint] = {}
    for checkpoint in checkpoints:
        place = checkpoint.stage, checkpoint.step
        if place not in kept or _known(checkpoint) > _known(kept[place]):
            kept[place] = checkpoint
    return tuple(kept[place] for place in sorted(kept))


def _known(checkpoint: ForeignCheckpoint) -> tuple[bool, bool]:
    return checkpoint.exp_avg is not None, checkpoint.sequences is not None


def logs_beside(path: Path, checkpoints: Iterable[Path]) -> tuple[Path, ...]:
    """Return the files beside a run's checkpoints that may be its log.

    Tables, TensorBoard's event files, and JSON that speaks of a loss; forensics.logs reads them.
    """
    places = {folder.parent for folder in checkpoints} | ({path} if path.is_dir() else set())
    if not any(folder == path for folder in checkpoints):
        places |= {parent.parent for parent in places if parent != path and path in parent.parents}
    files = sorted(file for place in places for file in place.iterdir() if file.is_file())
    return tuple(file for file in dict.fromkeys(files) if _may_be_log(file))


def _may_be_log(file: Path) -> bool:
    if file.suffix in LOG_SUFFIXES or ".tfevents." in file.name:
        return True
    if file.suffix != ".json":
        return False
    with file.open("rb") as opened:
        head = opened.read(LOG_HEAD)
    return head.lstrip()[:1] == b"[" and b"loss" in head.lower()


def files_beside(path: Path, folders: Iterable[Path], *patterns: str) -> tuple[Path, ...]:
    """Return the files of some patterns in a run's folder, or beside its checkpoints.

    A checkpoint's run is the folder it lies in, or the one around that.
    """
    around = [place for folder in folders for place in (folder.parent, folder.parent.parent)]
    found = {
        file.resolve(): file
        for place in dict.fromkeys([path, *around])
        for pattern in patterns
        for file in place.glob(pattern)
    }
    return tuple(sorted(found.values()))


def file_beside(path: Path, folders: Iterable[Path], *patterns: str) -> Path | None:
    """Return the one file of some patterns, as `files_beside` finds them. Errors: data."""
    files = files_beside(path, folders, *patterns)
    if len(files) > 1:
        raise ForensicsError(
            "data",
            f"wanted one {patterns[0]} beside the checkpoints, found {len(files)}: {files[0]},"
            f" {files[1]}",
            "say which with --order",
        )
    return files[0] if files else None


def missing_checkpoint(path: Path, title: str, wanted: str) -> ForensicsError:
    """Make the error of a folder that holds no checkpoint of a format."""
    return ForensicsError(
        "missing", f"wanted {title} in {path}, found no folder with {wanted}", "is the path right?"
    )
