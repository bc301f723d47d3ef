"""OLMo 3: OLMo 2's block, of which three in four attend inside a window of positions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from forensics.model.families.llama import CONFIG
from forensics.model.families.olmo2 import FAMILY as OLMO2
from forensics.model.families.olmo2 import POST_NORM_NAMES
from forensics.model.family import Family

if TYPE_CHECKING:
    from forensics.model.shape import Shape

EVERY = 4  # layers, of which the last attends to everything
KINDS = ("full_attention", "sliding_attention")


def more_config(shape: Shape) -> dict[str, Any]:
    """Write the kind of each layer."""
    return {
        "sliding_window": shape.window,
        "layer_types": [KINDS[i in shape.sliding_layers] for i in range(shape.layers)],
    }


def read_more(config: dict[str, Any], layers: int) -> dict[str, Any]:
    """Read the kind of each layer."""
    kinds = config.get("layer_types") or [KINDS[(i + 1) % EVERY != 0] for i in range(layers)]
    sliding = tuple(i for i in range(layers) if kinds[i] == KINDS[1])
    return {"window": config.get("sliding_window") or 0, "sliding_layers": sliding}


FAMILY = Family(
    knobs=OLMO2.knobs | {"window": 4096},
    mlp_multiple=OLMO2.mlp_multiple,
    architecture="Olmo3ForCausalLM",
    config=CONFIG | {"norm_eps": "rms_norm_eps"},
    fixed=OLMO2.fixed,
    names=POST_NORM_NAMES,
    more_config=more_config,
    read_more=read_more,
    more_knobs=frozenset({"window", "sliding_layers"}),
    unsaid={"rms_norm_eps": 1e-5, "sliding_window": 4096},
    full_every=EVERY,
)
