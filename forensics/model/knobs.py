"""Decide every knob that a recipe's [model] leaves out."""

from __future__ import annotations

from forensics.config import Model
from forensics.errors import ForensicsError
from forensics.model.families import FAMILIES
from forensics.model.shape import Shape


def shape_of(model: Model, vocabulary: int, sequence_length: int) -> Shape:
    """Decide every knob of the decoder that a recipe's [model] asks for. Errors: config."""
    family = FAMILIES[model.family]
    knobs = dict(family.knobs)
    for name in knobs:
        chosen = getattr(model, name)
        if chosen is not None:
            knobs[name] = chosen
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
    rotary = [name for name in ("rope_theta", "rope_fraction") if getattr(model, name) is not None]
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
