"""GPT-NeoX (Pythia): parallel residual, biases, a quarter of each head turned by RoPE."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from forensics.model.family import Family, StoredPart, Tensors

if TYPE_CHECKING:
    from torch import Tensor

    from forensics.model.shape import Shape

QKV = ("attn.q_proj", "attn.k_proj", "attn.v_proj")
FUSED = "gpt_neox.layers.{i}.attention.query_key_value."  # weight, bias


def pack(theirs: Tensors, params: Tensors, shape: Shape) -> None:
    """Fuse q, k and v into one matrix whose rows go head by head, q then k then v."""
    import torch

    H, K = shape.heads, shape.head_width
    for i in range(shape.layers):
        for kind in ("weight", "bias"):
            parts = [
                params[f"layers.{i}.attn.{projection}_proj.{kind}"].detach() for projection in "qkv"
            ]
            stacked = torch.stack([projection.view(H, K, -1) for projection in parts], dim=1)
            flat = stacked.reshape(3 * H * K, -1)
            theirs[FUSED.format(i=i) + kind] = flat if kind == "weight" else flat[:, 0]


def fused(ours: str, shape: Shape) -> StoredPart | None:
    """Say where q, k and v lie in the fused matrix."""
    i, _, name = ours.removeprefix("layers.").partition(".")
    module, _, kind = name.rpartition(".")
    if module not in QKV:
        return None
    H, K = shape.heads, shape.head_width
    index = QKV.index(module)
    size = (3 * H * K, shape.width) if kind == "weight" else (3 * H * K,)

    def cut(whole: Tensor) -> Tensor:
        rows = whole.reshape(H, 3, K, -1)[:, index].reshape(H * K, -1)
        return rows if kind == "weight" else rows[:, 0]

    return StoredPart(FUSED.format(i=i) + kind, size, cut)


def more_config(shape: Shape) -> dict[str, Any]:
    """Return the keys under which older versions of transformers look for RoPE's settings."""
    return {"rotary_pct": shape.rope_fraction, "rotary_emb_base": shape.rope_theta}


FAMILY = Family(
    knobs={
        "position": "rope",
        "rope_theta": 1e4,
        "rope_fraction": 0.25,
        "norm": "pre",
        "norm_kind": "layer",
        "norm_eps": 1e-5,
        "qk_norm": "none",
        "parallel": True,
        "bias": True,
        "activation": "gelu",
        "tied": False,
    },
    mlp_multiple=4.0,
    architecture="GPTNeoXForCausalLM",
    config={
        "layers": "num_hidden_layers",
        "width": "hidden_size",
        "heads": "num_attention_heads",
        "mlp_width": "intermediate_size",
        "tied": "tie_word_embeddings",
        "max_positions": "max_position_embeddings",
        "vocabulary": "vocab_size",
        "norm_eps": "layer_norm_eps",
        "parallel": "use_parallel_residual",
    },
    fixed={
        "hidden_act": "gelu",
        "attention_bias": True,
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
    },
    names={
        "embed.weight": "gpt_neox.embed_in.weight",
        "unembed.weight": "embed_out.weight",
        **{f"norm.{kind}": f"gpt_neox.final_layer_norm.{kind}" for kind in ("weight", "bias")},
        **{
            f"layers.{{i}}.{ours}.{kind}": f"gpt_neox.layers.{{i}}.{theirs}.{kind}"
            for ours, theirs in (
                ("attn.norm", "input_layernorm"),
                ("mlp.norm", "post_attention_layernorm"),
                ("attn.o_proj", "attention.dense"),
                ("mlp.up", "mlp.dense_h_to_4h"),
                ("mlp.down", "mlp.dense_4h_to_h"),
            )
            for kind in ("weight", "bias")
        },
    },
    pack=pack,
    fused=fused,
    more_config=more_config,
)
