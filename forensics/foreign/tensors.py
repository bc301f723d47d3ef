"""Whether a checkpoint holds the tensors of its decoder, each of its shape."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping

from forensics.errors import ForensicsError
from forensics.formats.foreign_run import ForeignCheckpoint, LazyTensor
from forensics.model.shape import Shape, parameter_shapes
from forensics.visible import visible


def vocabulary_of(checkpoint: ForeignCheckpoint) -> int:
    """Return the rows of the embedding, perhaps more than its tokenizer's ids. Errors: data."""
    embedding = checkpoint.params.get("embed.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise ForensicsError(
            "data",
            f"wanted an embedding in {checkpoint.path}, found none among"
            f" {len(checkpoint.params)} tensors that have a place",
            "is this the whole checkpoint?",
        )
    return embedding.shape[0]


def check_tensors(checkpoint: ForeignCheckpoint, shape: Shape, unplaced: Iterable[str]) -> None:
    """Refuse a checkpoint that lacks a tensor or has one of another shape; all are listed.

    Errors: data.
    """
    groups = {"": checkpoint.params}
    if checkpoint.exp_avg is not None and checkpoint.exp_avg_sq is not None:
        groups |= {"first moment of ": checkpoint.exp_avg}
        groups |= {"second moment of ": checkpoint.exp_avg_sq}
    problems = [
        problem
        for prefix, group in groups.items()
        for problem in _problems(group, shape, prefix, list(unplaced))
    ]
    if problems:
        count = "1 tensor does" if len(problems) == 1 else f"{len(problems)} tensors do"
        raise ForensicsError(
            "data",
            f"{count} not fit in {checkpoint.path}: " + "; ".join(problems),
            "is the configuration beside it the one that it was trained with?",
        )


def _problems(
    group: Mapping[str, LazyTensor], shape: Shape, prefix: str, unplaced: list[str]
) -> list[str]:
    problems = []
    for name, size in parameter_shapes(shape).items():
        stored = group.get(name)
        if stored is None:
            near = difflib.get_close_matches(name, unplaced, n=1, cutoff=0.3)
            hint = f", nearest {visible(near[0])}" if near else ""
            problems.append(f"{prefix}{name} {list(size)}: none{hint}")
        elif tuple(stored.shape) != tuple(size):
            problems.append(
                f"{prefix}{name}: wanted {list(size)}, found {list(stored.shape)}"
                f" ({visible(stored.stored_name)})"
            )
    return problems
