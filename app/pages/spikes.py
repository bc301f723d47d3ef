"""Which spike, data or state, who moved first? The sentence, the whole run, then panels around one
spike.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import streamlit as st

from app import data, show, words
from app.charts import spikes as charts
from app.charts import theme
from app.pages import chosen_run, guarded, link
from app.pages._spike_proof import holder_of, replayed
from app.selection import Selection, goto, picked, picked_row, shown, shows
from app.show import Part, accent, code, strong
from forensics.records import BUCKET

BEFORE, AFTER = 64, 32  # steps shown around a spike
BOUNDS = [-BEFORE - 0.5, AFTER + 0.5]
PAST = BEFORE + 16  # steps without which robust z has no baseline
DOTS = theme.STEPS_MOST // (BEFORE + AFTER + 1)  # of one step
BINS = 700  # of the whole run: about one per two pixels
SHORT = 20_000  # steps up to which the whole run is drawn from every step, not from the roll-ups
STATISTICS = {
    "attn_logit_max": "attention logit",
    "rms_t": "rms_t",
    "staleness": "staleness",
    "resid_grad_rms": "gradient into the block",
    "grad_norm": "gradient norm",
    "loss": "loss",
}


def page() -> None:
    selection = chosen_run()
    if selection is None:
        return
    run = str(selection.run)
    if data.reached(run) is None:
        show.nothing(
            [strong(run), " has recorded no step yet."],
            f"forensics show {run}",
            "This page fills as it trains.",
        )
        return
    found = data.rows("spikes", run=run)
    if not found:
        _without_spikes(run)
        return
    spike = _chosen(found, selection)
    shows(spike=spike["step"])
    if selection.spike not in (None, spike["step"]):
        show.nothing(
            [
                f"Step {words.count(selection.spike)} is no spike of ",
                code(run),
                f": shown is the largest, at step {words.count(spike['step'])}.",
            ]
        )
    alarms = data.rows("first_alarms", run=run, step=spike["step"], window=_window(spike["step"]))
    left, right = st.columns([4, 1], vertical_alignment="top")
    with left:
        _verdict(run, spike, alarms)
    with right:
        _ways_on(run, spike, alarms)
    _overview(run, found, spike)
    panels, lists = st.columns([1.55, 1])
    with panels:
        _panels(run, spike["step"], alarms)
    with lists:
        _first_alarms(alarms)
        _batch(run, spike["step"])


def _window(step: int) -> tuple[int, int]:
    return max(0, step - 512), step + AFTER + 1


def _chosen(found: list[dict[str, Any]], selection: Selection) -> dict[str, Any]:
    """The spike of the URL; else that of the loss with the largest σ, else of any metric. Of one
    step, the loss first.
    """
    order = sorted(found, key=lambda s: (s["metric"] != "loss", -(s["sigma"] or math.inf)))
    return next((s for s in order if s["step"] == selection.spike), order[0])


def _without_spikes(run: str) -> None:
    show.verdict(
        ["No spike was found in ", code(run), "."],
        "Neither loss nor gradient norm left its band of 6 robust σ (median of the last 128 steps),"
        " and no value was not finite.",
        hedge=["What the detectors say of every step: ", code(f"forensics spikes {run}")],
    )
    _overview(run, [], None)


# ---- the sentence


def _verdict(run: str, spike: dict[str, Any], alarms: list[dict[str, Any]]) -> None:
    said, proved = replayed(run, spike)
    step = spike["step"]
    hedge: list[Part] = [
        "Order in time, not proof of cause. Proof: replay without the sequences (Forks), or ",
        code(f"replay blame {run} --spike {step}"),
    ]
    show.verdict(
        title_of(spike), *_moved(alarms), *_excess(run, step), hedge=[] if proved else hedge
    )
    for sentence in said:
        show.note(*sentence)


def title_of(spike: dict[str, Any]) -> str:
    """`Step 1,342: loss 2.270 → 5.380 nats/token · fast (31σ, back in 9 steps)`."""
    step = words.count(spike["step"])
    if spike["kind"] == "nonfinite":
        where = f", first in {spike['tensor']}" if spike["tensor"] else ""
        return f"Step {step}: {spike['metric'] or 'a value'} is not finite{where}"
    is_loss = spike["metric"] == "loss"
    shown = words.loss if is_loss else words.number
    what = "loss" if is_loss else "gradient norm"
    unit = " nats/token" if is_loss else ""
    back = spike["recovered_at"]
    ended = f"back in {words.steps(back - spike['step'])}" if back is not None else "not back"
    return (
        f"Step {step}: {what} {shown(spike['baseline'])} → {shown(spike['value'])}{unit} ·"
        f" {spike['spike_kind']} ({words.sigma(spike['sigma'])}, {ended})"
    )


def place_of(alarm: dict[str, Any]) -> str:
    """`L5.H3`, `L2`, a tensor's name or `whole model`."""
    if alarm["kind"] == "head":
        return f"L{alarm['layer']}.H{alarm['head']}"
    return (
        f"L{alarm['layer']}"
        if alarm["kind"] == "layer"
        else brief(alarm["tensor"] or "whole model")
    )


