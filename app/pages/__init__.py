"""The pages, in the order of the navigation: each a file here, registered only if it exists.

link("spikes", "Its spikes", run="demo", spike=400)       # to another page, with the selection; nothing without that page
run = chosen_run()                                        # the run of the URL, or of the picker on top
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import streamlit as st

from app import data, show
from app.selection import SHOWN, Selection, goto, here, shown, shows
from forensics.errors import ForensicsError
from forensics.store.reader import runs_in

FOLDER = Path(__file__).parent
TITLES = {
    "runs": "Runs",
    "spikes": "Spikes",
    "batch": "Batch",
    "attention": "Attention",
    "microscope": "Microscope",
    "forks": "Forks",
    "tokens": "Tokens",
    "sql": "SQL",
}
OF_A_PAGE = (
    "metric",
    "kind",
    "query",
    "values",
    "sql",
    "part",
)  # each page has its own: a link to another drops them


def registered() -> dict[str, Any]:
    """Name → page, of those whose file exists; the first is the default, which has no path of its
    own.
    """
    there = [name for name in TITLES if (FOLDER / f"{name}.py").is_file()]
    first, *rest = there
    made = {first: st.Page(FOLDER / f"{first}.py", title=TITLES[first], default=True)}
    return made | {n: st.Page(FOLDER / f"{n}.py", title=TITLES[n], url_path=n) for n in rest}


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
    return selection.but(**dict.fromkeys(OF_A_PAGE)).but(**changes).params()


def chosen_run() -> Selection | None:
    """The selection with its run filled in, under a picker; None, with what is missing said, where
    there is no such run.

    The run of the URL; where it names none, the newest that is no fork. Nothing is written to the
    URL but by the picker; the page's callbacks and links name the run that is shown.
    """
    st.session_state.pop(SHOWN, None)
    selection, names = here(), runs_in(data.runs_folder())
    for problem in selection.problems:
        show.nothing([show.strong("Left out of the URL: "), problem])
    if not names:
        show.nothing(
            f"There is no run in {data.runs_folder()} yet.",
            "forensics demo",
            "It trains a small model on text that is on this machine; this page fills while it"
            " does.",
        )
        return None
    if selection.run is None:
        selection = replace(selection, run=_newest() or names[-1])
    elif selection.run not in names:
        show.nothing(["No run here is called ", show.code(selection.run), "."], "forensics list")
        selection = selection.but(run=_newest() or names[-1])
    shows(run=selection.run)
    st.session_state["run-picker"] = selection.run
    st.selectbox(
        "Run",
        names,
        key="run-picker",
        label_visibility="collapsed",
        width=280,
        on_change=lambda: goto(run=st.session_state["run-picker"]),
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
        show.failed(e)
