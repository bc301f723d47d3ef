"""Their stored tensors under our names: which rows of which tensor each of ours is.

    plan = {"layers.0.attn.q_proj.weight": Piece("blocks.0.att_proj.weight", parts=6, after=2), …}
    placed = place(stored, plan, parameter_shapes(shape), "an OLMo checkpoint")

Fused matrices are split here, and the rows of rotated heads put into our order: nothing is read
before a tensor is asked for.
"""

from __future__ import annotations

import difflib
import functools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from forensics.errors import ForensicsError
from forensics.formats.foreign_run import LazyTensor
from forensics.visible import visible

if TYPE_CHECKING:
    from torch import Tensor

    from forensics.model.shape import Shape

MOST_NAMED = 4  # tensors in one sentence; the others are counted


@dataclass(frozen=True)
class Piece:
    """Rows of one stored tensor: of each of `groups` equal groups, parts [first, after) of `parts`.

    A whole tensor is the default; q of blocks q|k|v is parts [0, H) of H + 2G; q of a head-by-head
    q,k,v is part 0 of 3 in each of H groups.
    """

    stored: str
    groups: int = 1
    parts: int = 1
    first: int = 0
    after: int = 1
    interleaved: int = 0  # heads whose rotated pairs lie side by side; 0: half by half, as ours

    def shape_of(self, shape: tuple[int, ...]) -> tuple[int, ...] | None:
        """Return the piece's shape; None where the tensor's rows do not divide so."""
        if self.groups == self.parts == 1:
            return shape
        if not shape or shape[0] % (self.groups * self.parts):
            return None
        return (shape[0] // self.parts * (self.after - self.first), *shape[1:])

    def cut(self, tensor: LazyTensor) -> LazyTensor:
        """Return the piece of a stored tensor, whose rows divide so; read when it is asked for."""
        shape = self.shape_of(tensor.shape)
        assert shape is not None, "place asks first"
        if self.groups == self.parts == 1 and not self.interleaved:
            return tensor
        return replace(tensor, shape=shape, read=functools.partial(self._read, tensor))

    def _read(self, tensor: LazyTensor) -> Tensor:
        whole = tensor.read()
        rows = whole.shape[0] // (self.groups * self.parts)
        grid = whole.unflatten(0, (self.groups, self.parts * rows))
        piece = grid[:, self.first * rows : self.after * rows].flatten(0, 1)
        if not self.interleaved:
            return piece
        # rows (head, pair, first or second of it) become (head, first or second, pair)
        heads = piece.unflatten(0, (self.interleaved, -1, 2))
        return heads.transpose(1, 2).reshape(piece.shape)


class Placed(NamedTuple):
    """Their tensors under our names, and what had no place there."""

    tensors: dict[str, LazyTensor]
    unplaced: tuple[str, ...]


def place(
    stored: Mapping[str, LazyTensor],
    plan: Mapping[str, Piece],
    shapes: Mapping[str, tuple[int, ...]],
    title: str,
) -> Placed:
    """Find each of our tensors among theirs.

    Errors: data, naming what lacks or has another shape.
    """
    missing = [ours for ours in shapes if plan[ours].stored not in stored]
    if missing:
        first = plan[missing[0]].stored
        close = difflib.get_close_matches(first, stored, n=1)
        raise ForensicsError(
            "data",
            f"wanted {title} with {_named([plan[ours].stored for ours in missing])}, found none of"
            " that name",
            f"did you mean {visible(close[0])!r}?"
            if close
            else "is it complete, and of this model?",
        )
    found = {ours: stored[plan[ours].stored] for ours in shapes}
    other = [ours for ours in shapes if plan[ours].shape_of(found[ours].shape) != shapes[ours]]
    if other:
        first = other[0]
        raise ForensicsError(
            "data",
            f"{_named([found[ours].stored_name for ours in other])}: wanted shape"
            f" {shapes[first]} for {first}, found {found[first].shape}"
            + (
                f", of which its part is {cut}" if (cut := _part(plan[first], found[first])) else ""
            ),
            "do configuration and weights belong together?",
        )
    tensors = {ours: plan[ours].cut(found[ours]) for ours in shapes}
    used = {plan[ours].stored for ours in shapes}
    return Placed(tensors, tuple(sorted(name for name in stored if name not in used)))


def _part(piece: Piece, tensor: LazyTensor) -> str:
    shape = piece.shape_of(tensor.shape)
    return "" if shape in (None, tensor.shape) else str(shape)


def _named(names: list[str]) -> str:
    shown = ", ".join(visible(name)[:100] for name in dict.fromkeys(names[:MOST_NAMED]))
    return shown + (f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else "")


def shape_from(section: dict[str, Any], rows: int) -> Shape:
    """Return the decoder of a recipe's [model] with `rows` ids in its table. Errors: config."""
    from forensics.config import from_dict
    from forensics.model.knobs import shape_of

    return shape_of(from_dict({"model": section}).model, rows, section["max_positions"])


def zeros_like(tensors: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
    """Return zeros in the place of each tensor: moments before the first update."""

    def zeros(shape: tuple[int, ...]) -> Tensor:
        import torch

        return torch.zeros(shape)

    return {
        name: replace(tensor, dtype="float32", read=functools.partial(zeros, tensor.shape))
        for name, tensor in tensors.items()
    }


def transposed(tensor: LazyTensor) -> LazyTensor:
    """Return a matrix whose rows are the stored one's columns."""
    return replace(tensor, shape=tensor.shape[::-1], read=lambda: tensor.read().T)


def joined(tensors: list[LazyTensor], dimension: int) -> LazyTensor:
    """Return shards put together along one dimension, of which the other sizes are equal.

    Errors: data.
    """
    first = tensors[0]
    if len(tensors) == 1:
        return first
    apart = {t.shape[:dimension] + t.shape[dimension + 1 :] for t in tensors}
    if len(apart) > 1 or len({t.dtype for t in tensors}) > 1:
        raise ForensicsError(
            "data",
            f"{first.stored_name}: wanted shards that fit together, found shapes "
            + ", ".join(str(t.shape) for t in tensors),
            "are they all of one checkpoint?",
        )
    size = sum(t.shape[dimension] for t in tensors)
    shape = (*first.shape[:dimension], size, *first.shape[dimension + 1 :])

    def read() -> Tensor:
        import torch

        return torch.cat([tensor.read() for tensor in tensors], dimension)

    return replace(first, shape=shape, read=read)


def combined(tensors: list[LazyTensor], mean: bool) -> LazyTensor:
    """Return the sum, or mean, of copies that ranks keep of one tensor. Errors: data."""
    first = tensors[0]
    if len(tensors) == 1:
        return first
    if len({t.shape for t in tensors}) > 1:
        raise ForensicsError(
            "data", f"{first.stored_name}: its copies have several shapes", "is one of another run?"
        )

    def read() -> Tensor:
        import torch

        stacked = torch.stack([tensor.read() for tensor in tensors])
        return stacked.mean(0) if mean else stacked.sum(0)

    return replace(first, read=read)
