"""Which data made the spike? Blame's verdict, what goes when its suspects are removed, and who they
are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import streamlit as st

from app import data, show, words, work
from app.charts import forks as charts
from app.charts import theme
from app.pages import link
from app.pages._fork_kept import documents
from app.pages._fork_one import chosen_row
from app.pages._fork_panels import below
from app.selection import Selection, goto
from app.show import Part, code, strong
from forensics.visible import visible

SHOWN = 12  # candidates
KEPT = 16  # candidates of a document: replay.blame.investigate.SHOWN
TOKEN_BYTES = 40  # of a token's id and influence in the document
CHEAP = 16 << 20  # bytes of a document up to which they are kept without asking


def draw(run: str, selection: Selection) -> None:
    """The document of the URL's spike; else the newest."""
    found = {
        int(d["spike"]["step"]): d
        for _, d in reversed(documents(run, "blame"))
        if isinstance(d.get("spike"), Mapping)
    }
    spikes = data.rows("spikes", run=run, metric="loss")
    newest = next(reversed(found), None)
    spike = selection.spike if selection.spike is not None else newest
    if spike is None and spikes:
        spike = max(spikes, key=lambda s: s["sigma"] or 0.0)["step"]
    _picker(run, sorted({*found, *(s["step"] for s in spikes)}), found, spike)
    if spike is None:
        show.verdict(
            ["No spike was found in ", code(run), ", so there is nothing to blame"],
            hedge=[
                "Any step can be blamed with ",
                code(f"replay blame {run} --spike STEP --force"),
                ".",
            ],
        )
        return
    document = found.get(spike)
    if document is None:
        show.verdict(
            f"Step {words.count(spike)} has not been blamed yet",
            "Blame ranks each sequence of the steps before by its influence on the spike, then"
            " removes the first 1, 2, 4 … of them by replay, beside as many random ones.",
        )
        length = _length(run)
        show.nothing(
            "From the command line:",
            " ".join(["replay", *arguments_of(run, spike, length)]),
            f"It takes some minutes on a small run. {cost_of(length)}",
        )
        if not _busy(run):
            st.button("Blame it", type="primary", on_click=_start, args=(run, spike, length))
        return
    _document(run, document, selection)


def _picker(run: str, steps: list[int], found: Mapping[int, Any], spike: int | None) -> None:
    if len(steps) > 1 and spike is not None:
        if spike not in steps:
            steps = sorted([*steps, spike])
        st.session_state["blamed"] = spike
        st.selectbox(
            "Spike",
            steps,
            key="blamed",
            label_visibility="collapsed",
            width=280,
            format_func=lambda s: f"step {s:,}" + ("" if s in found else " (not yet blamed)"),
            on_change=lambda: goto(run=run, spike=st.session_state["blamed"]),
        )


def _length(run: str) -> int:
    """T, tokens of a sequence."""
    return int(
        ((data.header(run).get("config") or {}).get("data") or {}).get("sequence_length") or 0
    )


def arguments_of(run: str, spike: int, length: int) -> list[str]:
    """Of `replay blame`: with the influence of every token, where the document stays small."""
    return [
        "blame",
        run,
        "--spike",
        str(spike),
        *(["--tokens"] if KEPT * length * TOKEN_BYTES <= CHEAP else []),
    ]


def cost_of(length: int) -> str:
    """What --tokens costs: the gradient has them anyway, only the document grows."""
    size = KEPT * length * TOKEN_BYTES / 1000
    room = f"{size:,.0f} kB" if size < 1000 else f"{size / 1000:,.0f} MB"
    if "--tokens" in arguments_of("", 0, length):
        return (
            f"It keeps each token's influence too: that takes no further replay, only up to {room}"
            " of the document."
        )
    return (
        f"Each token's influence, which takes no further replay but up to {room} of the document,"
        " is kept with --tokens."
    )


def without_tokens(d: Mapping[str, Any]) -> bool:
    """Whether its sequences have an influence, and their tokens none that was kept."""
    return any(c["influence"] is not None and not c.get("tokens") for c in d["candidates"])


def _start(run: str, spike: int, length: int) -> None:
    work.start(run, "replay", arguments_of(run, spike, length))


def _busy(run: str) -> bool:
    own = [w for w in work.listed(run) if w.arguments[:1] == ("blame",)][:1]
    if own and own[0].status != "done":
        work.panel(run, most=2, key="work-blame")
    return bool(own) and own[0].status == "running"


def _document(run: str, d: dict[str, Any], selection: Selection) -> None:
    show.verdict(title_of(d), *sentence_of(d), hedge=[_method_of(d)])
    if not d["control"]["bitwise"]:
        show.amber(strong("Tolerance only. "), d["control"]["sentence"], ".")
    for note in d["notes"]:
        show.note("Note: ", note, ".")
    _again(run, d)
    left, right = st.columns([1.25, 1], gap="medium")
    with left:
        _curve(d)
        _candidates(run, d, selection)
    with right:
        _split(d)
        _trials(d)
        _sums(d)


