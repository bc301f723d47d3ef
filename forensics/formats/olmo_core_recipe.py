"""What OLMo-core's config.json asks for, in the keys of our recipes.

Defaults are those of allenai/OLMo-core olmo_core/nn and olmo_core/optim; what nothing here computes
is refused by name.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Mapping
from typing import Any

from forensics.errors import ForensicsError
from forensics.formats.olmo_recipe import CLIP_EPS, FILTER, whole_steps
from forensics.formats.pieces import Piece
from forensics.formats.their_configuration import Settings, not_built, shown

RMS = ("rms", "fused_rms", "qwen_rms", "cute_rms")  # one formula, in float32
SCHEDULES = {
    "cos_with_warmup": "cosine",
    "linear_with_warmup": "linear",
    "constant": "constant",
    "constant_with_warmup": "constant",
    "wsd": "wsd",
}
SCHEDULE_CLASSES = {
    "CosWithWarmup": "cos_with_warmup",
    "LinearWithWarmup": "linear_with_warmup",
    "ConstantScheduler": "constant",
    "ConstantWithWarmup": "constant_with_warmup",
    "WSD": "wsd",
}
OPTIMIZERS = {"AdamWConfig": "adamw", "SkipStepAdamWConfig": "skip_step_adamw"}
SKIP_STEP = {"rolling_interval_length": 128, "sigma_factor": 6}  # as train.skip_step's
OPTIMIZER_DEFAULTS: dict[str, Any] = {
    "lr": 1e-3,
    "betas": (0.9, 0.999),
    "eps": 1e-8,
    "weight_decay": 1e-2,
}
ALL_LAYERS = re.compile(r"^layers\.\d+\.")


def model_section(settings: Settings) -> dict[str, Any]:
    """Return the keys of [model]. Errors: data, for what no knob of the decoder is."""
    model = settings.section("model")
    model.only("name", "default")
    for name in (
        "embedding_norm",
        "embed_scale",
        "freeze_params",
        "block_pattern",
        "block_overrides",
    ):
        model.only(
            name, None, *([[]] if name != "embed_scale" else []), *([{}] if "block" in name else [])
        )
    block = model.section("block")
    block.only("name", "reordered_norm", "default")
    for name in ("feed_forward_moe", "attention_residual_alpha", "feed_forward_residual_alpha"):
        block.only(name, None)
    block.only("dropout", None, 0.0)
    attention = block.section(
        "sequence_mixer" if "sequence_mixer" in block.document else "attention"
    )
    feed_forward, head = block.section("feed_forward"), model.section("lm_head")
    feed_forward.only("name", "default", "fused")
    feed_forward.only("activation", "silu")
    head.only("name", "default")
    layers, width, heads = (
        model.whole("n_layers"),
        model.whole("d_model"),
        attention.whole("n_heads"),
    )
    return {
        "family": "olmo2" if block.get("name") == "reordered_norm" else "llama",
        "layers": layers,
        "width": width,
        "heads": heads,
        "kv_heads": attention.get("n_kv_heads") or heads,
        "head_width": attention.get("head_dim") or width // heads,
        "mlp_width": feed_forward.whole("hidden_size"),
        "norm": "post" if block.get("name") == "reordered_norm" else "pre",
        **_norms(block, attention, head),
        **_attention(attention, layers),
        "parallel": False,
        "bias": _bias(attention, feed_forward, head),
        "activation": "swiglu",
        "tied": bool(model.get("tie_word_embeddings")),
    }


def _norms(block: Settings, attention: Settings, head: Settings) -> dict[str, Any]:
    """Return the one kind and ε of all the block's norms. Errors: data."""
    norms = [block.section("layer_norm"), head.section("layer_norm")]
    qk_norm = attention.section("qk_norm")
    norms += [qk_norm] if qk_norm.document else []
    for norm in norms:
        norm.only("name", *RMS)
        norm.only("bias", False)
        norm.only("elementwise_affine", None, True)
        if norm.number("eps", 1e-5) != norms[0].number("eps", 1e-5):
            raise not_built("norms of several ε", "one ε for all of them")
    attention.only("qk_norm_per_head_gains", None, False)
    per_head = "head" if attention.get("use_head_qk_norm") else "whole"
    return {
        "norm_kind": "rms",
        "norm_eps": norms[0].number("eps", 1e-5),
        "qk_norm": per_head if qk_norm.document else "none",
    }


