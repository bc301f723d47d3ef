"""The forms of the Forks page: which fields an intervention has, and the fork file that their
answers make.

fields("lr-scale")                                        # [Field("factor", …)]
intervention("lr-scale", {"window": "", "factor": "0.5"})  # {"kind": "lr-scale", "factor": 0.5}
given(written("lr-scale", {"factor": "2"}), "lr-scale")    # {"factor": "2"}: edited answers, as the URL keeps them
file({"parent": "demo", "from": 400, "to": 420}, [that])   # a fork file; replay/forks/spec.py checks it
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from forensics.errors import ForensicsError


@dataclass(frozen=True)
class Field:
    """One answer, given as text, a number or a tick. `read` makes the fork file's value of it;
    empty text is left out.
    """

    name: str
    label: str  # Markdown: our own words
    read: Callable[[str], Any] = str
    default: Any = ""
    wanted: str = "text"
    wide: bool = False  # a text area
    options: tuple[str, ...] = ()
    help: str = ""


def _ids(text: str) -> list[int]:
    return [int(part) for part in re.split(r"[\s,]+", text.strip()) if part]


def _numbers(text: str) -> list[float]:
    return [float(part) for part in re.split(r"[\s,]+", text.strip()) if part]


def _names(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _rows(text: str) -> list[list[int]]:
    """`402/3, 402/7` as (step, slot) pairs."""
    pairs = [
        [int(n) for n in part.split("/")] for part in re.split(r"[\s,]+", text.strip()) if part
    ]
    if any(len(pair) != 2 for pair in pairs):
        raise ValueError(text)
    return pairs


WINDOW = Field(
    "window", "Window A:B", default="", wanted="A:B", help="Half-open; empty: the whole fork."
)
SQL = Field("sql", "SQL", wide=True)
HOW = Field(
    "how",
    "How",
    default="replace",
    options=("replace", "mask", "repack"),
    help=(
        "replace: another of the same source in its place; mask: weight 0; repack: all later ones"
        " move up."
    ),
)
ROWS = Field(
    "at",
    "Sequences step/slot",
    _rows,
    wanted="step/slot, step/slot, …",
    help="Or by SQL: step and slot, or sequence.",
)
PATTERNS = Field(
    "tensors", "Tensors", _names, "*", "names or patterns", help="E.g. layers.3.*, embed.weight"
)


def _number(name: str, label: str, default: Any) -> Field:
    return Field(name, label, float, default, "a number")


def _whole(name: str, label: str, default: Any) -> Field:
    return Field(name, label, int, default, "a whole number")


# kind → (what it is called on the page, its fields)
FORMS: dict[str, tuple[str, tuple[Field, ...]]] = {
    "remove-documents": (
        "Remove documents",
        (
            WINDOW,
            Field(
                "documents",
                "Documents, by id",
                _ids,
                wanted="ids with commas between",
                help="Or by SQL, below.",
            ),
            Field("sql", "SQL that returns document", default="", wide=True),
            HOW,
        ),
    ),
    "remove-sequences": (
        "Remove sequences of batches",
        (WINDOW, ROWS, Field("sql", "SQL that returns step and slot, or sequence", wide=True), HOW),
    ),
    "skip": ("Skip batches: consumed, not computed", (WINDOW,)),
    "drop": ("Drop batches: later ones move up", (WINDOW,)),
    "swap": ("Swap two batches", (_whole("a", "Batch", ""), _whole("b", "with batch", ""))),
    "lr-scale": ("Scale the learning rate", (WINDOW, _number("factor", "Factor", 0.5))),
    "clip": ("Clip the gradient norm", (WINDOW, _number("value", "Largest norm", 1.0))),
    "betas": ("Adam's β", (WINDOW, Field("betas", "β₁, β₂", _numbers, "0.9, 0.95", "two numbers"))),
    "weight-decay": ("Weight decay", (WINDOW, _number("value", "λ", 0.0))),
    "reset-moments": (
        "Reset Adam's moments",
        (PATTERNS, Field("counter", "Bias correction starts again too", bool, False)),
    ),
    "mask-tokens": (
        "Mask tokens in the loss",
        (
            WINDOW,
            Field(
                "tokens",
                "Tokens, by id",
                _ids,
                wanted="ids with commas between",
                help="Or by SQL, below.",
            ),
            Field("sql", "SQL that returns token, or step, slot and position", wide=True),
            Field("renormalise", "Scale the loss by what weight is left", bool, False),
        ),
    ),
    "boost-token": (
        "Show a token more often",
        (WINDOW, _whole("token", "Token", ""), _whole("times", "Sequences that hold it", 10)),
    ),
    "zero-update": ("Compute, but do not update", (WINDOW,)),
    "hold-parameters": ("Hold the parameters, moments advance", (WINDOW,)),
    "freeze": ("Freeze tensors", (WINDOW, PATTERNS)),
    "repeat": ("Repeat batches", (WINDOW, _whole("times", "Times", 2))),
    "replace": ("Replace batches by others", (WINDOW, _whole("batch", "By those from batch", ""))),
    "insert": (
        "Insert a text",
        (_whole("at", "Before batch", ""), Field("text", "Text", wide=True)),
    ),
    "shuffle": ("Shuffle the sequences of a window", (WINDOW, _whole("seed", "Seed", 0))),
    "noise": (
        "Add noise to the parameters",
        (_number("sigma", "σ, times each tensor's RMS", 0.001), _whole("seed", "Seed", 0)),
    ),
    "file": ("Any kind: write the fork file", ()),
}


def fields(kind: str) -> tuple[Field, ...]:
    return FORMS[kind][1]


def intervention(kind: str, answers: Mapping[str, Any], length: int = 0) -> dict[str, Any]:
    """A fork file's intervention; what was left empty is left out. Errors: usage, naming the field.

    `length`: T, for sequences that are given as step/slot: the whole of each is meant.
    """
    made: dict[str, Any] = {"kind": kind}
    for field in fields(kind):
        answer = answers.get(field.name, field.default)
        text = answer if isinstance(answer, str) else str(answer)
        if field.read is bool:
            if answer:
                made[field.name] = True
        elif text.strip():
            try:
                made[field.name] = field.read(text if field.wide else text.strip())
            except ValueError:
                raise ForensicsError(
                    "usage",
                    f"{field.label}: wanted {field.wanted}, found {text[:80]!r}",
                    field.help or "see docs/forks.md",
                ) from None
    if "at" in made and isinstance(made["at"], list):
        made["at"] = [[*place, 0, length] for place in made["at"]]
    return made


def file(head: Mapping[str, Any], interventions: Sequence[Mapping[str, Any]]) -> str:
    """The fork file, as TOML. Keys without a value are left out."""
    lines = [f"{key} = {_toml(value)}" for key, value in head.items() if value is not None]
    for each in interventions:
        lines += [
            "",
            "[[intervention]]",
            *(f"{key} = {_toml(value)}" for key, value in each.items() if value is not None),
        ]
    return "\n".join(lines) + "\n"


def _toml(value: Any) -> str:
    """Of JSON's escapes TOML knows all; only DEL it wants escaped and JSON does not."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def written(context: str, answers: Mapping[str, Any]) -> str:
    """Edited answers as the text of one URL parameter, with what they are answers to: a form of
    anything else ignores them.
    """
    return json.dumps({"of": context, **answers}, ensure_ascii=False, separators=(",", ":"))


