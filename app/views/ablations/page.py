"""Which of the settings makes the difference? The runs between two recipes, change by change."""

from __future__ import annotations

from typing import NamedTuple

import streamlit as st

from app import data, documents, formatting, safe_html, theme
from app.navigation import link
from app.safe_html import Part
from app.selection import here
from app.views.ablations import charts
from forensics.store.reader import runs_in
from replay.experiments.ablation_result import (
    MEASURES,
    AblationArm,
    AblationEffect,
    AblationResult,
    Measure,
)


class Kept(NamedTuple):
    """An ablation, and its file's name without the ending."""

    name: str
    content: AblationResult


def page() -> None:
    """Draw the page: what two recipes differ in, and what each difference does."""
    ablations = kept_ablations()
    if not ablations:
        safe_html.verdict(
            "No ablation yet",
            "An ablation trains one recipe with each setting of another, one at a time, and shows"
            " which of them makes the difference.",
        )
        safe_html.nothing(
            "This command makes one:", "forensics ablate unstable stable --seeds 3 --workers 2"
        )
        return
    result = documents.choose(
        ablations[0].content.arms[0].run,
        ablations,
        here(),
        lambda one: f"{one.a} → {one.b}: {one.steps} steps, {one.seeds} seeds",
    )
    safe_html.verdict(title_of(result), *sentence_of(result), hedge=[" ".join(result.notes)])
    draw_effects(result)
    left, right = st.columns([1, 1.3], gap="medium")
    with left:
        draw_differences(result)
    with right:
        draw_arms(result)


def kept_ablations() -> list[Kept]:
    """Return the ablations of all runs, newest first by run."""
    return [
        Kept(result.name, result.content)
        for run in reversed(runs_in(data.runs_folder()))
        for result in documents.results(run, "ablation", AblationResult)
    ]


def title_of(result: AblationResult) -> str:
    """Say which change is shown to make a difference, or that none is."""
    shown = [effect for effect in single_effects(result) if effect.finding == "shown"]
    between = f"from {result.a} to {result.b}"
    if not shown:
        return f"No single change {between} is shown to make a difference"
    keys = list(dict.fromkeys(name_of(result, effect.changed) for effect in shown))
    return f"Of the changes {between}, {formatting.listed(keys, 5)} make a difference"


def sentence_of(result: AblationResult) -> list[Part]:
    """Say how many runs there are, and how much each shown change moves which measure."""
    shown = [effect for effect in single_effects(result) if effect.finding == "shown"]
    parts: list[Part] = [
        f"{len([arm for arm in result.arms if arm.run])} runs of {result.steps} steps,"
        f" {result.seeds} {'seed' if result.seeds == 1 else 'seeds'} of each. "
    ]
    for effect in shown:
        parts.append(
            f"{name_of(result, effect.changed)}: {MEASURES[effect.measure].title}"
            f" {effect.median:+.3g} {MEASURES[effect.measure].unit} (p = {effect.p:.2g} over"
            f" {effect.seeds} seeds). "
        )
    if shown:
        parts.append("These remain after correction for all changes and measures. ")
    ended = [arm for arm in result.arms if arm.diverged]
    if ended:
        changed = list(dict.fromkeys(name_of(result, arm.changed) for arm in ended))
        parts.append(f"Diverged: {formatting.listed(changed, 5)}. ")
    if result.seeds == 1:
        parts.append("One seed shows no p: what is drawn may be chance.")
    return parts


def single_effects(result: AblationResult) -> list[AblationEffect]:
    """Return the effects of the changes that hold no other change."""
    from replay.experiments.ablation_result import single_changes

    changes = list(dict.fromkeys(effect.changed for effect in result.effects))
    singles = single_changes(changes)
    return [effect for effect in result.effects if effect.changed in singles]


def name_of(result: AblationResult, changed: tuple[str, ...]) -> str:
    """Name an arm by what it takes over; A and B by their own names."""
    if not changed:
        return result.a
    if set(changed) == {d.key for d in result.differences if not d.not_varied}:
        return f"{result.b} (all)"
    return " + ".join(changed)


def draw_effects(result: AblationResult) -> None:
    """Draw each measure's differences from A, change by change."""
    base = {arm.seed: arm for arm in result.arms if not arm.changed}
    columns = st.columns(2, gap="medium")
    for place, (measure, text) in enumerate(
        (measure, text)
        for measure, text in MEASURES.items()
        if any(effect.measure == measure for effect in result.effects)
    ):
        with columns[place % 2]:
            safe_html.caption(
                f"Change of the {text.title}, {text.unit}, against {result.a} with the same seed"
                " · tick: median"
            )
            _draw_measure(result, base, measure, text.unit)


def _draw_measure(
    result: AblationResult, base: dict[int, AblationArm], measure: Measure, unit: str
) -> None:
    import pyarrow as pa

    effects = sorted(
        (effect for effect in result.effects if effect.measure == measure),
        key=lambda effect: -abs(effect.median),
    )
    rows = [name_of(result, effect.changed) for effect in effects]
    gaps = []
    for arm in result.arms:
        before = getattr(base[arm.seed], measure) if arm.seed in base else None
        after = getattr(arm, measure)
        if arm.changed and documents.is_finite(before) and documents.is_finite(after):
            gaps.append(
                {
                    "change": name_of(result, arm.changed),
                    "seed": arm.seed,
                    "value": after - before,
                    "run": arm.run,
                }
            )
    medians = [
        {
            "change": name_of(result, effect.changed),
            "value": effect.median,
            "verdict": effect.finding + ("" if effect.p is None else f", p = {effect.p:.2g}"),
        }
        for effect in effects
    ]
    theme.draw(
        theme.filled(charts.effects(safe_html.dark(), len(rows), unit), rows=rows),
        {
            "gaps": pa.Table.from_pylist(gaps),
            "medians": pa.Table.from_pylist(medians),
            "zero": pa.table({"value": [0.0]}),
        },
        key=f"ablation-{measure}",
    )


def draw_differences(result: AblationResult) -> None:
    """List the keys in which the recipes differ."""
    safe_html.heading("What differs")
    safe_html.frame(
        [
            {
                "key": difference.key,
                result.a: str(difference.a),
                f"{result.b} ": str(difference.b),
                "not varied, because": difference.not_varied,
            }
            for difference in result.differences
        ],
        tallest=420,
    )


def draw_arms(result: AblationResult) -> None:
    """List the arms with their measures; each is a run."""
    safe_html.heading("The runs")
    safe_html.frame(
        [
            {
                "takes over": name_of(result, arm.changed),
                "seed": arm.seed,
                "spike score %": arm.spike_score,
                "norm slope /1,000": arm.grad_norm_slope,
                "final loss": arm.final_loss,
                "held-out": arm.held_out,
                "diverged": arm.diverged,
                "run": arm.run or arm.refused,
            }
            for arm in result.arms
        ],
        tallest=420,
    )
    first = next((arm.run for arm in result.arms if arm.run), None)
    if first is not None:
        link("spikes", "Spikes of its first run", run=first)
