"""Decide every knob that a recipe's [model] leaves out."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from forensics.config import Model
from forensics.errors import ForensicsError
from forensics.model.families import FAMILIES
from forensics.model.family import Family
from forensics.model.hugging_face import PLAIN
from forensics.model.rope import yarn_magnitude
from forensics.model.shape import Shape

SCALING = ("rope_factor", "rope_original_length", "rope_slow", "rope_fast", "rope_magnitude")
ROTARY = (
    *("rope_theta", "rope_theta_sliding", "rope_fraction", "unrotated_layers"),
    *("rope_scaling", *SCALING),
)
FULL_EVERY = 4  # layers, where a family that has no window of its own is given one
# of rope_scaling: what a recipe may leave out
SCALED = {"llama3": {"rope_slow": 1.0, "rope_fast": 4.0}, "yarn": {"rope_fast": 32.0}}


def shape_of(model: Model, vocabulary: int, sequence_length: int) -> Shape:
    """Decide every knob of the decoder that a recipe's [model] asks for. Errors: config."""
    family = FAMILIES[model.family]
    knobs = PLAIN | family.knobs
    for name in knobs:
        chosen = getattr(model, name)
        if chosen is not None:
            knobs[name] = chosen
    if model.embed_scale == 0:
        knobs["embed_scale"] = math.sqrt(model.width)
    knobs |= _layer_lists(model, family, knobs) | _rope_scaling(model)
    kv_heads = model.kv_heads or model.heads
    if model.head_width is None and model.width % model.heads:
        raise ForensicsError(
            "config",
            f"model.heads: {model.heads} does not divide model.width = {model.width}",
            "change one of them, or set model.head_width",
        )
    head_width = model.head_width or model.width // model.heads
    if model.heads % kv_heads:
        raise ForensicsError(
            "config",
            f"model.kv_heads: {kv_heads} does not divide model.heads = {model.heads}",
            "each key head serves the same number of query heads",
        )
    # Rounded up to a multiple of 32, so that matrix products stay on the fast path.
    mlp_width = model.mlp_width or -(-int(family.mlp_multiple * model.width) // 32) * 32
    shape = Shape(
        layers=model.layers,
        width=model.width,
        heads=model.heads,
        kv_heads=kv_heads,
        head_width=head_width,
        mlp_width=mlp_width,
        max_positions=model.max_positions or sequence_length,
        vocabulary=vocabulary,
        document_mask=model.document_mask,
        **knobs,
    )
    if shape.position == "rope" and (shape.rotated < 2 or shape.rotated % 2):
        raise ForensicsError(
            "config",
            f"model.rope_fraction: RoPE turns pairs, found {shape.rotated} of {head_width} numbers"
            " per head",
            "make head width × rope_fraction an even number",
        )
    rotary = [name for name in ROTARY if getattr(model, name) is not None]
    if shape.position == "learned" and rotary:
        raise ForensicsError(
            "config",
            f"model.{rotary[0]} has no effect: positions are learned",
            "leave it out, or set model.position to rope",
        )
    if shape.position == "learned" and shape.max_positions < sequence_length:
        raise ForensicsError(
            "config",
            f"model.max_positions: {shape.max_positions} is less than data.sequence_length ="
            f" {sequence_length}",
            "set model.max_positions higher",
        )
    return shape


def _layer_lists(model: Model, family: Family, knobs: dict[str, Any]) -> dict[str, Any]:
    """Decide which layers slide and which are without RoPE. Errors: config."""
    L, sliding, unrotated = model.layers, model.sliding_layers, model.unrotated_layers
    if knobs["window"] and sliding is None:
        # as OLMo 3: the last layer attends to everything, whatever their number
        every = family.full_every or FULL_EVERY
        sliding = tuple(i for i in range(L) if (i + 1) % every and i != L - 1)
    if sliding and not knobs["window"]:
        raise ForensicsError(
            "config", "model.sliding_layers has no effect: there is no window", "set model.window"
        )
    if unrotated is None:
        every = family.unrotated_every
        unrotated = tuple(i for i in range(L) if every and (i + 1) % every == 0)
    for name, layers in (("sliding_layers", sliding or ()), ("unrotated_layers", unrotated)):
        if any(not 0 <= layer < L for layer in layers):
            raise ForensicsError(
                "config",
                f"model.{name}: wanted layers 0 to {L - 1}, found {list(layers)}",
                "layers count from 0",
            )
    return {"sliding_layers": tuple(sliding or ()), "unrotated_layers": tuple(unrotated)}


def _rope_scaling(model: Model) -> dict[str, Any]:
    """Decide how RoPE's wavelengths are stretched. Errors: config."""
    chosen = {name: getattr(model, name) for name in SCALING if getattr(model, name) is not None}
    kind = model.rope_scaling or "none"
    if kind == "none":
        if chosen:
            raise ForensicsError(
                "config",
                f"model.{next(iter(chosen))} has no effect: nothing is scaled",
                "set model.rope_scaling",
            )
        return {}
    for name in ("rope_factor", "rope_original_length"):
        if name not in chosen:
            raise ForensicsError(
                "config", f"model.{name} is missing", f"rope_scaling = {kind} needs it"
            )
    knobs = {"rope_scaling": kind} | SCALED[kind] | chosen
    if kind == "yarn":
        knobs.setdefault("rope_magnitude", yarn_magnitude(knobs["rope_factor"]))
    if knobs["rope_fast"] <= knobs.get("rope_slow", 1.0):
        raise ForensicsError(
            "config",
            f"model.rope_fast: wanted more than model.rope_slow, found {knobs['rope_fast']}",
            "they are turns over the original length",
        )
    return knobs


def section_of(shape: Shape, family: str) -> dict[str, Any]:
    """Return the keys of a recipe's [model] that decide this shape, with `family`'s defaults."""
    section: dict[str, Any] = {"family": family}
    for field in dataclasses.fields(Shape):
        if field.name != "vocabulary":
            section[field.name] = getattr(shape, field.name)
    if shape.rope_scaling == "none":
        for name in ("rope_scaling", *SCALING):
            del section[name]
    if shape.position == "learned":
        for name in ("rope_theta", "rope_theta_sliding", "rope_fraction", "unrotated_layers"):
            del section[name]
    if not shape.window:
        del section["sliding_layers"]
    return section
