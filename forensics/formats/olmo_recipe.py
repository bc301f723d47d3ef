"""What OLMo's config.yaml asks for, in the keys of our recipes.

Defaults are those of allenai/OLMo olmo/config.py; what nothing here computes is refused by name.
"""

from __future__ import annotations

import math
from typing import Any

from forensics.errors import ForensicsError
from forensics.formats.foreign_run import ForeignCheckpoint
from forensics.formats.their_configuration import Settings, not_built, shown

MODEL_DEFAULTS: dict[str, Any] = {
    "d_model": 768,
    "n_heads": 12,
    "n_layers": 12,
    "mlp_ratio": 4,
    "activation_type": "swiglu",
    "block_type": "sequential",
    "block_group_size": 1,
    "rope": False,
    "rope_theta": 10_000,
    "attention_dropout": 0.1,
    "residual_dropout": 0.1,
    "embedding_dropout": 0.1,
    "layer_norm_type": "default",
    "layer_norm_with_affine": True,
    "attention_layer_norm_with_affine": True,
    "layer_norm_eps": 1e-5,
    "max_sequence_length": 1024,
    "include_bias": True,
    "vocab_size": 50257,
    "embedding_size": 50304,
    "weight_tying": True,
    "eos_token_id": 50256,
    "init_fn": "normal",
    "init_std": 0.02,
}
OPTIMIZER_DEFAULTS: dict[str, Any] = {
    "name": "lionw",
    "learning_rate": 1e-4,
    "weight_decay": 0.01,
    "betas": (0.9, 0.95),
    "eps": 1e-5,
    "decay_norm_and_bias": False,
    "decay_embeddings": False,
}
SCHEDULER_DEFAULTS: dict[str, Any] = {
    "name": "cosine_with_warmup",
    "units": "steps",
    "t_warmup": 100,
    "alpha_f": 0.1,
}
TRAIN_DEFAULTS: dict[str, Any] = {
    "seed": 6198,
    "max_duration": 10_000,
    "global_train_batch_size": 512,
    "device_train_microbatch_size": 16,
}
# of the auxiliary loss: the trainer's loss function has this default, and is never handed the
# configuration's auxiliary_loss_multiplier (allenai/OLMo olmo/train.py, ai2-olmo 0.6.0); the logged
# train/ZLoss shows it
Z_LOSS = 1e-4
# of the trainer's repeat filter, which data.mask_repeats is with these numbers alone
FILTER = {"repetition_max_period": 13, "repetition_min_period": 1, "repetition_max_count": 32}
SCHEDULES = {
    "cosine_with_warmup": "cosine",
    "linear_with_warmup": "linear",
    "constant": "constant",
    "constant_with_warmup": "constant",
    "inverse_sqrt_with_warmup": "inverse_sqrt",
}
# of names of ours: what AdamW leaves alone by the trainer's settings
NORMS_AND_BIASES = ["*norm*", "*.bias"]
EMBEDDINGS = ["embed.weight", "positions.weight"]
CLIP_EPS = 1e-6  # the trainer adds it to the norm that it divides by
WARMUP_FROM = 0.1  # share of the peak that its warm-up begins at where warmup_min_lr is left out


def model_section(settings: Settings) -> dict[str, Any]:
    """Return the keys of [model]. Errors: data, for what no knob of the decoder is."""
    model = settings.section("model", MODEL_DEFAULTS)
    model.only("alibi", False)
    model.only("block_type", "sequential", "llama")
    for name in ("attention_dropout", "residual_dropout", "embedding_dropout"):
        model.only(name, 0.0)
    model.only("embedding_layer_norm", False, None)
    model.only("scale_logits", False, None)
    heads = model.whole("n_heads")
    kv_heads = 1 if model.get("multi_query_attention") else model.get("n_kv_heads") or heads
    hidden = model.get("mlp_hidden_size") or model.whole("mlp_ratio") * model.whole("d_model")
    model.only("activation_type", "swiglu", "gelu")
    gated = model.get("activation_type") == "swiglu"
    if model.get("block_type") == "llama" and (model.get("norm_after") or model.get("clip_qkv")):
        raise not_built("model.block_type = 'llama' with norm_after or clip_qkv", "either of them")
    return {
        "family": "olmo2" if model.get("norm_after") else "olmo",
        "layers": model.whole("n_layers"),
        "width": model.whole("d_model"),
        "heads": heads,
        "kv_heads": kv_heads,
        "mlp_width": hidden // 2 if gated else hidden,
        "norm": "post" if model.get("norm_after") else "pre",
        **_norms(model),
        **_positions(model),
        "parallel": False,
        "bias": _bias(model),
        "activation": "swiglu" if gated else "gelu",
        "tied": bool(model.get("weight_tying")),
        "max_positions": model.whole("max_sequence_length"),
        **({"clip_qkv": model.number("clip_qkv")} if model.get("clip_qkv") is not None else {}),
    }


