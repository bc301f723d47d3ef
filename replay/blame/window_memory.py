"""What a window's influence takes in memory."""

from __future__ import annotations

import math

import torch

from forensics.model.loss import CHUNK, SHORT
from forensics.step.state import TrainState
from forensics.train.run import Run
from replay.blame.adjoint import activation_bytes, piece

DTYPES = {"float32": torch.float32, "float64": torch.float64}
HOLD = 2 << 30  # bytes of steps that are kept whole, which saves the second replay


def start_itemsize(state: TrainState) -> int:
    return next(iter(state.params.values())).element_size()


def segment(parameters: int, steps: int, itemsize: int = 4) -> int:
    """Steps between kept states: all at once where they fit into HOLD, else what keeps 3 copies a
    state and 4 a step few.
    """
    if 4 * itemsize * parameters * steps <= HOLD:
        return steps
    return max(1, min(steps, round(math.sqrt(0.75 * steps))))


def memory_needed(run: Run, steps: int, precision: str = "float32") -> int:
    """Bytes that `influence` over `steps` steps takes at its peak, the process's own few hundred
    megabytes left out.
    """
    itemsize, shape, T = DTYPES[precision].itemsize, run.shape, run.recipe.data.sequence_length
    parameters = run.header.parameters
    length = segment(parameters, steps, itemsize)
    copies = (
        3 * math.ceil(steps / length) + 4 * length
    )  # kept states (the start is one) and the steps between two
    copies += 3 + 3 + 3  # the state that walks, the adjoint, and gradients with their tangents
    sequences = min(piece(shape, T, itemsize), run.recipe.train.batch)
    head = 4 * (CHUNK + SHORT) * shape.vocabulary + 2 * T * sequences * shape.width
    return itemsize * (copies * parameters + head) + sequences * activation_bytes(
        shape, T, itemsize
    )


def longest_window(run: Run, bytes_: int, precision: str = "float32") -> int:
    """The most steps whose influence fits into so many bytes; 0 where not one does."""
    low, high = 0, 1
    while high <= run.header.steps and memory_needed(run, high, precision) <= bytes_:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (
            (middle, high) if memory_needed(run, middle, precision) <= bytes_ else (low, middle)
        )
    return min(low, run.header.steps)
