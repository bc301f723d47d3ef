"""OLMo's own unsharded checkpoints (OLMo 1, OLMo 2's 1B, 7B and 13B): the trainer of 2024.

A checkpoint is a folder with config.yaml, model.pt or model.safetensors, optim.pt or
optim.safetensors, train.pt (older: other.pt). Names in a .safetensors are encoded
(containers/olmo_keys). Source: allenai/OLMo olmo/checkpoint.py, olmo/model.py, olmo/train.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from forensics.config import from_dict
from forensics.errors import ForensicsError
from forensics.formats.containers.olmo_keys import read_encoded
from forensics.formats.containers.stored import Stored
from forensics.formats.containers.torch_zip import plain_fields, read_torch_zip
from forensics.formats.foreign_run import (
    ForeignCheckpoint,
    ForeignOrder,
    ForeignRun,
    LazyTensor,
    TokenFiles,
)
from forensics.formats.olmo_recipe import model_section, recipe_of
from forensics.formats.pieces import Piece, place, zeros_like
from forensics.formats.protocol import Format
from forensics.formats.run_folder import (
    by_step,
    file_beside,
    files_beside,
    folders,
    logs_beside,
    missing_checkpoint,
    step_in_name,
)
from forensics.formats.their_configuration import Settings, read_yaml
from forensics.model.knobs import shape_of
from forensics.model.shape import Shape, parameter_shapes

TITLE = "an OLMo checkpoint"
CONFIG = "config.yaml"
MODELS = ("model.pt", "model.safetensors")
OPTIMIZERS = ("optim.pt", "optim.safetensors")
TRAINER_STATES = ("train.pt", "other.pt")
MOMENTS = ("exp_avg", "exp_avg_sq")
WRAPPERS = ("_fsdp_wrapped_module.", "module.", "_orig_mod.")
DEFAULT_SEED = 6198
HEAD = 1 << 16  # bytes of config.yaml in which its model is described


def is_checkpoint(folder: Path) -> bool:
    """Tell whether a folder is one unsharded checkpoint, by what its files hold."""
    config = folder / CONFIG
    if not config.is_file() or not any((folder / name).is_file() for name in MODELS):
        return False
    with config.open("rb") as file:
        head = file.read(HEAD)
    return b"d_model:" in head and b"n_layers:" in head


def recognises(path: Path) -> bool:
    """Tell whether a folder is or holds OLMo's unsharded checkpoints."""
    return bool(folders(path, is_checkpoint))


def read_run(path: Path) -> ForeignRun:
    """Read a run's folder, or one checkpoint. Errors: missing, data."""
    found = folders(path, is_checkpoint)
    if not found:
        raise missing_checkpoint(path, TITLE, f"{CONFIG} and {' or '.join(MODELS)}")
    config = read_yaml(found[-1] / CONFIG)
    settings = Settings(config, "")
    model = model_section(settings)
    shape = shape_of(from_dict({"model": model}).model, _rows(settings), model["max_positions"])
    read = [_checkpoint(folder, shape, settings) for folder in found]
    checkpoints = by_step(checkpoint for checkpoint, _ in read)
    world_size = _trainer_state(checkpoints[-1].path).get("world_size", 1)
    recipe, notes = recipe_of(settings, model, checkpoints)
    return ForeignRun(
        format=FORMAT.kind,
        checkpoints=checkpoints,
        recipe=recipe,
        tokens=_token_files(settings),
        order=_order(settings, path, checkpoints, world_size),
        logs=logs_beside(path, found),
        unplaced=tuple(sorted({name for _, unplaced in read for name in unplaced})),
        notes=notes,
        configuration=config,
    )


def _rows(settings: Settings) -> int:
    """Count the rows of the embedding, which is padded beyond the vocabulary."""
    model = settings.section("model")
    return (
        model.whole("vocab_size")
        if not model.get("embedding_size")
        else model.whole("embedding_size")
    )


def _checkpoint(
    folder: Path, shape: Shape, settings: Settings
) -> tuple[ForeignCheckpoint, tuple[str, ...]]:
    plan = plan_of(shape, settings.section("model"))
    shapes = parameter_shapes(shape)
    placed = place(_weights(folder), plan, shapes, TITLE)
    trainer = _trainer_state(folder)
    optimizer = _optimizer(folder, plan, shapes)
    step = trainer.get("global_step", step_in_name(folder.name))
    step = optimizer.updates if step is None else step
    if step is None:
        raise ForensicsError(
            "data",
            f"{folder.name}: wanted its step in train.pt, in the optimizer or in its name",
            "call the folder stepN-unsharded",
        )
    if step == 0 and optimizer.saved and not optimizer.moments:
        zeros = zeros_like(placed.tensors)  # the trainer's optimizer makes them at its first update
        optimizer = _Optimizer(True, dict.fromkeys(MOMENTS, zeros), 0)
    checkpoint = ForeignCheckpoint(
        step=step,
        path=folder,
        params=placed.tensors,
        exp_avg=optimizer.moments.get("exp_avg"),
        exp_avg_sq=optimizer.moments.get("exp_avg_sq"),
        updates=optimizer.updates,
        tokens=trainer.get("global_train_tokens_seen"),
        sequences=_sequences(trainer, settings),
        epoch=trainer.get("epoch"),
    )
    return checkpoint, placed.unplaced


