"""Building a fork: a form, or the fork file itself; the plan of a dry run; then its launch.

A dry run is `replay fork FILE --dry-run` in a process: it checks the file, runs its SQL and counts
what is touched.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import streamlit as st

from app import data, formatting, safe_html
from app.controls import pick
from app.safe_html import code
from app.selection import LONGEST, Selection, goto, here
from app.views.forks import edits, forms
from app.views.forks.plan import draw_plan
from app.views.forks.summary import RULE
from forensics.errors import ForensicsError
from forensics.visible import visible
from replay.forks import toml_text

NULLS = {"placebos": 3, "chaos": 1}  # how many, where nothing is said
FORK_FILE = forms.Field(
    "text", "Fork file", wide=True, help="In TOML. SQL in it may use $run, $first and $last."
)


NULL_LABELS = {
    "placebos": ("Placebos", "The same on random other data. With 19 of them p can reach 0.05."),
    "chaos": ("Chaos forks", "Nothing altered but one unit in the last place of the start."),
}


def draw(run: str, selection: Selection) -> None:
    """Draw the form's sentence, the form and its plan."""
    verdict_place = st.container()
    kind = _kind(selection)
    left, right = st.columns([1.35, 1], gap="large")
    try:
        with left:
            text = _form(run, kind, selection)
    except ForensicsError as e:
        with verdict_place:
            safe_html.verdict(["A fork of ", code(run)], "Nothing runs until you launch it.")
        with left:
            safe_html.failed(e)
        return
    with verdict_place:
        _verdict(run, kind, text)
    with right:
        safe_html.heading("The fork file")
        st.code(visible(text), language=None)
        draw_plan(run, text)


def window_of(run: str, selection: Selection) -> tuple[int, int]:
    """Where the fork of the form begins and ends, if the URL does not say."""
    header, spike, onset = data.header(run), selection.spike, None
    if spike is not None:
        peak = next(
            (row for row in data.rows("spikes", run=run, metric="loss") if row["step"] == spike),
            None,
        )
        onset = peak["onset"] if peak else None
    begin = selection.step if selection.step is not None else onset
    saved = [checkpoint["step"] for checkpoint in data.recorded("checkpoints", run, ("step",))]
    reached = data.reached(run) or int(header.get("steps") or 1)
    start, end = _states(run)
    first, last = default_window(
        spike if spike is not None else selection.step, begin, reached, saved, start
    )
    first = first if selection.first is None else min(max(selection.first, start), end)
    return first, max(last if selection.last is None else selection.last, first + 1)


def default_window(
    spike: int | None, onset: int | None, steps: int, saved: Sequence[int], start: int = 0
) -> tuple[int, int]:
    """Choose from where to where a fork runs when nothing is said: from the checkpoint before the
    spike's first step, past it.

    It begins at a state of the run, `start` … `steps`, wherever the spike is said to be.
    """
    if spike is None:
        first = max(
            (state for state in saved if start <= state <= max(start, steps - 32)),
            default=start,
        )
        return first, min(first + 32, max(steps, first + 1))
    spike = min(spike, steps)
    begin = min(onset, steps) if onset is not None else spike
    near = max((state for state in saved if start <= state <= begin), default=start)
    first = max(start, near if begin - near <= 64 else begin - 16)
    return first, max(first, spike) + 40


def _states(run: str) -> tuple[int, int]:
    """Return the first and the last state that a fork of the run can start from."""
    header = data.header(run)
    start = int(header.get("first_step") or 0)
    return start, max(start, int(header.get("steps") or 0), data.reached(run) or 0)


def _kind(selection: Selection) -> str:
    if selection.kind in forms.titles():
        return str(selection.kind)
    if selection.document is not None:
        return "remove-documents"
    if selection.token is not None and selection.step is None:
        return "boost-token"
    return "remove-sequences" if selection.step is not None else "skip"


