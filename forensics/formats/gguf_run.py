"""A GGUF file as a model: every tensor under our names, dequantised when it is asked for.

    run = read_run(Path("SmolLM2-135M-Instruct.Q4_1.gguf"))
    run.checkpoints[0].params["layers.0.attn.q_proj.weight"].read()     # float32

The file's metadata are turned into Hugging Face's configuration and its tensors into Hugging
Face's names, so that families, checks and errors are those of a folder. Of architecture "llama"
the rows of q and k are put back: llama.cpp stores the two halves of a head's pairs side by side
(ggml-org/llama.cpp convert_hf_to_gguf.py, LlamaModel.permute). Llama 3's stretched
wavelengths lie in a tensor of their own (rope_freqs.weight), from which they are recognised.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from forensics.errors import ForensicsError
from forensics.formats.foreign_run import ForeignCheckpoint, ForeignRun, LazyTensor
from forensics.formats.gguf_file import dequantised, opened, tokenizer_of, value
from forensics.formats.huggingface_tensors import placed
from forensics.formats.weights_folder import listed
from forensics.model.knobs import section_of

if TYPE_CHECKING:
    from gguf import GGUFReader, ReaderTensor
    from torch import Tensor

ARCHITECTURES = ("llama", "olmo2", "qwen2", "qwen3")  # as llama.cpp and transformers call them
PERMUTED = ("llama",)
OUTER = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output.weight": "lm_head.weight",
    "output_norm.weight": "model.norm.weight",
}
BLOCK = re.compile(r"blk\.(?P<layer>\d+)\.(?P<name>[a-z_]+)\.(?P<kind>weight|bias)")
INNER = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "post_attention_norm": "post_attention_layernorm",  # OLMo 2
    "post_ffw_norm": "post_feedforward_layernorm",
    **{f"attn_{part}": f"self_attn.{part}_proj" for part in "qkv"},
    **{f"attn_{part}_norm": f"self_attn.{part}_norm" for part in "qk"},
    "attn_output": "self_attn.o_proj",
    **{f"ffn_{part}": f"mlp.{part}_proj" for part in ("gate", "up", "down")},
}
FACTORS = "rope_freqs.weight"
# metadata that change the model in a way that is not built here, where they are set
NOT_BUILT = (
    *("expert_count", "attention.sliding_window", "attention.logit_softcapping"),
    *("logit_scale", "embedding_scale", "residual_scale", "attention.scale"),
)
# of Llama 3.1, 3.2 and 3.3: low and high factor, original length
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original": 8192}
SAME = 1e-4  # relative, of a factor that is stored in float32


def read_run(path: Path) -> ForeignRun:
    """Read a model in a GGUF file; no tensor is read. Errors: data, config."""
    reader = opened(path)
    config = configuration(reader, path)
    heads = {"q": config["num_attention_heads"], "k": config["num_key_value_heads"]}
    permuted = config["model_type"] in PERMUTED
    stored: dict[str, LazyTensor] = {}
    unknown = []
    for tensor in reader.tensors:
        name = huggingface_name(tensor.name)
        part = name.rpartition("self_attn.")[2][0] if name and "_proj" in name else ""
        if name is not None:
            turned = heads[part] if permuted and part in heads else 0
            stored[name] = _lazy(tensor, path, turned)
        elif tensor.name != FACTORS:
            unknown.append(tensor.name)
    if unknown:
        raise ForensicsError(
            "data",
            f"{path.name}: {listed(unknown)} have no place in this decoder",
            "a model with these is not built here",
        )
    model = placed(stored, config)
    if model.unplaced:
        raise ForensicsError(
            "data",
            f"{path.name}: {listed(model.unplaced)} have no place in a {config['model_type']}",
            "is it a model of another kind?",
        )
    tokenizer, notes = tokenizer_of(reader, path)
    kinds = sorted({tensor.tensor_type.name for tensor in reader.tensors})
    return ForeignRun(
        "gguf",
        (ForeignCheckpoint(0, path, model.params),),
        {"model": section_of(model.shape, config["model_type"])},
        tokenizer_text=tokenizer.to_str(),
        notes=(*notes, *model.notes, f"stored as {', '.join(kinds)}; numbers here are those of it"),
        configuration=config,
    )


def huggingface_name(name: str) -> str | None:
    """Return the name that a tensor has in Hugging Face's layout; None for one of no such name."""
    if name in OUTER:
        return OUTER[name]
    found = BLOCK.fullmatch(name)
    if found is None or found["name"] not in INNER:
        return None
    return f"model.layers.{found['layer']}.{INNER[found['name']]}.{found['kind']}"


