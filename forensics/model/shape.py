"""The shape of a decoder: every knob decided, and the name and size of each parameter tensor."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Shape:
    """A decoder with every knob decided.

    Letters: D width, H heads, K head width, L layers, V vocabulary.
    """

    layers: int
    width: int
    heads: int
    kv_heads: int
    head_width: int
    mlp_width: int
    norm: str  # pre | post
    norm_kind: str  # rms | layer | layer_no_bias | layer_no_parameters
    norm_eps: float
    qk_norm: str  # none | head | whole
    position: str  # rope | learned
    rope_theta: float
    rope_fraction: float
    parallel: bool
    bias: bool
    activation: str  # swiglu | gelu | gelu_tanh
    tied: bool
    max_positions: int
    vocabulary: int
    document_mask: bool = False
    qkv_bias: bool = False  # biases of queries, keys and values alone
    clip_qkv: float = 0.0  # largest |number| of queries, keys and values; 0: not clipped
    window: int = 0  # positions, its own included, that sliding layers attend to; 0: none slides
    sliding_layers: tuple[int, ...] = ()
    unrotated_layers: tuple[int, ...] = ()  # layers without RoPE
    rope_scaling: str = "none"  # none | llama3 | yarn; never in sliding layers
    rope_factor: float = 1.0  # of the wavelengths that are longer than the text trained on
    rope_original_length: int = 0  # positions trained on before the factor
    rope_slow: float = 1.0  # turns over the original length up to which the whole factor holds
    rope_fast: float = 1.0  # turns over the original length from which on none of it does
    rope_magnitude: float = 1.0  # of cos and sin (YaRN's attention factor)
    rope_theta_sliding: float = 0.0  # base in sliding layers; 0: rope_theta
    embed_scale: float = 1.0  # of the embedding, where the stream begins

    def __post_init__(self) -> None:
        """Take the lists of JSON as tuples, so that equal shapes are equal."""
        for name in ("sliding_layers", "unrotated_layers"):
            object.__setattr__(self, name, tuple(getattr(self, name)))

    def window_of(self, layer: int) -> int:
        """Return how many positions a query of this layer may look back on; 0: all before it."""
        return self.window if layer in self.sliding_layers else 0

    @property
    def gated(self) -> bool:
        """Whether the MLP has a gate."""
        return self.activation == "swiglu"

    @property
    def rotated(self) -> int:
        """Return how many of the K numbers of each head RoPE turns."""
        return int(self.head_width * self.rope_fraction) if self.position == "rope" else 0


def parameter_shapes(shape: Shape) -> dict[str, tuple[int, ...]]:
    """List every parameter tensor's name and shape, in the order of the forward."""
    shapes: dict[str, tuple[int, ...]] = {}
    D, q_width, kv_width = (
        shape.width,
        shape.heads * shape.head_width,
        shape.kv_heads * shape.head_width,
    )

    def linear(name: str, out: int, into: int, bias: bool = shape.bias) -> None:
        shapes[f"{name}.weight"] = (out, into)
        if bias:
            shapes[f"{name}.bias"] = (out,)

    def norm(name: str, width: int, kind: str = shape.norm_kind) -> None:
        if kind != "layer_no_parameters":
            shapes[f"{name}.weight"] = (width,)
        if kind == "layer":
            shapes[f"{name}.bias"] = (width,)

    shapes["embed.weight"] = (shape.vocabulary, D)
    if shape.position == "learned":
        shapes["positions.weight"] = (shape.max_positions, D)
    for i in range(shape.layers):
        norm(f"layers.{i}.attn.norm", D)
        for part, width in (("q", q_width), ("k", kv_width), ("v", kv_width)):
            linear(f"layers.{i}.attn.{part}_proj", width, D, shape.bias or shape.qkv_bias)
        if shape.qk_norm != "none":
            norm(
                f"layers.{i}.attn.q_norm",
                shape.head_width if shape.qk_norm == "head" else q_width,
                "rms",
            )
            norm(
                f"layers.{i}.attn.k_norm",
                shape.head_width if shape.qk_norm == "head" else kv_width,
                "rms",
            )
        linear(f"layers.{i}.attn.o_proj", D, q_width)
        norm(f"layers.{i}.mlp.norm", D)
        if shape.gated:
            linear(f"layers.{i}.mlp.gate", shape.mlp_width, D)
        linear(f"layers.{i}.mlp.up", shape.mlp_width, D)
        linear(f"layers.{i}.mlp.down", D, shape.mlp_width)
    norm("norm", D)
    if not shape.tied:
        shapes["unembed.weight"] = (shape.vocabulary, D)
    return shapes


def replace(shape: Shape, **knobs: Any) -> Shape:
    """Return the same decoder with some knobs turned."""
    return dataclasses.replace(shape, **knobs)
