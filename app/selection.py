"""What the reader looks at: parsed from the URL, which is the one truth, and written back to it by
callbacks only.

    selection = Selection.parse(st.query_params)   # never raises: what is not valid is left out
    selection.replacing(spike=400).params()        # {"run": "demo", "spike": "400"}, of a link
    goto(step=402)                                 # in a callback: the URL, so Back and reload

Names of runs are checked by the store's own rule, so none of them can leave the folder of runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, TypeVar

from forensics.store.reader import RUN_NAME

T = TypeVar("T")
LARGEST = 2**53  # beyond it the browser's numbers are no longer exact
LONGEST = 8000  # characters of a text in the URL
SHOWN = "shown"  # key of the session: what the page shows beyond its URL

# What is chosen inside something else: choosing another of the outer forgets the inner.
WITHIN = {
    "run": (
        "fork",
        "first",
        "last",
        "spike",
        "step",
        "layer",
        "head",
        "slot",
        "position",
        "token",
        "tensor",
        "document",
    ),
    "fork": ("first", "last"),
    "spike": ("step", "layer", "head", "slot", "position", "tensor"),
    "step": ("slot", "position"),
    "layer": ("head",),
    "slot": ("position",),
    "query": ("sql", "values"),
    "sql": ("query", "values"),
}


@dataclass(frozen=True)
class Selection:
    """One view. Every field is a parameter of the URL under its own name; None: not chosen."""

    run: str | None = None
    fork: str | None = None
    first: int | None = None  # a window of steps, half-open
    last: int | None = None
    spike: int | None = None  # the step of its peak
    step: int | None = None
    layer: int | None = None
    head: int | None = None
    slot: int | None = None  # row of the batch
    position: int | None = None  # in the sequence
    token: int | None = None  # id in the vocabulary
    tensor: str | None = None
    document: int | None = None
    metric: str | None = None  # a column or a measure of the page
    kind: str | None = None  # of an intervention that is being built
    query: str | None = None  # a named query
    values: str | None = None  # its parameters: "every=50;top=8"
    sql: str | None = None
    part: str | None = None  # which part of a page: its tab
    text: str | None = None  # that is looked for in the data
    problems: tuple[str, ...] = field(
        default=(), compare=False
    )  # what of the URL was left out, in words

    @classmethod
    def parse(cls, params: Mapping[str, Any]) -> Selection:
        """Read the selection from a URL's parameters; of a repeated one, the last counts."""
        chosen: dict[str, Any] = {}
        problems = []
        for name in NAMES:
            text = params.get(name)
            if isinstance(text, list):
                text = text[-1] if text else None
            if text is None or text == "":
                continue
            value = _valid(name, str(text))
            if value is None:
                problems.append(f"{name}: wanted {_wanted(name)}, found {str(text)[:80]!r}")
            else:
                chosen[name] = value
        return cls(**chosen, problems=tuple(problems))

    def replacing(self, **changes: Any) -> Selection:
        """Another choice: what was chosen inside a thing that changes is forgotten, unless it is
        given too.
        """
        forgotten = {
            inner: None
            for name, value in changes.items()
            if value != getattr(self, name)
            for inner in WITHIN.get(name, ())
        }
        return replace(self, **{**forgotten, **changes}, problems=())

    def params(self) -> dict[str, str]:
        """Return the URL's parameters of this selection."""
        values = {name: getattr(self, name) for name in NAMES}
        return {name: str(value) for name, value in values.items() if value is not None}


NAMES = tuple(f.name for f in fields(Selection) if f.name != "problems")
NUMBERS = {f.name for f in fields(Selection) if f.type == "int | None"}
WORDS = {"metric", "kind", "query", "part"}


def _valid(name: str, text: str) -> Any:
    if name in NUMBERS:
        return (
            int(text)
            if text.isascii() and text.isdecimal() and len(text) <= 16 and int(text) < LARGEST
            else None
        )
    if name in ("run", "fork"):
        return text if RUN_NAME.fullmatch(text) else None
    if name in WORDS:
        return (
            text
            if text.isascii()
            and text.replace("_", "").replace("-", "").isalnum()
            and len(text) <= 80
            else None
        )
    return text if len(text) <= LONGEST else None


def _wanted(name: str) -> str:
    if name in NUMBERS:
        return "a whole number from 0"
    if name in ("run", "fork"):
        return "a run's name"
    return (
        "a name of letters, digits, '_' and '-'"
        if name in WORDS
        else f"at most {LONGEST} characters"
    )


def here() -> Selection:
    """Return the selection of the URL that is open."""
    import streamlit as st

    return Selection.parse(st.query_params)


def shows(**fields: Any) -> None:
    """Tell what the page shows where the URL names nothing that is there: `shows(run="demo")`."""
    import streamlit as st

    chosen = here()
    st.session_state[SHOWN] = st.session_state.get(SHOWN, {}) | {
        name: (getattr(chosen, name), value) for name, value in fields.items()
    }


def shown() -> Selection:
    """Return the selection of the URL, filled with what the page shows where that names nothing."""
    import streamlit as st

    return filled(here(), st.session_state.get(SHOWN, {}))


def filled(selection: Selection, shown: Mapping[str, tuple[Any, Any]]) -> Selection:
    """`shown`: field → (the URL's value when the page was drawn, what the page drew). Of another
    URL it says nothing.
    """
    result = selection
    for name, (in_url, drawn) in shown.items():
        if getattr(selection, name) == in_url != drawn:
            # what was chosen inside a run that is not named is chosen in the one that is shown;
            # inside a wrong one, in none
            result = (
                replace(result, **{name: drawn})
                if in_url is None
                else result.replacing(**{name: drawn})
            )
    return result


def goto(**changes: Any) -> None:
    """Change the selection of this page: only callbacks call it. One entry of the browser's
    history.

    What the page shows though the URL does not name it (the newest run, its largest spike) is then
    named too.
    """
    import streamlit as st

    st.query_params.from_dict(shown().replacing(**changes).params())


def picked(event: Mapping[str, Any] | None, name: str, *wanted: str) -> dict[str, Any] | None:
    """Return the fields of the mark that was clicked, of a chart's event; None where none was.

    picked({"selection": {"cell": [{"step": 90, "row": 38}]}}, "cell", "step") is
    {"step": 90, "row": 38}.
    """
    marks = ((event or {}).get("selection") or {}).get(name) or []
    mark = marks[-1] if isinstance(marks, list) and marks else None
    return (
        dict(mark)
        if isinstance(mark, Mapping)
        and all(mark.get(name_wanted) is not None for name_wanted in wanted)
        else None
    )


def picked_row(event: Mapping[str, Any] | None, items: Sequence[T]) -> T | None:
    """Of what the rows of a table stand for, in their order, that of the row which was clicked;
    None where none was.
    """
    rows = ((event or {}).get("selection") or {}).get("rows") or []
    return items[rows[0]] if rows and rows[0] < len(items) else None


def brushed(event: Mapping[str, Any] | None, name: str, axis: str) -> tuple[int, int] | None:
    """Return the half-open window of whole steps under a brush; None where there is none."""
    span = (((event or {}).get("selection") or {}).get(name) or {}).get(axis)
    if not span or len(span) != 2:
        return None
    low, high = sorted(float(x) for x in span)
    return max(0, int(low + 0.5)), max(0, int(high + 0.5)) + 1
