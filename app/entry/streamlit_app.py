"""The script that Streamlit runs.

It stands in a folder of its own: Streamlit puts the script's folder first on the import path, where
the app's own modules would hide others of their name.
"""

from app.main import frame

frame()
