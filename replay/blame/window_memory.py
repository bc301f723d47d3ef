"""What the influence of a window takes in memory, and the longest window that fits."""

from __future__ import annotations

import math
from pathlib import Path

import torch

from forensics.errors import ForensicsError
from forensics.model.loss import CHUNK, SHORT
from forensics.train.run import Run
from replay.blame.adjoint import activation_bytes, piece_size

DTYPES = {"float32": torch.float32, "float64": torch.float64}
HOLD = 2 << 30  # bytes of steps that are kept whole, which saves the second replay
STATE_COPIES = 3  # of the parameters in a kept state: itself and two moments
STEP_COPIES = 4  # in a taped step: parameters, gradients, two moments


def segment(parameters: int, steps: int, itemsize: int = 4) -> int:
    """Return the steps between two kept states.

    All of them where they fit into HOLD, else what keeps STATE_COPIES a state and STEP_COPIES a
    step few.
    """
    if STEP_COPIES * itemsize * parameters * steps <= HOLD:
        return steps
    return max(1, min(steps, round(math.sqrt(STATE_COPIES / STEP_COPIES * steps))))


def memory_needed(run: Run, steps: int, precision: str = "float32") -> int:
    """Return the bytes that `influence` over `steps` steps takes at its peak.

    The process's own few hundred megabytes are left out.
    """
    itemsize, shape, T = DTYPES[precision].itemsize, run.shape, run.recipe.data.cut.targets
    parameters = run.header.parameters
    length = segment(parameters, steps, itemsize)
    # kept states (the start is one) and the steps between two
    copies = STATE_COPIES * math.ceil(steps / length) + STEP_COPIES * length
    copies += 3 + 3 + 3  # the state that walks, the adjoint, and gradients with their tangents
    sequences = min(piece_size(shape, T, itemsize), run.recipe.train.batch)
    head = 4 * (CHUNK + SHORT) * shape.vocabulary + 2 * T * sequences * shape.width
    activations = sequences * activation_bytes(shape, T, itemsize)
    return itemsize * (copies * parameters + head) + activations


def longest_window(run: Run, free: int, precision: str = "float32") -> int:
    """Return the most steps whose influence fits into `free` bytes; 0 where not one does."""
    low, high = 0, 1
    while high <= run.header.steps and memory_needed(run, high, precision) <= free:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        if memory_needed(run, middle, precision) <= free:
            low = middle
        else:
            high = middle
    return min(low, run.header.steps)


def require_memory(run: Run, steps: int, precision: str) -> None:
    """Refuse a window that does not fit. Errors: memory."""
    free, needed = free_memory(run), memory_needed(run, steps, precision)
    if free is not None and needed > free:
        fits = longest_window(run, free, precision)
        raise ForensicsError(
            "memory",
            f"a window of {steps} steps of {run.name} needs {needed / 2**30:.1f} GiB, found"
            f" {free / 2**30:.1f} GiB free",
            f"--window {fits} fits" if fits else "--method bisect needs less",
        )


def free_memory(run: Run) -> int | None:
    """Return the free bytes of the run's device; None where this system does not tell."""
    if run.header.device == "cuda":
        return int(torch.cuda.mem_get_info()[0])
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(
            int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")
        )
    except (OSError, StopIteration, ValueError):
        return None
