"""What a reader of a foreign format gives: a tokenizer, vocabulary matrices, a forward pass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from forensics.formats.foreign_run import ForeignRun
    from forensics.model.forward import Forward
    from forensics.model.vocabulary_matrices import Weights


@dataclass(frozen=True, eq=False)
class ForeignModel:
    """A model as `forensics tokens` sees it; a tokenizer alone has no weights and no forward."""

    tokenizer: Tokenizer
    special: frozenset[int] = frozenset()  # ids beside those that the tokenizer marks itself
    weights: Weights | None = None
    forward: Callable[[], Forward] | None = None  # loads the whole model when it is called
    notes: tuple[str, ...] = ()  # what was assumed


@dataclass(frozen=True)
class Format:
    """One foreign format. `recognises` looks at names and first bytes only.

    `read` raises ForensicsError (missing, data) for what is not whole, or not what it seems.
    """

    kind: str  # as documents and `forensics import --format` name it
    title: str  # as an error's sentence names it, with its article
    recognises: Callable[[Path], bool]
    read: Callable[[Path], ForeignModel] | None = None  # None: no vocabulary matrices by this way
    read_run: Callable[[Path], ForeignRun] | None = None  # None: a model, and no run
    # what `recognises` looks for, as `forensics import` lists it where it knows nothing:
    # "a folder that holds config.yaml beside model.pt or model.safetensors"
    looks_for: str = ""
    takes_any_folder: bool = False  # asked after those that look into a folder
