"""The version: its one source, which pyproject.toml reads."""

__version__ = "0.1.0"
