"""OLMo 2: norms on the output of each sub-layer, and of queries and keys over all heads."""

from __future__ import annotations

from forensics.model.families.llama import CONFIG, NAMES, QK_NORM_NAMES, ROPE
from forensics.model.family import Family

POST_NORM_NAMES = (
    NAMES
    | QK_NORM_NAMES
    | {
        "layers.{i}.attn.norm.weight": "model.layers.{i}.post_attention_layernorm.weight",
        "layers.{i}.mlp.norm.weight": "model.layers.{i}.post_feedforward_layernorm.weight",
    }
)

FAMILY = Family(
    knobs=ROPE
    | {
        "rope_theta": 5e5,
        "norm": "post",
        "norm_kind": "rms",
        "norm_eps": 1e-6,
        "qk_norm": "whole",
        "parallel": False,
        "bias": False,
        "activation": "swiglu",
        "tied": False,
    },
    mlp_multiple=8 / 3,
    architecture="Olmo2ForCausalLM",
    config=CONFIG | {"norm_eps": "rms_norm_eps"},
    fixed={"hidden_act": "silu", "attention_bias": False},
    names=POST_NORM_NAMES,
    unsaid={"rms_norm_eps": 1e-5, "rope_theta": 1e4},
)
