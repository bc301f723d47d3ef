"""A model's stored tensors under our names, none of them read: which is which, and what is not.

    model = placed(stored_tensors(folder), config)      # .shape, .params, .unplaced, .notes
    model.params["layers.0.attn.q_proj.weight"].read()

Every tensor that lacks or has another shape is named at once. Whether the unembedding is the
embedding is decided here, for every command alike: the configuration says it, or where it is
silent the architecture's class does; two that are stored and differ are two.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from forensics.errors import ForensicsError
from forensics.formats.foreign_run import LazyTensor
from forensics.formats.weights_folder import PlacedTensor, listed
from forensics.model.families import FAMILIES
from forensics.model.family import StoredPart, spellings
from forensics.model.hugging_face import from_hf_config, is_tied, stored_name, stored_parts
from forensics.model.shape import Shape
from forensics.visible import visible

if TYPE_CHECKING:
    from torch import Tensor

# what older versions of transformers stored beside the weights: masks and angles
BUFFERS = re.compile(r"(.*\.)?(rotary_emb\.inv_freq|(attention|attn)\.(masked_)?bias)")
OLMOS_OWN = re.compile(r"(model\.)?transformer\.blocks\.\d+\.(att_proj|attn_out|ff_proj|ff_out).*")
FLOATS = ("float32", "float16", "bfloat16", "float64")


@dataclass(frozen=True)
class PlacedModel:
    """A model that is stored in Hugging Face's layout, under our names."""

    shape: Shape
    params: dict[str, LazyTensor]
    unplaced: tuple[str, ...] = ()  # stored names that have no place in our decoder
    notes: tuple[str, ...] = ()


class Tying(NamedTuple):
    """Whether embedding and unembedding are one tensor, and what was assumed."""

    tied: bool
    note: str = ""


def placed(stored: Mapping[str, LazyTensor], config: dict[str, Any]) -> PlacedModel:
    """Find each of our tensors among the stored ones. Errors: config, data."""
    _refuse_olmos_own(stored, config)
    tying = tying_of(stored, config)
    shape = from_hf_config(config | {"tie_word_embeddings": tying.tied})
    parts = stored_parts(shape)
    names = {
        ours: next((name for name in _names(ours, part) if name in stored), None)
        for ours, part in parts.items()
    }
    found = {ours: stored[name] if name else None for ours, name in names.items()}
    used = set(names.values())
    unplaced = [name for name in stored if name not in used and not BUFFERS.fullmatch(name)]
    if tying.tied:
        unplaced = [name for name in unplaced if name not in ("lm_head.weight", "embed_out.weight")]
    problems = _problems(parts, found, unplaced)
    if problems:
        raise ForensicsError(
            "data",
            f"{len(problems)} of {len(parts)} tensors do not fit: {'; '.join(problems)}",
            "do config.json and weights belong together, and is the checkpoint complete?",
        )
    params = {ours: _cut(found[ours], parts[ours]) for ours in parts}
    notes = tuple(note for note in (tying.note, _unplaced_note(unplaced)) if note)
    return PlacedModel(shape, params, tuple(sorted(unplaced)), notes)


def _names(ours: str, part: StoredPart) -> tuple[str, ...]:
    """Return the names that one of our tensors may be stored under.

    A tied embedding may be stored under the unembedding's name alone.
    """
    other = ("lm_head.weight", "embed_out.weight") if ours == "embed.weight" else ()
    return (*spellings(part.name), *other)


