"""GPT-2: learned positions, biases, tied embeddings; linear maps stored as Conv1D, (in, out)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from forensics.model.family import Family, Tensors

if TYPE_CHECKING:
    from torch import Tensor

    from forensics.model.shape import Shape

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


def unpack(ours: Tensors, take: Callable[[str], Tensor], shape: Shape) -> None:
    """Take q, k and v out of the fused map, and turn every linear map back."""
    D = shape.width
    for i in range(shape.layers):
        weight, bias = take(FUSED.format(i=i) + "weight").T, take(FUSED.format(i=i) + "bias")
        for index, projection in enumerate("qkv"):
            rows = slice(index * D, (index + 1) * D)
            ours[f"layers.{i}.attn.{projection}_proj.weight"] = weight[rows]
            ours[f"layers.{i}.attn.{projection}_proj.bias"] = bias[rows]
        for name in TURNED:
            ours[f"layers.{i}.{name}.weight"] = ours[f"layers.{i}.{name}.weight"].T


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
    unpack=unpack,
)
