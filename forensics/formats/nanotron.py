"""nanotron's checkpoints (SmolLM2, SmolLM3): one safetensors file a tensor, or a shard of one.

A checkpoint is STEP/ with config.yaml, model_config.json, checkpoint_metadata.json and
model/…/model_weight*.safetensors, whose writer's words say which slices of the whole a shard is.
Its optimizer is not read. Source: huggingface/nanotron src/nanotron/serialize/weights.py,
src/nanotron/models/llama.py.
"""

from __future__ import annotations

import functools
import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from forensics.errors import ForensicsError
from forensics.formats.containers.safetensors_file import read_safetensors
from forensics.formats.foreign_run import (
    ForeignCheckpoint,
    ForeignOrder,
    ForeignRun,
    LazyTensor,
    TokenFiles,
)
from forensics.formats.pieces import Piece, place, shape_from
from forensics.formats.protocol import Format
from forensics.formats.run_folder import by_step, folders, logs_beside, missing_checkpoint
from forensics.formats.their_configuration import (
    Settings,
    not_built,
    read_json,
    read_yaml,
    shown,
)
from forensics.model.shape import Shape, parameter_shapes

if TYPE_CHECKING:
    from torch import Tensor

TITLE = "a nanotron checkpoint"
CONFIG, MODEL_CONFIG, METADATA = "config.yaml", "model_config.json", "checkpoint_metadata.json"
SUFFIX = re.compile(r"model_(weight|bias)(?:_pp-rank-\d+-of-\d+_tp-rank-\d+-of-\d+)?\.safetensors")
SLICE = re.compile(r"(\d+|None),(\d+|None),(?:1|None)")


def is_checkpoint(folder: Path) -> bool:
    """Tell whether a folder is one checkpoint."""
    return (folder / METADATA).is_file() and (folder / MODEL_CONFIG).is_file()


def recognises(path: Path) -> bool:
    """Tell whether a folder is or holds nanotron's checkpoints."""
    return bool(folders(path, is_checkpoint))


def read_run(path: Path) -> ForeignRun:
    """Read a run's folder, or one checkpoint. Errors: missing, data."""
    found = folders(path, is_checkpoint)
    if not found:
        raise missing_checkpoint(path, TITLE, f"{METADATA} and {MODEL_CONFIG}")
    model = read_json(found[-1] / MODEL_CONFIG)
    config: dict[str, Any] = {}
    if (found[-1] / CONFIG).is_file():
        config = read_yaml(found[-1] / CONFIG)
    settings, training = Settings(model, ""), Settings(config, "")
    section = model_section(settings)
    shape = shape_from(section, settings.whole("vocab_size"))
    plan = plan_of(shape, interleaved=bool(settings.get("rope_interleaved", False)))
    shapes = parameter_shapes(shape)
    checkpoints: list[ForeignCheckpoint] = []
    unplaced: set[str] = set()
    for folder in found:
        placed = place(_tensors(folder / "model"), plan, shapes, TITLE)
        unplaced |= set(placed.unplaced)
        checkpoints.append(ForeignCheckpoint(_step(folder), folder, placed.tensors))
    length = training.section("tokens").get("sequence_length") or section["max_positions"]
    return ForeignRun(
        format=FORMAT.kind,
        checkpoints=by_step(checkpoints),
        recipe={
            "data": {"sequence_length": length, "window": "separate"},
            "model": section,
            "train": train_section(training, max(c.step for c in checkpoints)),
        },
        tokens=_token_files(training),
        order=ForeignOrder(
            "unknown",
            why_unknown="nanotron's order over its data stages is not made again here",
            still_known="the .ds files that its config.yaml names, shuffled when they were written",
        ),
        logs=logs_beside(path, found),
        unplaced=tuple(sorted(unplaced)),
        notes=("its optimizer's moments are not read",),
        configuration=config | {"model_config": model},
    )


def model_section(settings: Settings) -> dict[str, Any]:
    """Return the keys of [model] of a Llama-like model. Errors: data."""
    settings.only("hidden_act", "silu")
    settings.only("rope_scaling", None)
    settings.only("pretraining_tp", 1)
    for name in ("moe_config", "no_rope_layer_types"):
        settings.only(name, None)
    heads = settings.whole("num_attention_heads")
    every = settings.get("no_rope_layer")
    layers = settings.whole("num_hidden_layers")
    unrotated = [i for i in range(layers) if every and (i + 1) % every == 0]
    if settings.get("attention_bias"):
        raise not_built("attention_bias", "linear maps without")
    return {
        "family": "llama",
        "layers": layers,
        "width": settings.whole("hidden_size"),
        "heads": heads,
        "kv_heads": settings.get("num_key_value_heads") or heads,
        "mlp_width": settings.whole("intermediate_size"),
        "norm": "pre",
        "norm_kind": "rms",
        "norm_eps": settings.number("rms_norm_eps", 1e-6),
        "position": "rope",
        "rope_theta": settings.number("rope_theta", 10_000),
        "rope_fraction": 1.0,
        "bias": False,
        "activation": "swiglu",
        "tied": bool(settings.get("tie_word_embeddings", False)),
        "max_positions": settings.whole("max_position_embeddings"),
        **({"unrotated_layers": unrotated} if unrotated else {}),
    }


