"""The pages: each a module or package of `app/views` that has a TITLE; the row on top is made from them.

link("spikes", "Its spikes", run="demo", spike=400)       # to another page, with the selection
run = chosen_run()                                        # the run of the URL, or of the picker on top

A view is `app/views/<name>.py`, or a folder with `page.py`: TITLE and ORDER (its place in the row)
stand in the module or the folder's `__init__.py`, `page()` draws it. Its path is its name, or PATH.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from dataclasses import dataclass, replace
from typing import Any

import streamlit as st

import app.views
from app import data, safe_html
from app.controls import pick
from app.selection import SHOWN, Selection, goto, here, shown, shows
from forensics.errors import ForensicsError
from forensics.store.reader import runs_in

OF_A_PAGE = (
    "metric",
    "kind",
    "query",
    "values",
    "sql",
    "part",
)  # each page has its own: a link to another drops them


@dataclass(frozen=True)
class View:
    """A page as its files declare it. `path` is its place in the URL; the first page has none."""

    name: str
    title: str
    order: int
    path: str
    package: bool

    def draw(self) -> None:
        """Draw the page; an error of ours becomes a sentence on it, never a traceback."""
        module = f"app.views.{self.name}" + (".page" if self.package else "")
        guarded(importlib.import_module(module).page)


@functools.cache
def views() -> dict[str, View]:
    """Return name → page in the order of the row on top, from the files that exist."""
    listed = []
    for found in pkgutil.iter_modules(app.views.__path__):
        module = importlib.import_module(f"app.views.{found.name}")
        title = getattr(module, "TITLE", None)
        if title:
            path = getattr(module, "PATH", found.name)
            listed.append(View(found.name, title, module.ORDER, path, found.ispkg))
    return {view.name: view for view in sorted(listed, key=lambda view: (view.order, view.name))}


def registered() -> dict[str, Any]:
    """Return name → Streamlit's page; the first is the default, which has no path of its own."""
    first = next(iter(views()))
    return {
        view.name: st.Page(
            view.draw, title=view.title, url_path=view.path, default=view.name == first
        )
        for view in views().values()
    }


def path_of(name: str) -> str:
    """Return a page's path in the URL: none for the first."""
    return "" if name == next(iter(views())) else views()[name].path


def link(page: str, label: str, *, container: Any = None, **changes: Any) -> None:
    """A link to another page with this selection but for `changes`. `label` is Markdown: our own
    words and numbers only.
    """
    if page in registered():
        (container or st).page_link(
            registered()[page], label=label, query_params=parameters(shown(), **changes)
        )


def parameters(selection: Selection, **changes: Any) -> dict[str, str]:
    """The URL of another page: the selection with `changes`, without what only the page that is
    left has.
    """
    return selection.replacing(**dict.fromkeys(OF_A_PAGE)).replacing(**changes).params()


def chosen_run() -> Selection | None:
    """The selection with its run filled in, under a picker; None, with what is missing said, where
    there is no such run.

    The run of the URL; where it names none, the newest that is no fork. Nothing is written to the
    URL but by the picker; the page's callbacks and links name the run that is shown.
    """
    st.session_state.pop(SHOWN, None)
    selection, names = here(), runs_in(data.runs_folder())
    for problem in selection.problems:
        safe_html.nothing([safe_html.strong("Left out of the URL: "), problem])
    if not names:
        safe_html.nothing(
            f"There is no run in {data.runs_folder()} yet.",
            "forensics demo",
            "It trains a small model on text that is on this machine; this page fills while it"
            " does.",
        )
        return None
    if selection.run is None:
        selection = replace(selection, run=_newest() or names[-1])
    elif selection.run not in names:
        safe_html.nothing(
            ["No run here is called ", safe_html.code(selection.run), "."], "forensics list"
        )
        selection = selection.replacing(run=_newest() or names[-1])
    shows(run=selection.run)
    pick(
        "Run",
        names,
        str(selection.run),
        key="run-picker",
        choose=lambda name: goto(run=name),
        width=280,
    )
    return selection


def _newest() -> str | None:
    own = [h["name"] for h in data.headers() if not h.get("parent")]
    return own[-1] if own else None


def guarded(page: Any) -> None:
    """Run a page's function; an error of ours becomes a sentence on the page, never a traceback."""
    try:
        page()
    except ForensicsError as e:
        safe_html.failed(e)