def _form(run: str, kind: str, selection: Selection) -> str:
    """Draw the widgets and return the fork file. Errors: usage.

    Each shows the URL's answer, else the run's own to begin with.
    """
    first, last = window_of(run, selection)
    context = _context(run, kind, selection)
    answered = edits.decode(selection.values, context)
    titles = forms.titles()
    pick(
        "What is altered",
        list(titles),
        kind,
        key="fork-kind",
        choose=partial(_other_kind, run, selection, first, last, answered),
        name=titles.__getitem__,
        label_visibility="visible",
    )
    head = _window_and_nulls(run, first, last, answered, context)
    begin = _answers(run, kind, selection, head) | answered
    answers = {
        field.name: _widget(field, begin.get(field.name, field.default), run, context)
        for field in _fields(kind)
    }
    if any(
        answers[field.name] != _shown(field, begin.get(field.name, field.default))
        for field in _fields(kind)
    ):
        safe_html.note(
            "This is longer than a URL can hold, so a reload of the page forgets it. Copy the fork"
            " file to keep it."
        )
    if kind == forms.FILE:
        safe_html.caption(
            "Several interventions, each a table of its own; docs/interventions.md lists every kind"
            " and key."
        )
        return str(answers["text"])
    try:
        length = data.cut_of(data.header(run)).targets
    except (KeyError, TypeError, ValueError):
        length = 0
    return toml_text.written(head, [forms.intervention(kind, answers, length)])


def _window_and_nulls(
    run: str, first: int, last: int, answered: Mapping[str, Any], context: str
) -> dict[str, Any]:
    """Draw the widgets of the window and the null forks; return these keys of the fork file."""
    columns = st.columns(4)
    moved = partial(_moved, run)
    _put(f"from-{run}", first)
    _put(f"to-{run}", last)
    head: dict[str, Any] = {
        "parent": run,
        "from": int(
            columns[0].number_input(
                "From state",
                *_states(run),
                key=f"from-{run}",
                on_change=moved,
                help="State s is the model after s steps.",
            )
        ),
        "to": int(
            columns[1].number_input(
                "To step",
                1,
                key=f"to-{run}",
                on_change=moved,
                help="The first step that is no longer trained.",
            )
        ),
    }
    for name, column in zip(NULLS, columns[2:]):
        key = f"{name}-{context}"
        _put(key, edits.number_within(answered.get(name), NULLS[name], 0, 999))
        label, meaning = NULL_LABELS[name]
        head[name] = int(
            column.number_input(
                label,
                0,
                999,
                key=key,
                help=meaning,
                on_change=partial(_edited, run, context, name, key),
            )
        )
    return head


def _fields(kind: str) -> tuple[forms.Field, ...]:
    return (FORK_FILE,) if kind == forms.FILE else forms.fields(kind)


def _widget(field: forms.Field, value: Any, run: str, context: str) -> Any:
    key = f"{context}-{field.name}"
    _put(key, _shown(field, value))
    options: dict[str, Any] = {
        "key": key,
        "help": field.help or None,
        "on_change": partial(_edited, run, context, field.name, key),
    }
    if field.read is bool:
        return st.checkbox(field.label, **options)
    if field.options:
        return st.selectbox(field.label, field.options, **options)
    if field.wide:
        return st.text_area(field.label, height=330 if field is FORK_FILE else 92, **options)
    return st.text_input(field.label, placeholder=field.wanted, **options)


def _shown(field: forms.Field, value: Any) -> Any:
    """Return what a widget can show of an answer, which may come from the URL."""
    if field.read is bool:
        return value is True
    if field.options:
        return value if value in field.options else field.default
    return str(value)


# ---- what was edited, kept in the URL


def _context(run: str, kind: str, selection: Selection) -> str:
    """Name what the form asks about: the answers to one are none to another."""
    return f"{run}-{kind}-{selection.document}-{selection.step}-{selection.slot}-{selection.token}"


