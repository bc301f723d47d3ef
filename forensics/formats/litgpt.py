"""litgpt's checkpoints: lit_model.pth beside model_config.yaml, with AdamW's moments in training.

Source: Lightning-AI/litgpt litgpt/model.py, litgpt/pretrain.py, litgpt/config.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from forensics.errors import ForensicsError
from forensics.formats.adam_state import MOMENTS, adam_state
from forensics.formats.containers.stored import Stored
from forensics.formats.containers.torch_zip import plain_fields, read_torch_zip
from forensics.formats.foreign_run import ForeignCheckpoint, ForeignOrder, ForeignRun
from forensics.formats.pieces import Piece, place, shape_from
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

TITLE = "a litgpt checkpoint"
MODEL, CONFIG, HYPERPARAMETERS = "lit_model.pth", "model_config.yaml", "hyperparameters.yaml"
WRAPPERS = ("_forward_module.", "_orig_mod.")
CLIP_EPS = 1e-6  # torch's clip_grad_norm_


def is_checkpoint(folder: Path) -> bool:
    """Tell whether a folder is one checkpoint, by what its files hold."""
    config = folder / CONFIG
    if not config.is_file() or not (folder / MODEL).is_file():
        return False
    return b"norm_class_name:" in (text := config.read_bytes()) and b"n_embd:" in text


def recognises(path: Path) -> bool:
    """Tell whether a folder is or holds litgpt's checkpoints."""
    return bool(folders(path, is_checkpoint))


def read_run(path: Path) -> ForeignRun:
    """Read a run's folder, or one checkpoint. Errors: missing, data."""
    found = folders(path, is_checkpoint)
    if not found:
        raise missing_checkpoint(path, TITLE, f"{MODEL} and {CONFIG}")
    config = read_yaml(found[-1] / CONFIG)
    settings = Settings(config, "")
    section = model_section(settings)
    rows = settings.get("padded_vocab_size") or settings.whole("vocab_size")
    shape = shape_from(section, rows)
    read = [_checkpoint(folder, shape, settings) for folder in found]
    checkpoints = by_step(checkpoint for checkpoint, _ in read)
    said = found[-1] / HYPERPARAMETERS
    hyperparameters = read_yaml(said) if said.is_file() else {}
    training = Settings(hyperparameters, "")
    length = training.section("train").get("max_seq_length") or section["max_positions"]
    return ForeignRun(
        format=FORMAT.kind,
        checkpoints=checkpoints,
        recipe={
            "data": {"sequence_length": length, "window": "separate"},
            "model": section,
            "train": train_section(training, length, checkpoints[-1].step),
        },
        order=ForeignOrder(
            "unknown",
            why_unknown="litgpt's data modules shuffle on their own, and write no order down",
            still_known="the data set that its hyperparameters.yaml names",
        ),
        logs=logs_beside(path, found),
        tokenizer=next(iter(found[-1].glob("tokenizer.json")), None),
        unplaced=tuple(sorted({name for _, unplaced in read for name in unplaced})),
        configuration=config | {"hyperparameters": hyperparameters},
    )


