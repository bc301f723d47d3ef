"""GPT-2: learned positions, biases, tied embeddings; linear maps stored as Conv1D, (in, out)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from forensics.model.family import Family, StoredPart, Tensors

if TYPE_CHECKING:
    from forensics.model.shape import Shape

QKV = ("attn.q_proj", "attn.k_proj", "attn.v_proj")
FUSED = "transformer.h.{i}.attn.c_attn."  # weight, bias
TURNED = {"attn.o_proj": "attn.c_proj", "mlp.up": "mlp.c_fc", "mlp.down": "mlp.c_proj"}


def pack(theirs: Tensors, params: Tensors, shape: Shape) -> None:
    """Put q, k and v side by side, and turn every linear map."""
    import torch

    for i in range(shape.layers):
        for kind in ("weight", "bias"):
            parts = [
                params[f"layers.{i}.attn.{projection}_proj.{kind}"].detach() for projection in "qkv"
            ]
            fused = torch.cat(parts)
            theirs[FUSED.format(i=i) + kind] = fused.T if kind == "weight" else fused
        for name in TURNED.values():
            weight = f"transformer.h.{i}.{name}.weight"
            theirs[weight] = theirs[weight].T


def fused(ours: str, shape: Shape) -> StoredPart | None:
    """Say where q, k and v lie in the fused map, and that every linear map is stored turned."""
    if not ours.startswith("layers."):
        return None
    i, _, module = ours.removeprefix("layers.").partition(".")
    module, _, kind = module.rpartition(".")
    D, M = shape.width, shape.mlp_width
    if module in QKV:
        first = QKV.index(module) * D
        if kind == "weight":
            return StoredPart(
                FUSED.format(i=i) + kind, (D, 3 * D), lambda whole: whole.T[first : first + D]
            )
        return StoredPart(
            FUSED.format(i=i) + kind, (3 * D,), lambda whole: whole[first : first + D]
        )
    if module in TURNED and kind == "weight":
        size = {"attn.o_proj": (D, D), "mlp.up": (D, M), "mlp.down": (M, D)}[module]
        return StoredPart(f"transformer.h.{i}.{TURNED[module]}.weight", size, lambda whole: whole.T)
    return None


FAMILY = Family(
    knobs={
        "position": "learned",
        "rope_theta": 1e4,
        "rope_fraction": 1.0,
        "norm": "pre",
        "norm_kind": "layer",
        "norm_eps": 1e-5,
        "qk_norm": "none",
        "parallel": False,
        "bias": True,
        "activation": "gelu_tanh",
        "tied": True,
    },
    mlp_multiple=4.0,
    architecture="GPT2LMHeadModel",
    config={
        "layers": "n_layer",
        "width": "n_embd",
        "heads": "n_head",
        "mlp_width": "n_inner",
        "tied": "tie_word_embeddings",
        "max_positions": "n_positions",
        "vocabulary": "vocab_size",
        "norm_eps": "layer_norm_epsilon",
    },
    fixed={
        "activation_function": "gelu_new",
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
        "add_cross_attention": False,
    },
    names={
        "embed.weight": "transformer.wte.weight",
        "positions.weight": "transformer.wpe.weight",
        "unembed.weight": "lm_head.weight",
        **{f"norm.{kind}": f"transformer.ln_f.{kind}" for kind in ("weight", "bias")},
        **{
            f"layers.{{i}}.{ours}.{kind}": f"transformer.h.{{i}}.{theirs}.{kind}"
            for ours, theirs in (("attn.norm", "ln_1"), ("mlp.norm", "ln_2"), *TURNED.items())
            for kind in ("weight", "bias")
        },
    },
    pack=pack,
    fused=fused,
)
