"""The script that Streamlit runs. It stands in a folder of its own: beside a folder `pages`,
Streamlit would open the
pages without the frame."""

from app.main import frame

frame()
