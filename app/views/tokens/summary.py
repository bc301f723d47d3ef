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
    """Count the tokens of a checkpoint: never seen, under the 2% rule, by cause."""
    import pyarrow.compute as pc

    ok = (
        pc.starts_with(points["category"], "OK")
        if points["category"].null_count < points.num_rows
        else pc.is_valid(points["token"])
    )
    measured = points.filter(pc.and_(pc.fill_null(ok, False), pc.is_valid(points["indicator"])))
    threshold = (
        pc.quantile(measured["indicator"], q=PERCENTILE / 100)[0].as_py()
        if measured.num_rows
        else None
    )
    low = (
        measured.filter(pc.less_equal(measured["indicator"], threshold))
        if threshold is not None
        else measured.slice(0, 0)
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
        "measured": measured.num_rows,
    }


def sentence_of(s: Mapping[str, Any], verified: Mapping[int, bool], told: str | None) -> list[Part]:
    """Say which tokens are suspected of being hardly trained, why, and what prompts showed.

    `told`: the verdict of the prompts on the model as a whole.
    """
    sentence: list[Part] = []
    if s["threshold"] is not None:
        sentence += [
            strong(formatting.count(s["candidates"])),
            f" of {formatting.count(s['measured'])} tokens that text can contain are suspected of"
            " being hardly trained: their indicator is at or below the 2nd percentile"
            f" ({formatting.number(s['threshold'])}). {_seen(s)} ",
        ]
        if s["lowest"]:
            sentence += ["Lowest: "]
            for index, token in enumerate(s["lowest"]):
                sentence += [", " if index else "", code(shown(token["text"] or ""))]
            sentence += [". "]
    else:
        sentence += [
            "At this checkpoint only how often each token was seen is known, not its indicator. "
        ]
    causes = [
        (cause, count)
        for cause, count in sorted(s["kinds"].items(), key=lambda e: -e[1])
        if cause != "ok"
    ]
    if causes:
        sentence += [
            "Causes: ",
            accent(", ".join(f"{cause} {count:,}" for cause, count in causes)),
            ". ",
        ]
    if verified:
        sentence += [
            "Prompted with ",
            strong(f"{len(verified):,}"),
            " of them, the model could not repeat ",
            strong(f"{sum(verified.values()):,}"),
            ".",
        ]
    elif told is not None:
        sentence += [f"Prompts: {told}."]
    return sentence


def _seen(counts: Mapping[str, Any]) -> str:
    """Say how many of the suspected tokens the model has seen."""
    with_exposure, suspected = counts["met_candidates"], counts["candidates"]
    if not with_exposure:
        return "None of them was seen during training."
    if with_exposure == suspected:
        return "All of them were seen during training."
    verb = "was" if with_exposure == 1 else "were"
    return f"{formatting.count(with_exposure)} of them {verb} seen during training."


def draw_verdict(
    run: str,
    step: int,
    points: pyarrow.Table,
    tied: bool,
    verified: Mapping[int, bool],
    told: str | None,
) -> None:
    """Draw how many tokens were never seen, and which are suspected."""
    counts = summary(points)
    title = (
        f"State {formatting.count(step)}: the model has never seen"
        f" {formatting.count(counts['never'])} of its"
        f" {formatting.count(counts['tokens'])} tokens"
    )
    hedge: list[Part] = (
        ["A low indicator is a suspicion, not a proof."]
        if told is not None
        else [
            "A low indicator is a suspicion, not a proof. ",
            code(f"forensics tokens {run}@{step} --verify"),
            " asks the model to repeat each suspected token.",
        ]
    )
    safe_html.verdict(title, *sentence_of(counts, verified, told), hedge=hedge)
