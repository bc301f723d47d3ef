"""The panels around one spike: loss, gradient norm, and heat maps of layers, heads and tensors."""

from __future__ import annotations

from typing import Any

import streamlit as st

from app import data, safe_html, theme
from app.navigation import link
from app.selection import goto, picked, shown
from app.views.spikes import charts
from app.views.spikes.proof import holder_of
from app.views.spikes.summary import brief, place_of

BEFORE = 64  # steps shown around a spike
AFTER = 32
BOUNDS = [-BEFORE - 0.5, AFTER + 0.5]
PAST = BEFORE + 16  # steps without which robust z has no baseline
DOTS = theme.STEPS_MOST // (BEFORE + AFTER + 1)  # of one step


def window_of(step: int) -> tuple[int, int]:
    """Return the steps that the panels and their baselines read."""
    return max(0, step - 512), step + AFTER + 1


def cell_of(event: Any) -> dict[str, int] | None:
    """Return what a click into a heat map of layers or heads changes in the URL."""
    mark = picked(event, "cell", "step")
    return (
        {key: int(mark[key]) for key in ("layer", "head", "step") if mark.get(key) is not None}
        if mark
        else None
    )


def _clicked_layer() -> None:
    change = cell_of(st.session_state["layers"])
    if change:
        goto(**change)


def _clicked_head() -> None:
    change = cell_of(st.session_state["heads"])
    if change:
        goto(**change)


@st.fragment
def draw_panels(run: str, step: int, alarms: list[dict[str, Any]]) -> None:
    """Draw loss, gradient norm, and heat maps of layers, heads and tensors around the spike."""
    import pyarrow as pa

    dark, window = safe_html.dark(), window_of(step)
    around: dict[str, Any] = {
        "run": run,
        "step": step,
        "before": BEFORE,
        "after": AFTER,
        "window": window,
    }
    steps = data.table("steps_around", **around)
    at = {"here": pa.table({"offset": [0]})}
    dots = data.table("sequences_around", top=DOTS, **around)
    safe_html.caption(
        f"Loss (nats/token) · line: the batch · dots: its sequences{thinned(dots)} · a few dots far"
        " up point to the data, the whole cloud up to the state"
    )
    theme.draw(
        theme.filled(charts.loss(dark), bounds=BOUNDS),
        {"steps": steps, "dots": dots, **at},
        key="loss",
    )
    layers, tensors = data.table("layer_heat", **around), data.table("tensor_heat", **around)
    alone = (
        not layers.num_rows and not tensors.num_rows
    )  # nothing below it would say which step is where
    safe_html.caption(
        "Gradient norm before clipping (log)" + (" · below: steps from the spike" if alone else "")
    )
    theme.draw(
        theme.filled(charts.grad_norm(dark, alone), bounds=BOUNDS),
        {"steps": _positive(steps), **at},
        key="grad-norm",
    )
    if layers.num_rows:
        _attention_heat(run, step, alarms, layers, around, axis=not tensors.num_rows)
    else:
        _without_heat(run, step)
    if tensors.num_rows:
        safe_html.caption(
            "Tensors: size of the update (rms_t) and staleness of the second moment, first to move"
            " on top · below: steps from the spike"
        )
        names = [
            f"{brief(tensor)} {statistic}"
            for tensor, statistic in zip(
                tensors["tensor"].to_pylist(), tensors["statistic"].to_pylist()
            )
        ]
        _heat(
            "tensors",
            tensors,
            names,
            [
                {"step": alarm["step"], "row": f"{brief(alarm['tensor'])} {alarm['statistic']}"}
                for alarm in alarms
                if alarm["kind"] == "tensor"
            ],
            step,
            axis=True,
        )
    chosen = shown()
    if chosen.head is not None and chosen.layer is not None:
        link(
            "attention",
            f"Attention at L{chosen.layer}.H{chosen.head}",
            run=run,
            spike=step,
            step=chosen.step or step,
        )


def thinned(dots: Any) -> str:
    """How many of a large batch are drawn: the highest, and others evenly."""
    import pyarrow.compute as pc

    most = pc.max(dots["sequences"]).as_py() if dots.num_rows else 0
    return f" ({DOTS} of the {most:,} of a step at most)" if most > DOTS else ""