def _attention(attention: Settings, layers: int) -> dict[str, Any]:
    """Return RoPE's keys, the clip and the window. Errors: data."""
    attention.only("name", "default", "fused")
    attention.only("type", "attention", None)
    attention.only("dropout", None, 0.0)
    for name in ("gate", "scalable_softmax", "attention_sinks"):
        attention.only(name, None, False)
    rope = attention.section("rope", {"theta": 500_000})
    if not rope.document:
        raise not_built("attention without RoPE", "attention with it")
    rope.only("name", "default", "complex")
    rope.only("scaling", None)
    rope.only("no_global_rope", False, None)
    section: dict[str, Any] = {
        "position": "rope",
        "rope_theta": rope.number("theta"),
        "rope_fraction": rope.number("partial_rotary_factor", 1.0),
    }
    if attention.get("clip_qkv") is not None:
        section["clip_qkv"] = attention.number("clip_qkv")
    return section | _window(attention.section("sliding_window"), layers)


def _window(sliding: Settings, layers: int) -> dict[str, Any]:
    """Return which layers slide: a pattern of windows, −1 for none, repeated over the layers."""
    pattern = sliding.get("pattern")
    if not pattern:
        return {}
    first = bool(sliding.get("force_full_attention_on_first_layer", True))
    last = bool(sliding.get("force_full_attention_on_last_layer", True))
    windows = {size for size in pattern if size != -1}
    if len(windows) > 1 or not all(isinstance(size, int) for size in pattern):
        raise not_built(f"windows of several sizes, {shown(pattern)}", "one size")
    slides = [
        pattern[(layer - first) % len(pattern)] != -1
        and not (first and layer == 0)
        and not (last and layer == layers - 1)
        for layer in range(layers)
    ]
    sliding_layers = [layer for layer in range(layers) if slides[layer]]
    return {"window": windows.pop(), "sliding_layers": sliding_layers} if sliding_layers else {}


def _bias(attention: Settings, feed_forward: Settings, head: Settings) -> bool:
    """Say whether every linear map has a bias; left out, the trainer's maps have one."""
    head.only("bias", False)
    biases = {attention.get("bias") is not False, feed_forward.get("bias") is not False}
    if len(biases) > 1:
        raise not_built("a bias in attention or in the MLP alone", "one in both or in neither")
    return biases.pop()


def data_section(settings: Settings, state: dict[str, Any]) -> dict[str, Any]:
    """Return the keys of [data]. Errors: data."""
    dataset = settings.section("dataset")
    if dataset.get("label_mask_paths"):
        raise not_built("dataset.label_mask_paths", "a loss over all tokens")
    dataset.only("generate_doc_lengths", False, None)
    filtered = dataset.get("instance_filter_config")
    if filtered:
        section = dataset.section("instance_filter_config", FILTER)
        for name, number in FILTER.items():
            section.only(name, number)
    return {
        "sequence_length": dataset.whole("sequence_length", length_of(settings, state)),
        "window": "inside",
        "mask_repeats": bool(filtered),
    }


def length_of(settings: Settings, state: dict[str, Any]) -> Any:
    """Return T as the trainer's state says it, or as its module's longest; None: neither does."""
    loader = state.get("data_loader")
    said = loader.get("sequence_length") if isinstance(loader, dict) else None
    return said or settings.section("train_module").get("max_sequence_length")


def train_section(
    settings: Settings,
    data: dict[str, Any],
    state: dict[str, Any],
    plan: Mapping[str, Piece],
    steps: Iterable[int],
    notes: list[str],
) -> dict[str, Any]:
    """Return the keys of [train]. Errors: data."""
    module, loader = settings.section("train_module"), settings.section("data_loader")
    batch = _sequences(loader, "global_batch_size", data)
    micro_batch = _sequences(module, "rank_microbatch_size", data)
    clip, z_loss = module.get("max_grad_norm"), module.get("z_loss_multiplier")
    module.only("label_ignore_index", -100)
    total = state.get("max_steps")
    if not isinstance(total, int) or total < 1:
        total = max(1, *steps)
        notes.append("its checkpoints say no number of steps: train.steps is the last one's")
    optimizer = module.section("optim", OPTIMIZER_DEFAULTS)
    return {
        "batch": batch,
        "micro_batch": micro_batch if batch % micro_batch == 0 else batch,
        "seed": loader.get("seed", 0),
        "clip": 0.0 if clip is None else module.number("max_grad_norm"),
        "clip_eps": CLIP_EPS,
        "loss_over": "unmasked",
        "z_loss": 0.0 if z_loss is None else module.number("z_loss_multiplier"),
        "precision": _precision(module),
        "steps": total,
        **_optimizer(optimizer, plan, notes),
        **_schedule(
            module.section("scheduler"), optimizer, total, batch * data["sequence_length"], notes
        ),
    }


