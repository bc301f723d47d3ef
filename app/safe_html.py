"""What a page says, safely: verdict sentences, empty states, tables. Names and corpus text never
meet Markdown here.

verdict("Step 400: loss 3.268 → 4.750 nats/token · fast", "First to move: ", accent("L2.H0 attention
logit"), " …") nothing("No spike was recorded in this run.", "forensics spikes demo")

`verdict` and `note` escape every piece, make control, bidi and zero-width characters visible, and
only then draw it.
"""

from __future__ import annotations

import html
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import streamlit as st

from forensics.errors import ForensicsError
from forensics.visible import visible

if TYPE_CHECKING:
    import pyarrow

STYLE = """<style>
.block-container, [data-testid="stMainBlockContainer"] {
  padding: 1.2rem 2rem 3rem; max-width: 1560px; }
[data-testid="stVerticalBlock"] { gap: .35rem; }
.st-key-navigation { border-bottom: 1px solid rgba(128, 128, 128, .25);
  padding-bottom: .3rem; margin-bottom: .4rem; }
.fw h1 { font-size: 1.45rem; font-weight: 600; line-height: 1.3; padding: 0;
  margin: .1rem 0 .35rem; }
.fw h2 { font-size: 1rem; font-weight: 600; padding: 0; margin: .3rem 0 0; }
.fw p { font-size: 1rem; line-height: 1.55; margin: 0 0 .3rem; }
.fw p.hedge { opacity: .62; font-size: .88rem; }
.fw p.chart { font-size: .8rem; opacity: .8; margin: 0; }
.fw .accent { color: #b1440e; font-weight: 600; }
.fw.dark .accent { color: #ff9d5c; }
.fw code { font-size: .85em; padding: .1em .35em; border-radius: .25em;
  background: rgba(128, 128, 128, .14); font-family: monospace; }
.fw .amber { border-left: .3rem solid #d98e04; background: rgba(217, 142, 4, .13);
  padding: .5rem .8rem; }
</style>"""

HEAD_PX, ROW_PX = 38, 35  # of a table


@dataclass(frozen=True)
class Piece:
    """A part of a sentence: how it is set, and its text."""

    kind: str  # strong | accent | code
    text: str


def strong(text: object) -> Piece:
    """Set a part of a sentence in bold."""
    return Piece("strong", str(text))


def accent(text: object) -> Piece:
    """Set a part of a sentence in the colour of what matters most."""
    return Piece("accent", str(text))


def code(text: object) -> Piece:
    """Set a part of a sentence as code: a name or a command."""
    return Piece("code", str(text))


Part = str | Piece


def spoken(sentence: str) -> list[Part]:
    """Set what stands between backticks in a sentence of a command's answer as code."""
    between = sentence.split("`")
    if len(between) % 2 == 0:  # one without its partner: all of it is text
        return [sentence]
    return [code(text) if i % 2 else text for i, text in enumerate(between) if text]


def escaped(parts: Sequence[Part]) -> str:
    """Parts of a sentence as HTML in which nothing of their text is markup."""
    tags = {
        "strong": ("<b>", "</b>"),
        "accent": ('<span class="accent">', "</span>"),
        "code": ("<code>", "</code>"),
    }
    pieces = []
    for piece in parts:
        before, after = tags[piece.kind] if isinstance(piece, Piece) else ("", "")
        pieces.append(
            before + html.escape(visible(piece.text if isinstance(piece, Piece) else piece)) + after
        )
    return "".join(pieces)


def dark() -> bool:
    """Whether the reader's browser shows the dark theme."""
    return bool(st.context.theme.type == "dark")


def _draw(body: str) -> None:
    st.html(f'<div class="fw{" dark" if dark() else ""}">{body}</div>')


def verdict(title: str | Sequence[Part], *sentence: Part, hedge: Sequence[Part] = ()) -> None:
    """Draw the first thing on a page: what is the case, with numbers; below it the hedge."""
    body = f"<h1>{escaped([title] if isinstance(title, str) else title)}</h1>"
    body += f"<p>{escaped(sentence)}</p>" if sentence else ""
    body += f'<p class="hedge">{escaped(hedge)}</p>' if hedge else ""
    _draw(body)


def heading(*parts: Part) -> None:
    """Above a table or a list."""
    _draw(f"<h2>{escaped(parts)}</h2>")


def caption(*parts: Part) -> None:
    """One small line above a chart: what is drawn, in which unit."""
    _draw(f'<p class="chart">{escaped(parts)}</p>')


