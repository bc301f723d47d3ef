"""Models that were made elsewhere: a file of this folder that holds a FORMAT is one format.

found = recognised(Path("smol.gguf"))
found.read(Path("smol.gguf")).weights
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from pathlib import Path

from forensics.formats.protocol import Format


@functools.cache
def formats() -> tuple[Format, ...]:
    """Return every format, in the order of the files' names."""
    names = sorted(module.name for module in pkgutil.iter_modules(__path__))
    modules = [importlib.import_module(f"{__name__}.{name}") for name in names]
    return tuple(module.FORMAT for module in modules if hasattr(module, "FORMAT"))


def recognised(path: Path) -> Format | None:
    """Return the format of what lies at `path`; None where no format knows it.

    A format that takes any folder is asked last.
    """
    last = sorted(formats(), key=lambda known: known.takes_any_folder)
    return next((known for known in last if known.recognises(path)), None)