def _sequences(section: Settings, name: str, data: dict[str, Any]) -> int:
    """Turn a batch in tokens into sequences. Errors: data."""
    tokens, length = section.whole(name), data["sequence_length"]
    if tokens % length:
        raise ForensicsError(
            "data",
            f"{section.where}{name}: {tokens} tokens are no whole number of sequences of {length}",
            "is it the run's own config.json?",
        )
    return int(tokens // length)


def _precision(module: Settings) -> str:
    parallel = module.section("dp_config").get("param_dtype")
    halved = {str(module.get("autocast_precision")), str(parallel)} & {"bfloat16", "bf16"}
    return "bf16" if halved else "fp32"


def _kind(section: Settings, classes: Mapping[str, str]) -> str:
    """Return a configurable thing's kind: by its `type`, or by its class in older files."""
    named = str(section.get("_CLASS_") or section.get("name") or "").rpartition(".")[2]
    return str(section.get("type") or classes.get(named) or named)


def _optimizer(optimizer: Settings, plan: Mapping[str, Piece], notes: list[str]) -> dict[str, Any]:
    kind = _kind(optimizer, OPTIMIZERS)
    if kind not in OPTIMIZERS.values():
        raise not_built(f"train_module.optim of kind {shown(kind)}", ", ".join(OPTIMIZERS.values()))
    skips = kind == "skip_step_adamw"
    if skips:
        for name, number in SKIP_STEP.items():
            optimizer.only(name, number)
        notes.append(
            "SkipStep's last losses are not in its checkpoints: a replay begins without them"
        )
    return {
        "learning_rate": optimizer.number("lr"),
        "betas": tuple(map(float, optimizer.get("betas"))),
        "eps": optimizer.number("eps"),
        "weight_decay": optimizer.number("weight_decay"),
        "undecayed": undecayed(optimizer, plan),
        "skip_step": skips,
    }


def undecayed(optimizer: Settings, plan: Mapping[str, Piece]) -> list[str]:
    """Return patterns of our names whose group has no weight decay. Errors: data.

    The trainer's groups are patterns of its own names; a name of every layer becomes one pattern.
    """
    names: set[str] = set()
    for group in optimizer.get("group_overrides") or ():
        patterns, options = group.get("params") or (), dict(group.get("opts") or {})
        decay = options.pop("weight_decay", optimizer.number("weight_decay"))
        if options or decay not in (0, optimizer.number("weight_decay")):
            raise not_built(
                f"a group of parameters with {shown(group.get('opts'))}", "weight_decay = 0"
            )
        if decay == 0:
            names |= {
                ours
                for ours, piece in plan.items()
                if any(fnmatch.fnmatchcase(piece.stored, pattern) for pattern in patterns)
            }
    general = {name: ALL_LAYERS.sub("layers.*.", name) for name in plan}
    whole = {
        pattern
        for pattern in general.values()
        if all(name in names for name, of in general.items() if of == pattern)
    }
    return sorted({general[name] if general[name] in whole else name for name in names})


def _schedule(
    scheduler: Settings, optimizer: Settings, total: int, tokens_per_step: int, notes: list[str]
) -> dict[str, Any]:
    """Return the schedule's keys; the trainer counts its first step as 1. Errors: data."""
    if not scheduler.document:
        return {"schedule": "constant", "warmup": 0}
    kind = _kind(scheduler, SCHEDULE_CLASSES)
    if kind not in SCHEDULES:
        raise not_built(f"train_module.scheduler of kind {shown(kind)}", ", ".join(SCHEDULES))
    scheduler.only("units", "steps", "tokens")
    per_step = tokens_per_step if scheduler.get("units") == "tokens" else 1
    peak = optimizer.number("lr")
    t_max = scheduler.get("t_max")
    length = total if t_max is None else whole_steps(scheduler.number("t_max"), per_step, notes)

    def part(name: str, share: float | None) -> int:
        """Return a stretch of the schedule in steps, which may be said as a share of it."""
        said = scheduler.get(name, scheduler.get(f"{name}_steps"))
        if said is not None:
            return whole_steps(float(said), per_step, notes)
        return round(length * scheduler.number(f"{name}_fraction", share))

    section: dict[str, Any] = {
        "schedule": SCHEDULES[kind],
        "schedule_steps": length,
        "warmup": 0 if kind == "constant" else part("warmup", None),
        "warmup_from": scheduler.number("warmup_min_lr", 0.0) / peak,
        "warmup_base": 1.0,
        "decay_base": 1.0,
        "min_lr": scheduler.number("alpha_f", 0.1),
    }
    if kind == "wsd":
        section["decay_steps"] = part("decay", 0.1)
        section["min_lr"] = scheduler.number("decay_min_lr", 0.0) / peak
    return section
