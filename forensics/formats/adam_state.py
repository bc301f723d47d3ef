"""torch AdamW's state as a trainer saves it: moments by the number of each parameter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from forensics.errors import ForensicsError
from forensics.formats.containers.stored import Stored
from forensics.formats.containers.torch_zip import plain_fields
from forensics.formats.foreign_run import LazyTensor

MOMENTS = ("exp_avg", "exp_avg_sq")


class AdamState(NamedTuple):
    """Both moments under the trainer's names, and how many updates were made."""

    moments: dict[str, dict[str, LazyTensor]]  # exp_avg, exp_avg_sq → name → tensor
    updates: int | None


def adam_state(optimizer: Any, names: Sequence[str], label: str) -> AdamState | None:
    """Return the state of a saved optimizer whose parameters are `names`, in its numbering.

    None where it has no state yet. Errors: data, for another number of parameters.
    """
    state = plain_fields(plain_fields(optimizer).get("state"))
    if not state:
        return None
    if set(state) != set(range(len(names))):
        raise ForensicsError(
            "data",
            f"{label}: wanted an optimizer's state of {len(names)} parameters, found {len(state)}",
            "do model and optimizer belong together?",
        )
    moments: dict[str, dict[str, LazyTensor]] = {moment: {} for moment in MOMENTS}
    updates = set()
    for id, name in enumerate(names):
        fields = plain_fields(state[id])
        for moment in MOMENTS:
            tensor = fields.get(moment)
            if not isinstance(tensor, Stored):
                raise ForensicsError(
                    "data", f"{label}: wanted {moment} of {name}, found none", "is it AdamW's?"
                )
            moments[moment][name] = tensor.lazy(f"{name}.{moment}")
        count = fields.get("step")
        updates.add(int(count.read().reshape(-1)[0]) if isinstance(count, Stored) else count)
    if len(updates) > 1:
        raise ForensicsError(
            "data",
            f"{label}: its parameters were updated {sorted(map(str, updates))[:4]} times",
            "only a run that updates all of them at each step is read",
        )
    count = updates.pop()
    return AdamState(moments, count if isinstance(count, int) else None)
