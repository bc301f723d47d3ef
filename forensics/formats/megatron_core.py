"""Megatron-core's distributed checkpoints: iter_NNNNNNN/ with .metadata, .distcp files, common.pt.

Layers are stored stacked ("decoder.layers.self_attention…", first dimension the layer) or each by
its number. Source: NVIDIA/Megatron-LM megatron/training/checkpointing.py,
megatron/core/transformer/attention.py.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from forensics.errors import ForensicsError
from forensics.formats.containers.closed_pickle import ClosedList, record
from forensics.formats.containers.dcp import is_dcp, read_dcp
from forensics.formats.containers.torch_zip import plain_fields, read_torch_zip
from forensics.formats.foreign_run import (
    ForeignCheckpoint,
    ForeignOrder,
    ForeignRun,
    LazyTensor,
    TokenFiles,
)
from forensics.formats.pieces import Piece, place, shape_from
from forensics.formats.protocol import Format
from forensics.formats.run_folder import (
    by_step,
    folders,
    logs_beside,
    missing_checkpoint,
    step_in_name,
)
from forensics.formats.their_configuration import Settings, not_built
from forensics.model.shape import Shape, parameter_shapes

TITLE = "a Megatron-core checkpoint"
COMMON, METADATA = "common.pt", "metadata.json"
MOMENTS = ("exp_avg", "exp_avg_sq")
STACKED = "decoder.layers."
WRAPPERS = ("module.", "model.")
CLASSES = (  # of settings in its arguments, kept as names and numbers
    "megatron.core.transformer.enums.AttnBackend",
    "megatron.core.transformer.enums.AttnMaskType",
    "megatron.core.transformer.enums.CudaGraphScope",
    "megatron.core.enums.ModelType",
    "megatron.core.enums.Fp8Recipe",
    "megatron.core.rerun_state_machine.RerunMode",
    "megatron.core.rerun_state_machine.RerunState",
    "types.SimpleNamespace",
)
ALLOWED = ClosedList(
    "Megatron-core's common.pt",
    values={"signal.Signals": "signal.Signals"},
    calls={name: record(name) for name in CLASSES},
)


def is_checkpoint(folder: Path) -> bool:
    """Tell whether a folder is one checkpoint."""
    return (folder / COMMON).is_file() and (folder / METADATA).is_file() and is_dcp(folder)


def recognises(path: Path) -> bool:
    """Tell whether a folder is or holds Megatron-core's checkpoints."""
    return bool(folders(path, is_checkpoint))


def read_run(path: Path) -> ForeignRun:
    """Read a run's folder, or one iter_NNNNNNN. Errors: missing, data."""
    found = folders(path, is_checkpoint)
    if not found:
        raise missing_checkpoint(path, TITLE, f".metadata, {COMMON} and {METADATA}")
    commons = [plain_fields(read_torch_zip(folder / COMMON, ALLOWED)) for folder in found]
    arguments = plain_fields(commons[-1].get("args"))
    if not arguments:
        raise ForensicsError(
            "data",
            f"{found[-1].name}/{COMMON}: wanted the trainer's args, found none",
            "save the checkpoint with Megatron's own training loop",
        )
    settings = Settings(arguments, "")
    section = model_section(settings)
    shape = shape_from(section, settings.whole("padded_vocab_size"))
    checkpoints: list[ForeignCheckpoint] = []
    unplaced: set[str] = set()
    for folder, common in zip(found, commons):
        checkpoint, without_place = _checkpoint(folder, common, shape)
        checkpoints.append(checkpoint)
        unplaced |= set(without_place)
    without = [c.step for c in checkpoints if c.exp_avg is None]
    return ForeignRun(
        format=FORMAT.kind,
        checkpoints=by_step(checkpoints),
        recipe={
            "data": {"sequence_length": settings.whole("seq_length"), "window": "shared"},
            "model": section,
            "train": train_section(settings, max(c.step for c in checkpoints)),
        },
        tokens=_tokens(settings),
        order=ForeignOrder("megatron", settings.get("seed", 1234)),
        logs=logs_beside(path, found),
        unplaced=tuple(sorted(unplaced)),
        notes=("moments of its distributed optimizer are not read",) if without else (),
        configuration={
            k: v for k, v in arguments.items() if isinstance(v, (str, int, float, list))
        },
    )