def _put(key: str, value: Any) -> None:
    """Show what the URL says where that is new: at first, after an edit, after Back. What no URL
    can hold stays.
    """
    if key not in st.session_state or st.session_state.get(f"{key}@") != value:
        st.session_state[key] = st.session_state[f"{key}@"] = value


def _edited(run: str, context: str, name: str, key: str) -> None:
    """Write an answer into the URL, beside those that stand there."""
    text = edits.encode(
        context, edits.decode(here().values, context) | {name: st.session_state[key]}
    )
    if len(text) <= LONGEST:
        goto(run=run, part="build", values=text)


def _moved(run: str) -> None:
    goto(
        run=run,
        part="build",
        first=st.session_state[f"from-{run}"],
        last=st.session_state[f"to-{run}"],
    )


def _other_kind(
    run: str, selection: Selection, first: int, last: int, given: Mapping[str, Any], kind: str
) -> None:
    """Another form over the same window, with as many null forks."""
    nulls = {name: given[name] for name in NULLS if name in given}
    values = edits.encode(_context(run, kind, selection), nulls) if nulls else None
    goto(run=run, kind=kind, part="build", first=first, last=last, values=values)


def _answers(run: str, kind: str, selection: Selection, head: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the form begins with: what the URL chose, else an example."""
    step, slot, first, last = selection.step, selection.slot, head["from"], head["to"]
    if kind == forms.FILE:
        example = {
            "kind": "remove-documents",
            "window": f"{first}:{last}",
            "sql": "select document from documents where repeat_share > 0.3",
        }
        return {"text": toml_text.written(head, [example])}
    if kind == "remove-documents":
        return (
            {"documents": str(selection.document)}
            if selection.document is not None
            else {"sql": "select document from documents where repeat_share > 0.3"}
        )
    if kind == "remove-sequences":
        slots = [] if step is None else [slot] if slot is not None else _worst(run, step)
        if slots:
            return {"at": ", ".join(f"{step}/{row}" for row in slots)}
        where = f"step = {step}" if step is not None else "step >= $first and step < $last"
        return {
            "sql": (
                f"select {'run, ' if data.header(run).get('parent') else ''}step, slot from"
                f" sequences where {where} order by loss desc limit 2"
            )
        }
    if kind == "mask-tokens" and selection.token is not None:
        return {"tokens": str(selection.token)}
    if kind == "boost-token":
        return {"token": "" if selection.token is None else str(selection.token)}
    at = step if step is not None and first <= step < last else first
    steps = [field.name for field in forms.fields(kind) if field.step]
    return {
        "window": f"{at}:{at + 1}",
        **{name: str(min(at + index, last - 1)) for index, name in enumerate(steps)},
        "batch": str(max(0, at - 1)),
    }


def _worst(run: str, step: int) -> list[int]:
    """Return the sequences of a batch that stand apart, as the Batch page names them; where none
    does, its worst eighth; empty where not known.
    """
    rows = data.rows(
        "excess_by_sequence", run=run, step=step, window=(max(0, step - 256), step + 1)
    )
    apart = [row["slot"] for row in rows if row["apart"]]
    eighth = rows[: max(1, round(len(rows) / 8))]
    return apart or [row["slot"] for row in eighth if row["excess"] is not None]


def _verdict(run: str, kind: str, text: str) -> None:
    first, last = (re.search(rf"^{key} = (\d+)$", text, re.M) for key in ("from", "to"))
    window = (
        f" from state {formatting.count(int(first[1]))} to {formatting.count(int(last[1]))}"
        if first and last
        else ""
    )
    safe_html.verdict(
        ["A fork of ", code(run), window],
        "It trains beside a control with nothing altered, step by step. Where they differ at the"
        " end, it is by the alteration or by chaos. Placebos (the same on random other data) and"
        " chaos forks (a start moved by one unit in the last place) tell which.",
        hedge=["Nothing runs until you launch it. ", RULE],
    )
