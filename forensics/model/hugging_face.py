"""Hugging Face's configuration and tensors from ours, and back.

What a run's knobs say, not its family's name, decides what it exports as: a llama with per-head
QK-norm is a Qwen3 and opens as one.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING, Any

from forensics.errors import ForensicsError
from forensics.model.families import FAMILIES
from forensics.model.family import Family, StoredPart, Tensors, spellings
from forensics.model.rope_parameters import read_rope, written_rope
from forensics.model.shape import Shape, parameter_shapes

if TYPE_CHECKING:
    from torch import Tensor

# knobs that a family leaves at these values unless it says otherwise
PLAIN: dict[str, Any] = {
    "qkv_bias": False,
    "clip_qkv": 0.0,
    "window": 0,
    "sliding_layers": (),
    "unrotated_layers": (),
    "rope_theta_sliding": 0.0,
    "embed_scale": 1.0,
}


def exported_family(shape: Shape) -> str | None:
    """Find the family whose architecture these knobs are exactly.

    None: there is none, so the decoder has no Hugging Face form.
    """
    for name, family in FAMILIES.items():
        # what a configuration key of theirs says, and it alone
        free = {"norm_eps", "rope_theta", "rope_fraction"} | family.more_knobs
        free |= {"rope_theta_sliding"} if family.full_every else set()
        free |= {knob for knob, key in family.config.items() if key not in family.fixed}
        same = all(
            getattr(shape, knob) == value
            for knob, value in (PLAIN | family.knobs).items()
            if knob not in free
        )
        if not same or shape.document_mask or not _window_is_said(shape):
            continue
        if family.knobs["rope_fraction"] == 1.0 and shape.rope_fraction != 1.0:
            continue
        if "norm_eps" not in family.config and shape.norm_eps != family.knobs["norm_eps"]:
            continue
        if "kv_heads" not in family.config and shape.kv_heads != shape.heads:
            continue
        if "head_width" not in family.config and shape.head_width * shape.heads != shape.width:
            continue
        return name
    return None


def _window_is_said(shape: Shape) -> bool:
    """Tell whether a window and the layers that slide belong together."""
    return bool(shape.window) or not shape.sliding_layers


def to_hf_config(shape: Shape, eot: int) -> dict[str, Any]:
    """Make `config.json` for transformers. Errors: config, for knobs of no known family."""
    name = exported_family(shape)
    if name is None:
        raise ForensicsError(
            "config",
            "these knobs together are no architecture that transformers knows",
            "export needs the knobs of one family: " + ", ".join(FAMILIES),
        )
    family = FAMILIES[name]
    ends = eot if eot >= 0 else None  # of a run made elsewhere it may not be known
    config = {theirs: getattr(shape, ours) for ours, theirs in family.config.items()} | family.fixed
    if shape.position == "rope":
        config |= written_rope(shape, family)
    return config | {
        **family.more_config(shape),
        "model_type": name,
        "architectures": [family.architecture],
        "bos_token_id": ends,
        "eos_token_id": ends,
        "pad_token_id": None,
        "dtype": "float32",
    }


def from_hf_config(config: dict[str, Any]) -> Shape:
    """Read the decoder that a Hugging Face `config.json` describes. Errors: config."""
    name = config.get("model_type")
    if name not in FAMILIES:
        raise ForensicsError(
            "config",
            f"wanted a model of a known family, found model_type {name!r}",
            "known: " + ", ".join(FAMILIES),
        )
    family = FAMILIES[name]
    for key, value in family.fixed.items():
        if key in config and config[key] != value and not key.endswith(("pdrop", "dropout")):
            raise ForensicsError(
                "config",
                f"{name} with {key} = {config[key]!r} is not built here",
                f"only {key} = {value!r} is",
            )
    said = family.unsaid | config
    values = PLAIN | family.knobs
    values |= {
        ours: said[theirs] for ours, theirs in family.config.items() if said.get(theirs) is not None
    }
    if values["position"] == "rope":
        values |= read_rope(config, family)
    for ours in ("layers", "width", "heads", "max_positions", "vocabulary"):
        if not isinstance(values.get(ours), int) or values[ours] < 1:
            raise ForensicsError(
                "config",
                f"wanted {family.config[ours]} of a {name} model, found {values.get(ours)!r}",
                "is it the model's own config.json?",
            )
    values.setdefault("kv_heads", values["heads"])
    values.setdefault("head_width", values["width"] // values["heads"])
    values.setdefault("mlp_width", int(family.mlp_multiple * values["width"]))
    _check_layer_lists(said, values["layers"], bool(family.full_every))
    shape = Shape(**values | family.read_more(said, values["layers"]))
    if exported_family(shape) is None:
        raise ForensicsError(
            "config",
            f"these settings of a {name} model together are not built here",
            "`forensics train --help` lists the decoder's knobs",
        )
    return shape


def _check_layer_lists(config: dict[str, Any], layers: int, may_slide: bool) -> None:
    """Check what a configuration says layer by layer. Errors: config."""
    for key in ("layer_types", "no_rope_layers"):
        stated = config.get(key)
        if stated and (not isinstance(stated, list) or len(stated) != layers):
            raise ForensicsError(
                "config",
                f"{key}: wanted one entry for each of {layers} layers, found {stated!r}"[:200],
                "is it the model's own config.json?",
            )
    known = {"full_attention", "sliding_attention"} if may_slide else {"full_attention"}
    for kind in config.get("layer_types") or ():
        if kind not in known:
            raise ForensicsError(
                "config",
                f"layer_types: wanted {' or '.join(sorted(known))}, found {kind!r}",
                "layers of this kind are not built here",
            )


def hf_names(shape: Shape) -> Iterator[tuple[str, str]]:
    """Yield (our name, Hugging Face's) of every tensor that both sides store by itself."""
    family = _family_of(shape)
    for ours in parameter_shapes(shape):
        theirs = family.stored_as(ours)
        if theirs is not None:
            yield ours, theirs


def stored_parts(shape: Shape) -> dict[str, StoredPart]:
    """Say of each of our tensors where Hugging Face stores it, in the order of the forward."""
    family = _family_of(shape)
    parts = {}
    for ours, size in parameter_shapes(shape).items():
        whole = StoredPart(family.stored_as(ours) or ours, size, _as_it_is)
        parts[ours] = family.fused(ours, shape) or whole
    return parts


def _as_it_is(whole: Tensor) -> Tensor:
    return whole


def _family_of(shape: Shape) -> Family:
    name = exported_family(shape)
    assert name is not None, "to_hf_config says why first"
    return FAMILIES[name]


def to_hf_tensors(params: Tensors, shape: Shape) -> Tensors:
    """Return our tensors under Hugging Face's names, copied where the layout differs."""
    theirs = {name: params[ours].detach() for ours, name in hf_names(shape)}
    _family_of(shape).pack(theirs, params, shape)
    return {name: tensor.contiguous() for name, tensor in theirs.items()}


def is_tied(config: dict[str, Any]) -> bool | None:
    """Say whether embedding and unembedding are one tensor; None for a family nobody here knows.

    The configuration says so; where it is silent, the default of Hugging Face's class.
    """
    tied = config.get("tie_word_embeddings")
    if tied is not None:
        return bool(tied)
    family = FAMILIES.get(str(config.get("model_type")))
    return bool(family.knobs["tied"]) if family is not None else None


def stored_name(family: Family, ours: str, stored: Collection[str]) -> str | None:
    """Find the name under which a checkpoint holds one of our tensors; None where it does not."""
    theirs = family.stored_as(ours)
    return next((name for name in spellings(theirs or "") if name in stored), None)


def from_hf_tensors(tensors: Tensors, shape: Shape) -> Tensors:
    """Return Hugging Face's tensors under our names and layouts. Errors: data."""
    name = exported_family(shape)
    params = {}
    for ours, part in stored_parts(shape).items():
        stored = next((tensors[name] for name in spellings(part.name) if name in tensors), None)
        if stored is None:
            raise ForensicsError(
                "data",
                f"wanted tensor {part.name!r}, found none in the checkpoint",
                f"is it complete, and a {name} model?",
            )
        if tuple(stored.shape) != part.shape:
            raise ForensicsError(
                "data",
                f"{part.name}: wanted shape {part.shape}, found {tuple(stored.shape)}",
                "do config.json and weights belong together?",
            )
        params[ours] = part.cut(stored).contiguous()
    return params
