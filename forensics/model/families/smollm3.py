"""SmolLM3: a tied Llama without RoPE in every fourth layer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from forensics.model.families.llama import CONFIG, NAMES, ROPE
from forensics.model.family import Family

if TYPE_CHECKING:
    from forensics.model.shape import Shape

EVERY = 4  # layers, of which the last is without RoPE (no_rope_layer_interval)


def more_config(shape: Shape) -> dict[str, Any]:
    """Write which layers have RoPE: in spite of its name, `no_rope_layers` holds 1 for those."""
    return {"no_rope_layers": [int(i not in shape.unrotated_layers) for i in range(shape.layers)]}


def read_more(config: dict[str, Any], layers: int) -> dict[str, Any]:
    """Read which layers are without RoPE."""
    every = config.get("no_rope_layer_interval", EVERY)
    turned = config.get("no_rope_layers") or [(i + 1) % every for i in range(layers)]
    return {"unrotated_layers": tuple(i for i in range(layers) if not turned[i])}


FAMILY = Family(
    knobs=ROPE
    | {
        "rope_theta": 2e6,
        "norm": "pre",
        "norm_kind": "rms",
        "norm_eps": 1e-6,
        "qk_norm": "none",
        "parallel": False,
        "bias": False,
        "activation": "swiglu",
        "tied": True,
    },
    mlp_multiple=5.375,
    architecture="SmolLM3ForCausalLM",
    config=CONFIG | {"norm_eps": "rms_norm_eps"},
    fixed={
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "use_sliding_window": False,
    },
    names=NAMES,
    more_config=more_config,
    read_more=read_more,
    more_knobs=frozenset({"unrotated_layers"}),
    unsaid={"num_key_value_heads": 4},
    unrotated_every=EVERY,
)
