"""SkipStep's window as it would be at a state, had it watched the run: of the steps that were
recorded.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from forensics.errors import ForensicsError
from forensics.step.skip_step import WINDOW, SkipWindow

if TYPE_CHECKING:
    from forensics.train.run import Run


def recorded_window(run: Run, state: int) -> SkipWindow:
    """Return the window of the last finite losses and gradient norms before `state`, along the
    run's lineage.

    A step that computed nothing has no values, one that is not finite does not enter, as in
    `SkipWindow.push`. Errors: missing, where a step that belongs to it was not recorded.
    """
    losses: list[float] = []  # the newest first
    grad_norms: list[float] = []
    holder: Run | None = run
    table = None
    step = state
    while step > 0 and min(len(losses), len(grad_norms)) < WINDOW:
        step -= 1
        while holder is not None and holder.parent is not None and step < holder.header.first_step:
            holder, table = holder.parent, None
        assert holder is not None
        if table is None:
            columns = holder.table("steps", ["step", "loss", "grad_norm"]).to_pydict()
            pairs = zip(columns["loss"], columns["grad_norm"])
            table = dict(zip(columns["step"], pairs))
        if step not in table:
            raise ForensicsError(
                "missing",
                f"skip-step: wanted the recorded loss and gradient norm of step {step} of"
                f" {holder.name}, found none",
                f"it begins with the {WINDOW} values before the fork: start where they are"
                " recorded, step by step",
            )
        loss, grad_norm = table[step]
        for values, value in ((losses, loss), (grad_norms, grad_norm)):
            if value is not None and math.isfinite(value) and len(values) < WINDOW:
                values.append(value)
    return SkipWindow(tuple(reversed(losses)), tuple(reversed(grad_norms)))
