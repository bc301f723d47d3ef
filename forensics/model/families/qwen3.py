"""Qwen3: a Llama with a norm of queries and keys in each head."""

from __future__ import annotations

from forensics.model.families.llama import CONFIG, NAMES, QK_NORM_NAMES, ROPE
from forensics.model.family import Family

FAMILY = Family(
    knobs=ROPE
    | {
        "rope_theta": 1e6,
        "norm": "pre",
        "norm_kind": "rms",
        "norm_eps": 1e-6,
        "qk_norm": "head",
        "parallel": False,
        "bias": False,
        "activation": "swiglu",
        "tied": False,
    },
    mlp_multiple=3.0,
    architecture="Qwen3ForCausalLM",
    config=CONFIG | {"norm_eps": "rms_norm_eps", "head_width": "head_dim"},
    fixed={"hidden_act": "silu", "attention_bias": False, "use_sliding_window": False},
    names=NAMES | QK_NORM_NAMES,
    unsaid={"rope_theta": 1e4, "num_key_value_heads": 32, "head_dim": 128},
)
