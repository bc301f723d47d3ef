"""OLMo 1: a Llama whose LayerNorm has no parameters; 1.7 and 0724 clip queries, keys, values."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from forensics.model.families.llama import CONFIG, NAMES, ROPE
from forensics.model.family import Family

if TYPE_CHECKING:
    from forensics.model.shape import Shape


def more_config(shape: Shape) -> dict[str, Any]:
    """Write the clip; transformers takes 0 for a clip to 0, where ours is none."""
    return {"clip_qkv": shape.clip_qkv or None}


def read_more(config: dict[str, Any], layers: int) -> dict[str, Any]:
    """Read the clip."""
    return {"clip_qkv": float(config.get("clip_qkv") or 0.0)}


FAMILY = Family(
    knobs=ROPE
    | {
        "norm": "pre",
        "norm_kind": "layer_no_parameters",
        "norm_eps": 1e-5,
        "qk_norm": "none",
        "parallel": False,
        "bias": False,
        "activation": "swiglu",
        "tied": False,
    },
    mlp_multiple=8 / 3,
    architecture="OlmoForCausalLM",
    config=CONFIG,
    fixed={"hidden_act": "silu", "attention_bias": False},
    more_config=more_config,
    read_more=read_more,
    more_knobs=frozenset({"clip_qkv"}),
    names={ours: theirs for ours, theirs in NAMES.items() if "norm" not in ours},
)
