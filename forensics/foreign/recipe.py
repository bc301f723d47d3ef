"""The recipe of a run made elsewhere: what its own configuration says, and what flags override."""

from __future__ import annotations

import copy
from typing import Any

from forensics import config
from forensics.foreign.options import ImportOptions
from forensics.formats.foreign_run import ForeignRun


def recipe_of(foreign: ForeignRun, options: ImportOptions, last: int) -> config.Recipe:
    """Build the recipe of a run whose last known step is `last`. Errors: config."""
    raw: dict[str, Any] = copy.deepcopy(foreign.recipe)
    data, train = raw.setdefault("data", {}), raw.setdefault("train", {})
    if options.sequence_length is not None:
        data["sequence_length"] = options.sequence_length
    if options.batch is not None:
        train["batch"] = options.batch
        if options.batch % (train.get("micro_batch") or options.batch):
            del train["micro_batch"]
    train.setdefault("steps", max(last, 1))
    return config.from_dict(config.with_settings(raw, options.settings))


def says(foreign: ForeignRun, options: ImportOptions, section: str, key: str) -> bool:
    """Whether a key was said by the run's configuration or a flag, and is not our default."""
    if key in foreign.recipe.get(section, {}) or getattr(options, key, None) is not None:
        return True
    dotted = f"{section}.{key}"
    return any(setting.partition("=")[0].strip() == dotted for setting in options.settings)