def brief(tensor: str) -> str:
    """A tensor's name without `.weight`, which most have."""
    return tensor.removesuffix(".weight")


def _moved(alarms: list[dict[str, Any]]) -> list[Part]:
    """First to move, and the first second moment to be out of date, each with its lead."""
    clear = [a for a in alarms if not a["drifting"]]
    before = [a for a in clear if a["lead"] > 0]
    if not clear:
        return ["Nothing that is recorded left its own past by 6σ before or at this step. "]
    if not before:
        far = next((a for a in clear if a["kind"] != "step"), None)
        name: list[Part] = (
            [", the farthest ", accent(f"{place_of(far)} {STATISTICS[far['statistic']]}")]
            if far
            else []
        )
        return [
            "Nothing moved before it; ",
            strong(_counted(len(clear), "row")),
            " moved at the step itself",
            *name,
            ". ",
        ]
    first = before[0]
    said: list[Part] = [
        "First to move: ",
        accent(f"{place_of(first)} {STATISTICS[first['statistic']]}"),
        f", {words.steps(first['lead'], 'before')}. ",
    ]
    stale = next((a for a in before if a["kind"] == "tensor"), None)
    if stale is not None and stale is not first:
        said += [
            "Second moment out of date: ",
            strong(brief(stale["tensor"])),
            f", {words.steps(stale['lead'], 'before')}. ",
        ]
    return said


def _counted(n: int, noun: str) -> str:
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def _excess(run: str, step: int) -> list[Part]:
    """How much of the batch's excess sits in its worst eighth, and what that points to."""
    rows = data.rows("excess_by_sequence", run=run, step=step, window=(max(0, step - 64), step + 1))
    if len(rows) < 4 or not (rows[0]["batch_excess"] or 0) > 0:
        return []
    worst = rows[: max(1, round(len(rows) / 8))]
    share = sum(r["share"] for r in worst)
    slots = ", ".join(str(r["slot"]) for r in worst[:4])
    above = sum(r["above"] for r in rows) / len(rows)
    reading = (
        f"nearly all of the {len(rows)} stand above nine in ten of the sequences before, which"
        " points to the state, or to a batch that is odd throughout"
        if above >= 0.85
        else (
            f"{words.share(above)} of the {len(rows)} stand above nine in ten of the sequences"
            " before, the rest do not, which points to the data"
        )
    )
    return [
        "Of the batch's excess loss, ",
        strong(words.share(share)),
        (
            f" sits in {len(worst)} of {len(rows)} sequences (slots"
            f" {slots}{', …' if len(worst) > 4 else ''}); {reading}."
        ),
    ]


def _ways_on(run: str, spike: dict[str, Any], alarms: list[dict[str, Any]]) -> None:
    step = spike["step"]
    link("batch", "Read the batch", run=run, spike=step, step=step)
    link(
        "forks",
        "Fork without its worst sequences",
        part="build",
        fork=None,
        kind="remove-sequences",
        run=run,
        spike=step,
        step=step,
        slot=None,
        document=None,
    )
    head = next((a for a in alarms if a["kind"] == "head" and not a["drifting"]), None)
    if head is not None:
        link(
            "attention",
            f"Attention at L{head['layer']}.H{head['head']}",
            run=run,
            spike=step,
            step=step,
            layer=head["layer"],
            head=head["head"],
        )
    link("microscope", "Inside the step", run=run, spike=step, step=step)


# ---- the whole run


