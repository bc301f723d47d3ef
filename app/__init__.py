"""The Streamlit app's home."""