def model_section(settings: Settings) -> dict[str, Any]:
    """Return the keys of [model]. Errors: data, for what no knob of the decoder is."""
    for name in ("hidden_dropout", "attention_dropout"):
        settings.only(name, 0.0)
    settings.only("num_experts", None)
    settings.only("multi_latent_attention", False, None)
    settings.only("normalization", "RMSNorm", "LayerNorm")
    settings.only("apply_layernorm_1p", False, None)
    settings.only("position_embedding_type", "rope", "learned_absolute")
    settings.only("rotary_interleaved", False, None)
    settings.only("use_rope_scaling", False, None)
    settings.only("squared_relu", False, None)
    rms, gated = settings.get("normalization") == "RMSNorm", bool(settings.get("swiglu"))
    if settings.get("qk_layernorm") and not rms:
        raise not_built("qk_layernorm by a layer norm", "one by RMS")
    heads, width = settings.whole("num_attention_heads"), settings.whole("hidden_size")
    groups = settings.get("num_query_groups") if settings.get("group_query_attention") else heads
    learned = settings.get("position_embedding_type") == "learned_absolute"
    rope = {
        "position": "rope",
        "rope_theta": settings.number("rotary_base", 10_000),
        "rope_fraction": settings.number("rotary_percent", 1.0),
    }
    bias = bool(settings.get("add_bias_linear", True))
    return {
        "family": "llama" if rms and gated else "gpt2" if learned else "gpt_neox",
        "layers": settings.whole("num_layers"),
        "width": width,
        "heads": heads,
        "kv_heads": groups,
        "head_width": settings.get("kv_channels") or width // heads,
        "mlp_width": settings.whole("ffn_hidden_size", 4 * width),
        "norm": "pre",
        "norm_kind": "rms" if rms else "layer",
        "norm_eps": settings.number("norm_epsilon", settings.get("layernorm_epsilon", 1e-5)),
        "qk_norm": "head" if settings.get("qk_layernorm") else "none",
        **({"position": "learned"} if learned else rope),
        "parallel": False,
        "bias": bias,
        **({"qkv_bias": True} if settings.get("add_qkv_bias") and not bias else {}),
        "activation": "swiglu"
        if gated
        else "gelu_tanh"
        if settings.get("bias_gelu_fusion")
        else "gelu",
        "tied": not settings.get("untie_embeddings_and_output_weights", False),
        "max_positions": settings.whole("max_position_embeddings", settings.get("seq_length")),
    }


def plan_of(shape: Shape) -> dict[str, Piece]:
    """Say which rows of Megatron's tensors each of ours is: q, k, v of each group; gate|up."""
    groups = shape.kv_heads
    each = shape.heads // groups
    parts = {"q": (0, each), "k": (each, each + 1), "v": (each + 1, each + 2)}
    plan = {
        "embed.weight": Piece("embedding.word_embeddings.weight"),
        "positions.weight": Piece("embedding.position_embeddings.weight"),
        "unembed.weight": Piece("output_layer.weight"),
    }
    for kind in ("weight", "bias"):
        plan[f"norm.{kind}"] = Piece(f"decoder.final_layernorm.{kind}")
        for i in range(shape.layers):
            ours, theirs = f"layers.{i}", f"{STACKED}{i}"
            attention, up = f"{theirs}.self_attention", f"{theirs}.mlp.linear_fc1.{kind}"
            plan |= {
                f"{ours}.attn.{part}_proj.{kind}": Piece(
                    f"{attention}.linear_qkv.{kind}", groups, each + 2, first, after
                )
                for part, (first, after) in parts.items()
            } | {
                f"{ours}.attn.norm.{kind}": Piece(f"{attention}.linear_qkv.layer_norm_{kind}"),
                f"{ours}.attn.q_norm.{kind}": Piece(f"{attention}.q_layernorm.{kind}"),
                f"{ours}.attn.k_norm.{kind}": Piece(f"{attention}.k_layernorm.{kind}"),
                f"{ours}.attn.o_proj.{kind}": Piece(f"{attention}.linear_proj.{kind}"),
                f"{ours}.mlp.norm.{kind}": Piece(f"{theirs}.mlp.linear_fc1.layer_norm_{kind}"),
                f"{ours}.mlp.gate.{kind}": Piece(up, 1, 2, 0, 1),
                f"{ours}.mlp.up.{kind}": Piece(up, 1, 2, 1, 2) if shape.gated else Piece(up),
                f"{ours}.mlp.down.{kind}": Piece(f"{theirs}.mlp.linear_fc2.{kind}"),
            }
    return plan


# without Transformer Engine the norms before the fused maps are modules of their own
APART = {
    ".input_layernorm.": ".self_attention.linear_qkv.layer_norm_",
    ".pre_mlp_layernorm.": ".mlp.linear_fc1.layer_norm_",
}