def _attention_heat(
    run: str,
    step: int,
    alarms: list[dict[str, Any]],
    layers: Any,
    around: dict[str, Any],
    *,
    axis: bool,
) -> None:
    """Layers, and the heads of the chosen one."""
    chosen = shown().layer
    layer = chosen if chosen in set(layers["layer"].to_pylist()) else _layer(alarms, layers)
    safe_html.caption(
        "Largest attention logit of each layer · colour: σ from its own past, blank below 3 · ◆ it"
        f" leaves its normal range · click a layer (shown below: L{layer})"
    )
    _heat(
        "layers",
        layers,
        [f"L{number}" for number in layers["layer"].to_pylist()],
        [
            {"step": alarm["step"], "row": f"L{alarm['layer']}"}
            for alarm in _earliest_by_layer(alarms)
        ],
        step,
        axis=False,
        click=("layer",),
        on_select=_clicked_layer,
    )
    heads = data.table("head_heat", layer=layer, **around)
    safe_html.caption(
        f"The heads of L{layer} · click one" + (" · below: steps from the spike" if axis else "")
    )
    _heat(
        "heads",
        heads,
        [f"L{layer}.H{number}" for number in heads["head"].to_pylist()],
        [
            {"step": alarm["step"], "row": place_of(alarm)}
            for alarm in alarms
            if alarm["kind"] == "head" and alarm["layer"] == layer
        ],
        step,
        axis=axis,
        click=("layer", "head"),
        on_select=_clicked_head,
    )


def _without_heat(run: str, step: int) -> None:
    """Why there is no heat of the heads, and what makes it."""
    if step >= PAST and not data.rows("heads_at", run=run, step=step, window=window_of(step)):
        if data.is_log_alone(run):
            safe_html.nothing("A log alone has no attention heads.")
            return
        run = holder_of(run, step)
        first = max(data.header(run).get("first_step") or 0, step - PAST - 16)
        last = min(data.reached(run) or step + 1, step + AFTER + 1)
        safe_html.nothing(
            "The attention heads were not recorded here. A fork that changes nothing records them:",
            f"replay fork {run} --from {first} --to {last} --lr-scale 1@{first}:{last} --record"
            " light",
            'record.level = "light" records every head at every step of a run.',
        )
        return
    safe_html.nothing(
        "Nothing to compare with: that takes 16 recorded steps well before the spike, from"
        f" {max(0, step - 512):,} to {max(0, step - BEFORE):,}.",
        hint=f"A spike within the first {PAST} steps of a run has no such past.",
    )


def _positive(steps: Any) -> Any:
    """Rows whose gradient norm a log axis can show."""
    import pyarrow.compute as pc

    return steps.filter(pc.fill_null(pc.greater(steps["grad_norm"], 0), False))


def _layer(alarms: list[dict[str, Any]], layers: Any) -> int:
    """Return the layer of the first head to move; else that of the largest |z| shown."""
    for alarm in alarms:
        if alarm["kind"] == "head" and not alarm["drifting"]:
            return int(alarm["layer"])
    rows = layers.select(["layer", "z", "offset"]).to_pylist()
    near = [row for row in rows if abs(row["offset"]) <= 4] or rows
    return int(max(near, key=lambda row: abs(row["z"]))["layer"])


def _earliest_by_layer(alarms: list[dict[str, Any]]) -> list[dict[str, Any]]:
    earliest: dict[int, dict[str, Any]] = {}
    for alarm in (alarm for alarm in alarms if alarm["kind"] == "head"):
        if alarm["layer"] not in earliest or alarm["step"] < earliest[alarm["layer"]]["step"]:
            earliest[alarm["layer"]] = alarm
    return list(earliest.values())


def _heat(
    key: str,
    cells: Any,
    rows: list[str],
    first: list[dict[str, Any]],
    step: int,
    *,
    axis: bool,
    click: tuple[str, ...] = (),
    on_select: Any = None,
) -> None:
    """One heat map: `rows` names the row of each cell; `first` are its alarms, marked on their
    rows.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    from forensics.visible import visible

    order = list(dict.fromkeys(visible(row) for row in rows))
    cells = cells.append_column("row", pa.array(rows, pa.string())).filter(
        pc.not_equal(cells["level"], 0)
    )
    marks = [
        {**alarm, "offset": alarm["step"] - step}
        for alarm in first
        if visible(alarm["row"]) in set(order)
    ]
    schema = pa.schema([("step", pa.int64()), ("row", pa.string()), ("offset", pa.float64())])
    spec = theme.filled(
        charts.heat(safe_html.dark(), len(order), axis, click), bounds=BOUNDS, rows=order
    )
    data_ = {
        "cells": cells,
        "alarms": pa.Table.from_pylist(marks, schema=schema),
        "here": pa.table({"offset": [0.0]}),
    }
    theme.draw(spec, data_, key=key, on_select=on_select)