def model_section(settings: Settings) -> dict[str, Any]:
    """Return the keys of [model]. Errors: data, for what no knob of the decoder is."""
    for name in (
        *("attention_scores_scalar", "attention_logit_softcapping", "final_logit_softcapping"),
        *("rope_adjustments", "rope_indices", "rope_local_base_freq", "latent_attention"),
    ):
        settings.only(name, None)
    for name in ("shared_attention_norm", "scale_embeddings", "lm_head_bias"):
        settings.only(name, False)
    settings.only("post_attention_norm", False)
    settings.only("post_mlp_norm", False)
    settings.only("rope_interleave", False)
    settings.only("rope_condense_ratio", 1)
    settings.only("n_expert", 0)
    settings.only("sliding_window_size", None)
    settings.only("norm_1", True)
    settings.only("norm_2", True)
    settings.only("norm_class_name", "RMSNorm", "LayerNorm")
    settings.only("mlp_class_name", "LLaMAMLP", "GptNeoxMLP")
    rms = settings.get("norm_class_name") == "RMSNorm"
    gated = settings.get("mlp_class_name") == "LLaMAMLP"
    width, heads = settings.whole("n_embd"), settings.whole("n_head")
    tanh = settings.get("gelu_approximate", "none") == "tanh"
    if settings.get("norm_qk") and not rms:
        raise not_built("norm_qk by a layer norm", "one by RMS")
    per_head = "head" if settings.get("norm_qk_type", "default") == "default" else "whole"
    return {
        "family": "llama" if rms and gated else "gpt_neox",
        "layers": settings.whole("n_layer"),
        "width": width,
        "heads": heads,
        "kv_heads": settings.get("n_query_groups") or heads,
        "head_width": settings.get("head_size") or width // heads,
        "mlp_width": settings.whole("intermediate_size", 4 * width),
        "norm": "pre",
        "norm_kind": "rms" if rms else "layer",
        "norm_eps": settings.number("norm_eps", 1e-5),
        "qk_norm": per_head if settings.get("norm_qk") else "none",
        "position": "rope",
        "rope_theta": settings.number("rope_base", 10_000),
        "rope_fraction": settings.number("rotary_percentage", 0.25),
        "parallel": bool(settings.get("parallel_residual", True)),
        "bias": bool(settings.get("bias", True)),
        **_qkv_bias(settings),
        "activation": "swiglu" if gated else "gelu_tanh" if tanh else "gelu",
        "tied": False,
        "max_positions": settings.whole("block_size", 4096),
    }


def _qkv_bias(settings: Settings) -> dict[str, Any]:
    bias, attention = bool(settings.get("bias", True)), bool(settings.get("attn_bias", False))
    if bias and not attention:
        raise not_built("biases everywhere but in queries, keys and values", "biases in all maps")
    return {"qkv_bias": True} if attention and not bias else {}


def plan_of(shape: Shape, older: bool) -> dict[str, Piece]:
    """Say which rows of litgpt's tensors each of ours is; before 2025 q, k, v lay by groups."""
    heads, groups = shape.heads, shape.kv_heads
    each = heads // groups
    fused: dict[str, tuple[int, int, int, int]] = {
        "q": (1, heads + 2 * groups, 0, heads),
        "k": (1, heads + 2 * groups, heads, heads + groups),
        "v": (1, heads + 2 * groups, heads + groups, heads + 2 * groups),
    }
    if older:
        fused = {
            "q": (groups, each + 2, 0, each),
            "k": (groups, each + 2, each, each + 1),
            "v": (groups, each + 2, each + 1, each + 2),
        }
    plan = {
        "embed.weight": Piece("transformer.wte.weight"),
        "unembed.weight": Piece("lm_head.weight"),
    }
    for kind in ("weight", "bias"):
        plan[f"norm.{kind}"] = Piece(f"transformer.ln_f.{kind}")
        for i in range(shape.layers):
            ours, theirs = f"layers.{i}", f"transformer.h.{i}"
            name = f"{theirs}.attn.{'attn' if older else 'qkv'}.{kind}"
            up = "fc_2" if shape.gated else "fc"
            plan |= {
                f"{ours}.attn.{part}_proj.{kind}": Piece(name, *cut) for part, cut in fused.items()
            } | {
                f"{ours}.attn.q_norm.{kind}": Piece(f"{theirs}.attn.norm_q.{kind}"),
                f"{ours}.attn.k_norm.{kind}": Piece(f"{theirs}.attn.norm_k.{kind}"),
                f"{ours}.attn.norm.{kind}": Piece(f"{theirs}.norm_1.{kind}"),
                f"{ours}.attn.o_proj.{kind}": Piece(f"{theirs}.attn.proj.{kind}"),
                f"{ours}.mlp.norm.{kind}": Piece(f"{theirs}.norm_2.{kind}"),
                f"{ours}.mlp.gate.{kind}": Piece(f"{theirs}.mlp.fc_1.{kind}"),
                f"{ours}.mlp.up.{kind}": Piece(f"{theirs}.mlp.{up}.{kind}"),
                f"{ours}.mlp.down.{kind}": Piece(f"{theirs}.mlp.proj.{kind}"),
            }
    return plan