def _checkpoint(
    folder: Path, common: dict[Any, Any], shape: Shape
) -> tuple[ForeignCheckpoint, tuple[str, ...]]:
    stored = read_dcp(folder)
    plan, shapes = plan_of(shape), parameter_shapes(shape)
    named = {name: tensor.lazy(name) for name, tensor in stored.tensors.items()}
    model = {name: tensor for name, tensor in named.items() if not name.startswith("optimizer.")}
    placed = place(_layer_by_layer(model, shape.layers), plan, shapes, TITLE)
    moments: dict[str, dict[str, LazyTensor]] = {}
    for moment in MOMENTS:
        prefix = f"optimizer.state.{moment}."
        tensors = {n.removeprefix(prefix): t for n, t in named.items() if n.startswith(prefix)}
        if tensors:
            whole = _layer_by_layer(tensors, shape.layers)
            moments[moment] = place(whole, plan, shapes, f"{TITLE}'s {moment}").tensors
    step = common.get("iteration", step_in_name(folder.name))
    if not isinstance(step, int):
        raise ForensicsError(
            "data", f"{folder.name}: wanted its iteration in {COMMON}, found none", "is it whole?"
        )
    checkpoint = ForeignCheckpoint(
        step=step,
        path=folder,
        params=placed.tensors,
        exp_avg=moments.get("exp_avg"),
        exp_avg_sq=moments.get("exp_avg_sq"),
    )
    return checkpoint, placed.unplaced


def _layer_by_layer(tensors: dict[str, LazyTensor], layers: int) -> dict[str, LazyTensor]:
    """Return every layer's tensor by itself, whether they are stored stacked or not."""
    apart: dict[str, LazyTensor] = {}
    for stored_name, tensor in tensors.items():
        name = stored_name
        for wrapper in WRAPPERS:
            name = name.removeprefix(wrapper)
        for theirs, fused in APART.items():
            name = name.replace(theirs, fused)
        rest = name.removeprefix(STACKED)
        stacked = rest != name and not rest.split(".")[0].isdigit()
        if stacked and tensor.shape[:1] == (layers,):
            for layer in range(layers):
                apart[f"{STACKED}{layer}.{rest}"] = _layer(tensor, layer)
        elif not name.endswith("_extra_state"):
            apart[name] = tensor
    return apart


def _layer(tensor: LazyTensor, layer: int) -> LazyTensor:
    return replace(tensor, shape=tensor.shape[1:], read=lambda: tensor.read()[layer])


def train_section(settings: Settings, last: int) -> dict[str, Any]:
    """Return the keys of [train] that the trainer's arguments say. Errors: data."""
    settings.only("optimizer", "adam")
    styles = ("cosine", "linear", "constant")
    settings.only("lr_decay_style", "linear", *styles)
    peak, lowest = settings.number("lr", 1e-3), settings.number("min_lr", 0.0)
    batch, micro_batch = settings.whole("global_batch_size"), settings.whole("micro_batch_size")
    steps = settings.get("train_iters") or max(1, last)
    length = settings.get("lr_decay_iters") or steps
    share = settings.get("lr_warmup_fraction")
    warmup = settings.get("lr_warmup_iters") or 0 if share is None else int(share * length)
    return {
        "steps": steps,
        "batch": batch,
        "micro_batch": micro_batch if batch % micro_batch == 0 else batch,
        "learning_rate": peak,
        "betas": (settings.number("adam_beta1", 0.9), settings.number("adam_beta2", 0.999)),
        "eps": settings.number("adam_eps", 1e-8),
        "weight_decay": settings.number("weight_decay", 0.01),
        "undecayed": ["*norm*", "*.bias"],
        "clip": settings.number("clip_grad", 1.0),
        "clip_eps": 1e-6,
        "loss_over": "targets",
        "schedule": settings.get("lr_decay_style", "linear"),
        "schedule_steps": length,
        "warmup": warmup,
        "warmup_from": settings.number("lr_warmup_init", 0.0) / peak,
        "warmup_base": 0.0,
        "decay_base": 0.0,
        "min_lr": lowest / peak,
        "seed": settings.get("seed", 1234),
        "precision": "bf16" if settings.get("bf16") else "fp32",
    }


def _tokens(settings: Settings) -> TokenFiles | None:
    """Return the one data set of data_path; None for blends, whose order is another's."""
    paths = settings.get("train_data_path") or settings.get("data_path")
    if not isinstance(paths, list) or len(paths) != 1:
        return None
    return TokenFiles((f"{paths[0]}.bin",), "megatron")


FORMAT = Format(
    "megatron-core",
    "a Megatron-core checkpoint",
    recognises,
    read_run=read_run,
    looks_for="a folder that holds common.pt and metadata.json beside .metadata",
)
