"""OLMo 1: a Llama whose LayerNorm has no parameters."""

from __future__ import annotations

from forensics.model.families.llama import CONFIG, NAMES, ROPE
from forensics.model.family import Family

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
    fixed={"hidden_act": "silu", "attention_bias": False, "clip_qkv": None},
    names={ours: theirs for ours, theirs in NAMES.items() if "norm" not in ours},
)