def _norms(model: Settings) -> dict[str, Any]:
    model.only("layer_norm_type", "default", "rms")
    rms, affine = model.get("layer_norm_type") == "rms", bool(model.get("layer_norm_with_affine"))
    with_bias = model.get("bias_for_layer_norm")
    with_bias = bool(model.get("include_bias") if with_bias is None else with_bias)
    if rms and (not affine or with_bias):
        raise not_built("an RMS norm without a gain, or with a bias", "one with a gain alone")
    qk_norm = bool(model.get("attention_layer_norm"))
    if qk_norm and not (rms and model.get("attention_layer_norm_with_affine")):
        raise not_built("queries and keys normed otherwise than by RMS with a gain", "that one")
    layer = "layer" if with_bias else "layer_no_bias"
    kind = "rms" if rms else layer if affine else "layer_no_parameters"
    return {
        "norm_kind": kind,
        "norm_eps": model.number("layer_norm_eps"),
        "qk_norm": "whole" if qk_norm else "none",
    }


def _positions(model: Settings) -> dict[str, Any]:
    if not model.get("rope"):
        return {"position": "learned"}
    return {"position": "rope", "rope_theta": model.number("rope_theta"), "rope_fraction": 1.0}


def _bias(model: Settings) -> bool:
    bias = bool(model.get("include_bias"))
    if bias and not model.get("weight_tying"):
        raise not_built(
            "model.include_bias with an unembedding of its own", "an unembedding without"
        )
    return bias


def recipe_of(
    settings: Settings, model: dict[str, Any], checkpoints: tuple[ForeignCheckpoint, ...]
) -> tuple[dict[str, dict[str, Any]], tuple[str, ...]]:
    """Return the sections of a recipe, and what was assumed. Errors: data."""
    settings = Settings(settings.document, "", TRAIN_DEFAULTS)
    notes: list[str] = []
    data = {"sequence_length": model["max_positions"], "window": "inside"} | _data(settings)
    train = _train(settings, notes) | _optimizer(settings) | _schedule(settings, checkpoints, notes)
    return {"data": data, "model": model | _initialisation(settings, notes), "train": train}, tuple(
        notes
    )


def _data(settings: Settings) -> dict[str, Any]:
    data = settings.section("data")
    if data.get("label_mask_paths"):
        raise not_built("data.label_mask_paths", "a loss over all tokens")
    data.only("generate_attention_mask", False, None)
    data.only("pad_direction", "right")
    filtered = data.get("instance_filter")
    if filtered:
        section = data.section("instance_filter", FILTER)
        for name, number in FILTER.items():
            section.only(name, number)
    return {"mask_repeats": bool(filtered)}


def _train(settings: Settings, notes: list[str]) -> dict[str, Any]:
    batch, micro_batch = (
        settings.whole("global_train_batch_size"),
        settings.whole("device_train_microbatch_size"),
    )
    if settings.get("reset_optimizer_state"):
        raise not_built("reset_optimizer_state, a run whose moments began anew", "one run")
    if settings.get("max_grad_norm_ratio") is not None:
        raise not_built("max_grad_norm_ratio, a clip of each tensor", "max_grad_norm")
    z_loss = Z_LOSS if settings.get("softmax_auxiliary_loss") else 0.0
    stated = settings.get("auxiliary_loss_multiplier")
    if z_loss and stated is not None and float(stated) != z_loss:
        notes.append(
            f"z-loss {z_loss:g}: OLMo's trainer does not hand on auxiliary_loss_multiplier ="
            f" {stated}; --set train.z_loss={stated} if the one that made this run did"
        )
    clip = settings.get("max_grad_norm")
    precision = {"fp32": "fp32", "amp_bf16": "bf16"}.get(str(settings.get("precision")), "auto")
    return {
        "batch": batch,
        "micro_batch": micro_batch if batch % micro_batch == 0 else batch,
        "seed": settings.get("seed"),
        "clip": 0.0 if clip is None else float(clip),
        "clip_eps": CLIP_EPS,
        "loss_over": "tokens",
        "z_loss": z_loss,
        "precision": precision,
    }