def _again(run: str, d: Mapping[str, Any]) -> None:
    """Blame once more, for the influence of each token, where it was not kept; while that runs, how
    far it is.
    """
    busy, length = _busy(run), _length(run)
    if without_tokens(d) and not busy:
        spike = d["spike"]["step"]
        show.note(
            "The influence of each token was not kept. Blaming again takes as long as it did,"
            f" {d['seconds']:,.0f} s. ",
            cost_of(length),
        )
        if "--tokens" in arguments_of(run, spike, length):
            st.button(
                "Blame again, with each token",
                key="blame-again",
                on_click=_start,
                args=(run, spike, length),
            )
        else:
            show.nothing("From the command line:", f"replay blame {run} --spike {spike} --tokens")


def title_of(d: Mapping[str, Any]) -> str:
    """`Step 400: data. Excess 1.567 nats/token, 8σ above its past`."""
    spike, total = d["spike"], d["excess"]["total"]
    size = f", {words.sigma(spike['sigma'])} above its past" if spike["sigma"] is not None else ""
    return (
        f"Step {words.count(spike['step'])}: {d['verdict']} · excess {words.loss(total)}"
        f" nats/token{size}"
    )


def sentence_of(d: Mapping[str, Any]) -> list[Part]:
    """The verdict's own sentence, which carries its numbers; then what it rests on."""
    said: list[Part] = [d["sentence"]]
    if d["proof"] and "p =" not in d["sentence"]:
        said += [
            " p = ",
            strong(words.number(d["proof"]["p"])),
            f", N = {len(d['proof']['random'])} random removals.",
        ]
    return said


def _method_of(d: Mapping[str, Any]) -> str:
    first = d["window"][0]
    return (
        f"By {d['method']} over batches {words.count(first)} to {words.count(d['spike']['step'])},"
        f" on {d['probes']}; control: {d['control']['sentence']}. {d['replays']} replays of"
        f" {words.count(d['steps_replayed'])} steps, {d['seconds']:.0f} s."
    )


