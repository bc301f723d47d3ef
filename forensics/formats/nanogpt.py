"""nanoGPT's ckpt.pt: a GPT-2 of plain linear maps, with AdamW's moments and the configuration.

Source: karpathy/nanoGPT train.py, model.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from forensics.errors import ForensicsError
from forensics.formats.adam_state import MOMENTS, adam_state
from forensics.formats.containers.stored import Stored
from forensics.formats.containers.torch_zip import (
    is_torch_zip,
    open_torch_zip,
    plain_fields,
    read_torch_zip,
)
from forensics.formats.foreign_run import (
    ForeignCheckpoint,
    ForeignOrder,
    ForeignRun,
    LazyTensor,
    TokenFiles,
)
from forensics.formats.pieces import Piece, place, shape_from, zeros_like
from forensics.formats.protocol import Format
from forensics.formats.run_folder import by_step, logs_beside
from forensics.formats.their_configuration import Settings
from forensics.model.shape import Shape, parameter_shapes

TITLE = "a nanoGPT checkpoint"
MARKS = (b"model_args", b"iter_num", b"n_embd")  # words of its pickle
COMPILED = "_orig_mod."
MASK = ".attn.bias"  # the causal mask, where there is no flash attention
GPT2_ROWS, GPT2_EOT = (50257, 50304), 50256
CLIP_EPS = 1e-6  # torch's clip_grad_norm_
NORM_EPS = 1e-5


def is_checkpoint(file: Path) -> bool:
    """Tell whether a file is a torch zip whose pickle has nanoGPT's words."""
    if file.suffix != ".pt" or not is_torch_zip(file):
        return False
    try:
        pickled = open_torch_zip(file).bytes_of("data.pkl")
    except ForensicsError:
        return False  # cut short, or another program's: reading it by that format says so
    return all(mark in pickled for mark in MARKS)


def _files(path: Path) -> list[Path]:
    files = [path] if path.is_file() else sorted(path.glob("*.pt"))
    return [file for file in files if is_checkpoint(file)]


def recognises(path: Path) -> bool:
    """Tell whether a file is, or a folder holds, nanoGPT's checkpoints."""
    return bool(_files(path))


def read_run(path: Path) -> ForeignRun:
    """Read ckpt.pt, or a folder of such files. Errors: missing, data."""
    files = _files(path)
    if not files:
        raise ForensicsError(
            "missing", f"wanted {TITLE} in {path}, found none", "is it an out_dir with ckpt.pt?"
        )
    documents = {file: plain_fields(read_torch_zip(file)) for file in files}
    newest = max(documents.values(), key=lambda document: _step(document, path))
    arguments = Settings(plain_fields(newest.get("model_args")), "model_args.")
    section = model_section(arguments)
    shape = shape_from(section, arguments.whole("vocab_size"))
    checkpoints = [_checkpoint(file, document, shape) for file, document in documents.items()]
    config = Settings(plain_fields(newest.get("config")), "config.")
    rows = arguments.whole("vocab_size")
    last = max(checkpoint.step for checkpoint in checkpoints)
    return ForeignRun(
        format=FORMAT.kind,
        checkpoints=by_step(checkpoints),
        recipe={
            "data": {"sequence_length": arguments.whole("block_size"), "window": "shared"},
            "model": section,
            "train": train_section(config, last),
        },
        tokens=_tokens(config, rows),
        order=ForeignOrder(
            "unknown",
            why_unknown="nanoGPT draws each sequence from a random place of train.bin, by a"
            " generator that everything else draws from too: no batch of it can be found again",
            still_known="that it was read from train.bin, in sequences of block_size tokens",
        ),
        logs=logs_beside(path if path.is_dir() else path.parent, files),
        notes=_notes(config),
        configuration=dict(config.document) | {"model_args": arguments.document},
    )


def model_section(arguments: Settings) -> dict[str, Any]:
    """Return the keys of [model]. Errors: data."""
    arguments.only("dropout", 0.0)
    bias = bool(arguments.get("bias", True))
    width = arguments.whole("n_embd")
    return {
        "family": "gpt2",
        "layers": arguments.whole("n_layer"),
        "width": width,
        "heads": arguments.whole("n_head"),
        "mlp_width": 4 * width,
        "norm": "pre",
        "norm_kind": "layer" if bias else "layer_no_bias",
        "norm_eps": NORM_EPS,
        "position": "learned",
        "bias": bias,
        "activation": "gelu",
        "tied": True,
        "max_positions": arguments.whole("block_size"),
    }


def plan_of(shape: Shape) -> dict[str, Piece]:
    """Say which rows of nanoGPT's tensors each of ours is."""
    plan = {
        "embed.weight": Piece("transformer.wte.weight"),
        "positions.weight": Piece("transformer.wpe.weight"),
    }
    for kind in ("weight", "bias"):
        plan[f"norm.{kind}"] = Piece(f"transformer.ln_f.{kind}")
        for i in range(shape.layers):
            ours, theirs = f"layers.{i}", f"transformer.h.{i}"
            plan |= {
                f"{ours}.attn.{part}_proj.{kind}": Piece(
                    f"{theirs}.attn.c_attn.{kind}", 1, 3, at, at + 1
                )
                for at, part in enumerate("qkv")
            } | {
                f"{ours}.attn.norm.{kind}": Piece(f"{theirs}.ln_1.{kind}"),
                f"{ours}.attn.o_proj.{kind}": Piece(f"{theirs}.attn.c_proj.{kind}"),
                f"{ours}.mlp.norm.{kind}": Piece(f"{theirs}.ln_2.{kind}"),
                f"{ours}.mlp.up.{kind}": Piece(f"{theirs}.mlp.c_fc.{kind}"),
                f"{ours}.mlp.down.{kind}": Piece(f"{theirs}.mlp.c_proj.{kind}"),
            }
    return plan


