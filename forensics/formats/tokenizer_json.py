"""A tokenizer.json, alone or as the one thing in a folder: it has categories, and no weights."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from forensics.errors import ForensicsError, first_line
from forensics.formats.protocol import ForeignModel, Format

if TYPE_CHECKING:
    from tokenizers import Tokenizer

NAME = "tokenizer.json"


def tokenizer_file(path: Path) -> Tokenizer:
    """Read a tokenizer.json, its own cutting and filling switched off. Errors: data."""
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(path))
        tokenizer.no_truncation()  # a tokenizer.json may cut or fill what it is given
        tokenizer.no_padding()
        return tokenizer
    except Exception as e:  # the library raises a bare Exception
        raise ForensicsError(
            "data",
            f"{path.name} is no tokenizer.json: {first_line(e)}",
            "save one with Tokenizer.save(path)",
        ) from None


def is_tokenizer_alone(path: Path) -> bool:
    """Tell whether it is a .json file, or a folder with a tokenizer and no model."""
    if path.is_file():
        return path.suffix == ".json"
    alone = not (path / "config.json").is_file() and not any(path.glob("*.safetensors"))
    return (path / NAME).is_file() and alone


def read(path: Path) -> ForeignModel:
    """Read the tokenizer. Errors: data."""
    return ForeignModel(tokenizer_file(path / NAME if path.is_dir() else path))


FORMAT = Format("tokenizer", "a tokenizer.json", is_tokenizer_alone, read)