def configuration(reader: GGUFReader, path: Path) -> dict[str, Any]:
    """Return the file's metadata as Hugging Face's configuration. Errors: data, config."""
    kind = str(value(reader, "general.architecture"))
    if kind not in ARCHITECTURES:
        raise ForensicsError(
            "config",
            f"{path.name}: a model of architecture {kind!r} is not built here",
            f"built from GGUF: {', '.join(ARCHITECTURES)}; give the Hugging Face folder instead",
        )

    def said(key: str) -> Any:
        return value(reader, f"{kind}.{key}")

    for key in NOT_BUILT:
        if said(key):
            raise ForensicsError(
                "config",
                f"{path.name}: {kind}.{key} = {said(key)!r} is not built here",
                "only models without it are",
            )
    if int(value(reader, "split.count") or 1) > 1:
        raise ForensicsError(
            "data", f"{path.name} is one of several files", "join them with llama-gguf-split"
        )
    sizes = {tensor.name: _size(tensor) for tensor in reader.tensors}
    heads = said("attention.head_count")
    config = {
        "model_type": kind,
        "num_hidden_layers": said("block_count"),
        "hidden_size": said("embedding_length"),
        "intermediate_size": said("feed_forward_length"),
        "num_attention_heads": heads,
        "num_key_value_heads": said("attention.head_count_kv") or heads,
        "head_dim": said("attention.key_length") or said("rope.dimension_count"),
        "max_position_embeddings": said("context_length"),
        "rms_norm_eps": said("attention.layer_norm_rms_epsilon"),
        "rope_theta": said("rope.freq_base") or 1e4,
        "vocab_size": sizes.get("token_embd.weight", (0,))[0],
        "tie_word_embeddings": "output.weight" not in sizes,
        "hidden_act": "silu",
        "bos_token_id": value(reader, "tokenizer.ggml.bos_token_id"),
        "eos_token_id": value(reader, "tokenizer.ggml.eos_token_id"),
    }
    for key, number in config.items():
        if isinstance(number, list):
            raise ForensicsError(
                "config", f"{path.name}: {key} differs by layer: {number}"[:200], "not built here"
            )
    config |= {key: _decimal(config[key]) for key in ("rms_norm_eps", "rope_theta")}
    turned = said("rope.dimension_count")
    if turned and config["head_dim"] and turned != config["head_dim"]:
        config["partial_rotary_factor"] = turned / config["head_dim"]
    scaling = _rope_scaling(reader, kind, path, config)
    if scaling:
        config["rope_scaling"] = scaling
    return {key: number for key, number in config.items() if number is not None}


def _decimal(number: float | None) -> float | None:
    """Return the shortest decimal of a number that is stored in float32: 1e-05 as it was set."""
    return None if number is None else float(str(np.float32(number)))


def _rope_scaling(
    reader: GGUFReader, kind: str, path: Path, config: dict[str, Any]
) -> dict[str, Any]:
    """Say how wavelengths are stretched: by a named kind, or by a factor for each."""
    named = str(value(reader, f"{kind}.rope.scaling.type") or "none")
    linear = value(reader, f"{kind}.rope.scale_linear")
    if named != "none" or (linear and linear != 1):
        # `from_hf_config` refuses it by name; llama.cpp's YaRN has settings of its own
        return {"rope_type": named if named not in ("none", "yarn") else f"{named} of llama.cpp"}
    factors = next((tensor for tensor in reader.tensors if tensor.name == FACTORS), None)
    return _llama3(dequantised(factors, path), config, path) if factors is not None else {}


def _llama3(factors: Tensor, config: dict[str, Any], path: Path) -> dict[str, Any]:
    """Recognise Llama 3's rule in the factors that wavelengths are divided by. Errors: config."""
    import torch

    from forensics.model.hugging_face import from_hf_config
    from forensics.model.rope import frequencies

    scaling = {
        "rope_type": "llama3",
        "factor": float(factors.max()),
        "low_freq_factor": LLAMA3["low_freq_factor"],
        "high_freq_factor": LLAMA3["high_freq_factor"],
        "original_max_position_embeddings": LLAMA3["original"],
    }
    shape = from_hf_config({**config, "rope_scaling": scaling})
    wanted = frequencies(shape, False) / frequencies(shape, False, scaled=False)
    found = 1 / factors.reshape(-1).float()
    if found.shape != wanted.shape or not torch.allclose(found, wanted, rtol=SAME, atol=0):
        raise ForensicsError(
            "config",
            f"{path.name}: the factors of {FACTORS} follow no rule that is built here",
            "Llama 3's is; give the Hugging Face folder instead",
        )
    return scaling


def _size(tensor: ReaderTensor) -> tuple[int, ...]:
    return tuple(int(size) for size in reversed(tensor.shape))


def _lazy(tensor: ReaderTensor, path: Path, permuted_heads: int) -> LazyTensor:
    return LazyTensor(
        tensor.name, _size(tensor), "float32", path, _reading(tensor, path, permuted_heads)
    )


def _reading(tensor: ReaderTensor, path: Path, permuted_heads: int) -> Callable[[], Tensor]:
    def read() -> Tensor:
        numbers = dequantised(tensor, path).reshape(_size(tensor))
        return in_halves(numbers, permuted_heads) if permuted_heads else numbers

    return read


def in_halves(rows: Tensor, heads: int) -> Tensor:
    """Put a head's pairs, which lie side by side, into two halves: (H, K/2, 2) to (H, 2, K/2)."""
    return rows.unflatten(0, (heads, -1, 2)).transpose(1, 2).reshape(rows.shape)
