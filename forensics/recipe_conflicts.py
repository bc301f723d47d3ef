"""Keys of a recipe that its other keys make ineffective: refused where somebody sets them.

    refuse(raw, ["train.min_lr=0"], recipe)     # schedule = "constant" has no use for it: config

A key that stands in a recipe's file may lose its use by a setting, on purpose; a setting without
effect is a mistake.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from forensics.errors import ForensicsError

if TYPE_CHECKING:
    from forensics.config import Recipe

DEFAULT_VOCABULARY = 4096  # of config.Data: a vocabulary that was asked for cannot be told from it


class Ineffective(NamedTuple):
    """A key, when it has no effect, and why."""

    key: str  # dotted; a table stands for all of its keys
    applies: Callable[[Recipe], bool]
    why: str


def _is_standard_library(source: str) -> bool:
    return source.rpartition(":")[2].partition("/")[0] == "stdlib"


def _sources(recipe: Recipe) -> list[str]:
    return list(recipe.data.sources.values()) or [recipe.data.source]


def _dense_from(window: str) -> int:
    return int(window.partition(":")[0])


# schedules whose fall may begin later than the warm-up ends
FALLING = ("cosine", "half_cosine", "cosine_linear", "linear")

RULES = (
    Ineffective(
        "data.vocabulary",
        lambda r: r.data.tokenizer == "bytes",
        'data.tokenizer = "bytes" has 257 ids',
    ),
    Ineffective(
        "data.vocabulary",
        lambda r: r.data.tokenizer != "train" and r.data.vocabulary == DEFAULT_VOCABULARY,
        f"of a loaded tokenizer {DEFAULT_VOCABULARY} stands for its own ids",
    ),
    Ineffective(
        "data.text_key",
        lambda r: all(map(_is_standard_library, _sources(r))),
        "the standard library's files have no fields",
    ),
    Ineffective(
        "data.phases", lambda r: bool(r.data.order_file), "data.order_file gives the whole order"
    ),
    Ineffective("data.order_dtype", lambda r: not r.data.order_file, "there is no data.order_file"),
    Ineffective(
        "train.min_lr",
        lambda r: r.train.schedule == "constant",
        'train.schedule = "constant" does not decay',
    ),
    Ineffective(
        "train.schedule_steps",
        lambda r: r.train.schedule == "constant",
        'train.schedule = "constant" has no length',
    ),
    Ineffective(
        "train.decay_steps",
        lambda r: r.train.schedule not in ("wsd", "cosine_linear"),
        'it belongs to train.schedule = "wsd" and "cosine_linear"',
    ),
    Ineffective(
        "train.decay_shape",
        lambda r: r.train.schedule != "wsd",
        'it belongs to train.schedule = "wsd"',
    ),
    Ineffective(
        "train.tail_min_lr",
        lambda r: r.train.schedule != "cosine_linear",
        'it belongs to train.schedule = "cosine_linear"',
    ),
    Ineffective(
        "train.decay_start",
        lambda r: r.train.schedule not in FALLING,
        f"it belongs to train.schedule = {', '.join(FALLING)}",
    ),
    Ineffective(
        "train.decay_base",
        lambda r: r.train.schedule == "constant",
        'train.schedule = "constant" does not decay',
    ),
    *(
        Ineffective(
            f"train.{key}",
            lambda r: r.train.update_rule != "muon",
            'it belongs to train.update_rule = "muon"',
        )
        for key in ("momentum", "matrix_scale", "matrix_rate")
    ),
    Ineffective(
        "train.optimizer",
        lambda r: r.train.update_rule == "lion",
        'train.update_rule = "lion" has one implementation',
    ),
    Ineffective("train.eps", lambda r: r.train.update_rule == "lion", "Lion divides by nothing"),
    *(
        Ineffective(
            f"train.{key}", lambda r: r.train.warmup == 0, "train.warmup = 0 warms nothing up"
        )
        for key in ("warmup_from", "warmup_base")
    ),
    *(
        Ineffective(
            f"train.{key}",
            lambda r: r.train.weight_decay == 0,
            "train.weight_decay = 0 decays nothing",
        )
        for key in ("decay_embeddings", "undecayed")
    ),
    *(
        Ineffective(f"train.{key}", lambda r: r.train.clip == 0, "train.clip = 0 clips nothing")
        for key in ("clip_eps", "clip_warmup", "clip_warmup_factor", "clip_warmup_after")
    ),
    Ineffective(
        "train.clip_warmup_factor",
        lambda r: r.train.clip_warmup == 0,
        "train.clip_warmup = 0 steps have another threshold",
    ),
    Ineffective(
        "train.held_out_every",
        lambda r: r.data.held_out == 0 and bool(r.train.held_out_every),
        "data.held_out = 0 leaves nothing to measure",
    ),
    Ineffective(
        "checkpoint.ring_every",
        lambda r: r.checkpoint.ring == 0,
        "checkpoint.ring = 0 holds no states",
    ),
    Ineffective(
        "checkpoint.steps",
        lambda r: any(step > r.train.steps for step in r.checkpoint.steps),
        "the run ends before one of them: see train.steps",
    ),
    Ineffective(
        "record.every",
        lambda r: r.record.level == "off",
        'record.level = "off" writes only the steps',
    ),
    Ineffective(
        "record.dense",
        lambda r: r.record.level != "light",
        'record.level is "off" or "dense" throughout',
    ),
    Ineffective(
        "record.dense",
        lambda r: any(_dense_from(window) >= r.train.steps for window in r.record.dense),
        "the run ends before one of the windows: see train.steps",
    ),
)


def refuse(raw: Mapping[str, Any], settings: Sequence[str], recipe: Recipe) -> None:
    """Refuse settings without effect, and a recipe that names its text twice. Errors: config."""
    data = raw.get("data") or {}
    if "source" in data and data.get("sources"):
        names = list(data["sources"])
        raise ForensicsError(
            "config",
            f"data.source: wanted one source or several, found it beside the sources"
            f" {', '.join(names)}",
            f"set one of those (data.sources.{names[0]}), or leave data.sources out",
        )
    given = [setting.partition("=")[0].strip() for setting in settings]
    for rule in RULES:
        key = next((k for k in given if k == rule.key or k.startswith(rule.key + ".")), None)
        if key is not None and rule.applies(recipe):
            raise ForensicsError(
                "config", f"{key} has no effect in this recipe: {rule.why}", "leave it out"
            )
    refuse_sparse_steps(recipe)


def refuse_sparse_steps(recipe: Recipe) -> None:
    """Refuse a run whose steps would not all have a row. Errors: config.

    Spikes, replays and controls are judged by the row of every step; other tables may be sparse.
    """
    if recipe.record.every.get("steps", 1) != 1:
        raise ForensicsError(
            "config",
            f"record.every.steps: wanted 1, found {recipe.record.every['steps']}: every step has"
            " its row, by which spikes are found and replays are checked",
            "layers, heads, tensors and sequences may be recorded less often",
        )
