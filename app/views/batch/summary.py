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
APART = 3  # σ above the sequences before, from which a sequence is named


def title_of(step: int, rows: Sequence[dict[str, Any]]) -> str:
    """`Batch 1,342: loss 5.380 nats/token, +3.110 over the steps before`."""
    weight = sum(r["weight"] or 0 for r in rows)
    finite = all(r["loss"] is not None and math.isfinite(r["loss"]) for r in rows if r["weight"])
    loss = (
        sum(r["loss"] * r["weight"] for r in rows if r["weight"]) / weight
        if weight and finite
        else None
    )
    past = rows[0]["baseline"]
    if loss is None:
        return f"Batch {formatting.count(step)}: " + (
            "no target counted" if not weight else "the loss is not finite"
        )
    gap = f", {formatting.gap(loss - past)} over the 64 steps before" if past is not None else ""
    return f"Batch {formatting.count(step)}: loss {formatting.loss(loss)} nats/token{gap}"


def worst_of(rows: Sequence[dict[str, Any]]) -> list[Part]:
    """How much of the excess its worst sequence holds, which document that is, and whether the
    others are odd too.
    """
    top = rows[0]
    apart = [r for r in rows if r["z"] is not None and r["z"] >= APART]
    where: list[Part] = (
        [code(_place(top))] if top["path"] is not None else ["a sequence that an intervention made"]
    )
    said: list[Part] = [
        f"Its worst of {len(rows)} sequences, ",
        accent(f"slot {top['slot']}"),
        f" (loss {formatting.loss(top['loss'])}), ",
    ]
    total = sum(r["excess"] for r in rows if r["excess"] is not None and math.isfinite(r["excess"]))
    if top["share"] is not None and total > 0 and top["share"] > 0:
        said += ["holds ", strong(formatting.share(top["share"])), " of the excess; it reads "]
    else:
        said += ["reads "]
    said += [*where, ". "]
    if apart:
        sources = sorted({r["source"] for r in apart if r["source"]})
        said += [
            strong(f"{len(apart)} of {len(rows)}"),
            f" stand {APART}σ or more above the sequences of the 64 steps before",
        ]
        if len(sources) == 1 and len({r["source"] for r in rows}) > 1:
            said += [", all of them of the source ", code(sources[0])]
        share = sum(r["share"] for r in apart if r["share"] is not None)
        said += (
            [" and hold ", strong(formatting.share(share)), " of the excess."]
            if len(apart) > 1 and share > 0 and total > 0
            else ["."]
        )
    elif top["baseline"] is not None:
        said += [f"None stands {APART}σ above the sequences of the 64 steps before."]
    return said


def _place(row: dict[str, Any]) -> str:
    return f"{row['source']}: {row['path']}"


def hedge_of(run: str, selection: Selection, step: int) -> list[Part]:
    return [
        "A share of the loss, not proof of cause. Proof: replay without it (Forks), or ",
        code(f"replay blame {run} --spike {selection.spike or step} --tokens"),
        ".",
    ]


def draw_next_steps(selection: Selection, step: int, row: dict[str, Any]) -> None:
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
    safe_html.verdict(
        f"Batch {formatting.count(step)}",
        "Its sequences were not recorded, so their losses are not known here.",
    )
    safe_html.nothing(
        "What it read can be printed from the data order:",
        f"forensics batch {run} {step}",
        'record.level = "light" records each sequence\'s loss at every step.',
    )