def curve_of(d: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Marks of the deletion curve: what goes by influence, and with as many random sequences."""
    rows = []
    for p in d["deletion_curve"]:
        rows.append({"removed": p["removed"], "taken": p["taken"], "order": "by influence"})
        if p["random"] is not None:
            rows.append({"removed": p["removed"], "taken": p["random"], "order": "random"})
    return [r for r in rows if r["taken"] is not None]


def _curve(d: Mapping[str, Any]) -> None:
    import pyarrow as pa

    rows = curve_of(d)
    if not rows:
        show.nothing(
            "No removal was tried.",
            hint="Where no spike rises above its past there is nothing to remove.",
        )
        return
    proof, total = d["proof"], d["excess"]["total"]
    nulls = [
        {"removed": proof["sequences"], "taken": x, "order": "random"}
        for x in (proof["random"] if proof else [])
        if x is not None
    ]
    if proof and proof["taken"] is not None:
        rows.append(
            {"removed": proof["sequences"], "taken": proof["taken"], "order": "by influence"}
        )
    schema = pa.schema([("removed", pa.int64()), ("taken", pa.float64()), ("order", pa.string())])
    ends = []
    for order, word in (("by influence", "the strongest ●"), ("random", "random ■")):
        own = [r for r in rows if r["order"] == order]
        if own:
            last = max(own, key=lambda r: r["removed"])
            ends.append({**last, "word": word, "below": False})
    extra = f" · ticks: {len(nulls)} random removals of {proof['sequences']}" if nulls else ""
    show.caption(
        f"Nats of the excess that go when these are removed together · dotted: all of it{extra}"
    )
    tables = {
        "curve": pa.Table.from_pylist(sorted(rows, key=lambda r: r["removed"]), schema),
        "nulls": pa.Table.from_pylist(nulls, schema),
        "ends": pa.Table.from_pylist(
            below(ends, "taken"), pa.schema([*schema, ("word", pa.string()), ("below", pa.bool_())])
        ),
        "whole": pa.table({"taken": pa.array([total], pa.float64())}),
    }
    theme.draw(charts.deletion(show.dark()), tables, key="blame-curve")


def chosen_of(shown: Sequence[Mapping[str, Any]], selection: Selection) -> Mapping[str, Any]:
    """The candidate of the URL, else the strongest."""
    return next(
        (c for c in shown if (c["step"], c["slot"]) == (selection.step, selection.slot)), shown[0]
    )


def _candidates(run: str, d: Mapping[str, Any], selection: Selection) -> None:
    shown, spike = d["candidates"][:SHOWN], d["spike"]["step"]
    if not shown:
        return
    show.heading("The strongest sequences; choose one to fork without it")
    chosen = chosen_of(shown, selection)
    rows = [
        {
            "": "●" if c is chosen else "",
            "batch": c["step"],
            "slot": c["slot"],
            "influence": c["influence"],
            "goes alone": c["replayed_effect"],
            "source": c["source"],
            "document": c["path"],
            "text": c["text"],
        }
        for c in shown
    ]
    number = st.column_config.NumberColumn
    columns = {
        "": st.column_config.TextColumn(width=24),
        "influence": number(format="%+.4f", help="nats, first order"),
        "goes alone": number(format="%+.4f", help="nats, by replay"),
        "text": st.column_config.TextColumn(width="large"),
    }
    # a key of this choice: the tick of another, from before Back, would not go away
    key = f"blame-candidates-{run}-{spike}-{chosen['step']}-{chosen['slot']}"
    show.frame(
        rows,
        key=key,
        on_select=partial(_picked, run, spike, shown, key),
        selection_mode="single-row",
        column_config=columns,
        height=min(330, 38 + 35 * len(rows)),
    )
    step, slot, document = chosen["step"], chosen["slot"], chosen["document"]
    st.text(visible(str(chosen["text"])))
    places = st.columns(3)
    build = partial(
        goto,
        run=run,
        part="build",
        fork=None,
        spike=spike,
        first=d["window"][0],
        last=spike + 24,
        values=None,
    )
    places[0].button(
        f"Fork without batch {step:,}, slot {slot}",
        key="blame-fork-sequence",
        on_click=partial(build, kind="remove-sequences", step=step, slot=slot, document=None),
    )
    if document is not None:
        places[1].button(
            f"Fork without document {document:,}",
            key="blame-fork-document",
            on_click=partial(build, kind="remove-documents", step=None, document=document),
        )
    link(
        "batch", f"Batch {step:,}", container=places[2], run=run, spike=spike, step=step, slot=slot
    )


def place_of(
    event: Mapping[str, Any] | None, shown: Sequence[Mapping[str, Any]]
) -> dict[str, int] | None:
    """What a click into the table of candidates changes in the URL."""
    row = chosen_row(event)
    return (
        {"step": shown[row]["step"], "slot": shown[row]["slot"]}
        if row is not None and row < len(shown)
        else None
    )


def _picked(run: str, spike: int, shown: Sequence[Mapping[str, Any]], key: str) -> None:
    place = place_of(st.session_state[key], shown)
    if place:
        goto(run=run, spike=spike, **place)


def _split(d: Mapping[str, Any]) -> None:
    """Where the excess sits: in the batch (data part), in the model (state part)."""
    excess = d["excess"]
    show.heading("Excess")
    parts = (
        ("data", "data part: this batch reads worse than the probes do"),
        ("state", "state part: the model had become worse"),
    )
    rows = [
        {
            "nats/token": excess[k],
            "of the whole": excess[k] / excess["total"] if excess["total"] else None,
            "part": what,
        }
        for k, what in parts
        if excess[k] is not None
    ]
    number = st.column_config.NumberColumn
    show.frame(
        rows,
        column_config={
            "nats/token": number(format="%+.3f"),
            "of the whole": st.column_config.ProgressColumn(
                format="percent", min_value=0, max_value=1
            ),
        },
    )


def _trials(d: Mapping[str, Any]) -> None:
    trials = d["trials"]
    named = [("other data", t) for t in trials["other_data"]] + [
        ("other state", t) for t in trials["other_states"]
    ]
    named += [
        (name.replace("_", " "), trials[name])
        for name in ("up_to_date", "steady_rate")
        if trials[name]
    ]
    if named:
        show.heading("Trials: does it spike all the same?")
        rows = [
            {
                "trial": name,
                "what": t["what"],
                "left, nats": t["left"],
                "spikes": "yes" if t["spikes"] else "no",
            }
            for name, t in named
        ]
        show.frame(
            rows,
            column_config={"left, nats": st.column_config.NumberColumn(format="%+.3f")},
            height=min(320, 38 + 35 * len(rows)),
        )


def _sums(d: Mapping[str, Any]) -> None:
    """By document, and the tensors of the update after which the probes' loss rose most."""
    rows = [
        {
            "influence": r["influence"],
            "sequences": r["sequences"],
            "source": r["source"],
            "document": r["path"],
        }
        for r in d["documents"][:8]
    ]
    if rows:
        show.heading("By document")
        show.frame(
            rows,
            column_config={"influence": st.column_config.NumberColumn(format="%+.4f")},
            height=min(290, 38 + 35 * len(rows)),
        )
    tensors = d["tensors"]
    if tensors:
        stale = [s for s in tensors["stale"] if s["times"]][:3]
        if stale:
            show.heading("Second moments most out of date")
            show.frame(
                [
                    {
                        "tensor": s["tensor"],
                        "staleness": s["staleness"],
                        "usual": s["usual"],
                        "step": s["step"],
                    }
                    for s in stale
                ],
                column_config={
                    k: st.column_config.NumberColumn(format="%.2f") for k in ("staleness", "usual")
                },
            )
