"""GPT-NeoX's checkpoints (Pythia's own): DeepSpeed's model states, whole or layer by layer.

A checkpoint is global_stepN/ with mp_rank_MM_model_states.pt or layer_II-model_MM-model_states.pt,
and the trainer's YAML in configs/. Shards of tensor parallelism are put together. Its optimizer is
split flat over ranks (ZeRO) and is not read. Source: EleutherAI/gpt-neox megatron/checkpointing.py,
megatron/model/gpt2_model.py, tools/ckpts/convert_neox_to_hf.py.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from forensics.errors import ForensicsError
from forensics.formats.containers.closed_pickle import ClosedList, record
from forensics.formats.containers.stored import Stored
from forensics.formats.containers.torch_zip import plain_fields, read_torch_zip
from forensics.formats.foreign_run import (
    ForeignCheckpoint,
    ForeignOrder,
    ForeignRun,
    LazyTensor,
    TokenFiles,
)
from forensics.formats.pieces import Piece, combined, joined, place, shape_from
from forensics.formats.protocol import Format
from forensics.formats.run_folder import (
    by_step,
    folders,
    logs_beside,
    missing_checkpoint,
    step_in_name,
)
from forensics.formats.their_configuration import Settings, not_built, read_yaml
from forensics.model.shape import Shape, parameter_shapes

TITLE = "a GPT-NeoX checkpoint"
WHOLE, LAYER = "mp_rank_*_model_states.pt", "layer_*-model_*-model_states.pt"
RANK = re.compile(r"(?:mp_rank|model)_(\d+)")
LAYER_NUMBER = re.compile(r"layer_(\d+)")
SEQUENTIAL = re.compile(r"(?:module\.)?sequential\.(\d+)\.(.+)")
# what DeepSpeed's states hold beside tensors and plain values
ALLOWED = ClosedList(
    "a GPT-NeoX checkpoint",
    calls={"deepspeed.runtime.fp16.loss_scaler.DynamicLossScaler": record("DynamicLossScaler")},
)
# of each layer: shards of rows, of columns, whose copies are summed; the others are averaged
BY_ROWS = (
    *("word_embeddings.weight", "final_linear.weight", "query_key_value.weight"),
    *("query_key_value.bias", "dense_h_to_4h.weight", "dense_h_to_4h.bias"),
)
BY_COLUMNS = ("attention.dense.weight", "dense_4h_to_h.weight")
SUMMED = ("attention.dense.bias", "dense_4h_to_h.bias")
BUFFERS = ("rotary_emb.inv_freq", "attention.bias", "attention.masked_bias")
NORM_EPS, EOT = 1e-5, 0


def is_checkpoint(folder: Path) -> bool:
    """Tell whether a folder holds DeepSpeed's model states."""
    return any(next(folder.glob(pattern), None) for pattern in (WHOLE, LAYER))


def recognises(path: Path) -> bool:
    """Tell whether a folder is or holds GPT-NeoX's checkpoints."""
    return bool(folders(path, is_checkpoint))


def read_run(path: Path) -> ForeignRun:
    """Read a run's folder, or one global_stepN. Errors: missing, data."""
    found = folders(path, is_checkpoint)
    if not found:
        raise missing_checkpoint(path, TITLE, f"{WHOLE} or {LAYER}")
    config = _configuration(found[-1])
    settings = Settings(config, "")
    section = model_section(settings)
    stored = [_merged(folder) for folder in found]
    embedding = stored[0].get("0.word_embeddings.weight")
    if embedding is None:
        raise ForensicsError(
            "data",
            f"{found[0].name}: wanted layer 0 with word_embeddings, found none",
            "is it whole?",
        )
    shape = shape_from(section, embedding.shape[0])
    shapes, plan = parameter_shapes(shape), plan_of(shape)
    checkpoints: list[ForeignCheckpoint] = []
    unplaced: set[str] = set()
    for folder, tensors in zip(found, stored):
        placed = place(tensors, plan, shapes, TITLE)
        unplaced |= set(placed.unplaced)
        step = step_in_name(folder.name)
        if step is None:
            raise ForensicsError(
                "data", f"{folder.name}: wanted a folder called global_stepN", "rename it"
            )
        checkpoints.append(ForeignCheckpoint(step, folder, placed.tensors))
    train = train_section(settings, max(checkpoint.step for checkpoint in checkpoints))
    return ForeignRun(
        format=FORMAT.kind,
        checkpoints=by_step(checkpoints),
        recipe={
            "data": {"sequence_length": section["max_positions"], "window": "shared"},
            "model": section,
            "train": train,
        },
        tokens=_tokens(settings),
        order=ForeignOrder("neox", int(settings.get("seed", 1234))),
        logs=logs_beside(path, found),
        unplaced=tuple(sorted(unplaced)),
        notes=("its optimizer's moments are split flat over ranks by DeepSpeed, and are not read",),
        configuration=config,
    )


