"""A sequence of a batch as it was read: its tokens, their text, the documents they come from.

    found = sequence("demo", 400, 11, 85601)
    found.texts[17], found.span_of(17).path

What the corpus holds is read from its memory map, without torch. A sequence that an intervention
made (id −1) is not there: only a replay of the fork's own stream has it, so it is read from what
`forensics batch` told a process of the app.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from app import data, jobs
from forensics.errors import ForensicsError

if TYPE_CHECKING:
    from forensics.data.shards import Corpus, Span
    from forensics.sequence_window import SequenceWindow

CONTINUED = "·"  # the rest of a character that an earlier token began
WIDEST = 4  # tokens that may share one character of UTF-8


@dataclass(frozen=True)
class Reading:
    """T + 1 tokens; the loss of position t is that of predicting it from those before, so position
    0 has none.
    """

    tokens: tuple[int, ...]
    texts: tuple[str, ...]  # as long as `tokens`
    spans: tuple[Span, ...]  # none for a sequence that was made
    vocabulary: int

    def span_of(self, position: int) -> Span | None:
        """Return the document's span that a position is in."""
        return next((span for span in self.spans if span.start <= position < span.stop), None)


def sequence(run: str, step: int, slot: int, id_: int) -> Reading:
    """Return the sequence in a slot of a batch, whose id is known.

    Errors: missing (also one that is not in `made`), integrity.
    """
    if id_ >= 0:
        return _sequence(*_corpus_of(run), id_)
    tokens = made(run, step).get(slot)
    if tokens is None:
        raise ForensicsError(
            "missing",
            f"an intervention made slot {slot} of batch {step:,}, and nobody has read it yet",
            f"the Batch page reads it, by `forensics batch {run} {step}`",
        )
    return of_tokens(run, tokens)


def of_tokens(run: str, tokens: Sequence[int]) -> Reading:
    """Tokens that come from no document, as the run's tokenizer reads them. Errors: missing,
    integrity.
    """
    corpus = corpus_at(_corpus_of(run)[0])
    return Reading(tuple(tokens), tuple(texts_of(corpus.decode, tokens)), (), corpus.vocabulary)


def made(run: str, step: int) -> dict[int, list[int]]:
    """Slot → tokens of a batch as the run's own stream makes it, where a process of the app has run
    `forensics batch`.
    """
    created = str(data.header(run).get("created") or "")
    for job in jobs.listed(run):
        of_step = (
            job.program == "forensics"
            and job.arguments[:3] == ("batch", run, str(step))
            and job.status == "done"
        )
        if (
            of_step and job.started[:19] >= created[:19]
        ):  # an older one told of another fork of this name
            return _told(job.folder / "result.json")
    return {}


@functools.lru_cache(16)
def _told(result: Path) -> dict[int, list[int]]:
    import json

    try:
        return {
            span["slot"]: span["tokens"] for span in json.loads(result.read_bytes())["sequences"]
        }
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _corpus_of(run: str) -> tuple[Path, SequenceWindow]:
    """Return the folder of the run's corpus, and how it is cut into sequences."""
    header = data.header(run)
    try:
        return data.runs_folder() / "_data" / header["corpus"], data.cut_of(header)
    except (KeyError, TypeError, ValueError):
        raise ForensicsError(
            "missing", f"run.json of {run} names no corpus", "its text cannot be read here"
        ) from None


@functools.lru_cache(256)
def _sequence(folder: Path, cut: SequenceWindow, id_: int) -> Reading:
    import numpy as np

    corpus, ids = corpus_at(folder), np.array([id_])
    tokens, spans = corpus.sequences(ids, cut)[0].tolist(), corpus.spans(ids, cut)[0]
    return Reading(
        tuple(tokens), tuple(texts_of(corpus.decode, tokens)), tuple(spans), corpus.vocabulary
    )


@functools.lru_cache(8)
def corpus_at(folder: Path) -> Corpus:
    """Open a corpus, once for the process."""
    from forensics.data.shards import open_corpus

    return open_corpus(folder)


@functools.lru_cache(8)
def token_name(corpus: Path) -> Callable[[int], str]:
    """id → the token's text by itself."""
    decode = corpus_at(corpus).decode
    return functools.lru_cache(100_000)(lambda token: decode([token]))


def texts_of(decode: Callable[[Sequence[int]], str], tokens: Sequence[int]) -> list[str]:
    """Return the text of each token where it stands.

    Of tokens that share a character, the first has it, the others a dot.
    """
    texts: list[str] = []
    while len(texts) < len(tokens):
        start = len(texts)
        for stop in range(start + 1, min(start + WIDEST, len(tokens)) + 1):
            text = decode(tokens[start:stop])
            if "�" not in text:
                break
        else:
            stop, text = (
                start + 1,
                decode(tokens[start : start + 1]),
            )  # bytes that are no character at all
        if start:  # some decoders take away a space in front of what they begin with
            before, both = decode(tokens[start - 1 : start]), decode(tokens[start - 1 : stop])
            text = both[len(before) :] if both.startswith(before) and "�" not in before else text
        texts += [text, *[CONTINUED] * (stop - start - 1)]
    return texts


class TokenLosses(NamedTuple):
    """The loss of each of the T targets of a sequence, and where it is from."""

    losses: list[float | None]  # nats; None: the target has no weight
    origin: Literal["recorded", "replayed", "tolerance only"]


def token_losses(run: str, step: int, slot: int) -> TokenLosses | None:
    """Return the losses of a sequence's targets; None where they were neither recorded nor
    computed.
    """
    rows = data.rows("tokens_of", run=run, step=step, slot=slot, window=(step, step + 1))
    if rows:
        losses = [row["loss"] if row["weight"] != 0 else None for row in rows]
        return TokenLosses(losses, "recorded")
    from replay.step import artifacts

    path = artifacts.token_losses_of(data.runs_folder() / data.require(run), step)
    if not path.is_file():
        return None
    about, array = artifacts.read(path)
    return TokenLosses(
        [float(loss) for loss in array("losses", slot)],
        "tolerance only" if about["exact"] is False else "replayed",
    )


class Influences(NamedTuple):
    """The influence of each of the T + 1 tokens of a sequence on a spike."""

    values: list[float | None]  # nats
    spike: int  # its step


def influences(run: str, step: int, slot: int) -> Influences | None:
    """Return the influences that `replay blame --tokens` kept; None where it kept none."""
    for document in _blamed(run):
        for candidate in document.get("candidates", []):
            if (
                candidate.get("step") == step
                and candidate.get("slot") == slot
                and candidate.get("token_influence")
            ):
                return Influences(candidate["token_influence"], document["spike"]["step"])
    return None


def blamed_by_token(run: str, spike: int) -> bool:
    """Whether `replay blame --tokens` was asked about this spike, so that its strongest sequences
    have their influence.
    """
    return any(
        document.get("spike", {}).get("step") == spike
        and any(candidate.get("token_influence") for candidate in document.get("candidates", []))
        for document in _blamed(run)
    )


def _blamed(run: str) -> list[dict[str, Any]]:
    folder = data.runs_folder() / data.require(run)
    return [data.document(path) for path in sorted(folder.glob("blame-*.json"))]