def _optimizer(settings: Settings) -> dict[str, Any]:
    optimizer = settings.section("optimizer", OPTIMIZER_DEFAULTS)
    optimizer.only("name", "adamw", "lionw")
    optimizer.only("selective_updates", False, None)
    norms, embeddings = optimizer.get("decay_norm_and_bias"), optimizer.get("decay_embeddings")
    return {
        "update_rule": "lion" if optimizer.get("name") == "lionw" else "adamw",
        "learning_rate": optimizer.number("learning_rate"),
        "betas": tuple(map(float, optimizer.get("betas"))),
        "eps": optimizer.number("eps"),
        "weight_decay": optimizer.number("weight_decay"),
        "undecayed": ([] if norms else NORMS_AND_BIASES) + ([] if embeddings else EMBEDDINGS),
    }


def _schedule(
    settings: Settings, checkpoints: tuple[ForeignCheckpoint, ...], notes: list[str]
) -> dict[str, Any]:
    """Return the schedule's keys: what the trainer counts as step n is our step n − 1.

    Errors: data.
    """
    scheduler = settings.section("scheduler", SCHEDULER_DEFAULTS)
    scheduler.only("name", *SCHEDULES)
    scheduler.only("units", "steps", "tokens")
    per_step = 1 if scheduler.get("units") == "steps" else _tokens_per_step(settings)
    steps = steps_asked_for(settings, checkpoints)
    t_max = scheduler.get("t_max")
    length = None if t_max is None else whole_steps(scheduler.number("t_max"), per_step, notes)
    if steps is None:
        notes.append(
            f"max_duration = {shown(settings.get('max_duration'))} says no number of steps:"
            " train.steps is the last checkpoint's"
        )
        steps = max(1, *(checkpoint.step for checkpoint in checkpoints))
    name = scheduler.get("name")
    warmup = 0 if name == "constant" else whole_steps(scheduler.number("t_warmup"), per_step, notes)
    lowest = scheduler.get("warmup_min_lr")
    peak = settings.section("optimizer", OPTIMIZER_DEFAULTS).number("learning_rate")
    return {
        "steps": steps,
        "schedule": SCHEDULES[name],
        "warmup": warmup,
        "warmup_from": WARMUP_FROM if lowest is None else scheduler.number("warmup_min_lr") / peak,
        "warmup_base": 1.0,
        "decay_base": 1.0,
        "min_lr": 0.0 if name == "inverse_sqrt_with_warmup" else scheduler.number("alpha_f"),
        **({} if length is None else {"schedule_steps": length}),
        **_clip_warmup(scheduler, per_step),
    }


def _clip_warmup(scheduler: Settings, per_step: int) -> dict[str, Any]:
    """Return the warm-up of the clip: the trainer sets a step's threshold at the end of the one
    before it, so its first step has the plain one, and N of its steps end with our step N.
    """
    if None in (scheduler.get("grad_clip_warmup_steps"), scheduler.get("grad_clip_warmup_factor")):
        return {}
    return {
        "clip_warmup": int(scheduler.number("grad_clip_warmup_steps")) // per_step + 1,
        "clip_warmup_factor": scheduler.number("grad_clip_warmup_factor"),
        "clip_warmup_after": 1,
    }


def whole_steps(units: float, per_step: int, notes: list[str]) -> int:
    """Turn steps or tokens into steps, noting where they end inside one."""
    steps, beyond = divmod(int(units), per_step)
    if beyond:
        notes.append(
            f"its schedule counts {int(units):,} tokens, {units / per_step:.6f} steps: {steps} here"
        )
    return steps


def _tokens_per_step(settings: Settings) -> int:
    model = settings.section("model", MODEL_DEFAULTS)
    return settings.whole("global_train_batch_size") * model.whole("max_sequence_length")


def steps_asked_for(settings: Settings, checkpoints: tuple[ForeignCheckpoint, ...]) -> int | None:
    """Return the steps that max_duration asks for: N, "NT" tokens; None for "Nep" epochs.

    Errors: data.
    """
    duration = settings.get("max_duration")
    if isinstance(duration, int):
        return duration
    text = str(duration).strip()
    if text.endswith("ep"):
        return None
    try:
        number = float(text.removesuffix("T"))
    except ValueError:
        raise ForensicsError(
            "data",
            f"max_duration: wanted steps, tokens (T) or epochs (ep), found {shown(duration)}",
            "is it the run's own config.yaml?",
        ) from None
    return (
        math.ceil(int(number) / _tokens_per_step(settings)) if text.endswith("T") else int(number)
    )


def _initialisation(settings: Settings, notes: list[str]) -> dict[str, Any]:
    """Return model.init where it is one of ours; a run that is read has its states anyway."""
    model = settings.section("model", MODEL_DEFAULTS)
    names = {"normal": "normal", "full_megatron": "scaled", "mitchell": "olmo"}
    name = names.get(str(model.get("init_fn")))
    if name is None:
        notes.append(f"model.init_fn = {shown(model.get('init_fn'))} is none of model.init")
    return {} if name is None else {"init": name}