def _configuration(folder: Path) -> dict[str, Any]:
    """Read the trainer's YAML, whose keys have - or _. Errors: missing, data."""
    files = sorted((folder / "configs").glob("*.y*ml")) or sorted(folder.parent.glob("*.y*ml"))
    if not files:
        raise ForensicsError(
            "missing",
            f"wanted the trainer's YAML in {folder.name}/configs, found none",
            "copy the run's .yml files there",
        )
    merged: dict[str, Any] = {}
    for file in files:
        merged |= {key.replace("-", "_"): value for key, value in read_yaml(file).items()}
    return merged


def model_section(settings: Settings) -> dict[str, Any]:
    """Return the keys of [model]. Errors: data, for what no knob of the decoder is."""
    settings.only("pos_emb", "rotary")
    settings.only("norm", "layernorm")
    settings.only("activation", "gelu")
    settings.only("num_kv_heads", None, settings.get("num_attention_heads"))
    settings.only("gpt_j_tied", False)
    settings.only("scaled_upper_triang_masked_softmax_fusion", True, False)
    for name in ("hidden_dropout", "attention_dropout"):
        settings.only(name, 0, 0.0)
    attention = settings.get("attention_config")
    if attention and any(kind not in ("global", "flash") for kind in _kinds(attention)):
        raise not_built("attention_config with other kinds than global and flash", "those")
    width = settings.whole("hidden_size")
    return {
        "family": "gpt_neox",
        "layers": settings.whole("num_layers"),
        "width": width,
        "heads": settings.whole("num_attention_heads"),
        "mlp_width": settings.get("intermediate_size") or 4 * width,
        "norm": "pre",
        "norm_kind": "layer",
        "norm_eps": settings.number("layernorm_epsilon", NORM_EPS),
        "position": "rope",
        "rope_theta": settings.number("rotary_emb_base", 10_000),
        "rope_fraction": settings.number("rotary_pct", 1.0),
        "parallel": bool(settings.get("gpt_j_residual", False)),
        "bias": True,
        # its fused kernel takes tanh's approximation
        "activation": "gelu_tanh" if settings.get("bias_gelu_fusion", False) else "gelu",
        "tied": not settings.get("no_weight_tying", False),
        "max_positions": settings.whole("seq_length", settings.get("max_position_embeddings")),
    }


def _kinds(attention: Any) -> set[str]:
    """Return the kinds of attention in [[["flash"], L]]."""
    if isinstance(attention, str):
        return {attention}
    return {kind for part in attention if not isinstance(part, int) for kind in _kinds(part)}


def plan_of(shape: Shape) -> dict[str, Piece]:
    """Say which rows of NeoX's tensors each of ours is: q, k and v lie head by head."""
    L = shape.layers
    plan = {
        "embed.weight": Piece("0.word_embeddings.weight"),
        "unembed.weight": Piece(f"{L + 4}.final_linear.weight"),
    }
    for kind in ("weight", "bias"):
        plan[f"norm.{kind}"] = Piece(f"{L + 3}.norm.{kind}")
        for i in range(L):
            ours, theirs = f"layers.{i}", f"{i + 2}"
            plan |= {
                f"{ours}.attn.{part}_proj.{kind}": Piece(
                    f"{theirs}.attention.query_key_value.{kind}", shape.heads, 3, at, at + 1
                )
                for at, part in enumerate("qkv")
            } | {
                f"{ours}.attn.norm.{kind}": Piece(f"{theirs}.input_layernorm.{kind}"),
                f"{ours}.attn.o_proj.{kind}": Piece(f"{theirs}.attention.dense.{kind}"),
                f"{ours}.mlp.norm.{kind}": Piece(f"{theirs}.post_attention_layernorm.{kind}"),
                f"{ours}.mlp.up.{kind}": Piece(f"{theirs}.mlp.dense_h_to_4h.{kind}"),
                f"{ours}.mlp.down.{kind}": Piece(f"{theirs}.mlp.dense_4h_to_h.{kind}"),
            }
    return plan


