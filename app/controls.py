"""Choosing one of several, with the choice in the URL: a list to pick from, a row to switch along.

    pick("Run", names, run, key="run-picker", choose=lambda name: goto(run=name))
    switch("Part", {"fork": "A fork", "build": "Build a fork"}, part, key="part", choose=…)

The URL says what is chosen, so the widget is set from it each time; `choose` writes the URL.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import streamlit as st

from forensics.visible import visible

T = TypeVar("T")


def pick(
    label: str,
    options: Sequence[T],
    chosen: T,
    *,
    key: str,
    choose: Callable[[T], None],
    name: Callable[[T], str] = str,
    **layout: Any,
) -> None:
    """Draw a list of which one is chosen; `name` is what an option is called, text made visible."""
    st.session_state[key] = chosen
    st.selectbox(
        label,
        options,
        key=key,
        format_func=lambda option: visible(name(option)),
        on_change=lambda: choose(st.session_state[key]),
        **{"label_visibility": "collapsed", **layout},
    )


def switch(
    label: str, names: Mapping[str, str], chosen: str, *, key: str, choose: Callable[[str], None]
) -> None:
    """Draw a row of options of which one is chosen; `names` are Markdown: our own words."""
    st.session_state[key] = chosen
    st.segmented_control(
        label,
        list(names),
        key=key,
        format_func=names.__getitem__,
        label_visibility="collapsed",
        on_change=lambda: choose(st.session_state[key] or chosen),
    )
