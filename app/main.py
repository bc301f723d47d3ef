"""The app's frame: which pages there are, on top, each keeping the run that is looked at.

forensics app --port 8501        # Streamlit runs app/entry/streamlit_app.py, and that this frame

The row of links is ours: Streamlit's own drops the query, and with it the run, on the way from page
to page.
"""

from __future__ import annotations

import streamlit as st

from app import navigation, safe_html
from app.selection import here

KEPT = (
    "run",
    "spike",
)  # on the way from page to page by the row on top; links inside a page keep more


def frame() -> None:
    """Draw the row of pages, then the page of the URL."""
    st.set_page_config(
        page_title="forensics", page_icon="🔬", layout="wide", initial_sidebar_state="collapsed"
    )
    st.html(safe_html.STYLE)
    there = navigation.registered()
    current = st.navigation(list(there.values()), position="hidden")
    selection = {key: value for key, value in here().params().items() if key in KEPT}
    with st.container(horizontal=True, gap="small", key="navigation"):
        for page in there.values():
            st.page_link(page, query_params=selection)
    current.run()
