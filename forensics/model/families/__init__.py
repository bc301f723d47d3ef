"""The model families, one file each: FAMILIES is made from the files of this folder."""

from __future__ import annotations

import importlib
import pkgutil

from forensics.model.family import Family

FAMILIES: dict[str, Family] = {
    name: importlib.import_module(f"{__name__}.{name}").FAMILY
    for name in sorted(module.name for module in pkgutil.iter_modules(__path__))
}
