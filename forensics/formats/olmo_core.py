"""OLMo-core's checkpoints (OLMo 2 32B, Olmo 3): distributed, with the trainer's state beside.

A checkpoint is a folder stepN with config.json, model_and_optim/.metadata and its .distcp files,
train/rank0.pt. Source: allenai/OLMo-core src/olmo_core/train/checkpoint.py,
src/olmo_core/data/data_loader.py, and its packages nn/transformer and optim.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from forensics.config import from_dict
from forensics.errors import ForensicsError
from forensics.formats.containers.dcp import DcpFolder, is_dcp, read_dcp
from forensics.formats.containers.torch_zip import plain_fields, read_torch_zip
from forensics.formats.foreign_run import (
    ForeignCheckpoint,
    ForeignOrder,
    ForeignRun,
    LazyTensor,
    TokenFiles,
)
from forensics.formats.olmo_core_recipe import data_section, length_of, model_section, train_section
from forensics.formats.pieces import Piece, place
from forensics.formats.protocol import Format
from forensics.formats.run_folder import (
    by_step,
    file_beside,
    folders,
    logs_beside,
    missing_checkpoint,
    step_in_name,
)
from forensics.formats.their_configuration import Settings, read_json
from forensics.model.knobs import shape_of
from forensics.model.shape import Shape, parameter_shapes

TITLE = "an OLMo-core checkpoint"
CONFIG, TENSORS, TRAINER_STATE = "config.json", "model_and_optim", "train/rank0.pt"
MOMENTS = ("exp_avg", "exp_avg_sq")
# token types that the trainer tries in this order for a vocabulary
# (allenai/OLMo-core src/olmo_core/data/utils.py)
TOKEN_TYPES = {"uint8": 1 << 8, "uint16": 1 << 16, "uint32": 1 << 32}
FIXED_LENGTH = ("NumpyFSLDatasetConfig", "fsl")


def is_checkpoint(folder: Path) -> bool:
    """Tell whether a folder is one checkpoint, by what its files hold."""
    config = folder / CONFIG
    if not config.is_file() or not is_dcp(folder / TENSORS):
        return False
    return b'"sequence_mixer"' in (text := config.read_bytes()) or b'"lm_head"' in text


def recognises(path: Path) -> bool:
    """Tell whether a folder is or holds OLMo-core's checkpoints."""
    return bool(folders(path, is_checkpoint))


def read_run(path: Path) -> ForeignRun:
    """Read a run's folder, or one checkpoint. Errors: missing, data."""
    found = folders(path, is_checkpoint)
    if not found:
        raise missing_checkpoint(path, TITLE, f"{CONFIG} and {TENSORS}/.metadata")
    config = read_json(found[-1] / CONFIG)
    settings = Settings(config, "")
    states = [_trainer_state(folder) for folder in found]
    data = data_section(settings, states[-1])
    model = model_section(settings) | {"max_positions": data["sequence_length"]}
    section = settings.section("model")
    shape = shape_of(
        from_dict({"model": model}).model, section.whole("vocab_size"), data["sequence_length"]
    )
    plan = plan_of(shape, interleaved=_rope(settings).get("name") == "complex")
    checkpoints: list[ForeignCheckpoint] = []
    unplaced: set[str] = set()
    for folder, state in zip(found, states):
        checkpoint, without_place = _checkpoint(folder, state, plan, shape)
        checkpoints.append(checkpoint)
        unplaced |= set(without_place)
    notes: list[str] = []
    steps = [checkpoint.step for checkpoint in checkpoints]
    placed = {name: plan[name] for name in parameter_shapes(shape)}
    train = train_section(settings, data, states[-1], placed, steps, notes)
    return ForeignRun(
        format=FORMAT.kind,
        checkpoints=by_step(checkpoints),
        recipe={"data": data, "model": model, "train": train},
        tokens=_token_files(settings, notes),
        order=_order(settings, states[-1], path, found),
        logs=logs_beside(path, found),
        unplaced=tuple(sorted(unplaced)),
        notes=tuple(notes),
        configuration=config,
    )


def _rope(settings: Settings) -> Settings:
    block = settings.section("model").section("block")
    mixer = "sequence_mixer" if "sequence_mixer" in block.document else "attention"
    return block.section(mixer).section("rope")


def plan_of(shape: Shape, interleaved: bool) -> dict[str, Piece]:
    """Say which of OLMo-core's tensors each of ours is."""
    turned = {"q": shape.heads, "k": shape.kv_heads} if interleaved else {}
    plan = {
        "embed.weight": Piece("embeddings.weight"),
        "unembed.weight": Piece("lm_head.w_out.weight"),
    }
    for kind in ("weight", "bias"):
        plan[f"norm.{kind}"] = Piece(f"lm_head.norm.{kind}")
        for i in range(shape.layers):
            ours, theirs = f"layers.{i}", f"blocks.{i}"
            for part in "qkv":
                heads = turned.get(part, 0)
                weight = Piece(f"{theirs}.attention.w_{part}.{kind}", interleaved=heads)
                plan[f"{ours}.attn.{part}_proj.{kind}"] = weight
                if part == "v":
                    continue
                heads = min(heads, 1) if shape.qk_norm == "head" else heads
                gain = Piece(f"{theirs}.attention.{part}_norm.{kind}", interleaved=heads)
                plan[f"{ours}.attn.{part}_norm.{kind}"] = gain
            plan |= {
                f"{ours}.attn.norm.{kind}": Piece(f"{theirs}.attention_norm.{kind}"),
                f"{ours}.attn.o_proj.{kind}": Piece(f"{theirs}.attention.w_out.{kind}"),
                f"{ours}.mlp.norm.{kind}": Piece(f"{theirs}.feed_forward_norm.{kind}"),
                f"{ours}.mlp.gate.{kind}": Piece(f"{theirs}.feed_forward.w1.{kind}"),
                f"{ours}.mlp.up.{kind}": Piece(f"{theirs}.feed_forward.w3.{kind}"),
                f"{ours}.mlp.down.{kind}": Piece(f"{theirs}.feed_forward.w2.{kind}"),
            }
    return plan


