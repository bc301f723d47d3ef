"""The text whose loss is asked about, as windows of tokens that the model reads.

    query_of_text(run, "def parse(s):")      one text, no longer than the context
    query_of_file(run, Path("eval.jsonl"))   a text file, or a text in each line; cut into windows

No end-of-text token is put in front or behind: the first token of a text is context alone. A text
of a file that is longer than the context is cut into windows as long as the run's sequences that
share one token with their neighbour, so that every token but the text's first is predicted exactly
once.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import xxhash

from forensics.data.text_file import read_text_file
from forensics.errors import ForensicsError
from forensics.step.batch import MADE, Batch
from forensics.train.run import Run
from forensics.visible import visible
from replay.blame.query.result import QueryDescription
from replay.interventions.text_edit import encode

EXCERPT = 200  # characters of the text in the result


@dataclass(frozen=True)
class Query:
    """The question: its windows, (n, L + 1) tokens with weight 1 where a target counts."""

    batch: Batch
    description: QueryDescription
    digest: str  # of the tokens: the same question has the same

    @property
    def noun(self) -> str:
        """Name it in a sentence."""
        if self.description.file is None:
            return "the text"
        return f"{self.description.file}"


def query_of_text(run: Run, text: str) -> Query:
    """Return the question after one text. Errors: usage (none, one token, too long), data."""
    ids, context = encode(run, text), run.recipe.data.cut.length
    if len(ids) < 2:
        raise ForensicsError(
            "usage",
            f"wanted a query of at least 2 tokens, found {len(ids)}",
            "the first token is context alone: its loss is not defined",
        )
    if len(ids) > context:
        raise ForensicsError(
            "usage",
            f"wanted a query of at most {context} tokens (the context of {run.name}), found"
            f" {len(ids)}",
            "a shorter one, or --eval FILE, which cuts a text into windows",
        )
    return _query(run, [text], [ids], None)


def query_of_file(run: Run, path: Path) -> Query:
    """Return the question after a text file, or a .jsonl with a `text` in every line.

    Errors: missing, data.
    """
    texts = _texts(path)
    encoded = []
    for number, text in texts:
        ids = encode(run, text)
        if len(ids) < 2:
            where = path.name if number is None else f"{path.name}:{number}"
            raise ForensicsError(
                "data",
                f"{where}: wanted a text of at least 2 tokens, found {len(ids)}",
                "the first token is context alone: its loss is not defined",
            )
        encoded.append(ids)
    return _query(run, [text for _, text in texts], encoded, path.name)


def windows(ids: Sequence[int], length: int) -> list[list[int]]:
    """Cut tokens into windows of at most `length` targets; neighbours share one token."""
    starts = range(0, len(ids) - 1, length)
    return [list(ids[start : start + length + 1]) for start in starts]


def _texts(path: Path) -> list[tuple[int | None, str]]:
    """Read the texts of a file, each with its line in a .jsonl. Errors: missing, data."""
    content = read_text_file(path, "--eval FILE").removeprefix("\ufeff")  # a byte-order mark
    if path.suffix != ".jsonl":
        return [(None, content)]
    texts: list[tuple[int | None, str]] = [
        (number, _text_of(line, f"{path.name}:{number}"))
        for number, line in enumerate(content.split("\n"), 1)
        if line.strip()
    ]
    if not texts:
        raise ForensicsError(
            "data", f"{path.name}: wanted a text in every line, found no line", 'e.g. {"text": "…"}'
        )
    return texts


def _text_of(line: str, where: str) -> str:
    try:
        document = json.loads(line)
    except ValueError as e:
        raise ForensicsError("data", f"{where} is no JSON: {e}", 'e.g. {"text": "…"}') from None
    text = document.get("text") if isinstance(document, dict) else None
    if not isinstance(text, str):
        raise ForensicsError(
            "data",
            f"{where}: wanted an object with a `text`, found {line[:60]!r}",
            'e.g. {"text": "…"}',
        )
    return text


def _query(run: Run, texts: Sequence[str], encoded: Sequence[list[int]], file: str | None) -> Query:
    rows = [row for ids in encoded for row in windows(ids, run.recipe.data.cut.targets)]
    counted = sum(len(row) - 1 for row in rows)
    # rows of weight 0 make micro-batches of one size; what pads a row lies behind all that it reads
    size = min(run.model.micro_batch, len(rows))
    length, height = max(map(len, rows)), -(-len(rows) // size) * size
    tokens = torch.full((height, length), run.model.eot, dtype=torch.int64)
    weight = torch.zeros(height, length - 1)
    for i, row in enumerate(rows):
        tokens[i, : len(row)] = torch.tensor(row)
        weight[i, : len(row) - 1] = 1.0
    batch = Batch(tokens, weight, float(counted), torch.full((height,), MADE))
    excerpt = visible("\n".join(texts))
    description = QueryDescription(
        text=excerpt if len(excerpt) <= EXCERPT else excerpt[:EXCERPT] + "…",
        file=file,
        texts=len(texts),
        windows=len(rows),
        tokens=counted,
    )
    digest = xxhash.xxh3_128_hexdigest(json.dumps(encoded).encode())
    return Query(batch, description, digest)