def note(*parts: Part) -> None:
    """Draw a sentence in the text."""
    _draw(f"<p>{escaped(parts)}</p>")


def amber(*parts: Part) -> None:
    """Draw a banner for what limits every number below it, such as *tolerance only*."""
    _draw(f'<p class="amber">{escaped(parts)}</p>')


def nothing(
    missing: str | Sequence[Part], command: str = "", hint: str | Sequence[Part] = ""
) -> None:
    """Draw an empty state: what is missing, and the command that makes it, filled in."""
    parts = [missing] if isinstance(missing, str) else missing
    _draw(
        f"<p>{escaped(parts)}</p>"
        + (
            f'<p class="hedge">{escaped(spoken(hint) if isinstance(hint, str) else hint)}</p>'
            if hint
            else ""
        )
    )
    if command:
        st.code(visible(command), language=None)


def failed(error: ForensicsError) -> None:
    """Draw an error of ours where the page's content would stand."""
    message = spoken(f"{error.message}.")
    nothing([strong("This cannot be shown: "), *message], hint=error.hint)


def frame(
    rows: Sequence[Mapping[str, Any]] | pyarrow.Table,
    *,
    key: str | None = None,
    tallest: int | None = None,
    **options: Any,
) -> Any:
    """Draw rows as `st.dataframe` without an index, text made visible; `options` are its own.

    `tallest`: pixels beyond which a table scrolls; a shorter one is as high as its rows.
    """
    import pyarrow as pa

    if not isinstance(rows, pa.Table):
        rows = pa.Table.from_pylist([dict(row) for row in rows])
    if tallest is not None:
        options["height"] = min(tallest, HEAD_PX + ROW_PX * rows.num_rows)
    return st.dataframe(readable(rows), key=key, hide_index=True, **options)


def choice(
    rows: Sequence[Mapping[str, Any]],
    chosen: int | None,
    *,
    key: str,
    on_select: Callable[[], None],
    **options: Any,
) -> Any:
    """Draw a table of which one row is chosen, on Back and reload too.

    `chosen` comes from the URL. `on_select` reads `picked_row(st.session_state[key], items)`; a
    click on the ticked row takes nothing away.
    """
    st.session_state[key] = {"selection": {"rows": [] if chosen is None else [chosen]}}
    return frame(rows, key=key, on_select=on_select, selection_mode="single-row", **options)


def readable(rows: pyarrow.Table) -> pyarrow.Table:
    """Return the table as a page may hold it: `plain`, text visible, decimals as plain numbers."""
    import pyarrow as pa

    rows = plain(rows)
    for index, field in enumerate(rows.schema):
        if pa.types.is_decimal(field.type):
            rows = rows.set_column(index, field.name, rows.column(index).cast(pa.float64()))
        elif _is_text(field.type):
            texts = rows.column(index).to_pylist()
            shown = [None if text is None else visible(text) for text in texts]
            if shown != texts:
                rows = rows.set_column(index, field, pa.array(shown, field.type))
    names = [visible(name) for name in rows.column_names]
    return rows.rename_columns(names) if names != rows.column_names else rows


def plain(rows: pyarrow.Table) -> pyarrow.Table:
    """Return the table with numbers, times and texts only; all else becomes text.

    A browser would draw what is inside lists and structs as it is, and a CSV file cannot hold them.
    """
    import pyarrow as pa

    for index, field in enumerate(rows.schema):
        if not (_is_text(field.type) or _is_simple(field.type)):
            texts = [
                None if value is None else text_of(value)
                for value in rows.column(index).to_pylist()
            ]
            rows = rows.set_column(index, field.name, pa.array(texts, pa.string()))
    return rows


def text_of(value: Any) -> str:
    """Write a value of SQL: text as it is, bytes with \\xff for what is none, lists as JSON."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    if type(value) in (list, tuple, dict):  # not an interval, which is a kind of tuple
        return json.dumps(
            value,
            ensure_ascii=False,
            default=lambda v: float(v) if isinstance(v, Decimal) else text_of(v),
        )
    return str(value)


def _is_text(type: pyarrow.DataType) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_string(type) or pa.types.is_large_string(type))


def _is_simple(type: pyarrow.DataType) -> bool:
    """Nothing in it can be text."""
    import pyarrow as pa

    t = pa.types
    simple = (
        t.is_null,
        t.is_boolean,
        t.is_integer,
        t.is_floating,
        t.is_decimal,
        t.is_date,
        t.is_time,
        t.is_timestamp,
    )
    return any(is_it(type) for is_it in simple)