def _overview(run: str, found: list[dict[str, Any]], spike: dict[str, Any] | None) -> None:
    import pyarrow as pa

    steps = data.reached(run) or 0
    if steps <= SHORT:
        band = data.table("loss_band", run=run, every=max(1, steps // BINS))
    else:
        band = data.table(
            "loss_band_by100", run=run, every=max(1, steps // BINS // BUCKET) * BUCKET
        )
    marks = [
        {
            "step": s["step"],
            "value": s["value"],
            "metric": s["metric"],
            "sigma": s["sigma"],
            "kind": s["spike_kind"] or "nonfinite",
        }
        for s in found
    ]
    schema = pa.schema(
        [
            ("step", pa.int64()),
            ("value", pa.float64()),
            ("metric", pa.string()),
            ("sigma", pa.float64()),
            ("kind", pa.string()),
        ]
    )
    at = [] if spike is None else [spike["step"]]
    kinds = [k for k in theme.KINDS if any(m["kind"] == k for m in marks)]
    show.caption(
        "Loss (nats/token), whole run"
        + (f" · {' '.join(_sign(k) for k in kinds)} · click one" if kinds else "")
    )
    shown = {
        "band": band,
        "spikes": pa.Table.from_pylist(marks, schema=schema),
        "chosen": pa.table({"step": at}),
        "window": pa.table(
            {"first": [max(0, s - BEFORE) for s in at], "last": [min(steps, s + AFTER) for s in at]}
        ),
    }
    theme.draw(charts.overview(show.dark()), shown, key="overview", on_select=_clicked_spike)


def _sign(kind: str) -> str:
    return {"batch": "■ batch", "fast": "▼ fast", "slow": "◆ slow", "nonfinite": "✚ not finite"}[
        kind
    ]


def spike_of(event: Any) -> dict[str, int] | None:
    """What a click into the overview changes in the URL."""
    mark = picked(event, "spike", "step")
    return {"spike": int(mark["step"])} if mark else None


def cell_of(event: Any) -> dict[str, int] | None:
    """What a click into a heat map of layers or heads changes in the URL."""
    mark = picked(event, "cell", "step")
    return (
        {k: int(mark[k]) for k in ("layer", "head", "step") if mark.get(k) is not None}
        if mark
        else None
    )


def _clicked_spike() -> None:
    change = spike_of(st.session_state["overview"])
    if change:
        goto(**change)


def _clicked_layer() -> None:
    change = cell_of(st.session_state["layers"])
    if change:
        goto(**change)


def _clicked_head() -> None:
    change = cell_of(st.session_state["heads"])
    if change:
        goto(**change)


# ---- around the spike


@st.fragment
def _panels(run: str, step: int, alarms: list[dict[str, Any]]) -> None:
    import pyarrow as pa

    dark, window = show.dark(), _window(step)
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
    show.caption(
        f"Loss · line: the batch; dots: its sequences{thinned(dots)} (apart: the data; the whole"
        " cloud up: the state)"
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
    show.caption(
        "Gradient norm before clipping (log)" + (" · steps from the spike" if alone else "")
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
        show.caption(
            "Tensors by rms_t and staleness (1: second moment up to date), first movers on top ·"
            " steps from the spike"
        )
        names = [
            f"{brief(t)} {s}"
            for t, s in zip(tensors["tensor"].to_pylist(), tensors["statistic"].to_pylist())
        ]
        _heat(
            "tensors",
            tensors,
            names,
            [
                {"step": a["step"], "row": f"{brief(a['tensor'])} {a['statistic']}"}
                for a in alarms
                if a["kind"] == "tensor"
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
    return f", at most {DOTS} of {most:,} a step" if most > DOTS else ""


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
    show.caption(
        "Attention logit max by layer (max over heads) · σ from the row's own past, blank under 3"
        f" · ◆ first alarm · click a layer (now L{layer})"
    )
    _heat(
        "layers",
        layers,
        [f"L{n}" for n in layers["layer"].to_pylist()],
        [{"step": a["step"], "row": f"L{a['layer']}"} for a in _earliest_by_layer(alarms)],
        step,
        axis=False,
        click=("layer",),
        on_select=_clicked_layer,
    )
    heads = data.table("head_heat", layer=layer, **around)
    show.caption(f"… heads of L{layer} · click one" + (" · steps from the spike" if axis else ""))
    _heat(
        "heads",
        heads,
        [f"L{layer}.H{n}" for n in heads["head"].to_pylist()],
        [
            {"step": a["step"], "row": place_of(a)}
            for a in alarms
            if a["kind"] == "head" and a["layer"] == layer
        ],
        step,
        axis=axis,
        click=("layer", "head"),
        on_select=_clicked_head,
    )


def _without_heat(run: str, step: int) -> None:
    """Why there is no heat of the heads, and what makes it."""
    if step >= PAST and not data.rows("heads_at", run=run, step=step, window=_window(step)):
        run = holder_of(run, step)
        first = max(data.header(run).get("first_step") or 0, step - PAST - 16)
        last = min(data.reached(run) or step + 1, step + AFTER + 1)
        show.nothing(
            "No heat: the heads were not recorded here. A fork that changes nothing records them:",
            f"replay fork {run} --from {first} --to {last} --lr-scale 1@{first}:{last} --record"
            " light",
            'record.level = "light" records every head at every step of a run.',
        )
        return
    show.nothing(
        "No heat: robust z needs 16 recorded steps in"
        f" {max(0, step - 512):,}:{max(0, step - BEFORE):,}, well before the spike.",
        hint=f"A spike within the first {PAST} steps has no past of its own to be compared with.",
    )


def _positive(steps: Any) -> Any:
    """Rows whose gradient norm a log axis can show."""
    import pyarrow.compute as pc

    return steps.filter(pc.fill_null(pc.greater(steps["grad_norm"], 0), False))


def _layer(alarms: list[dict[str, Any]], layers: Any) -> int:
    """The layer of the first head to move; else that of the largest |z| shown."""
    for alarm in alarms:
        if alarm["kind"] == "head" and not alarm["drifting"]:
            return int(alarm["layer"])
    rows = layers.select(["layer", "z", "offset"]).to_pylist()
    near = [r for r in rows if abs(r["offset"]) <= 4] or rows
    return int(max(near, key=lambda r: abs(r["z"]))["layer"])


def _earliest_by_layer(alarms: list[dict[str, Any]]) -> list[dict[str, Any]]:
    earliest: dict[int, dict[str, Any]] = {}
    for alarm in (a for a in alarms if a["kind"] == "head"):
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

    order = list(dict.fromkeys(visible(r) for r in rows))
    cells = cells.append_column("row", pa.array(rows, pa.string())).filter(
        pc.not_equal(cells["level"], 0)
    )
    marks = [{**a, "offset": a["step"] - step} for a in first if visible(a["row"]) in set(order)]
    schema = pa.schema([("step", pa.int64()), ("row", pa.string()), ("offset", pa.float64())])
    spec = theme.filled(
        charts.heat(show.dark(), len(order), axis, click), bounds=BOUNDS, rows=order
    )
    data_ = {
        "cells": cells,
        "alarms": pa.Table.from_pylist(marks, schema=schema),
        "here": pa.table({"offset": [0.0]}),
    }
    theme.draw(spec, data_, key=key, on_select=on_select)


# ---- beside it


def _first_alarms(alarms: list[dict[str, Any]], most: int = 12) -> None:
    import pyarrow as pa

    clear = [a for a in alarms if not a["drifting"]]
    drifting = len(alarms) - len(clear)
    show.caption(
        "First alarm, steps before the spike (2 in a row past 6σ)"
        + (f" · {drifting} rows were out before that already: drift" if drifting else "")
    )
    if not clear:
        show.nothing("No recorded row left its own past by 6σ two steps in a row.")
        return
    from forensics.visible import visible

    rows = [
        {
            "step": a["step"],
            "lead": a["lead"],
            "spike": 0,
            "value": a["value"],
            "z": a["z"],
            "row": visible(f"{place_of(a)} {STATISTICS[a['statistic']]}"),
        }
        for a in clear[:most]
    ]
    spec = theme.filled(
        charts.alarms(show.dark(), len(rows)),
        rows=[r["row"] for r in rows],
        leads=[0, max(8, *(r["lead"] for r in rows))],
    )
    theme.draw(spec, {"alarms": pa.Table.from_pylist(rows)}, key="alarms")
    if len(clear) > most:
        show.caption(f"and {len(clear) - most} more")


def _batch(run: str, step: int) -> None:
    import pyarrow as pa

    show.heading(f"What it read: batch {words.count(step)}, by loss")
    rows = data.table("worst_sequences", run=run, step=step, top=16, window=(step, step + 1))
    if not rows.num_rows:
        show.nothing(
            "The sequences of this batch were not recorded.", f"forensics batch {run} {step}"
        )
        return
    top = max(
        (x for x in rows["loss"].to_pylist() if x is not None and math.isfinite(x)), default=1.0
    )
    slots, chosen = rows["slot"].to_pylist(), shown()
    slot = chosen.slot if chosen.step in (None, step) else None  # else it is a row of another batch
    # of this choice: the tick of another, from before Back, would not go away
    key = f"worst-{run}-{step}-{slot}"
    mark = pa.array(["●" if s == slot else "" for s in slots])
    show.frame(
        rows.select(["slot", "loss", "repeat_share", "source", "path"]).add_column(0, "", mark),
        key=key,
        height=290,
        on_select=partial(_chose_sequence, key, step, slots),
        selection_mode="single-row",
        column_config={
            "": st.column_config.TextColumn(width=24),
            "slot": st.column_config.NumberColumn(width=46),
            "loss": st.column_config.ProgressColumn(
                format="%.3f", min_value=0.0, max_value=float(top), color="auto"
            ),
            "repeat_share": st.column_config.NumberColumn("repeats", format="%.2f", width=60),
        },
    )
    if slot is not None:
        link("batch", f"Read slot {slot}", run=run, spike=step, step=step, slot=slot)


def _chose_sequence(key: str, step: int, slots: list[int]) -> None:
    slot = picked_row(st.session_state[key], slots)
    if slot is not None:
        goto(step=step, slot=slot)


guarded(page)