def given(text: str | None, context: str) -> dict[str, Any]:
    """The answers of such a text: texts, ticks and numbers by field; none where it belongs to
    another form or is damaged.
    """
    try:
        document = json.loads(text or "null")
    except (ValueError, RecursionError):
        return {}
    if not isinstance(document, dict) or document.pop("of", None) != context:
        return {}
    texts = {
        n: a.encode("utf-8", "replace").decode() if isinstance(a, str) else a
        for n, a in document.items()
    }
    return {name: answer for name, answer in texts.items() if isinstance(answer, str | bool | int)}


def number(answer: Any, default: int, low: int, high: int) -> int:
    """A whole number of `given`, if it is one between `low` and `high`."""
    return answer if type(answer) is int and low <= answer <= high else default


def window_for(
    spike: int | None, onset: int | None, steps: int, saved: Sequence[int], start: int = 0
) -> tuple[int, int]:
    """From where to where a fork runs when nothing is said: from the checkpoint before the spike's
    first step, past it.

    It begins at a state of the run, `start` … `steps`, wherever the spike is said to be.
    """
    if spike is None:
        first = max((s for s in saved if start <= s <= max(start, steps - 32)), default=start)
        return first, min(first + 32, max(steps, first + 1))
    spike = min(spike, steps)
    begin = min(onset, steps) if onset is not None else spike
    near = max((s for s in saved if start <= s <= begin), default=start)
    first = max(start, near if begin - near <= 64 else begin - 16)
    return first, max(first, spike) + 40