def plan_of(shape: Shape, interleaved: bool) -> dict[str, Piece]:
    """Say which rows of nanotron's tensors each of ours is: q|k|v and gate|up lie in blocks."""
    heads, kv_heads = shape.heads, shape.kv_heads
    parts = heads + 2 * kv_heads
    turned = {"q": heads, "k": kv_heads} if interleaved else {}
    places = {"q": (0, heads), "k": (heads, heads + kv_heads), "v": (heads + kv_heads, parts)}
    plan = {
        "embed.weight": Piece("token_position_embeddings.token_embedding.weight"),
        "norm.weight": Piece("final_layer_norm.weight"),
        "unembed.weight": Piece("lm_head.weight"),
    }
    for i in range(shape.layers):
        ours, theirs = f"layers.{i}", f"decoder.{i}"
        plan |= {
            f"{ours}.attn.{part}_proj.weight": Piece(
                f"{theirs}.attn.qkv_proj.weight", 1, parts, first, after, turned.get(part, 0)
            )
            for part, (first, after) in places.items()
        } | {
            f"{ours}.attn.norm.weight": Piece(f"{theirs}.input_layernorm.weight"),
            f"{ours}.attn.o_proj.weight": Piece(f"{theirs}.attn.o_proj.weight"),
            f"{ours}.mlp.norm.weight": Piece(f"{theirs}.post_attention_layernorm.weight"),
            f"{ours}.mlp.gate.weight": Piece(f"{theirs}.mlp.gate_up_proj.weight", 1, 2, 0, 1),
            f"{ours}.mlp.up.weight": Piece(f"{theirs}.mlp.gate_up_proj.weight", 1, 2, 1, 2),
            f"{ours}.mlp.down.weight": Piece(f"{theirs}.mlp.down_proj.weight"),
        }
    return plan


def _tensors(folder: Path) -> dict[str, LazyTensor]:
    """Return the tensors by their modules' names, shards put together. Errors: data."""
    shards: dict[str, list[Path]] = {}
    for file in sorted(folder.rglob("*.safetensors")):
        kind = SUFFIX.fullmatch(file.name)
        modules = [
            p for p in file.parent.relative_to(folder).parts if p not in ("model", "pp_block")
        ]
        if kind:
            shards.setdefault(".".join([*modules, kind[1]]), []).append(file)
    return {name: _whole(name, files) for name, files in shards.items()}


def _whole(name: str, files: list[Path]) -> LazyTensor:
    """Return one tensor: of its one file, or of the slices that its shards say they are."""
    opened = [read_safetensors(file) for file in files]
    if any("data" not in file.tensors for file in opened):
        raise ForensicsError(
            "data", f"{files[0].name}: wanted a tensor called data", "is it nanotron's?"
        )
    shape = opened[0].metadata.get("unsharded_shape")
    if shape is None:
        return opened[0].tensors["data"].lazy(name)
    whole = tuple(int(size) for size in re.findall(r"\d+", shape))
    parts = []
    for path, file in zip(files, opened):
        pairs = _slices(file.metadata.get("local_global_slices_pairs", ""), len(whole), path)
        parts.append((file.tensors["data"].lazy(name), pairs))
    covered = sum(_numbers(pair[1], whole) for _, pairs in parts for pair in pairs)
    wanted = _numbers((slice(None),) * len(whole), whole)
    if covered != wanted:
        raise ForensicsError(
            "data",
            f"{name}: wanted shards of all of {whole}, found {covered:,} of {wanted:,} numbers",
            "is a shard missing?",
        )
    return replace(parts[0][0], shape=whole, read=functools.partial(_read, parts, whole))


_Slices = tuple[slice, ...]
_Parts = list[tuple[LazyTensor, list[tuple[_Slices, _Slices]]]]


def _read(parts: _Parts, shape: tuple[int, ...]) -> Tensor:
    import torch

    whole = torch.empty(shape, dtype=getattr(torch, parts[0][0].dtype))
    for tensor, pairs in parts:
        shard = tensor.read()
        for local, global_ in pairs:
            whole[global_] = shard[local]
    return whole


def _slices(text: str, dimensions: int, path: Path) -> list[tuple[_Slices, _Slices]]:
    """Parse "0,4,None|None,None,None#8,12,None|…;…": slices of the shard # of the whole.

    Errors: data.
    """
    pairs: list[tuple[_Slices, _Slices]] = []
    for pair in text.split(";"):
        read = [[_slice(part) for part in side.split("|")] for side in pair.split("#")]
        sides = [tuple(part for part in side if part is not None) for side in read]
        if len(sides) != 2 or any(len(side) != dimensions for side in sides):
            raise ForensicsError(
                "data",
                f"{path.name}: wanted which slices of the whole it holds, found {text[:40]!r}",
                "is it whole?",
            )
        pairs.append((sides[0], sides[1]))
    return pairs