def _checkpoint(
    folder: Path, state: dict[str, Any], plan: Mapping[str, Piece], shape: Shape
) -> tuple[ForeignCheckpoint, tuple[str, ...]]:
    stored = read_dcp(folder / TENSORS)
    shapes = parameter_shapes(shape)
    placed = place(_named(stored, "model.", ""), plan, shapes, TITLE)
    moments = {moment: _named(stored, "optim.state.", f".{moment}") for moment in MOMENTS}
    ours = {
        moment: place(tensors, plan, shapes, f"{TITLE}'s {moment}").tensors
        for moment, tensors in moments.items()
        if tensors
    }
    step = state.get("global_step", step_in_name(folder.name))
    if not isinstance(step, int):
        raise ForensicsError(
            "data",
            f"{folder.name}: wanted its step in {TRAINER_STATE} or in the folder's name",
            "call the folder stepN",
        )
    loader = plain_fields(state.get("data_loader"))
    tokens, length = loader.get("tokens_processed"), loader.get("sequence_length")
    sequences = None
    if isinstance(tokens, int) and isinstance(length, int) and length > 0:
        sequences = tokens // length
    checkpoint = ForeignCheckpoint(
        step=step,
        path=folder,
        params=placed.tensors,
        exp_avg=ours.get("exp_avg"),
        exp_avg_sq=ours.get("exp_avg_sq"),
        updates=_updates(stored, folder),
        tokens=state.get("global_train_tokens_seen"),
        sequences=sequences,
        epoch=loader.get("epoch"),
    )
    return checkpoint, placed.unplaced


def _named(stored: DcpFolder, prefix: str, suffix: str) -> dict[str, LazyTensor]:
    """Return the tensors whose names begin and end so, by what is between."""
    return {
        name.removeprefix(prefix).removesuffix(suffix): tensor.lazy(name)
        for name, tensor in stored.tensors.items()
        if name.startswith(prefix) and name.endswith(suffix)
    }


def _updates(stored: DcpFolder, folder: Path) -> int | None:
    """Read how many updates the optimizer counted, which is one number for all tensors."""
    steps = _named(stored, "optim.state.", ".step")
    counts = {int(tensor.read().reshape(-1)[0]) for tensor in steps.values()}
    if len(counts) > 1:
        raise ForensicsError(
            "data",
            f"{folder.name}: its optimizer's tensors counted {sorted(counts)[:4]} updates",
            "a run whose tensors were updated at different steps is not built here",
        )
    return counts.pop() if counts else None


def _trainer_state(folder: Path) -> dict[str, Any]:
    """Read train/rank0.pt; nothing where the checkpoint is a model without one. Errors: data."""
    path = folder / TRAINER_STATE
    return plain_fields(read_torch_zip(path)) if path.is_file() else {}


def _token_files(settings: Settings, notes: list[str]) -> TokenFiles | None:
    """Return the files that dataset.paths names. Errors: data."""
    dataset = settings.section("dataset")
    paths = dataset.get("paths")
    if not isinstance(paths, list) or not paths:
        return None
    tokenizer = dataset.section("tokenizer")
    dtype = dataset.get("dtype")
    if dtype is None:
        said = tokenizer.get("vocab_size")
        ids = said or settings.section("model").whole("vocab_size")
        dtype = next(name for name, count in TOKEN_TYPES.items() if ids <= count)
        if said is None:
            notes.append(
                f"its token files are taken as {dtype}, the trainer's choice for its model's"
                f" {ids:,} ids; its configuration names no tokenizer"
            )
    return TokenFiles(
        tuple(map(str, paths)),
        "bare",
        str(dtype),
        tokenizer.get("eos_token_id"),
        tokenizer.get("identifier"),
        multiple=_longest(dataset) or 1,
    )


def _longest(dataset: Settings) -> int | None:
    """Return the length of which each file's tokens are read in whole multiples, where said."""
    longest = dataset.get("max_target_sequence_length")
    return longest if isinstance(longest, int) and longest > 0 else None


def _order(
    settings: Settings, state: dict[str, Any], path: Path, found: list[Path]
) -> ForeignOrder:
    """Return the order of fixed-length sequences; other data sets pack theirs by other rules."""
    dataset, loader = settings.section("dataset"), settings.section("data_loader", {"seed": 0})
    kind = str(dataset.get("_CLASS_") or dataset.get("name") or FIXED_LENGTH[0]).rpartition(".")[2]
    said = plain_fields(state.get("data_loader")).get("dataset_type", "fsl")
    if kind not in FIXED_LENGTH or said != "fsl":
        return ForeignOrder(
            "unknown",
            why_unknown=f"its data set, {kind}, is packed by rules that are not built here",
        )
    seed = plain_fields(state.get("data_loader")).get("seed", loader.get("seed"))
    chunk = (_longest(dataset) or 1) // dataset.whole("sequence_length", length_of(settings, state))
    # a file for each epoch: the first one's
    name = f"global_indices*_epoch1_seed{seed}_*.npy"
    file = file_beside(path, found, name, f"work/{name}", f"*/{name}")
    return ForeignOrder("olmo_core", seed, 1, file, chunk=max(1, chunk))


FORMAT = Format(
    "olmo-core",
    "an OLMo-core checkpoint",
    recognises,
    read_run=read_run,
    looks_for="a folder that holds config.json beside model_and_optim/.metadata",
)