def tying_of(stored: Mapping[str, LazyTensor], config: dict[str, Any]) -> Tying:
    """Decide whether a model of a known family is tied. Errors: data."""
    family = FAMILIES.get(str(config.get("model_type")))
    if family is None:
        return Tying(bool(is_tied(config)))
    tied = bool(is_tied(config))
    embedding, unembedding = (
        stored_name(family, ours, stored) for ours in ("embed.weight", "unembed.weight")
    )
    if not tied and embedding and not unembedding:
        stated = config.get("tie_word_embeddings")
        raise ForensicsError(
            "data",
            "wanted an unembedding, found none: "
            + (
                f"config.json does not say tie_word_embeddings, and a {config['model_type']} is "
                "not tied by default"
                if stated is None
                else "config.json says that it is not the embedding"
            ),
            'put "tie_word_embeddings": true into config.json if they are one tensor, else add '
            f"the missing {family.stored_as('unembed.weight')}",
        )
    if embedding is None or unembedding is None:
        return Tying(tied)
    equal = same_numbers(stored[embedding], stored[unembedding])
    if tied and not equal:
        return Tying(
            False,
            f"config.json says tied embeddings, {unembedding} is stored beside {embedding} and "
            "differs: read as two, as transformers does",
        )
    if not tied and equal:
        return Tying(
            False,
            f"{unembedding} equals {embedding} number for number: stored twice, read as two as "
            "config.json says; trained on, they part",
        )
    return Tying(tied)


def same_numbers(first: LazyTensor, second: LazyTensor) -> bool:
    """Tell whether two stored tensors are equal; of files, little is held at once."""
    import torch

    if isinstance(first, PlacedTensor) and isinstance(second, PlacedTensor):
        return first.same_bytes(second)
    return first.shape == second.shape and torch.equal(first.read(), second.read())


def _refuse_olmos_own(stored: Mapping[str, LazyTensor], config: dict[str, Any]) -> None:
    own = [name for name in stored if OLMOS_OWN.fullmatch(name)]
    if own or config.get("model_type") == "hf_olmo":
        raise ForensicsError(
            "data",
            "this is OLMo's own format"
            + (f": found {listed(own)}" if own else " (model_type hf_olmo)")
            + ", not Hugging Face's",
            "`forensics import` reads the folder that OLMo's trainer wrote (config.yaml beside "
            "model.safetensors or model.pt); of the published ones the repository ending in -hf",
        )


def _problems(
    parts: Mapping[str, StoredPart],
    found: Mapping[str, LazyTensor | None],
    unplaced: Iterable[str],
) -> list[str]:
    """Say of every tensor that lacks or is another what was wanted and what there is."""
    left, problems = list(unplaced), {}
    for ours, part in parts.items():
        tensor = found[ours]
        if tensor is None:
            near = difflib.get_close_matches(part.name, left, n=1, cutoff=0.3)
            hint = f" (nearest: {visible(near[0])})" if near else ""
            problems[part.name] = f"wanted {part.name}, found none{hint}"
        elif tensor.shape != part.shape:
            problems[part.name] = (
                f"{visible(tensor.stored_name)}: wanted shape {part.shape}, found {tensor.shape}"
            )
        elif tensor.dtype not in FLOATS:
            problems[part.name] = (
                f"{visible(tensor.stored_name)}: wanted numbers of {', '.join(FLOATS)}, found "
                f"{tensor.dtype}"
            )
    return list(problems.values())


def _unplaced_note(unplaced: list[str]) -> str:
    if not unplaced:
        return ""
    count = f"{len(unplaced)} stored tensor{'s have' if len(unplaced) > 1 else ' has'}"
    return f"{count} no place in this decoder: {listed(visible(name) for name in unplaced)}"


def _cut(tensor: LazyTensor | None, part: StoredPart) -> LazyTensor:
    assert tensor is not None, "`_problems` names what lacks"
    return LazyTensor(
        tensor.stored_name,
        _shape_of_cut(part, tensor),
        tensor.dtype,
        tensor.file,
        _reading(tensor, part.cut),
    )


def _reading(tensor: LazyTensor, cut: Callable[[Tensor], Tensor]) -> Callable[[], Tensor]:
    return lambda: cut(tensor.read())


def _shape_of_cut(part: StoredPart, tensor: LazyTensor) -> tuple[int, ...]:
    import torch

    return tuple(part.cut(torch.empty(tensor.shape, device="meta")).shape)
