"""For `benchmarks/gpu.sh --dry`: hides the packages that a bare GPU machine lacks, so that importing one is an error."""

import sys
from importlib.abc import MetaPathFinder

ABSENT = {"altair", "duckdb", "gguf", "hypothesis", "jupytext", "marimo", "nbclient", "pandas", "playwright", "streamlit",
          "transformer_lens", "xdist"}  # fmt: skip


class Absent(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ABSENT:
            raise ModuleNotFoundError(f"No module named {name!r} (hidden by benchmarks/gpu.sh --dry)", name=name)
        return None


sys.meta_path.insert(0, Absent())
