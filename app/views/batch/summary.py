"""The sentences about one batch, and the next steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from app import formatting, safe_html
from app.navigation import link
from app.safe_html import Part, accent, code, strong
from app.selection import Selection

BUILD: dict[str, Any] = {
    "part": "build",
    "fork": None,
    "first": None,
    "last": None,
}  # a new fork, not one of the URL
APART = 3  # σ: where `stands_apart` of the SQL macros begins


def title_of(step: int, rows: Sequence[dict[str, Any]]) -> str:
    """Say the batch's loss, and how far it lies above the steps before."""
    weight = sum(row["weight"] or 0 for row in rows)
    finite = all(
        row["loss"] is not None and math.isfinite(row["loss"]) for row in rows if row["weight"]
    )
    loss = (
        sum(row["loss"] * row["weight"] for row in rows if row["weight"]) / weight
        if weight and finite
        else None
    )
    past = rows[0]["baseline"]
    if loss is None:
        return f"Batch {formatting.count(step)}: " + (
            "no predicted token counts in the loss" if not weight else "the loss is not finite"
        )
    gap = (
        f", {formatting.gap(loss - past)} against what the steps before let one expect"
        if past is not None
        else ""
    )
    return f"Batch {formatting.count(step)}: loss {formatting.loss(loss)} nats/token{gap}"


def worst_of(rows: Sequence[dict[str, Any]]) -> list[Part]:
    """Say how much of the rise the worst sequence makes up, and how the others stand."""
    top = rows[0]
    apart = [row for row in rows if row["apart"]]
    where: list[Part] = (
        [code(_place(top))] if top["path"] is not None else ["an intervention, not from a document"]
    )
    sentence: list[Part] = [
        f"Of its {len(rows)} sequences, ",
        accent(f"slot {top['slot']}"),
        f" has the highest loss ({formatting.loss(top['loss'])}). ",
    ]
    total = sum(
        row["excess"] for row in rows if row["excess"] is not None and math.isfinite(row["excess"])
    )
    if top["share"] is not None and total > 0 and top["share"] > 0:
        sentence += [
            "It makes up ",
            strong(formatting.share(top["share"])),
            " of the batch's rise, and",
        ]
        sentence += [" comes from "]
    else:
        sentence += ["It comes from "]
    sentence += [*where, ". "]
    if apart:
        sources = sorted({row["source"] for row in apart if row["source"]})
        sentence += [
            strong(f"{len(apart)} of {len(rows)}"),
            f" sequences lie {APART}σ or more above those of the 64 steps before",
        ]
        if len(sources) == 1 and len({row["source"] for row in rows}) > 1:
            sentence += [", all of them from the source ", code(sources[0])]
        share = sum(row["share"] for row in apart if row["share"] is not None)
        sentence += (
            [" and make up ", strong(formatting.share(share)), " of the batch's rise."]
            if len(apart) > 1 and share > 0 and total > 0
            else ["."]
        )
    elif top["baseline"] is not None:
        sentence += [f"None lies {APART}σ above the sequences of the 64 steps before."]
    return sentence


def _place(row: dict[str, Any]) -> str:
    return f"{row['source']}: {row['path']}"


def hedge_of(run: str, selection: Selection, step: int) -> list[Part]:
    """Say what would prove a cause."""
    return [
        "A share of the loss is no proof of a cause. To prove one, train without the sequence"
        " (Forks), or"
        " run ",
        code(f"replay blame {run} --spike {selection.spike or step} --tokens"),
        ".",
    ]


def draw_next_steps(selection: Selection, step: int, row: dict[str, Any]) -> None:
    """Draw links to forks without this document or sequence, and to other pages."""
    run = selection.run
    if row["document"] is not None:
        link(
            "forks",
            "Fork without this document",
            **BUILD,
            kind="remove-documents",
            run=run,
            step=step,
            document=row["document"],
        )
    link(
        "forks",
        "Fork without this sequence",
        **BUILD,
        kind="remove-sequences",
        run=run,
        step=step,
        slot=row["slot"],
        document=None,
    )
    link("attention", "Attention on this sequence", run=run, step=step, slot=row["slot"])
    link("trace", "Inside the step", run=run, step=step)


def draw_unrecorded(run: str, step: int) -> None:
    """Say that the sequences' losses were not recorded, and what prints the batch."""
    safe_html.verdict(
        f"Batch {formatting.count(step)}",
        "The losses of its sequences were not recorded.",
    )
    safe_html.nothing(
        "This command prints what the batch read, from the order of the data:",
        f"forensics batch {run} {step}",
        'record.level = "light" records each sequence\'s loss at every step.',
    )
