"""The exact states of several steps, in order, each on from the one before where that is nearer.

for state in states_along(run, [360, 384, 400]): ...
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from forensics.step.state import TrainState
from forensics.train.run import Run


def states_along(run: Run, steps: Sequence[int]) -> Iterator[TrainState]:
    """Yield the state of each of these rising steps; it is the caller's until the next is asked
    for. Errors: missing.
    """
    state: TrainState | None = None
    for step in steps:
        if state is not None and _goes_on(run, state, step):
            run.replay(state, step)
        else:
            state = run.state_at(step)
        yield state


def _goes_on(run: Run, state: TrainState, step: int) -> bool:
    """Whether no checkpoint lies between the state and the step."""
    at = state.counters.step
    return at >= run.header.first_step and run.checkpoint_before(step) <= at
