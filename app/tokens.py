"""A sequence as its tokens: each a span with a background of seven strengths, underlined where it
is marked, clickable.

    tokens(["def", " main", "():\\n"], [0, 3, 6], underlined={2}, key="tokens", chosen=1,
    on_click=clicked) def clicked():
        goto(position=clicked_token(st.session_state["tokens"]))

Texts reach the page as data and are set with `textContent`: nothing in them is markup. What cannot
be seen is shown: ⟨U+202E⟩, ↵ for a new line, → for a tab.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from forensics.visible import visible

LEVELS = 7  # 0: no colour … 6: the strongest

CSS = """
.tokens { font: 13px/1.75 "Source Code Pro", ui-monospace, monospace;
  white-space: pre-wrap; overflow-wrap: anywhere; }
.tokens span { cursor: pointer; border-radius: 2px; padding: 1px 0; outline-offset: 1px; }
.tokens span:hover { outline: 1px solid currentColor; }
.tokens span.chosen { outline: 2px solid currentColor; }
.tokens span.under { text-decoration: underline 2px #b00020; text-underline-offset: 3px; }
.tokens.dark span.under { text-decoration-color: #ffd166; }
.tokens .c0 { background: transparent; }
.tokens .c1 { background: rgba(226, 88, 0, .12); }
.tokens .c2 { background: rgba(226, 88, 0, .24); }
.tokens .c3 { background: rgba(226, 88, 0, .38); }
.tokens .c4 { background: rgba(226, 88, 0, .54); }
.tokens .c5 { background: rgba(226, 88, 0, .72); }
.tokens .c6 { background: rgba(226, 88, 0, .92); }
.tokens .c-1 { background: rgba(0, 114, 178, .14); }
.tokens .c-2 { background: rgba(0, 114, 178, .26); }
.tokens .c-3 { background: rgba(0, 114, 178, .40); }
.tokens .c-4 { background: rgba(0, 114, 178, .56); }
.tokens .c-5 { background: rgba(0, 114, 178, .74); }
.tokens .c-6 { background: rgba(0, 114, 178, .92); }
"""

JS = """
export default function (component) {
  const { data, parentElement, setTriggerValue } = component;
  const root = parentElement.querySelector(".tokens");
  root.className = "tokens" + (data.dark ? " dark" : "");
  root.replaceChildren(...data.tokens.map(([text, level, under, title], i) => {
    const span = document.createElement("span");
    span.textContent = text;
    span.title = title;
    span.dataset.position = String(i);
    span.className = "c" + level + (under ? " under" : "") + (i === data.chosen ? " chosen" : "");
    return span;
  }));
  root.onclick = (event) => {
    const at = event.target.dataset ? event.target.dataset.position : undefined;
    if (at !== undefined) setTriggerValue("clicked", Number(at));
  };
  return () => { root.onclick = null; };
}
"""


@functools.cache
def _component() -> Any:
    import streamlit as st

    return st.components.v2.component(
        "forensics_tokens", html='<div class="tokens"></div>\n', css=CSS, js=JS
    )


def shown(text: str) -> str:
    """Return a token as it is drawn: new lines and tabs are seen too, an empty one is ∅."""
    return visible(text).replace("\n", "↵\n").replace("\t", "→\t") or "∅"


def level(loss: float | None, vocabulary: int) -> tuple[int, bool]:
    """(strength, underlined) of a token by its loss in nats: 0 … ln V on 0 … 6, above ln V (worse
    than guessing) underlined.
    """
    if loss is None:
        return 0, False
    top = math.log(vocabulary)
    if not math.isfinite(loss):
        return LEVELS - 1, True
    return min(LEVELS - 1, max(0, int(LEVELS * loss / top))), loss > top


def tokens(
    texts: Sequence[str],
    levels: Sequence[int],
    *,
    key: str,
    underlined: Collection[int] = (),
    titles: Sequence[str] | None = None,
    chosen: int | None = None,
    on_click: Callable[[], None] | None = None,
) -> Any:
    """Draw the tokens; a negative level is blue. `titles`: what a pointer at rest shows; `on_click`
    reads `clicked_token(st.session_state[key])`.
    """
    from app.safe_html import dark

    assert len(texts) == len(levels) and (titles is None or len(titles) == len(texts))
    rows = [
        [shown(text), int(strength), i in underlined, visible(titles[i]) if titles else ""]
        for i, (text, strength) in enumerate(zip(texts, levels))
    ]
    data = {"tokens": rows, "dark": dark(), "chosen": chosen}
    return _component()(key=key, data=data, on_clicked_change=on_click or (lambda: None))


def clicked_token(state: Any) -> int | None:
    """Return the position that was clicked, of the component's state; None where none was."""
    at = state.get("clicked") if isinstance(state, Mapping) else getattr(state, "clicked", None)
    return at if isinstance(at, int) and at >= 0 else None
