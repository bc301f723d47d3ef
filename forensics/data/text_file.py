"""A text that a command is given as a file."""

from __future__ import annotations

from pathlib import Path

from forensics.errors import ForensicsError


def read_text_file(path: Path, flag: str) -> str:
    """Return the text of a UTF-8 file, which `flag` named. Errors: missing, data."""
    if not path.is_file():
        raise ForensicsError("missing", f"wanted a text at {path}, found no such file", flag)
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as e:
        raise ForensicsError(
            "data", f"{path.name} is not UTF-8: {e.reason} at byte {e.start}", "convert it first"
        ) from None
