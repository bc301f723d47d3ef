"""What inside the step broke it? The events of a traced step in order, the update by tensor, the
line along it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import streamlit as st

from app import data, reading, show, tokens, words, work
from app.charts import microscope as charts
from app.charts import theme
from app.pages import chosen_run, link
from app.selection import Selection, goto, picked
from app.show import Part, accent, code, strong
from app.step import chosen_step

PHASES = {
    "forward": "forward",
    "loss": "loss",
    "backward": "backward",
    "clip": "clip",
    "update": "update",
    "next": "next",
}
TENSORS = 12  # bars of the layer blame
LOUD = charts.RATIOS[0]  # a ratio, or its inverse, from which a value counts as moved
BROKEN = charts.BROKEN  # the level of a value that is not finite
OF_UPDATE = (
    "rms_t",
    "update_ratio",
    "staleness",
    "gss_share",
)  # null too where no update was applied, or none before


def page() -> None:
    selection = chosen_run()
    selection = chosen_step(selection) if selection is not None else None
    if selection is None:
        return
    run, step = str(selection.run), int(selection.step or 0)
    trace = _kept(run, step)
    left, right = st.columns([4, 1], vertical_alignment="top")
    with left:
        if trace is None:
            _untraced(run, step)
        else:
            show.verdict(title_of(trace), *sentence_of(trace), hedge=_hedge(run, step, selection))
    with right:
        link("batch", "Read the batch", run=run, step=step)
        link("attention", "Attention at this step", run=run, step=step)
        link("spikes", "Around the spike", run=run, spike=selection.spike)
    if trace is None:
        return
    if trace.get("exact") is False:
        show.amber(
            strong("Tolerance only: "),
            "the traced step is not the recorded one bit for bit on this machine.",
        )
    _timeline(trace, selection.position)
    update, along = st.columns([1.35, 1])
    with update:
        _blame(trace)
    with along:
        _scan(trace)
    if selection.position is None or selection.position >= len(trace["events"]):
        _largest(trace)
        return
    most, one = st.columns([1.35, 1])
    with most:
        _largest(trace)
    with one:
        _event(trace, selection.position, run)


def _kept(run: str, step: int) -> dict[str, Any] | None:
    from replay.step import artifacts

    path = artifacts.trace_of(data.runs_folder() / data.require(run), step)
    document = data.document(path)
    return document if "events" in document else None


def _untraced(run: str, step: int) -> None:
    """What the records tell of the step, and how to look inside."""
    rows = data.rows(
        "steps_around", run=run, step=step, before=1, after=0, window=(max(0, step - 1), step + 1)
    )
    row = rows[-1] if rows and rows[-1]["step"] == step else None
    if row is None:
        show.verdict(f"Step {words.count(step)} was not recorded.")
    else:
        clipped = row["clip_scale"] is not None and row["clip_scale"] < 1
        show.verdict(
            f"Step {words.count(step)}: loss {words.loss(row['loss'])} nats/token, gradient norm"
            f" {words.number(row['grad_norm'])}",
            (
                f"Clipping scaled the gradient by {words.number(row['clip_scale'])}. "
                if clipped
                else "The gradient was not clipped. "
            ),
            "What happened inside is not known until the step is run again under the microscope.",
        )
    arguments = ["trace", run, str(step)]
    mine = [
        w for w in work.listed(run) if w.program == "replay" and list(w.arguments[:3]) == arguments
    ]
    first = max(data.header(run).get("first_step") or 0, 0) + 1
    if step < first:
        show.nothing(
            f"A step is traced beside the one before it: {run} has such steps from {first:,} on."
        )
    elif not any(w.status == "running" for w in mine):
        show.nothing(
            "Replays to the exact state, then runs the step once more, watched at every sub-layer:",
            f"replay {' '.join(arguments)}",
        )
        st.button("Trace this step", type="primary", on_click=_start, args=(run, arguments))
    if mine:
        work.panel(run, most=3, key="trace-work")
    others = _traced(run)
    if others:
        with st.container(horizontal=True, gap="small"):
            show.caption("Traced already:")
            for other in others[:8]:
                st.button(
                    f"{other:,}",
                    key=f"traced-{other}",
                    type="tertiary",
                    on_click=goto,
                    kwargs={"step": other},
                )


def _start(run: str, arguments: list[str]) -> None:
    work.start(run, "replay", arguments)


def _traced(run: str) -> list[int]:
    folder = data.runs_folder() / data.require(run) / "looks"
    steps = [path.stem.removeprefix("trace-") for path in folder.glob("trace-*.json")]
    return sorted(int(s) for s in steps if s.isdecimal())


# ---- the sentence


def title_of(trace: dict[str, Any]) -> str:
    """`Step 1,342 beside 1,341: loss 5.380 nats/token, 2.4× the step before`."""
    loss = next(e for e in trace["events"] if e["phase"] == "loss")
    value, ratio = loss["values"]["loss"], loss["ratio"].get("loss")
    times = f", {_times(ratio)} the step before" if ratio is not None else ""
    said = (
        f"loss {words.loss(value)} nats/token{times}" if finite(value) else "the loss is not finite"
    )
    return f"Step {words.count(trace['step'])} beside {words.count(trace['baseline'])}: {said}"


def _times(ratio: float) -> str:
    return (
        words.ratio(ratio)
        if ratio >= 9.95
        else f"{ratio:.2f}×"
        if ratio >= 0.1
        else f"{ratio:.2g}×"
    )


def sentence_of(trace: dict[str, Any]) -> list[Part]:
    """The first event of the step to leave the step before, the one that moved most, and what the
    update did.
    """
    dots, broken = dots_of(trace), broken_of(trace)
    moved = [
        d
        for d in dots
        if size_of(d["true"]) >= LOUD and (not broken or d["place"] < broken[0]["place"])
    ]
    said: list[Part] = []
    if moved:
        first = max(
            (d for d in moved if d["place"] == moved[0]["place"]), key=lambda d: size_of(d["true"])
        )
        most = max(moved, key=lambda d: size_of(d["true"]))
        said += [
            "First inside the step to move: ",
            accent(_name(first)),
            f", {_times(first['true'])} the step before. ",
        ]
        if most is not first and not broken:
            said += ["Moved most: ", strong(_name(most)), f", {_times(most['true'])}. "]
    if broken:
        said += [*_broken_in_words(broken, bool(moved)), ". "]
    elif not moved and broken_before(trace):
        said += ["The step before was not finite already: trace an earlier one. "]
    elif not moved:
        said += [f"Nothing inside the step moved by {LOUD}× against the step before. "]
    blame = trace["layer_blame"]
    rise, memory, new = (blame[f"{k}_batch"] for k in ("rise", "memory", "data"))
    if rise is not None:
        said += [
            f"Update {words.count(trace['baseline'])} moved the loss of this batch by ",
            strong(words.gap(rise)),
            f": what the moments carried {words.gap(memory)}, what its data added {words.gap(new)}",
        ]
        top = blame["tensors"][0] if blame["tensors"] else None
        if top is not None and top["alone_batch"] is not None:
            said += [
                "; the largest alone is ",
                strong(top["tensor"]),
                f" with {words.gap(top['alone_batch'])}",
            ]
        said += ["."]
    return said


def _broken_in_words(broken: Sequence[dict[str, Any]], moved: bool) -> list[Part]:
    """The first event with a value that became NaN or infinite, those values, and how many more
    there are.
    """
    first = [d for d in broken if d["place"] == broken[0]["place"]]
    more = len(broken) - len(first)
    return [
        (
            "First no longer finite: "
            if moved
            else "First inside the step to move, and no longer finite: "
        ),
        accent(first[0]["event"]),
        (
            f", its {words.listed([d['what'] for d in first])}"
            f" ({words.listed([words.number(d['before']) for d in first])} in the step before)"
        ),
        f", and {words.count(more)} {'value' if more == 1 else 'values'} after it" if more else "",
    ]


def _name(dot: dict[str, Any]) -> str:
    return dot["event"] if dot["event"] == dot["what"] else f"{dot['event']} {dot['what']}"


def _hedge(run: str, step: int, selection: Selection) -> list[Part]:
    return [
        "Order inside one step, replayed; what made it so is for ",
        code(f"replay blame {run} --spike {selection.spike or step}"),
        ".",
    ]


# ---- the timeline


def size_of(ratio: float | None) -> float:
    """How far a ratio is from 1, either way: 4 and ¼ are both 4."""
    if ratio is None or not math.isfinite(ratio) or ratio <= 0:
        return 1.0
    return max(ratio, 1 / ratio)


def level_of(ratio: float | None) -> int:
    """−5 … 5: how many of RATIOS it reaches, negative where the value fell."""
    passed = sum(size_of(ratio) >= r for r in charts.RATIOS)
    return -passed if ratio is not None and ratio < 1 else passed


def finite(value: float | None) -> bool:
    """A trace that was kept has null in the place of NaN and inf."""
    return value is not None and math.isfinite(value)


def broken_of(trace: dict[str, Any]) -> list[dict[str, Any]]:
    """Values that the step before had and this one has as NaN or inf, in the order of the step; as
    `dots_of`.

    What only an update has is null too in a step that was not applied: it counts where another
    tensor has it.
    """
    there = {
        what
        for e in trace["events"]
        if e["phase"] == "update"
        for what, v in e["values"].items()
        if finite(v)
    }
    return [
        {
            "place": i,
            "event": e["name"],
            "what": what,
            "value": None,
            "before": e["baseline"][what],
            "true": None,
            "level": BROKEN,
            "ms": 1000 * e["start"],
        }
        for i, e in enumerate(trace["events"])
        for what, value in e["values"].items()
        if not finite(value)
        and finite(e["baseline"].get(what))
        and (what not in OF_UPDATE or what in there)
    ]


def broken_before(trace: dict[str, Any]) -> bool:
    """Whether the loss is not finite in both steps."""
    return any(
        not finite(e["values"].get("loss")) and not finite(e["baseline"].get("loss"))
        for e in trace["events"]
        if e["phase"] == "loss"
    )


def dots_of(trace: dict[str, Any]) -> list[dict[str, Any]]:
    """Every value with a ratio, in the order of the step: event, what, value, before, true (the
    ratio), place, ms.
    """
    return [
        {
            "place": i,
            "event": e["name"],
            "what": what,
            "value": e["values"].get(what),
            "before": e["baseline"].get(what),
            "true": float(ratio),
            "level": level_of(ratio),
            "ms": 1000 * e["start"],
        }
        for i, e in enumerate(trace["events"])
        for what, ratio in e["ratio"].items()
        if ratio is not None and ratio > 0
    ]


def phases_of(trace: dict[str, Any]) -> list[dict[str, Any]]:
    """Stretches of events of one phase: first, last (half-open, on the places' axis), with the time
    they took.
    """
    found: list[dict[str, Any]] = []
    for i, e in enumerate(trace["events"]):
        if not found or found[-1]["name"] != e["phase"]:
            found.append({"name": e["phase"], "first": i - 0.5, "last": i + 0.5, "seconds": 0.0})
        found[-1]["last"] = i + 0.5
        found[-1]["seconds"] += e["seconds"]
    for k, phase in enumerate(found):
        wide = phase["last"] - phase["first"] >= 6
        phase["middle"], phase["odd"] = (phase["first"] + phase["last"]) / 2, k % 2 == 0
        took = f" · {1000 * phase['seconds']:.0f} ms" if wide else ""
        phase["phase"] = PHASES.get(phase["name"], phase["name"]) + took
        if phase["last"] - phase["first"] < 2 and len(trace["events"]) > 70:
            phase["phase"] = ""  # too narrow for a word
    return found


def _timeline(trace: dict[str, Any], position: int | None) -> None:
    import pyarrow as pa

    dots, broken = dots_of(trace), broken_of(trace)
    top = (
        min(max([2.0, *(size_of(d["true"]) for d in dots)]), 1e6) ** 1.25
    )  # room for the phases' names
    shown = (sorted(dots, key=lambda d: size_of(d["true"])) + broken)[-theme.STEPS_MOST :]
    for d in shown:
        d["ratio"] = top**0.87 if d["true"] is None else min(max(d["true"], 1 / top), top)
        d |= {
            "here": _number(d["value"]),
            "was": _number(d["before"]),
            "times": "" if d["true"] is None else _times(d["true"]),
        }
    if not shown:
        show.nothing("No value of this step has one to be compared with in the step before.")
        return
    n = len(trace["events"])
    loud = sorted(
        (d for d in shown if size_of(d["true"]) >= LOUD), key=lambda d: -size_of(d["true"])
    )
    loud = _apart([*broken[:1], *loud], n, top)
    labels = [
        {
            "place": d["place"],
            "ratio": d["ratio"] if d["times"] else top**0.72,  # under the row of crosses
            "label": f"{_short(d['event'])} {d['what']} {d['times'] or 'not finite'}",
        }
        for d in loud
    ]
    steps = ", ".join(f"{r:g}" for r in charts.RATIOS)
    crosses = " · ✚ on top: no longer finite" if broken else ""
    show.caption(
        "The events of the step in their order · a dot per value, up: its ratio to step"
        f" {words.count(trace['baseline'])} (log; of an entropy the other way round) · coloured"
        f" from {steps}×{crosses} · click one"
    )
    schema = pa.schema([("place", pa.int64()), ("ratio", pa.float64()), ("label", pa.string())])
    chosen = [position] if position is not None and position < n else []
    theme.draw(
        theme.filled(charts.timeline(show.dark()), places=[-0.5, n - 0.5], ratios=[1 / top, top]),
        {
            "dots": pa.Table.from_pylist(shown),
            "phases": pa.Table.from_pylist(phases_of(trace)),
            "same": pa.table({"ratio": [1.0]}),
            "said": pa.Table.from_pylist(
                [x for x in labels if x["place"] < 0.7 * n], schema=schema
            ),
            "said_left": pa.Table.from_pylist(
                [x for x in labels if x["place"] >= 0.7 * n], schema=schema
            ),
            "chosen": pa.table({"place": pa.array(chosen, pa.int64())}),
        },
        key="timeline",
        on_select=_clicked_event,
    )


def _apart(
    loud: Sequence[dict[str, Any]], n: int, top: float, most: int = 6
) -> list[dict[str, Any]]:
    """The loudest whose labels do not lie over one another."""
    found: list[dict[str, Any]] = []
    for d in loud:
        up = math.log(d["ratio"]) / math.log(top)
        if all(
            abs(up - math.log(f["ratio"]) / math.log(top)) > 0.11
            or abs(d["place"] - f["place"]) > 0.3 * n
            for f in found
        ):
            found.append(d)
    return [
        d
        for d in found
        if d["true"] is None or size_of(d["true"]) >= size_of(found[0]["true"]) ** 0.6
    ][:most]


def _number(value: float | None) -> str:
    return f"{value:.4g}" if value is not None and math.isfinite(value) else "not finite"


def _short(event: str) -> str:
    """`L2.attn forward` of `layers.2.attn forward`; a weight's update goes without the word
    weight.
    """
    return (event.replace("layers.", "L", 1) if event.startswith("layers.") else event).replace(
        ".weight update", " update"
    )


def event_of(event: Any) -> dict[str, int] | None:
    """What a click on a dot changes in the URL: the event's place in the step."""
    mark = picked(event, "event", "place")
    return {"position": int(mark["place"])} if mark else None


def _clicked_event() -> None:
    change = event_of(st.session_state["timeline"])
    if change:
        goto(**change)


def _event(trace: dict[str, Any], at: int, run: str) -> None:
    """The values of the chosen event; of the loss, the tokens that cost most."""
    e = trace["events"][at]
    show.heading(
        _short(e["name"]), f" · at {1000 * e['start']:.1f} ms, {1000 * e['seconds']:.2f} ms"
    )
    broken = {d["what"] for d in broken_of(trace) if d["place"] == at}
    show.frame(
        [
            {
                "what": name,
                "here": value,
                "the step before": e["baseline"].get(name),
                "ratio": e["ratio"].get(name),
            }
            | ({"": "not finite" if name in broken else ""} if broken else {})
            for name, value in e["values"].items()
        ],
        column_config=_NUMBERS,
        placeholder="",
    )
    if e["detail"]:
        show.caption("Its costliest tokens")
        name = reading.token_name(data.runs_folder() / "_data" / data.header(run)["corpus"])
        show.frame(
            [
                {
                    **{k: d[k] for k in ("slot", "position", "loss")},
                    "token": tokens.shown(name(d["token"])),
                }
                for d in e["detail"]
            ],
            column_config={"loss": st.column_config.NumberColumn(format="%.3f")},
        )
        worst = e["detail"][0]
        link(
            "batch",
            f"Read slot {worst['slot']:,} at position {worst['position'] + 1:,}",
            run=run,
            step=trace["step"],
            slot=worst["slot"],
            position=worst["position"] + 1,
        )
    elif e["layer"] is not None and ".attn forward" in e["name"]:
        link(
            "attention",
            f"Heads of layer {e['layer']:,}",
            run=run,
            step=trace["step"],
            layer=e["layer"],
        )


_NUMBERS = {
    name: st.column_config.NumberColumn(format="%.4g")
    for name in ("here", "the step before", "value", "before", "ratio")
}


# ---- the update


def _blame(trace: dict[str, Any]) -> None:
    import pyarrow as pa

    blame = trace["layer_blame"]
    rows = [r for r in blame["tensors"] if r["alone_batch"] is not None][:TENSORS]
    if not rows:
        show.nothing("The update's losses are not finite: there is nothing to take apart.")
        return
    show.caption(
        f"Update {words.count(trace['baseline'])} taken apart: change of this batch's loss"
        " (nats/token) with ",
        strong("one tensor's update alone"),
        " (orange) and with ",
        strong("all but it"),
        f" (grey) · dashed: the whole update, {words.gap(blame['rise_batch'])}",
    )
    bars = [
        {"tensor": r["tensor"], "what": what, "change": r[key]}
        for r in rows
        for what, key in (("alone", "alone_batch"), ("all but it", "without_batch"))
        if r[key] is not None
    ]
    rise = [blame["rise_batch"]] if blame["rise_batch"] is not None else []
    from forensics.visible import visible

    order = [visible(r["tensor"]) for r in rows]
    theme.draw(
        theme.filled(charts.blame(show.dark(), len(rows)), rows=order),
        {
            "bars": pa.Table.from_pylist(bars),
            "rise": pa.table({"change": pa.array(rise, pa.float64())}),
        },
        key="blame",
    )
    if len(blame["tensors"]) > len(rows):
        show.caption(f"and {len(blame['tensors']) - len(rows)} more tensors, each with less")


def _scan(trace: dict[str, Any]) -> None:
    import pyarrow as pa

    scan = trace["line_scan"]
    lines = [
        {"alpha": r["alpha"], "loss": r[key], "change": r[key] - scan[0][key], "on": on}
        for r in scan
        for on, key in (("batch", "batch"), ("probes", "probe"))
        if r[key] is not None and scan[0][key] is not None
    ]
    if not lines:
        show.nothing("Along the update no loss is finite.")
        return
    show.caption(
        f"Change of loss along update {words.count(trace['baseline'])} (nats/token) · ● this batch"
        f" · ■ held-out probes · dashed: the step taken. {reading_of(scan)}"
    )
    theme.draw(
        charts.scan(show.dark()),
        {"scan": pa.Table.from_pylist(lines), "taken": pa.table({"alpha": [1.0]})},
        key="scan",
    )


def reading_of(scan: Sequence[dict[str, Any]]) -> str:
    """Whether the step was too long or went the wrong way, on the batch that followed."""
    rows = [r for r in scan if r["batch"] is not None]
    if len(rows) < 3:
        return ""
    best = min(rows, key=lambda r: r["batch"])["alpha"]
    if best == rows[0]["alpha"]:
        return (
            "For this batch every part of the step is worse than none: the direction does not"
            " help it."
        )
    if best < 1:
        return f"For this batch α = {best:g} would have been best: the step went too far."
    return f"For this batch the loss is lowest at α = {best:g}: the step was not too long for it."


def _largest(trace: dict[str, Any], most: int = 40) -> None:
    show.heading("What moved most")
    show.frame(largest_of(trace, most), column_config=_NUMBERS, height=280, placeholder="")


def largest_of(trace: dict[str, Any], most: int) -> list[dict[str, Any]]:
    """What is no longer finite, in the order of the step; then by how far a value moved."""
    broken = broken_of(trace)
    rows = [*broken, *sorted(dots_of(trace), key=lambda d: -size_of(d["true"]))][:most]
    return [
        {
            "event": _short(d["event"]),
            "what": d["what"],
            "value": d["value"],
            "before": d["before"],
            "ratio": d["true"],
        }
        | ({"": "not finite" if d["true"] is None else ""} if broken else {})
        for d in rows
    ]
