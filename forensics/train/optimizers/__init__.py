"""Every update rule by its name in a recipe, `train.update_rule`; one file each.

A new rule is a file here that holds a `RULE`: its update, and the vector–Jacobian product of it.
"""

from __future__ import annotations

from importlib import import_module

from forensics.config import UPDATE_RULES
from forensics.train.optimizers.rule import UpdateRule

RULES: dict[str, UpdateRule] = {
    name: import_module(f"{__name__}.{name}").RULE for name in UPDATE_RULES
}
