"""The sentences about a vocabulary at one checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from app import formatting, safe_html
from app.safe_html import Part, accent, code, strong
from app.tokens import shown

if TYPE_CHECKING:
    import pyarrow

PERCENTILE = (
    2.0  # of the indicator over OK tokens, up to which one is a candidate (arXiv 2405.05417)
)


def summary(points: pyarrow.Table) -> dict[str, Any]:
    """What a checkpoint's tokens say in numbers: never met, under the 2 % rule, by cause."""
    import pyarrow.compute as pc

    ok = (
        pc.starts_with(points["category"], "OK")
        if points["category"].null_count < points.num_rows
        else pc.is_valid(points["token"])
    )
    known = points.filter(pc.and_(pc.fill_null(ok, False), pc.is_valid(points["indicator"])))
    threshold = (
        pc.quantile(known["indicator"], q=PERCENTILE / 100)[0].as_py() if known.num_rows else None
    )
    low = (
        known.filter(pc.less_equal(known["indicator"], threshold))
        if threshold is not None
        else known.slice(0, 0)
    )
    never = points.filter(
        pc.and_(pc.equal(points["exposure_in"], 0), pc.equal(points["exposure_out"], 0))
    )
    kinds = {row["values"]: row["counts"] for row in points["kind"].value_counts().to_pylist()}
    return {
        "tokens": points.num_rows,
        "never": never.num_rows,
        "threshold": threshold,
        "candidates": low.num_rows,
        "lowest": low.slice(0, 5).select(["token", "text"]).to_pylist(),
        "kinds": kinds,
        "met_candidates": low.filter(pc.greater(low["exposure"], 0)).num_rows,
        "measured": known.num_rows,
    }


def sentence_of(s: Mapping[str, Any], verified: Mapping[int, bool], told: str | None) -> list[Part]:
    """Candidates and the lowest of them, causes, what verification found; `told`: its verdict on
    the model.
    """
    said: list[Part] = []
    if s["threshold"] is not None:
        said += [
            strong(formatting.count(s["candidates"])),
            (
                f" of {formatting.count(s['measured'])} reachable tokens lie at or below the 2nd"
                f" percentile of the indicator ({formatting.number(s['threshold'])}),"
                f" {formatting.count(s['met_candidates'])} of them although the model was shown them. "
            ),
        ]
        if s["lowest"]:
            said += ["Lowest: "]
            for i, token in enumerate(s["lowest"]):
                said += [", " if i else "", code(shown(token["text"] or ""))]
            said += [". "]
    else:
        said += ["Only their exposure is known at this checkpoint, no indicator. "]
    causes = [(k, n) for k, n in sorted(s["kinds"].items(), key=lambda e: -e[1]) if k != "ok"]
    if causes:
        said += ["Causes: ", accent(", ".join(f"{k} {n:,}" for k, n in causes)), ". "]
    if verified:
        said += [
            strong(f"{sum(verified.values()):,} of {len(verified):,}"),
            " that were prompted are verified.",
        ]
    elif told is not None:
        said += [f"Prompts: {told}."]
    return said


def draw_verdict(
    run: str,
    step: int,
    points: pyarrow.Table,
    tied: bool,
    verified: Mapping[int, bool],
    told: str | None,
) -> None:
    s = summary(points)
    title = (
        f"State {formatting.count(step)}: {formatting.count(s['never'])} of {formatting.count(s['tokens'])} tokens"
        " were never shown to the model"
    )
    hedge: list[Part] = (
        ["Low is suspect, not proof."]
        if told is not None
        else [
            "Low is suspect, not proof: ",
            code(f"forensics tokens {run}@{step} --verify"),
            " prompts the model to repeat each candidate.",
        ]
    )
    safe_html.verdict(title, *sentence_of(s, verified, told), hedge=hedge)