def _merged(folder: Path) -> dict[str, LazyTensor]:
    """Return "LAYER.name" → tensor, the shards of all ranks put together. Errors: data."""
    shards: dict[str, dict[int, LazyTensor]] = {}
    files = sorted(folder.glob(LAYER)) or sorted(folder.glob(WHOLE))
    ranks = {_rank(file) for file in files}
    for file in files:
        document = plain_fields(read_torch_zip(file, ALLOWED))
        layer = LAYER_NUMBER.search(file.name)
        tensors = document if layer else plain_fields(document.get("module"))
        for name, tensor in tensors.items():
            if not isinstance(tensor, Stored) or not isinstance(name, str):
                continue
            inside = SEQUENTIAL.fullmatch(name)
            where = f"{int(layer[1])}.{name}" if layer else None
            where = f"{inside[1]}.{inside[2]}" if inside and not layer else where or name
            if not where.endswith(BUFFERS):
                shards.setdefault(where, {})[_rank(file)] = tensor.lazy(name)
    for name, of_ranks in shards.items():
        if set(of_ranks) != ranks:
            raise ForensicsError(
                "data",
                f"{folder.name}: wanted {name} of {len(ranks)} ranks, found {len(of_ranks)}",
                "is the checkpoint whole?",
            )
    return {name: _together(name, of_ranks) for name, of_ranks in shards.items()}


def _rank(file: Path) -> int:
    found = RANK.search(file.name)
    return int(found[1]) if found else 0


def _together(name: str, of_ranks: dict[int, LazyTensor]) -> LazyTensor:
    parts = [of_ranks[rank] for rank in sorted(of_ranks)]
    if name.endswith(BY_ROWS):
        return joined(parts, 0)
    if name.endswith(BY_COLUMNS):
        return joined(parts, 1)
    return combined(parts, mean=not name.endswith(SUMMED))


def train_section(settings: Settings, last: int) -> dict[str, Any]:
    """Return the keys of [train] that the trainer's YAML says. Errors: data."""
    optimizer = settings.section("optimizer")
    parameters = optimizer.section("params")
    if str(optimizer.get("type", "Adam")).lower() not in ("adam", "adamw"):
        raise not_built(f"optimizer.type = {optimizer.get('type')}", "Adam")
    steps = settings.get("train_iters") or max(1, last)
    length = settings.get("lr_decay_iters") or steps
    peak = parameters.number("lr", 1e-3)
    style = {"cosine": "cosine", "linear": "linear", "constant": "constant"}
    settings.only("lr_decay_style", *style)
    lowest = settings.get("min_lr")
    batch = settings.get("train_batch_size") or _batch(settings)
    micro_batch = settings.get("train_micro_batch_size_per_gpu")
    fits = isinstance(micro_batch, int) and batch and batch % micro_batch == 0
    return {
        "steps": steps,
        **({"batch": batch} if batch else {}),
        **({"micro_batch": micro_batch} if fits else {}),
        "learning_rate": peak,
        "betas": tuple(map(float, parameters.get("betas", (0.9, 0.999)))),
        "eps": parameters.number("eps", 1e-8),
        "weight_decay": settings.number("weight_decay", 0.0),
        "undecayed": ["*norm*", "*.bias"],
        "clip": settings.number("gradient_clipping", 0.0),
        "clip_eps": 1e-6,
        "loss_over": "targets",
        "schedule": style[settings.get("lr_decay_style", "cosine")],
        "schedule_steps": length,
        "warmup": int(settings.number("warmup", 0.01) * length),
        "warmup_from": 0.0,
        "warmup_base": 0.0,
        "decay_base": 0.0,
        "min_lr": 0.0 if lowest is None else settings.number("min_lr") / peak,
        "seed": settings.get("seed", 1234),
    }


def _batch(settings: Settings) -> int | None:
    """Multiply out a batch, where the YAML says on how many devices; None where it does not."""
    micro_batch = settings.get("train_micro_batch_size_per_gpu")
    devices = settings.get("global_num_gpus")
    if not isinstance(micro_batch, int) or not isinstance(devices, int):
        return None
    split = settings.get("model_parallel_size", 1) * max(1, settings.get("pipe_parallel_size", 1))
    return int(micro_batch * settings.get("gradient_accumulation_steps", 1) * devices // split)


def _tokens(settings: Settings) -> TokenFiles | None:
    paths = settings.get("train_data_paths") or settings.get("data_path")
    paths = [paths] if isinstance(paths, str) else paths
    if not isinstance(paths, list) or len(paths) != 1:
        return None
    return TokenFiles((f"{paths[0]}.bin",), "megatron", eot=EOT)


FORMAT = Format(
    "gpt-neox",
    "a GPT-NeoX checkpoint",
    recognises,
    read_run=read_run,
    looks_for="global_stepN with mp_rank_MM_model_states.pt or layer_II-model_MM-model_states.pt",
)