def _slice(text: str) -> slice | None:
    found = SLICE.fullmatch(text)
    if found is None:
        return None
    return slice(*(None if bound == "None" else int(bound) for bound in found.groups()))


def _numbers(slices: _Slices, shape: tuple[int, ...]) -> int:
    count = 1
    for part, size in zip(slices, shape):
        first, after, _ = part.indices(size)
        count *= max(0, after - first)
    return count


def _step(folder: Path) -> int:
    """Read the step from the checkpoint's own metadata, else from the folder's name."""
    document = Settings(read_json(folder / METADATA), "")
    step = document.section("metas").get("last_train_step")
    if isinstance(step, int):
        return step
    if folder.name.isdigit():
        return int(folder.name)
    raise ForensicsError(
        "data", f"{folder.name}: wanted last_train_step in {METADATA}, found none", "is it whole?"
    )


def train_section(settings: Settings, last: int) -> dict[str, Any]:
    """Return the keys of [train] that config.yaml says. Errors: data."""
    tokens, optimizer = settings.section("tokens"), settings.section("optimizer")
    if not tokens.document or not optimizer.document:
        return {"steps": max(1, last)}
    scheduler, factory = (
        optimizer.section("learning_rate_scheduler"),
        optimizer.section("optimizer_factory"),
    )
    factory.only("name", "adamW")
    scheduler.only("lr_decay_style", "linear", "cosine", "1-sqrt")
    peak = scheduler.number("learning_rate")
    warmup, steps = int(scheduler.get("lr_warmup_steps") or 0), tokens.whole("train_steps")
    begin = scheduler.get("lr_decay_starting_step")
    decays = scheduler.get("lr_decay_steps")
    style = scheduler.get("lr_decay_style", "linear")
    # left out, it decays over what warm-up and start leave of the run
    decays = steps - warmup - int(begin or 0) if decays is None else int(decays)
    begin = warmup if begin is None else int(begin)
    shapes = {"linear": "linear", "cosine": "cosine", "1-sqrt": "sqrt"}
    clip = optimizer.get("clip_grad")
    devices = settings.section("parallelism").get("dp") or 1
    micro_batch = tokens.whole("micro_batch_size")
    batch = micro_batch * tokens.whole("batch_accumulation_per_replica", 1) * devices
    return {
        "steps": steps,
        "batch": batch,
        "micro_batch": micro_batch,
        "learning_rate": peak,
        "betas": (factory.number("adam_beta1", 0.9), factory.number("adam_beta2", 0.95)),
        "eps": factory.number("adam_eps", 1e-8),
        "weight_decay": optimizer.number("weight_decay", 0.0),
        "undecayed": _undecayed(optimizer),
        "clip": 0.0 if clip is None else optimizer.number("clip_grad"),
        "clip_eps": 1e-6,
        "loss_over": "targets",
        "schedule": "wsd",
        "schedule_steps": begin + decays,
        "decay_steps": max(1, decays),
        "decay_shape": shapes[style],
        "warmup": warmup,
        "warmup_from": 0.0,
        "warmup_base": 0.0,
        "decay_base": 0.0,
        "min_lr": (scheduler.get("min_decay_lr") or 0.0) / peak,
        "seed": settings.section("general").get("seed", 42),
    }


def _undecayed(optimizer: Settings) -> list[str]:
    """Return patterns of our names for those that are excluded by patterns of theirs.

    Errors: data, for others than the embedding's.
    """
    excluded = optimizer.get("weight_decay_exclude_named_params") or []
    if any("token_embedding" not in pattern for pattern in excluded):
        raise not_built(f"weight_decay_exclude_named_params = {shown(excluded)}", "the embedding's")
    return ["embed.weight"] if excluded else []


def _token_files(settings: Settings) -> TokenFiles | None:
    """Return the one .ds folder or file that the first data stage names; None for mixtures."""
    stages = settings.get("data_stages")
    stage = Settings(stages[0], "") if isinstance(stages, list) and stages else Settings({}, "")
    dataset = stage.section("data").section("dataset")
    folder = dataset.get("dataset_folder")
    paths = [folder] if isinstance(folder, str) else folder
    if not isinstance(paths, list) or len(paths) != 1:
        return None
    width = dataset.get("token_size_in_bytes", dataset.get("vocab_size") and None)
    dtype = {2: "uint16", 4: "uint32"}.get(width) if width else None
    name = settings.section("tokenizer").get("tokenizer_name_or_path")
    return TokenFiles(tuple(map(str, paths)), "datatrove", dtype, tokenizer=name)


FORMAT = Format(
    "nanotron",
    "a nanotron checkpoint",
    recognises,
    read_run=read_run,
    looks_for="a folder that holds checkpoint_metadata.json beside model_config.json",
)
