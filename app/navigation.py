"""The pages: the modules and packages of `app/views` that have a TITLE, and links between them.

link("spikes", "Its spikes", run="demo", spike=400)     # to another page
run = chosen_run()                      # the run of the URL, or of the list on top

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
    "text",
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
    for module_info in pkgutil.iter_modules(app.views.__path__):
        module = importlib.import_module(f"app.views.{module_info.name}")
        title = getattr(module, "TITLE", None)
        if title:
            path = getattr(module, "PATH", module_info.name)
            listed.append(View(module_info.name, title, module.ORDER, path, module_info.ispkg))
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
    """Draw a link to another page, with this selection but for `changes`.

    `label` is Markdown: our own words and numbers only.
    """
    if page in registered():
        (container or st).page_link(
            registered()[page], label=label, query_params=parameters(shown(), **changes)
        )


def parameters(selection: Selection, **changes: Any) -> dict[str, str]:
    """Return the URL of another page: this selection with `changes`, less what is this page's."""
    return selection.replacing(**dict.fromkeys(OF_A_PAGE)).replacing(**changes).params()


def chosen_run(of_model: bool = False) -> Selection | None:
    """Return the selection with its run filled in, under a list to pick another from.

    A page `of_model` shows what takes a run's model or data: of a log alone it says so.

    It is the run of the URL; where it names none, the newest that is no fork. Nothing is written to
    the URL but by the list; the page's callbacks and links name the run that is shown. None, with
    what is missing drawn, where there is no run.
    """
    st.session_state.pop(SHOWN, None)
    selection, names = here(), runs_in(data.runs_folder())
    for problem in selection.problems:
        safe_html.nothing([safe_html.strong("Ignored in the URL: "), problem])
    if not names:
        safe_html.nothing(
            f"There is no run in {data.runs_folder()} yet.",
            "forensics demo",
            "It trains a small model on text of this machine. This page fills while it trains.",
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
    if of_model and data.is_log_alone(str(selection.run)):
        safe_html.verdict(
            [safe_html.code(str(selection.run)), " is a log alone"],
            "What another trainer logged of it is here, and neither its model nor its data: no step"
            " of it can be read or trained again.",
        )
        link("spikes", "Its spikes", run=selection.run)
        return None
    return selection


def _newest() -> str | None:
    names = [header["name"] for header in data.headers() if not header.get("parent")]
    return names[-1] if names else None


def guarded(page: Any) -> None:
    """Run a page's function; an error of ours becomes a sentence on the page, never a traceback."""
    try:
        page()
    except ForensicsError as e:
        safe_html.failed(e)
