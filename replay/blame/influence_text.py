"""The text of suspects coloured by influence: red raises the spike, blue lowers it."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

from forensics.train.run import Run
from forensics.visible import visible
from replay.blame.candidates import Influences, WindowRows
from replay.blame.query.result import QueryCandidate
from replay.blame.result import BlameResult, Candidate, CurvePoint
from replay.blame.sentences import cause
from replay.interventions.rows import Slot

WIDEST = 4  # tokens that may share one character of UTF-8


@dataclass(frozen=True)
class Piece:
    """A stretch of a sequence's text and its influence."""

    text: str
    influence: float  # nats


@dataclass(frozen=True)
class CandidateText:
    """A candidate and its whole text, piece by piece."""

    candidate: Candidate | QueryCandidate
    pieces: tuple[Piece, ...]


def text_pieces(replays: WindowRows, influences: Influences, row: Slot) -> tuple[Piece, ...]:
    """Cut a sequence's text into tokens; those that share a character of UTF-8 stay together."""
    run = replays.run
    ids = run.stream(row.step).tokens[row.slot].tolist()
    k = row.step - influences.first
    by_token = [0.0] * len(ids)
    if influences.known[k, row.slot]:
        by_token = [0.0, *influences.by_token[k, row.slot].tolist()]
    return pieces_of(run, ids, by_token)


def pieces_of(run: Run, ids: Sequence[int], by_token: Sequence[float]) -> tuple[Piece, ...]:
    """Cut tokens with a number each into pieces of text."""
    pieces: list[Piece] = []
    start = 0
    for stop in range(1, len(ids) + 1):
        text = run.corpus.decode(ids[start:stop])
        if "\ufffd" in text and stop - start < WIDEST and stop < len(ids):
            continue
        pieces.append(Piece(visible(text), float(sum(by_token[start:stop]))))
        start = stop
    return tuple(pieces)


def shade(influence: float, largest: float) -> float:
    """Return a shade from −1 to 1; a square root, so that small influences can be seen."""
    if largest <= 0 or not math.isfinite(influence):
        return 0.0
    return math.copysign(math.sqrt(min(1.0, abs(influence) / largest)), influence)


def largest_influence(texts: Sequence[CandidateText]) -> float:
    """Return the largest |influence| of any piece, which the shades are relative to."""
    return max((abs(piece.influence) for text in texts for piece in text.pieces), default=0.0)


STYLE = """<style>
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto;
  padding: 0 1rem; color: #1c2430; background: #fff }
pre { white-space: pre-wrap; overflow-wrap: anywhere; border: 1px solid #cfd6e0;
  border-radius: 6px; padding: .7rem }
table { border-collapse: collapse }
td, th { padding: .2rem .8rem .2rem 0; text-align: left; font-variant-numeric: tabular-nums }
</style>"""
PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>{style}</head><body>
<h1>{title}</h1>
<p><strong>{cause}</strong> {sentence}</p>
<table><tr><th>sequences removed</th><th>the loss falls by (nats)</th>
<th>with as many random ones</th></tr>{curve}</table>
<h2>The most influential sequences</h2>
<p>Red raises the spike, blue lowers it.</p>
{candidates}
</body></html>
"""


def html_page(result: BlameResult, texts: Sequence[CandidateText]) -> str:
    """Write the result as one HTML page; everything from the corpus is escaped."""
    largest = largest_influence(texts)
    return PAGE.format(
        style=STYLE,
        title=html.escape(f"Blame: {result.run}, step {result.spike.step}"),
        cause=html.escape(cause(result.verdict)),
        sentence=html.escape(result.sentence),
        curve="".join(_curve_row(point) for point in result.deletion_curve),
        candidates="\n".join(candidate_block(text, largest) for text in texts),
    )


def _curve_row(point: CurvePoint) -> str:
    random = "–" if point.random is None else format(point.random, ".4f")
    removed = f"{point.excess_removed:.4f}"
    return f"<tr><td>{point.removed}</td><td>{removed}</td><td>{random}</td></tr>"


def candidate_block(text: CandidateText, largest: float) -> str:
    """Write a candidate's title and its coloured text as HTML."""
    candidate = text.candidate
    title = html.escape(
        f"batch {candidate.step}, slot {candidate.slot}, sequence {candidate.sequence}:"
        f" {candidate.source} {visible(str(candidate.path))}"
    )
    influence = (
        f", influence {candidate.influence:+.4f} nats" if candidate.influence is not None else ""
    )
    spans = "".join(_span(piece, largest) for piece in text.pieces)
    return f"<h3>{title}{influence}</h3>\n<pre>{spans}</pre>"


def _span(piece: Piece, largest: float) -> str:
    darkness = shade(piece.influence, largest)
    rgb = "214,69,65" if darkness > 0 else "52,106,191"
    return (
        f'<span style="background:rgba({rgb},{0.75 * abs(darkness):.2f})"'
        f' title="{piece.influence:+.3g} nats">{html.escape(piece.text)}</span>'
    )