def _weights(folder: Path) -> dict[str, LazyTensor]:
    """Return the model's tensors by their names, without what wrapped it. Errors: data."""
    if (folder / "model.safetensors").is_file():
        paths = read_encoded(folder / "model.safetensors").tensors
        return {_bare(str(path[-1])): tensor.lazy(str(path[-1])) for path, tensor in paths.items()}
    document = read_torch_zip(folder / "model.pt")
    return {_bare(name): tensor.lazy(name) for name, tensor in stored_in(document).items()}


def stored_in(document: Any) -> dict[str, Stored]:
    """Return the tensors of a dictionary by name; what is no tensor is left out."""
    return {
        name: tensor
        for name, tensor in plain_fields(document).items()
        if isinstance(name, str) and isinstance(tensor, Stored)
    }


def _bare(name: str) -> str:
    for wrapper in WRAPPERS:
        name = name.replace(wrapper, "")
    return name


def plan_of(shape: Shape, model: Settings) -> dict[str, Piece]:
    """Say which rows of OLMo's tensors each of ours is."""
    heads, kv_heads = shape.heads, shape.kv_heads
    parts = heads + 2 * kv_heads
    places = {"q": (0, heads), "k": (heads, heads + kv_heads), "v": (heads + kv_heads, parts)}
    group = model.get("block_group_size", 1)
    plan = {
        "embed.weight": Piece("transformer.wte.weight"),
        "positions.weight": Piece("transformer.wpe.weight"),
        "unembed.weight": Piece("transformer.ff_out.weight"),
        **{f"norm.{kind}": Piece(f"transformer.ln_f.{kind}") for kind in ("weight", "bias")},
    }
    for i in range(shape.layers):
        block = f"blocks.{i}" if group == 1 else f"block_groups.{i // group}.{i % group}"
        ours, theirs = f"layers.{i}", f"transformer.{block}"
        for kind in ("weight", "bias"):
            for projection, (first, after) in places.items():
                fused = Piece(f"{theirs}.att_proj.{kind}", 1, parts, first, after)
                apart = Piece(f"{theirs}.{projection}_proj.{kind}")
                llama = model.get("block_type") == "llama"
                plan[f"{ours}.attn.{projection}_proj.{kind}"] = apart if llama else fused
            up_gate = f"{theirs}.ff_proj.{kind}"
            plan |= {
                f"{ours}.attn.norm.{kind}": Piece(f"{theirs}.attn_norm.{kind}"),
                f"{ours}.attn.q_norm.{kind}": Piece(f"{theirs}.q_norm.{kind}"),
                f"{ours}.attn.k_norm.{kind}": Piece(f"{theirs}.k_norm.{kind}"),
                f"{ours}.attn.o_proj.{kind}": Piece(f"{theirs}.attn_out.{kind}"),
                f"{ours}.mlp.norm.{kind}": Piece(f"{theirs}.ff_norm.{kind}"),
                f"{ours}.mlp.up.{kind}": Piece(up_gate, 1, 2, 0, 1)
                if shape.gated
                else Piece(up_gate),
                f"{ours}.mlp.gate.{kind}": Piece(up_gate, 1, 2, 1, 2),
                f"{ours}.mlp.down.{kind}": Piece(f"{theirs}.ff_out.{kind}"),
            }
    return plan


class _Optimizer(NamedTuple):
    saved: bool
    moments: dict[str, dict[str, LazyTensor]]  # exp_avg, exp_avg_sq; none where not saved
    updates: int | None


