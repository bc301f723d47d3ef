"""Qwen2 and Qwen2.5: a Llama with biases of queries, keys and values alone."""

from __future__ import annotations

from forensics.model.families.llama import CONFIG, NAMES, ROPE
from forensics.model.family import Family

FAMILY = Family(
    knobs=ROPE
    | {
        "rope_theta": 1e6,
        "norm": "pre",
        "norm_kind": "rms",
        "norm_eps": 1e-6,
        "qk_norm": "none",
        "parallel": False,
        "bias": False,
        "qkv_bias": True,
        "activation": "swiglu",
        "tied": False,
    },
    mlp_multiple=5.5,
    architecture="Qwen2ForCausalLM",
    config={knob: key for knob, key in CONFIG.items() if knob != "bias"}
    | {"norm_eps": "rms_norm_eps"},
    fixed={"hidden_act": "silu", "use_sliding_window": False},
    names=NAMES
    | {
        f"layers.{{i}}.attn.{part}_proj.bias": f"model.layers.{{i}}.self_attn.{part}_proj.bias"
        for part in "qkv"
    },
    unsaid={"rope_theta": 1e4, "num_key_value_heads": 32},
)
