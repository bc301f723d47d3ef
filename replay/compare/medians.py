"""Median and spread of measurements of which some are missing."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from forensics.detect.windows import MAD_TO_SIGMA


def median_of_present(values: Sequence[float | None]) -> float | None:
    """Return the median of the values that are there; None where none is."""
    present = [value for value in values if value is not None]
    return float(np.median(present)) if present else None


def spread_of_present(values: Sequence[float | None]) -> float | None:
    """Return 1.4826 · median |x − median| of the values that are there; None where none is."""
    present = np.array([value for value in values if value is not None])
    if not len(present):
        return None
    return float(MAD_TO_SIGMA * np.median(np.abs(present - np.median(present))))
