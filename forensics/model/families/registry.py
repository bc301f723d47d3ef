"""The families as settings of one decoder, and the table of names and shapes to and from Hugging
Face.

A family is a set of values of the decoder's knobs. What a run's knobs say, not its family's name,
decides what it exports as: a llama with per-head QK-norm is a Qwen3 and opens as one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from forensics.config import Model
from forensics.errors import ForensicsError


@dataclass(frozen=True)
class Shape:
    """A decoder with every knob decided. Letters: D width, H heads, K head width, L layers, V
    vocabulary.
    """

    layers: int
    width: int
    heads: int
    kv_heads: int
    head_width: int
    mlp_width: int
    norm: str  # pre | post
    norm_kind: str  # rms | layer | layer_no_parameters
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

    @property
    def gated(self) -> bool:
        return self.activation == "swiglu"

    @property
    def rotated(self) -> int:
        """How many of the K numbers of each head RoPE turns."""
        return int(self.head_width * self.rope_fraction) if self.position == "rope" else 0


@dataclass(frozen=True)
class Family:
    knobs: dict[str, Any]
    mlp_multiple: float  # hidden size of the MLP over the width
    architecture: str  # Hugging Face's class
    config: dict[str, str]  # our knob → Hugging Face's configuration key
    fixed: dict[str, Any]  # configuration keys that are always the same
    names: dict[str, str]  # our name → Hugging Face's, {i} the layer


_ROPE = {"position": "rope", "rope_theta": 1e4, "rope_fraction": 1.0}
_LLAMA_CONFIG = {
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
_LLAMA_NAMES = {
    "embed.weight": "model.embed_tokens.weight",
    "unembed.weight": "lm_head.weight",
    "norm.weight": "model.norm.weight",
    "layers.{i}.attn.norm.weight": "model.layers.{i}.input_layernorm.weight",
    "layers.{i}.mlp.norm.weight": "model.layers.{i}.post_attention_layernorm.weight",
    **{
        f"layers.{{i}}.attn.{p}_proj.weight": f"model.layers.{{i}}.self_attn.{p}_proj.weight"
        for p in "qkvo"
    },
    **{
        f"layers.{{i}}.mlp.{p}.weight": f"model.layers.{{i}}.mlp.{p}_proj.weight"
        for p in ("gate", "up", "down")
    },
}
_QK_NAMES = {
    f"layers.{{i}}.attn.{p}_norm.weight": f"model.layers.{{i}}.self_attn.{p}_norm.weight"
    for p in "qk"
}

FAMILIES: dict[str, Family] = {
    "llama": Family(
        knobs=_ROPE
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
        config=_LLAMA_CONFIG | {"norm_eps": "rms_norm_eps", "head_width": "head_dim"},
        fixed={"hidden_act": "silu", "attention_bias": False, "mlp_bias": False},
        names=_LLAMA_NAMES,
    ),
    "qwen3": Family(
        knobs=_ROPE
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
        config=_LLAMA_CONFIG | {"norm_eps": "rms_norm_eps", "head_width": "head_dim"},
        fixed={"hidden_act": "silu", "attention_bias": False, "use_sliding_window": False},
        names=_LLAMA_NAMES | _QK_NAMES,
    ),
    "olmo": Family(
        knobs=_ROPE
        | {
            "norm": "pre",
            "norm_kind": "layer_no_parameters",
            "norm_eps": 1e-5,
            "qk_norm": "none",
            "parallel": False,
            "bias": False,
            "activation": "swiglu",
            "tied": False,
        },
        mlp_multiple=8 / 3,
        architecture="OlmoForCausalLM",
        config=_LLAMA_CONFIG,
        fixed={"hidden_act": "silu", "attention_bias": False, "clip_qkv": None},
        names={ours: theirs for ours, theirs in _LLAMA_NAMES.items() if "norm" not in ours},
    ),
    "olmo2": Family(
        knobs=_ROPE
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
        config=_LLAMA_CONFIG | {"norm_eps": "rms_norm_eps"},
        fixed={"hidden_act": "silu", "attention_bias": False},
        names=_LLAMA_NAMES
        | _QK_NAMES
        | {
            "layers.{i}.attn.norm.weight": "model.layers.{i}.post_attention_layernorm.weight",
            "layers.{i}.mlp.norm.weight": "model.layers.{i}.post_feedforward_layernorm.weight",
        },
    ),
    "gpt_neox": Family(
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
            **{f"norm.{w}": f"gpt_neox.final_layer_norm.{w}" for w in ("weight", "bias")},
            **{
                f"layers.{{i}}.{ours}.{w}": f"gpt_neox.layers.{{i}}.{theirs}.{w}"
                for ours, theirs in (
                    ("attn.norm", "input_layernorm"),
                    ("mlp.norm", "post_attention_layernorm"),
                    ("attn.o_proj", "attention.dense"),
                    ("mlp.up", "mlp.dense_h_to_4h"),
                    ("mlp.down", "mlp.dense_4h_to_h"),
                )
                for w in ("weight", "bias")
            },
        },
    ),
    "gpt2": Family(
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
            **{f"norm.{w}": f"transformer.ln_f.{w}" for w in ("weight", "bias")},
            **{
                f"layers.{{i}}.{ours}.{w}": f"transformer.h.{{i}}.{theirs}.{w}"
                for ours, theirs in (
                    ("attn.norm", "ln_1"),
                    ("mlp.norm", "ln_2"),
                    ("attn.o_proj", "attn.c_proj"),
                    ("mlp.up", "mlp.c_fc"),
                    ("mlp.down", "mlp.c_proj"),
                )
                for w in ("weight", "bias")
            },
        },
    ),
}


def shape_of(model: Model, vocabulary: int, sequence_length: int) -> Shape:
    """The decoder that a recipe's [model] asks for, every knob decided. Errors: config."""
    family = FAMILIES[model.family]
    knobs = dict(family.knobs)
    for name in knobs:
        chosen = getattr(model, name)
        if chosen is not None:
            knobs[name] = chosen
    kv_heads = model.kv_heads or model.heads
    if model.head_width is None and model.width % model.heads:
        raise ForensicsError(
            "config",
            f"model.heads: {model.heads} does not divide model.width = {model.width}",
            "change one of them, or set model.head_width",
        )
    head_width = model.head_width or model.width // model.heads
    if model.heads % kv_heads:
        raise ForensicsError(
            "config",
            f"model.kv_heads: {kv_heads} does not divide model.heads = {model.heads}",
            "each key head serves the same number of query heads",
        )
    # Rounded up to a multiple of 32, so that matrix products stay on the fast path.
    mlp_width = model.mlp_width or -(-int(family.mlp_multiple * model.width) // 32) * 32
    shape = Shape(
        layers=model.layers,
        width=model.width,
        heads=model.heads,
        kv_heads=kv_heads,
        head_width=head_width,
        mlp_width=mlp_width,
        max_positions=model.max_positions or sequence_length,
        vocabulary=vocabulary,
        document_mask=model.document_mask,
        **knobs,
    )
    if shape.position == "rope" and (shape.rotated < 2 or shape.rotated % 2):
        raise ForensicsError(
            "config",
            f"model.rope_fraction: RoPE turns pairs, found {shape.rotated} of {head_width} numbers"
            " per head",
            "make head width × rope_fraction an even number",
        )
    if shape.position == "learned" and shape.max_positions < sequence_length:
        raise ForensicsError(
            "config",
            f"model.max_positions: {shape.max_positions} is less than data.sequence_length ="
            f" {sequence_length}",
            "set model.max_positions higher",
        )
    return shape


def parameter_shapes(shape: Shape) -> dict[str, tuple[int, ...]]:
    """Every parameter tensor's name and shape, in the order of the forward."""
    s, found = shape, dict[str, tuple[int, ...]]()
    D, q_width, kv_width = s.width, s.heads * s.head_width, s.kv_heads * s.head_width

    def linear(name: str, out: int, into: int) -> None:
        found[f"{name}.weight"] = (out, into)
        if s.bias:
            found[f"{name}.bias"] = (out,)

    def norm(name: str, width: int, kind: str = s.norm_kind) -> None:
        if kind != "layer_no_parameters":
            found[f"{name}.weight"] = (width,)
        if kind == "layer":
            found[f"{name}.bias"] = (width,)

    found["embed.weight"] = (s.vocabulary, D)
    if s.position == "learned":
        found["positions.weight"] = (s.max_positions, D)
    for i in range(s.layers):
        norm(f"layers.{i}.attn.norm", D)
        linear(f"layers.{i}.attn.q_proj", q_width, D)
        linear(f"layers.{i}.attn.k_proj", kv_width, D)
        linear(f"layers.{i}.attn.v_proj", kv_width, D)
        if s.qk_norm != "none":
            norm(f"layers.{i}.attn.q_norm", s.head_width if s.qk_norm == "head" else q_width, "rms")
            norm(
                f"layers.{i}.attn.k_norm", s.head_width if s.qk_norm == "head" else kv_width, "rms"
            )
        linear(f"layers.{i}.attn.o_proj", D, q_width)
        norm(f"layers.{i}.mlp.norm", D)
        if s.gated:
            linear(f"layers.{i}.mlp.gate", s.mlp_width, D)
        linear(f"layers.{i}.mlp.up", s.mlp_width, D)
        linear(f"layers.{i}.mlp.down", D, s.mlp_width)
    norm("norm", D)
    if not s.tied:
        found["unembed.weight"] = (s.vocabulary, D)
    return found


def exported_family(shape: Shape) -> str | None:
    """The family whose architecture these knobs are exactly, or None: then it has no Hugging Face
    form.
    """
    for name, family in FAMILIES.items():
        # what a configuration key of theirs says, and it alone
        free = {"norm_eps", "rope_theta", "rope_fraction"} | {
            k for k, key in family.config.items() if key not in family.fixed
        }
        same = all(
            getattr(shape, knob) == value
            for knob, value in family.knobs.items()
            if knob not in free
        )
        if not same or shape.document_mask:
            continue
        if family.knobs["rope_fraction"] == 1.0 and shape.rope_fraction != 1.0:
            continue
        if "norm_eps" not in family.config and shape.norm_eps != family.knobs["norm_eps"]:
            continue
        if "kv_heads" not in family.config and shape.kv_heads != shape.heads:
            continue
        if "head_width" not in family.config and shape.head_width * shape.heads != shape.width:
            continue
        return name
    return None


def to_hf_config(shape: Shape, eot: int) -> dict[str, Any]:
    """`config.json` for transformers. Errors: config, where the knobs are no known family's."""
    name = exported_family(shape)
    if name is None:
        raise ForensicsError(
            "config",
            "these knobs together are no architecture that transformers knows",
            "export needs the knobs of one family: " + ", ".join(FAMILIES),
        )
    family = FAMILIES[name]
    config = {theirs: getattr(shape, ours) for ours, theirs in family.config.items()} | family.fixed
    if shape.position == "rope":
        config["rope_theta"] = shape.rope_theta
        config["rope_parameters"] = {"rope_type": "default", "rope_theta": shape.rope_theta}
        if name == "gpt_neox":
            config |= {"rotary_pct": shape.rope_fraction, "rotary_emb_base": shape.rope_theta}
            config["rope_parameters"]["partial_rotary_factor"] = shape.rope_fraction
    return config | {
        "model_type": name,
        "architectures": [family.architecture],
        "bos_token_id": eot,
        "eos_token_id": eot,
        "pad_token_id": None,
        "dtype": "float32",
    }


def from_hf_config(config: dict[str, Any]) -> Shape:
    """The decoder that a Hugging Face `config.json` describes. Errors: config, where it is no
    family of ours.
    """
    name = config.get("model_type")
    if name not in FAMILIES:
        raise ForensicsError(
            "config",
            f"wanted a model of a known family, found model_type {name!r}",
            "known: " + ", ".join(FAMILIES),
        )
    family = FAMILIES[name]
    for key, value in family.fixed.items():
        if key in config and config[key] != value and not key.endswith(("pdrop", "dropout")):
            raise ForensicsError(
                "config",
                f"{name} with {key} = {config[key]!r} is not built here",
                f"only {key} = {value!r} is",
            )
    values = dict(family.knobs)
    values |= {
        ours: config[theirs]
        for ours, theirs in family.config.items()
        if config.get(theirs) is not None
    }
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if rope.get("rope_type", "default") != "default":
        raise ForensicsError(
            "config",
            f"RoPE of type {rope['rope_type']!r} is not built here",
            "only the default type is",
        )
    if values["position"] == "rope":
        values["rope_theta"] = float(
            rope.get("rope_theta")
            or config.get("rope_theta")
            or config.get("rotary_emb_base")
            or values["rope_theta"]
        )
        values["rope_fraction"] = float(
            rope.get("partial_rotary_factor") or config.get("rotary_pct") or values["rope_fraction"]
        )
    for ours in ("layers", "width", "heads", "max_positions", "vocabulary"):
        if not isinstance(values.get(ours), int) or values[ours] < 1:
            raise ForensicsError(
                "config",
                f"wanted {family.config[ours]} of a {name} model, found {values.get(ours)!r}",
                "is it the model's own config.json?",
            )
    values.setdefault("kv_heads", values["heads"])
    values.setdefault("head_width", values["width"] // values["heads"])
    values.setdefault("mlp_width", int(family.mlp_multiple * values["width"]))
    return Shape(**values)


def hf_names(shape: Shape) -> Iterator[tuple[str, str]]:
    """(our name, Hugging Face's name) of every tensor that is stored under one name on both
    sides.
    """
    name = exported_family(shape)
    assert name is not None, "to_hf_config says why first"
    table = FAMILIES[name].names
    for ours in parameter_shapes(shape):
        layer = ours.split(".")[1] if ours.startswith("layers.") else ""
        general = ours.replace(f"layers.{layer}.", "layers.{i}.", 1) if layer else ours
        if general in table:
            yield ours, table[general].replace("{i}", layer)


def to_hf_tensors(params: dict[str, Any], shape: Shape) -> dict[str, Any]:
    """Our tensors under Hugging Face's names and layouts; contiguous copies where the layout
    differs.
    """
    import torch

    name = exported_family(shape)
    found = {theirs: params[ours].detach() for ours, theirs in hf_names(shape)}
    for i in range(shape.layers):
        parts = {
            w: [params[f"layers.{i}.attn.{p}_proj.{w}"].detach() for p in "qkv"]
            for w in ("weight", "bias")
            if shape.bias
        }
        if name == "gpt_neox":  # one matrix whose rows go head by head, q then k then v
            H, K = shape.heads, shape.head_width
            for w, qkv in parts.items():
                stacked = torch.stack([p.view(H, K, -1) for p in qkv], dim=1)
                flat = stacked.reshape(3 * H * K, -1)
                found[f"gpt_neox.layers.{i}.attention.query_key_value.{w}"] = (
                    flat if w == "weight" else flat[:, 0]
                )
        if name == "gpt2":  # Conv1D: (in, out), q, k and v side by side
            found[f"transformer.h.{i}.attn.c_attn.weight"] = torch.cat(parts["weight"]).T
            found[f"transformer.h.{i}.attn.c_attn.bias"] = torch.cat(parts["bias"])
            for theirs in ("attn.c_proj", "mlp.c_fc", "mlp.c_proj"):
                found[f"transformer.h.{i}.{theirs}.weight"] = found[
                    f"transformer.h.{i}.{theirs}.weight"
                ].T
    return {theirs: tensor.contiguous() for theirs, tensor in found.items()}


def from_hf_tensors(tensors: dict[str, Any], shape: Shape) -> dict[str, Any]:
    """Hugging Face's tensors under our names and layouts. Errors: data, naming the first that is
    missing.
    """
    name = exported_family(shape)

    def take(theirs: str) -> Any:
        for candidate in (
            theirs,
            theirs.removeprefix("transformer."),
            theirs.removeprefix("model."),
        ):
            if candidate in tensors:
                return tensors[candidate]
        raise ForensicsError(
            "data",
            f"wanted tensor {theirs!r}, found none in the checkpoint",
            f"is it complete, and a {name} model?",
        )

    found = {}
    for ours, theirs in hf_names(shape):
        found[ours] = take(theirs)
    for i in range(shape.layers):
        if name == "gpt_neox":
            H, K = shape.heads, shape.head_width
            for w in ("weight", "bias"):
                fused = take(f"gpt_neox.layers.{i}.attention.query_key_value.{w}").reshape(
                    H, 3, K, -1
                )
                for j, p in enumerate("qkv"):
                    part = fused[:, j].reshape(H * K, -1)
                    found[f"layers.{i}.attn.{p}_proj.{w}"] = part if w == "weight" else part[:, 0]
        if name == "gpt2":
            weight, bias = (
                take(f"transformer.h.{i}.attn.c_attn.weight").T,
                take(f"transformer.h.{i}.attn.c_attn.bias"),
            )
            for j, p in enumerate("qkv"):
                found[f"layers.{i}.attn.{p}_proj.weight"] = weight[
                    j * shape.width : (j + 1) * shape.width
                ]
                found[f"layers.{i}.attn.{p}_proj.bias"] = bias[
                    j * shape.width : (j + 1) * shape.width
                ]
            for ours in ("attn.o_proj", "mlp.up", "mlp.down"):
                found[f"layers.{i}.{ours}.weight"] = found[f"layers.{i}.{ours}.weight"].T
    wanted = parameter_shapes(shape)
    for ours, size in wanted.items():
        if tuple(found[ours].shape) != size:
            raise ForensicsError(
                "data",
                f"{ours}: wanted shape {size}, found {tuple(found[ours].shape)}",
                "do config.json and weights belong together?",
            )
    return {ours: found[ours].contiguous() for ours in wanted}


def replace(shape: Shape, **knobs: Any) -> Shape:
    """The same decoder with some knobs turned."""
    return dataclasses.replace(shape, **knobs)
