"""Text of suspects, coloured by influence."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from forensics.visible import visible
from replay.blame.candidates import Influences
from replay.blame.window_replays import Replays
from replay.interventions.rows import Slot

if TYPE_CHECKING:
    from rich.text import Text

WIDEST = 4  # tokens that may share one character of UTF-8


def pieces(replays: Replays, influences: Influences, row: Slot) -> list[tuple[str, float]]:
    """(text, influence) of a sequence, in order; tokens that share a character of UTF-8 come
    together.
    """
    run = replays.run
    ids = run.stream(row.step).tokens[row.slot].tolist()
    k = row.step - influences.first
    values = (
        [0.0, *influences.by_token[k, row.slot].tolist()]
        if influences.known[k, row.slot]
        else [0.0] * len(ids)
    )
    found: list[tuple[str, float]] = []
    start = 0
    for stop in range(1, len(ids) + 1):
        text = run.corpus.decode(ids[start:stop])
        if "�" in text and stop - start < WIDEST and stop < len(ids):
            continue
        found.append((visible(text), float(sum(values[start:stop]))))
        start = stop
    return found


def _shade(value: float, largest: float) -> float:
    """−1 … 1; a square root, so that small influences can be seen."""
    return (
        math.copysign(math.sqrt(min(1.0, abs(value) / largest)), value)
        if largest > 0 and math.isfinite(value)
        else 0.0
    )


def coloured(parts: Sequence[tuple[str, float]], largest: float) -> Text:
    """For the terminal. Text of the corpus is never read as markup."""
    from rich.text import Text

    line = Text()
    for text, value in parts:
        shade = _shade(value, largest)
        pale = int(90 * abs(shade))
        style = (
            ""
            if abs(shade) < 0.15
            else f"on rgb({40 + 2 * pale},30,30)"
            if shade > 0
            else f"on rgb(30,40,{40 + 2 * pale})"
        )
        line.append(text.replace("\n", "⏎"), style=f"white {style}" if style else None)
    return line


PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #1c2430; background: #fff }}
pre {{ white-space: pre-wrap; overflow-wrap: anywhere; border: 1px solid #cfd6e0; border-radius: 6px; padding: .7rem }}
table {{ border-collapse: collapse }} td, th {{ padding: .2rem .8rem .2rem 0; text-align: left; font-variant-numeric: tabular-nums }}
</style></head><body>
<h1>{title}</h1>
<p><strong>{verdict}.</strong> {sentence}</p>
<table><tr><th>removed</th><th>nats that go</th><th>with as many random</th></tr>{curve}</table>
<h2>The strongest sequences</h2>
<p>Red raises the spike, blue lowers it.</p>
{candidates}
</body></html>
"""


def page(
    document: dict[str, Any], shown: Sequence[tuple[dict[str, Any], list[tuple[str, float]]]]
) -> str:
    """The result as one HTML page; everything from the corpus is escaped."""
    largest = max((abs(v) for _, parts in shown for _, v in parts), default=0.0)
    blocks = []
    for each, parts in shown:
        spans = []
        for text, value in parts:
            shade = _shade(value, largest)
            colour = f"rgba({'214,69,65' if shade > 0 else '52,106,191'},{0.75 * abs(shade):.2f})"
            spans.append(
                f'<span style="background:{colour}" title="{value:+.3g}'
                f' nats">{html.escape(text)}</span>'
            )
        where = html.escape(
            f"batch {each['step']}, slot {each['slot']}, sequence {each['sequence']}:"
            f" {each['source']} {visible(str(each['path']))}"
        )
        influence = (
            f", influence {each['influence']:+.4f} nats" if each["influence"] is not None else ""
        )
        blocks.append(f"<h3>{where}{influence}</h3>\n<pre>{''.join(spans)}</pre>")
    rows = "".join(
        f"<tr><td>{p['removed']}</td><td>{p['taken']:.4f}</td><td>{'–' if p['random'] is None else format(p['random'], '.4f')}</td></tr>"
        for p in document["deletion_curve"]
    )
    title = html.escape(f"Blame: {document['run']}, step {document['spike']['step']}")
    return PAGE.format(
        title=title,
        verdict=html.escape(document["verdict"]),
        sentence=html.escape(document["sentence"] or ""),
        curve=rows,
        candidates="\n".join(blocks),
    )