def _checkpoint(
    folder: Path, shape: Shape, settings: Settings
) -> tuple[ForeignCheckpoint, tuple[str, ...]]:
    document = plain_fields(read_torch_zip(folder / MODEL))
    tensors = plain_fields(document["model"]) if "model" in document else document
    stored = {
        _bare(name): tensor.lazy(name)
        for name, tensor in tensors.items()
        if isinstance(name, str) and isinstance(tensor, Stored)
    }
    plan = plan_of(shape, older="transformer.h.0.attn.attn.weight" in stored)
    shapes = parameter_shapes(shape)
    placed = place(stored, plan, shapes, TITLE)
    step = document.get("step_count", step_in_name(folder.name))
    if not isinstance(step, int):
        raise ForensicsError(
            "data",
            f"{folder.name}: wanted its step in {MODEL} or in the folder's name, found none",
            "call the folder step-N",
        )
    # the optimizer is given every parameter in one group, in the model's order
    state = adam_state(document.get("optimizer"), list(stored), folder.name)
    moments = {
        moment: place(state.moments[moment], plan, shapes, f"{TITLE}'s {moment}").tensors
        for moment in MOMENTS
        if state
    }
    checkpoint = ForeignCheckpoint(
        step=step,
        path=folder,
        params=placed.tensors,
        exp_avg=moments.get("exp_avg"),
        exp_avg_sq=moments.get("exp_avg_sq"),
        updates=state.updates if state else None,
    )
    return checkpoint, placed.unplaced


def _bare(name: str) -> str:
    for wrapper in WRAPPERS:
        name = name.replace(wrapper, "")
    return name


def train_section(settings: Settings, length: int, last: int) -> dict[str, Any]:
    """Return the keys of [train] that hyperparameters.yaml says. Errors: data."""
    train, optimizer = settings.section("train"), settings.get("optimizer")
    arguments = Settings(plain_fields(optimizer).get("init_args"), "optimizer.init_args.")
    if not train.document or not arguments.document:
        return {"steps": max(1, last)}
    if str(plain_fields(optimizer).get("class_path", "")).rpartition(".")[2] != "AdamW":
        raise not_built(f"the optimizer {plain_fields(optimizer).get('class_path')}", "AdamW")
    batch, micro_batch = train.whole("global_batch_size"), train.whole("micro_batch_size")
    accumulated = max(1, batch // micro_batch)
    peak, betas = arguments.number("lr"), arguments.get("betas", (0.9, 0.999))
    tokens = train.get("max_tokens")
    steps = int(float(tokens)) // (batch * length) if tokens else train.get("max_steps") or last
    return {
        "steps": max(1, steps),
        "batch": batch,
        "micro_batch": micro_batch,
        "learning_rate": peak,
        "betas": tuple(map(float, betas)),
        "eps": arguments.number("eps", 1e-8),
        "weight_decay": arguments.number("weight_decay", 0.01),
        "undecayed": [],
        "clip": train.number("max_norm", 1.0),
        "clip_eps": CLIP_EPS,
        "loss_over": "targets",
        "schedule": "cosine",
        "warmup": int(train.number("lr_warmup_steps", 0)),
        "warmup_from": 0.0,
        "warmup_base": 1 - 1 / accumulated,
        "decay_base": 1 - 1 / accumulated,
        "min_lr": train.number("min_lr", 6e-5) / peak,
        "seed": settings.get("seed", 42),
        **_precision(settings.get("precision")),
    }


def _precision(precision: Any) -> dict[str, str]:
    names = {"32-true": "fp32", "bf16-mixed": "bf16", "32": "fp32"}
    return {"precision": names[str(precision)]} if str(precision) in names else {}


FORMAT = Format(
    "litgpt",
    "a litgpt checkpoint",
    recognises,
    read_run=read_run,
    looks_for="a folder that holds lit_model.pth beside model_config.yaml",
)
