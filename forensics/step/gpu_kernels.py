"""Load Triton kernels late: a build of torch without Triton has none, and then does without."""

from __future__ import annotations

import functools
import importlib
from types import ModuleType


@functools.cache
def load_kernels(module: str) -> ModuleType | None:
    """Import a module of Triton kernels; None where Triton is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError:
        return None
