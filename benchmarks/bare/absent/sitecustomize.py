"""For `benchmarks/gpu.sh --dry`: hides the packages that a bare GPU machine lacks, as if they were
not installed.
"""

import sys
from importlib.machinery import PathFinder

ABSENT = {
    "altair",
    "duckdb",
    "gguf",
    "hypothesis",
    "jupytext",
    "marimo",
    "nbclient",
    "pandas",
    "playwright",
    "streamlit",
    "transformer_lens",
    "xdist",
}


class Bare(PathFinder):
    """A path finder that finds none of the absent packages."""

    @classmethod
    def find_spec(cls, fullname, path=None, target=None):
        """Find a module, unless it is absent."""
        return (
            None
            if fullname.partition(".")[0] in ABSENT
            else super().find_spec(fullname, path, target)
        )


sys.meta_path[sys.meta_path.index(PathFinder)] = Bare
