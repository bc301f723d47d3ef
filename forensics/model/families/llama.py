"""Llama: pre-norm, RoPE, SwiGLU (SmolLM2, Amber and many others), whose names others share."""

from __future__ import annotations

from forensics.model.family import Family

ROPE = {"position": "rope", "rope_theta": 1e4, "rope_fraction": 1.0}
CONFIG = {
    "layers": "num_hidden_layers",
    "width": "hidden_size",
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "mlp_width": "intermediate_size",
    "tied": "tie_word_embeddings",
    "max_positions": "max_position_embeddings",
    "vocabulary": "vocab_size",
    "bias": "attention_bias",
}
NAMES = {
    "embed.weight": "model.embed_tokens.weight",
    "unembed.weight": "lm_head.weight",
    "norm.weight": "model.norm.weight",
    "layers.{i}.attn.norm.weight": "model.layers.{i}.input_layernorm.weight",
    "layers.{i}.mlp.norm.weight": "model.layers.{i}.post_attention_layernorm.weight",
    **{
        f"layers.{{i}}.attn.{part}_proj.weight": f"model.layers.{{i}}.self_attn.{part}_proj.weight"
        for part in "qkvo"
    },
    **{
        f"layers.{{i}}.mlp.{part}.weight": f"model.layers.{{i}}.mlp.{part}_proj.weight"
        for part in ("gate", "up", "down")
    },
}
QK_NORM_NAMES = {
    f"layers.{{i}}.attn.{part}_norm.weight": f"model.layers.{{i}}.self_attn.{part}_norm.weight"
    for part in "qk"
}

FAMILY = Family(
    knobs=ROPE
    | {
        "norm": "pre",
        "norm_kind": "rms",
        "norm_eps": 1e-5,
        "qk_norm": "none",
        "parallel": False,
        "bias": False,
        "activation": "swiglu",
        "tied": False,
    },
    mlp_multiple=8 / 3,
    architecture="LlamaForCausalLM",
    config=CONFIG | {"norm_eps": "rms_norm_eps", "head_width": "head_dim"},
    fixed={"hidden_act": "silu", "attention_bias": False, "mlp_bias": False},
    names=NAMES,
    unsaid={"rms_norm_eps": 1e-6},
)
