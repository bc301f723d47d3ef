"""Make docs/interventions.md from the interventions' own classes: what a fork can do otherwise."""

from __future__ import annotations

import inspect
import types
import typing
from typing import Any

from replay.interventions.base import Intervention, Windowed
from replay.interventions.fields import Field, fields_of
from replay.interventions.registry import kinds

SECTIONS = {
    "stream": ("Data", "They alter the stream: which batches, sequences and tokens a step sees."),
    "policy": ("Policy", "They alter what a step does with its batch. The data stays as it was."),
    "state": ("State", "They act once, on the state from which the fork starts."),
}
WORDS = {int: "whole number", float: "number", bool: "true or false", str: "text"}


def interventions() -> str:
    """Return docs/interventions.md."""
    lines = [
        "# Interventions",
        "",
        "Made from `replay/interventions/*.py` by `python -m docs.generate`. [forks.md](forks.md)"
        " says how they are put together; every one is a flag of `replay fork` and a table of a"
        " fork file:",
        "",
        "```toml",
        "[[intervention]]",
        'kind = "lr-scale"',
        'window = "400:410"      # left out: the whole fork',
        "factor = 0.5",
        "```",
    ]
    for alters, (title, sentence) in SECTIONS.items():
        lines += ["", f"## {title}", "", sentence]
        for kind in kinds():
            if kind.alters() == alters:
                lines += ["", *_kind(kind)]
    return "\n".join(lines) + "\n"


def _kind(kind: type[Intervention]) -> list[str]:
    """Return the section of one kind."""
    paragraphs = (inspect.getdoc(kind) or "").split("\n\n")
    lines = [f"### `{kind.kind}`", ""]
    lines += "\n\n".join(" ".join(each.splitlines()) for each in paragraphs).splitlines()
    keys = _keys(kind)
    if keys:
        lines += ["", "| key | value | default |", "|---|---|---|", *keys]
    lines.append("")
    for flag in kind.flags:
        shown = f"{flag.name or f'--{kind.kind}'} {flag.metavar}".replace("|", "\\|")
        lines.append(f"* `{shown}`: {flag.help} E.g. `{flag.example}`.")
    options = [field.about.option for field in fields_of(kind) if field.about.option]
    lines += [f"* `{option.name}` goes with it. {option.help or ''}".rstrip() for option in options]
    lines.append(f"* Placebo: {kind.null.words if kind.null else 'none'}.")
    return lines


def _keys(kind: type[Intervention]) -> list[str]:
    """Return a row for each key of a fork file."""
    rows = []
    if issubclass(kind, Windowed):
        rows.append("| `window` | steps A:B, as text | the whole fork |")
    columns = []
    for field in fields_of(kind):
        columns += [", ".join(f"`{name}`" for name in c.names) for c in field.about.columns]
        if field.about.chooses:
            fills = field.about.chooses.fills
            rows.append(f"| `{field.name}` | in place of `{fills}`: a text that they hold | |")
        elif field.name not in ("first", "last", "sql"):
            rows.append(f"| `{field.name}` | {_value(field)} | {_default(field)} |")
    if columns:
        filled = " or ".join(f"`{f.name}`" for f in fields_of(kind) if f.about.columns)
        returned = ", or ".join(columns)
        rows.append(f"| `sql` | in place of {filled}: a SELECT that returns {returned} | |")
    return rows


def _value(field: Field) -> str:
    """Say what a fork file gives as a field's value."""
    if field.about.choices:
        return ", ".join(field.about.choices)
    written = ", written down when the fork is made" * field.about.settled
    return _type(field.type) + written


def _type(hint: Any) -> str:
    """Spell a type as a fork file's author would."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return _type(inner[0])
    if origin is not tuple:
        return WORDS[hint]
    if inner[-1] is not Ellipsis:
        return "[" + ", ".join(_type(each) for each in inner) + "]"
    return f"list of {_type(inner[0])}" if typing.get_args(inner[0]) else f"{_type(inner[0])}s"


def _default(field: Field) -> str:
    """Spell a default as TOML does; nothing where the key must be given."""
    if field.required or field.default in ("", (), None):
        return ""
    if isinstance(field.default, bool):
        return f"`{str(field.default).lower()}`"
    if isinstance(field.default, tuple):
        return "`" + str(list(field.default)).replace("'", '"') + "`"
    return f"`{field.default}`"