def _step(document: dict[Any, Any], path: Path) -> int:
    step = document.get("iter_num")
    if not isinstance(step, int):
        raise ForensicsError("data", f"{path.name}: wanted iter_num, found none", "is it complete?")
    return step


def _checkpoint(file: Path, document: dict[Any, Any], shape: Shape) -> ForeignCheckpoint:
    """Place one file's tensors: AdamW numbers matrices first, then the rest."""
    stored = {
        name.removeprefix(COMPILED): tensor.lazy(name)
        for name, tensor in plain_fields(document.get("model")).items()
        if isinstance(name, str) and isinstance(tensor, Stored) and not name.endswith(MASK)
    }
    tied = stored.pop("lm_head.weight", None)
    plan, shapes = plan_of(shape), parameter_shapes(shape)
    _refuse_untied(file, stored.get("transformer.wte.weight"), tied)
    placed = place(stored, plan, shapes, TITLE)
    names = [name for name, tensor in stored.items() if len(tensor.shape) >= 2]
    names += [name for name, tensor in stored.items() if len(tensor.shape) < 2]
    step = _step(document, file)
    state = adam_state(document.get("optimizer"), names, file.name)
    moments = {
        moment: place(state.moments[moment], plan, shapes, f"{TITLE}'s {moment}").tensors
        for moment in MOMENTS
        if state
    }
    if step == 0 and "optimizer" in document and state is None:
        moments = dict.fromkeys(MOMENTS, zeros_like(placed.tensors))
    return ForeignCheckpoint(
        step=step,
        path=file,
        params=placed.tensors,
        exp_avg=moments.get("exp_avg"),
        exp_avg_sq=moments.get("exp_avg_sq"),
        updates=state.updates if state else None,
    )


def _refuse_untied(file: Path, embedding: LazyTensor | None, head: LazyTensor | None) -> None:
    import torch

    if embedding and head and not torch.equal(embedding.read(), head.read()):
        raise ForensicsError(
            "data",
            f"{file.name}: wanted lm_head.weight equal to transformer.wte.weight, found another",
            "nanoGPT ties them: is it a changed model?",
        )


def train_section(config: Settings, last: int) -> dict[str, Any]:
    """Return the keys of [train] that the training script's settings say. Errors: data."""
    if not config.document:
        return {"steps": max(1, last)}
    micro_batch = config.whole("batch_size", 12)
    decays, warmup = config.get("decay_lr", True), int(config.number("warmup_iters", 2000))
    peak = config.number("learning_rate", 6e-4)
    dtype = str(config.get("dtype", "float16"))
    schedule = {
        "schedule": "cosine",
        "warmup": warmup,
        "warmup_from": 1 / (warmup + 1),
        "warmup_base": 0.0,
        "decay_base": 0.0,
        "min_lr": config.number("min_lr", 6e-5) / peak,
        "schedule_steps": config.whole("lr_decay_iters", 600_000),
    }
    return {
        "steps": config.whole("max_iters", 600_000),
        "batch": micro_batch * config.whole("gradient_accumulation_steps", 40),
        "micro_batch": micro_batch,
        "learning_rate": peak,
        "betas": (config.number("beta1", 0.9), config.number("beta2", 0.95)),
        "eps": 1e-8,
        "weight_decay": config.number("weight_decay", 0.1),
        "undecayed": ["*norm*", "*.bias"],
        "clip": config.number("grad_clip", 1.0),
        "clip_eps": CLIP_EPS,
        "loss_over": "targets",
        **(schedule if decays else {"schedule": "constant", "warmup": 0}),
        **(
            {"precision": {"float32": "fp32", "bfloat16": "bf16"}[dtype]}
            if dtype != "float16"
            else {}
        ),
    }


def _tokens(config: Settings, rows: int) -> TokenFiles | None:
    dataset = config.get("dataset")
    if not isinstance(dataset, str):
        return None
    eot = GPT2_EOT if rows in GPT2_ROWS else None
    return TokenFiles((f"data/{dataset}/train.bin",), "bare", "uint16", eot)


def _notes(config: Settings) -> tuple[str, ...]:
    notes = ["its activation is taken as the exact GELU (nanoGPT before June 2023: by tanh)"]
    if str(config.get("dtype", "float16")) == "float16" and config.document:
        notes.append("it was trained in float16 with a scaled loss, which is not done here")
    return tuple(notes)


FORMAT = Format(
    "nanogpt",
    "a nanoGPT checkpoint",
    recognises,
    read_run=read_run,
    looks_for="ckpt.pt, or a folder that holds it",
)
