"""The result of `replay blame --query` as one HTML page."""

from __future__ import annotations

import html
from collections.abc import Sequence

from replay.blame.influence_text import STYLE, CandidateText, candidate_block, largest_influence
from replay.blame.query.result import InfluenceResult

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>{style}</head><body>
<h1>{title}</h1>
<p>{sentence}</p>
<pre>{query}</pre>
<p>{quality}</p>
<table><tr><th>without the sequences that</th><th>the loss changes by (nats/token)</th>
<th>to first order</th><th>N random ones</th><th>p</th></tr>{removals}</table>
<h2>The most influential sequences</h2>
<p>Red raises the loss of the text, blue lowers it.</p>
{candidates}
</body></html>
"""


def html_page(result: InfluenceResult, texts: Sequence[CandidateText]) -> str:
    """Write the result as one HTML page; everything from the corpus and the text is escaped."""
    largest = largest_influence(texts)
    rows = [
        [
            f"{removal.direction} it ({len(removal.removal)})",
            _number(removal.measured),
            _number(removal.predicted),
            str(len(removal.random)),
            "–" if removal.corrected_p is None else f"{removal.corrected_p:.2g}",
        ]
        for removal in result.removals
    ]
    return PAGE.format(
        style=STYLE,
        title=html.escape(f"Influence: {result.run}, state {result.at}"),
        sentence=html.escape(result.sentence),
        query=html.escape(result.query.text),
        quality=html.escape(result.validation.sentence if result.validation else ""),
        removals="".join(
            "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>"
            for row in rows
        ),
        candidates="\n".join(candidate_block(text, largest) for text in texts),
    )


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:+.4f}"
