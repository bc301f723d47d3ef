"""A corpus of token files that another trainer read: it links to them where they lie.

corpus = bring_in_corpus(located(tokens, [Path("data")]), cut, vocabulary=320, runs=Path("runs"))
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from forensics.data.made_elsewhere import TokenFiles
from forensics.data.shards import Corpus
from forensics.progress import ProgressCallback, silent


def located(tokens: TokenFiles, places: Sequence[Path]) -> TokenFiles:
    """Return the token files where they lie now, in their own order.

    `places` are files, or folders that are searched; a file is known by its name, and by the
    folders above it where several have that name. Errors: missing (each file that was not found).
    """
    raise NotImplementedError


def bring_in_corpus(
    tokens: TokenFiles,
    sequence_length: int,
    window: str,
    vocabulary: int,
    runs: Path,
    tokenizer: Path | None = None,
    progress: ProgressCallback = silent,
) -> Corpus:
    """Return a corpus under runs/_data that links to token files, made where it is not there yet.

    One source for each file, so that sequence ids run on over the files and each file's tail is
    dropped; joined files are one source. `vocabulary` is the number of rows that the model has:
    an id beyond it is refused with its place. `tokenizer` is a tokenizer.json; without one, and
    where `tokens.tokenizer` is not "bytes", text is shown as ids. `window` and `sequence_length`
    are the recipe's data.window and data.sequence_length. Errors: data, missing, storage.
    """
    raise NotImplementedError
