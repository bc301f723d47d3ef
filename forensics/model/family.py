"""What a model family is: values of the decoder's knobs, and the way to Hugging Face and back.

A file of forensics/model/families holds one, under the name FAMILY. Adding the file is enough:
`model.family` of a recipe, import, export, `forensics tokens` and docs/recipes.md take it up.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

    from forensics.model.shape import Shape

Tensors = dict[str, "Tensor"]


class StoredPart(NamedTuple):
    """Where Hugging Face stores one of our tensors: a whole one of theirs, or a part of it."""

    name: str  # theirs
    shape: tuple[int, ...]  # of the whole
    cut: Callable[[Tensor], Tensor]  # takes ours out of the whole


def _nothing_packed(theirs: Tensors, params: Tensors, shape: Shape) -> None:
    """Leave the tensors as they are: every one is stored under a name of its own."""


def _nothing_fused(ours: str, shape: Shape) -> StoredPart | None:
    return None


def _no_more(shape: Shape) -> dict[str, Any]:
    return {}


def _nothing_read(config: dict[str, Any], layers: int) -> dict[str, Any]:
    return {}


@dataclass(frozen=True)
class Family:
    """One family of models, as settings of the decoder."""

    knobs: dict[str, Any]  # every knob that a recipe may leave out
    mlp_multiple: float  # hidden size of the MLP over the width
    architecture: str  # Hugging Face's class
    config: dict[str, str]  # our knob → Hugging Face's configuration key
    fixed: dict[str, Any]  # configuration keys that are always the same
    names: dict[str, str]  # our name → Hugging Face's, {i} the layer
    # pack(theirs, params, shape) adds what Hugging Face stores fused, and turns what it stores
    # turned; fused(ours, shape) says where one of ours then lies, None: under a name of its own
    pack: Callable[[Tensors, Tensors, Shape], None] = _nothing_packed
    fused: Callable[[str, Shape], StoredPart | None] = _nothing_fused
    # keys of theirs that say more than one knob, or say it otherwise, and what they say
    more_config: Callable[[Shape], dict[str, Any]] = _no_more
    read_more: Callable[[dict[str, Any], int], dict[str, Any]] = _nothing_read
    more_knobs: frozenset[str] = frozenset()  # which `more_config` and `read_more` are about
    # what Hugging Face's class takes where a configuration is silent, where that is not our default
    unsaid: dict[str, Any] = field(default_factory=dict)
    full_every: int = 0  # with a window: every so many layers, and the last, attend to everything
    unrotated_every: int = 0  # every so many layers are without RoPE; 0: none is

    def stored_as(self, ours: str) -> str | None:
        """Return Hugging Face's name of one of our tensors; None where it is stored fused."""
        layer = ours.split(".")[1] if ours.startswith("layers.") else ""
        general = ours.replace(f"layers.{layer}.", "layers.{i}.", 1) if layer else ours
        name = self.names.get(general)
        return name.replace("{i}", layer) if name is not None else None


def spellings(name: str) -> tuple[str, ...]:
    """Return the names under which a checkpoint may hold a tensor, the usual one first.

    A base model is saved without the prefix of the class around it.
    """
    prefixes = ("transformer.", "model.", "gpt_neox.")
    return (name, *(name.removeprefix(prefix) for prefix in prefixes if name.startswith(prefix)))