def _optimizer(
    folder: Path, plan: Mapping[str, Piece], shapes: Mapping[str, tuple[int, ...]]
) -> _Optimizer:
    """Return both moments under our names. Errors: data."""
    state, groups = _optimizer_state(folder)
    if not state:
        return _Optimizer(any(map(Path.is_file, (folder / name for name in OPTIMIZERS))), {}, None)
    names = _names_of_ids(groups)
    stored: dict[str, dict[str, LazyTensor]] = {moment: {} for moment in MOMENTS}
    steps = set()
    for (id, field), tensor in state.items():
        name = names.get(id, id) if isinstance(id, int) else id
        if not isinstance(name, str):
            raise ForensicsError(
                "data",
                f"{folder.name}: wanted the optimizer's tensors by name, found number {name} and no"
                " list of names",
                "bring it in without moments: take its optim file away",
            )
        if field in stored:
            stored[field][_bare(name)] = tensor.lazy(f"{name}.{field}")
        elif field == "step":
            steps.add(int(tensor.read().reshape(-1)[0]))
    if len(steps) > 1:
        raise ForensicsError(
            "data",
            f"{folder.name}: its optimizer's tensors counted {sorted(steps)[:4]} updates",
            "",
        )
    moments = {
        moment: place(tensors, plan, shapes, f"{TITLE}'s {moment}").tensors
        for moment, tensors in stored.items()
        if tensors
    }
    if "exp_avg" in moments and "exp_avg_sq" not in moments:
        moments["exp_avg_sq"] = zeros_like(moments["exp_avg"])  # Lion has none, and reads none
    return _Optimizer(True, moments, steps.pop() if steps else None)


def _optimizer_state(folder: Path) -> tuple[dict[tuple[str | int, str], Stored], Any]:
    """Return the optimizer's tensors by (name or id, field), and its groups."""
    tensors: dict[tuple[str | int, str], Stored] = {}
    if (folder / "optim.safetensors").is_file():
        encoded = read_encoded(folder / "optim.safetensors")
        for path, tensor in encoded.tensors.items():
            if len(path) == 3 and path[0] == "state":
                tensors[path[1], str(path[2])] = tensor
        return tensors, encoded.value("param_groups")
    if not (folder / "optim.pt").is_file():
        return tensors, None
    document = plain_fields(read_torch_zip(folder / "optim.pt"))
    for id, fields in plain_fields(document.get("state")).items():
        for field, tensor in plain_fields(fields).items():
            if isinstance(tensor, Stored):
                tensors[id, str(field)] = tensor
    return tensors, document.get("param_groups")


def _names_of_ids(groups: Any) -> dict[int, str]:
    """Read which parameter each id is: torch numbers them through the groups."""
    names: dict[int, str] = {}
    for group in groups if isinstance(groups, list) else ():
        fields = plain_fields(group)
        ids, theirs = fields.get("params"), fields.get("param_names")
        if isinstance(ids, list) and isinstance(theirs, list) and len(ids) == len(theirs):
            names |= {id: name for id, name in zip(ids, theirs) if isinstance(name, str)}
    return names


def _trainer_state(folder: Path) -> dict[str, int]:
    """Return the counts of train.pt; none where the checkpoint has no such file. Errors: data."""
    path = next((folder / name for name in TRAINER_STATES if (folder / name).is_file()), None)
    document = plain_fields(read_torch_zip(path)) if path else {}
    return {
        name: count
        for name, count in document.items()
        if isinstance(name, str) and isinstance(count, int) and not isinstance(count, bool)
    }


def _sequences(trainer: dict[str, int], settings: Settings) -> int | None:
    """Count the sequences of its epoch's order that were read, as older states say it too."""
    for name in ("global_train_examples_seen_this_epoch", "global_train_examples_seen"):
        if name in trainer:
            return trainer[name]
    batches = trainer.get("global_data_step")
    return None if batches is None else batches * settings.whole("global_train_batch_size")


def _token_files(settings: Settings) -> TokenFiles | None:
    """Return the files that data.paths names, or data.datasets label by label. Errors: data."""
    data = settings.section("data", {"memmap_dtype": "uint16"})
    paths = data.get("paths")
    datasets = data.get("datasets")
    if not paths and isinstance(datasets, dict):
        paths = [path for label in sorted(datasets) for path in datasets[label]]
    if not paths:
        return None
    return TokenFiles(
        tuple(map(str, paths)),
        "bare",
        str(data.get("memmap_dtype")),
        settings.section("model").get("eos_token_id"),
        settings.section("tokenizer").get("identifier"),
    )


def _order(
    settings: Settings, path: Path, checkpoints: tuple[ForeignCheckpoint, ...], world_size: int
) -> ForeignOrder:
    """Return how the order is drawn; its file is written anew at the start of each epoch."""
    data = settings.section("data")
    seed = data.get("seed")
    found = [checkpoint.path for checkpoint in checkpoints]
    return ForeignOrder(
        "olmo",
        settings.get("seed", DEFAULT_SEED) if seed is None else seed,
        file=file_beside(path, found, "train_data/global_indices.npy"),
        file_epoch=checkpoints[-1].epoch,
        world_size=world_size,
        drop_last=bool(data.get("drop_last", False)),
        rank_logs=files_beside(path, found, "data-indices/rank*.tsv.gz"),
    )


FORMAT = Format(
    "olmo",
    "an OLMo checkpoint",
    recognises,
    read_run=read_run,
    looks_for="a folder that holds config.yaml beside model.pt or model.safetensors",
)
