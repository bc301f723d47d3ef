"""Moments for a state that was saved without any, made of the batches before it.

The N batches before are read at the state's own parameters, which they do not move: first and
second moment become the decayed means of N gradients, and Adam's bias correction counts N updates.
They are not the moments that the run had, whose gradients were taken at the parameters of then.
"""

from __future__ import annotations

import dataclasses

from forensics.errors import ForensicsError
from forensics.model.step_model import StepModel
from forensics.step.batch import BatchStream
from forensics.step.policy import Policy, StepPolicy
from forensics.step.state import Counters, TrainState
from forensics.train.advance import fold


def warmed(
    state: TrainState, batches: int, stream: BatchStream, policy: Policy, model: StepModel
) -> TrainState:
    """Return the state with moments of the N batches before it. Errors: usage, mismatch."""
    step = state.counters.step
    if batches > step:
        raise ForensicsError(
            "usage",
            f"--warm-moments: wanted {batches} batches before state {step}, found {step}",
            f"--warm-moments {step}" if step else "start from another state",
        )

    def held(counters: Counters) -> StepPolicy:
        return dataclasses.replace(policy(counters), update="hold", skip_step=False)

    warm = TrainState.start(state.params)
    warm.counters = Counters(step - batches, step - batches, 0)
    fold(warm, stream, held, step, model)
    warm.counters = dataclasses.replace(warm.counters, schedule=state.counters.schedule)
    warm.window = state.window
    return warm
