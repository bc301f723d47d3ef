"""Moments that the Trainer of transformers saved: optimizer.pt beside the weights, as data.

torch's AdamW numbers parameters in the order in which its groups name them: matrices, which decay,
then gains and biases, which do not, each in the order of the model's own parameters
(huggingface/transformers src/transformers/trainer.py, `create_optimizer`). Every moment's
shape is held against its parameter's; where one does not fit, no moments are taken.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from forensics.errors import ForensicsError, first_line
from forensics.formats.containers.stored import Stored
from forensics.formats.containers.torch_zip import read_torch_zip
from forensics.formats.foreign_run import LazyTensor
from forensics.model.hugging_face import stored_parts
from forensics.model.shape import Shape

if TYPE_CHECKING:
    from torch import Tensor

    from forensics.model.family import StoredPart

OPTIMIZER = "optimizer.pt"
SAVED_AS = {"embed_out.weight": "lm_head.weight"}  # GPT-NeoX's parameter has another name in memory


@dataclass(frozen=True)
class TrainerMoments:
    """Moments under our names, and what the groups say of the optimizer; or why there are none."""

    exp_avg: dict[str, LazyTensor] | None = None
    exp_avg_sq: dict[str, LazyTensor] | None = None
    updates: int | None = None
    train: dict[str, Any] = dataclasses.field(default_factory=dict)  # keys of a recipe's [train]
    note: str = ""


def moments_beside(folder: Path, shape: Shape, config: Mapping[str, Any]) -> TrainerMoments:
    """Read the moments of a checkpoint-N folder; no tensor of them is read yet."""
    path = folder / OPTIMIZER
    if not path.is_file():
        return TrainerMoments()
    try:
        saved = read_torch_zip(path)
        groups, state = saved["param_groups"], saved["state"]
        order = parameter_order(config)
        place = {id: name for group in groups for id, name in _named(group, groups, order)}
        return _moments(path, shape, state, place, groups)
    except ForensicsError as e:
        return TrainerMoments(note=f"{folder.name}: no moments: {e.message}")
    except (KeyError, TypeError, IndexError, AttributeError, ValueError) as e:
        return TrainerMoments(
            note=f"{folder.name}: no moments: {OPTIMIZER} is not torch's AdamW over this model's "
            f"parameters ({type(e).__name__}: {first_line(e)})"
        )


def parameter_order(config: Mapping[str, Any]) -> dict[str, int]:
    """Return the parameters of transformers' class in their order, with their dimensions."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    made = AutoConfig.for_model(**config)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(made)
    return {name: parameter.ndim for name, parameter in model.named_parameters()}


def _named(
    group: dict[str, Any], groups: list[dict[str, Any]], order: dict[str, int]
) -> list[tuple[int, str]]:
    """Pair the ids of a group with names: of all, or of its kind where there are two groups."""
    if len(groups) == 1:
        names = list(order)
    elif len(groups) == 2:
        decays = group is groups[0]
        names = [name for name, dimensions in order.items() if (dimensions > 1) == decays]
    else:
        raise ValueError(f"wanted one or two groups, found {len(groups)}")
    if len(names) != len(group["params"]):
        raise ValueError(f"a group of {len(group['params'])} parameters, wanted {len(names)}")
    return list(zip(group["params"], names))


def _moments(
    path: Path,
    shape: Shape,
    state: dict[int, dict[str, Any]],
    place: dict[int, str],
    groups: list[dict[str, Any]],
) -> TrainerMoments:
    by_name = {name: state[id] for id, name in place.items()}
    moments: dict[str, dict[str, LazyTensor]] = {"exp_avg": {}, "exp_avg_sq": {}}
    for ours, part in stored_parts(shape).items():
        name = next(n for n in (part.name, SAVED_AS.get(part.name, "")) if n in by_name)
        for kind, tensors in moments.items():
            stored: Stored = by_name[name][kind]
            if tuple(stored.shape) != part.shape:
                raise ValueError(f"{kind} of {name} has shape {stored.shape}, not {part.shape}")
            whole = stored.lazy(f"{kind} of {name}")
            size = whole.shape if whole.shape == part.shape else part.shape
            tensors[ours] = dataclasses.replace(
                whole, shape=_cut_shape(part, size), read=functools.partial(_read_part, whole, part)
            )
    steps = {_step(entry["step"]) for entry in by_name.values()}
    if len(steps) != 1:
        raise ValueError(f"parameters with different numbers of updates: {sorted(steps)[:4]}")
    first = groups[0]
    train = {
        "betas": list(first["betas"]),
        "eps": first["eps"],
        "weight_decay": first["weight_decay"],
    }
    if "initial_lr" in first:
        train["learning_rate"] = first["initial_lr"]
    return TrainerMoments(moments["exp_avg"], moments["exp_avg_sq"], steps.pop(), train)


def _cut_shape(part: Any, size: tuple[int, ...]) -> tuple[int, ...]:
    import torch

    return tuple(part.cut(torch.empty(size, device="meta")).shape)


def _read_part(whole: LazyTensor, part: StoredPart) -> Tensor:
    return part.cut(whole.read())


def _step(saved: Any) -> int:
    return int(saved.read()) if isinstance(saved, Stored) else int(saved)
