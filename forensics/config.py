"""A recipe: TOML into frozen dataclasses, with one default per key, here.

    load("demo", ["train.steps=40"])  →  Recipe

Unknown keys are refused, with the nearest name.
"""

from __future__ import annotations

import dataclasses
import math
import pkgutil
import tomllib
import typing
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from forensics.coercion import coerce
from forensics.errors import ForensicsError, nearest
from forensics.sequence_window import KINDS, SequenceWindow, window_of

RECIPES = Path(__file__).parent / "recipes"
SCHEDULES = (
    "constant",
    "cosine",
    "half_cosine",
    "cosine_linear",
    "linear",
    "inverse_sqrt",
    "inverse_sqrt_floor",
    "wsd",
)
UNDECAYED = ("*norm*", "*.bias")  # of every tensor's name; the rule of most trainers
# the files of forensics/model/families, one a family; listed and not imported, for configuration
# stands below the model
FAMILIES = tuple(
    sorted(
        module.name
        for module in pkgutil.iter_modules([str(Path(__file__).parent / "model" / "families")])
    )
)
UPDATE_RULES = ("adamw", "lion", "muon", "nadamw")  # the files of forensics/train/optimizers


def key(
    default: Any,
    meaning: str,
    *,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    choices: tuple[str, ...] = (),
) -> Any:
    """Declare a configuration key: its default, unit and meaning, and the range it must lie in."""
    metadata = {"meaning": meaning, "low": low, "high": high, "above": above, "choices": choices}
    if isinstance(default, (dict, list)):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Phase:
    """A stretch of the run with its own mix of sources."""

    mix: dict[str, float] = key({}, "source name → share of the draws; shares are normalised")
    until: int | None = key(
        None, "first step that is no longer in this phase; the last phase may leave it out", low=1
    )


@dataclass(frozen=True)
class Data:
    """Where text comes from and how it is ordered."""

    source: str = key(
        "stdlib",
        "stdlib | stdlib/PACKAGE | a folder, or a file of text, .jsonl, .json or .parquet, packed "
        "(.gz, .zst, .bz2, .xz) or not | hf:NAME; "
        "`shuffled:SOURCE` is SOURCE with the characters of every document shuffled",
    )
    sources: dict[str, str] = key({}, "name → source, for phases; instead of `source`")
    phases: tuple[Phase, ...] = key(
        (), "stretches with their own mix; none: all sources by their size"
    )
    order_file: str = key(
        "",
        "sequence ids in the order they are read, instead of the keyed order: a .npy, a bare memory"
        " map, or `corpus:NAME`, kept with the corpus",
    )
    order_dtype: str = key(
        "", "type of the ids of an `order_file` that is a bare memory map: uint32, …"
    )
    tokenizer: str = key("train", "train | bytes | path of a tokenizer.json")
    vocabulary: int = key(
        4096,
        "token ids to train the tokenizer to, 256 bytes and the end-of-text token included; of a"
        " loaded one: the rows of the model where these are more than its ids (4096: its ids)",
        low=257,
    )
    sequence_length: int = key(128, "T, in tokens; `window` says how a sequence is cut", low=2)
    window: str = key(
        "shared",
        "shared: T+1 tokens, the last is the next one's first; separate: T+1 tokens, none shared "
        "(datatrove, Pythia, Amber); inside: T tokens, none shared, T−1 targets (OLMo)",
        choices=KINDS,
    )
    held_out: int = key(
        64,
        "sequences of the first phase's sources kept out of training, for held-out loss and probes",
        low=0,
    )
    text_key: str = key("text", "field of .jsonl, .parquet and hf: records that holds the text")
    mask_repeats: bool = key(
        False,
        "a sequence in which an n-gram, n = 1 … 13, repeats 32 or more times in a row weighs 0 "
        "in the loss, whose denominator is kept (OLMo 2's filter); not in held-out loss",
    )

    @property
    def cut(self) -> SequenceWindow:
        """Return how the sources' streams are cut into sequences."""
        return window_of(self.window, self.sequence_length)


@dataclass(frozen=True)
class Model:
    """The decoder. `family` sets every knob that is left out."""

    family: str = key(
        "llama",
        "whose defaults the knobs take",
        choices=FAMILIES,
    )
    layers: int = key(4, "decoder blocks", low=1)
    width: int = key(128, "D, size of the residual stream", low=1)
    heads: int = key(4, "query heads", low=1)
    kv_heads: int | None = key(None, "key and value heads; left out: as many as query heads", low=1)
    head_width: int | None = key(None, "K; left out: width / heads", low=1)
    mlp_width: int | None = key(
        None, "hidden size of the MLP; left out: the family's multiple of width", low=1
    )
    norm: str | None = key(
        None, "pre: before each sub-layer; post: on its output", choices=("pre", "post")
    )
    norm_kind: str | None = key(
        None,
        "layer_no_bias: a layer norm with a gain alone (nanoGPT)",
        choices=("rms", "layer", "layer_no_bias", "layer_no_parameters"),
    )
    norm_eps: float | None = key(None, "added to the mean square", above=0)
    qk_norm: str | None = key(
        None,
        "norm of queries and keys: per head, or over all heads",
        choices=("none", "head", "whole"),
    )
    position: str | None = key(None, "", choices=("rope", "learned"))
    rope_theta: float | None = key(None, "base of RoPE's wavelengths, in positions", above=0)
    rope_fraction: float | None = key(None, "share of each head that is rotated", above=0, high=1)
    parallel: bool | None = key(None, "attention and MLP read the same stream (GPT-NeoX)")
    unrotated_layers: tuple[int, ...] | None = key(
        None, "layers, from 0, without RoPE; left out: the family's (smollm3: every fourth)"
    )
    rope_scaling: str | None = key(
        None,
        "RoPE's wavelengths stretched by rope_factor where they are long (llama3: Llama 3.1; yarn: "
        "arXiv 2309.00071); not in layers with a window",
        choices=("none", "llama3", "yarn"),
    )
    rope_factor: float | None = key(None, "of rope_scaling", low=1)
    rope_original_length: int | None = key(
        None, "of rope_scaling: positions trained on before", low=1
    )
    rope_slow: float | None = key(
        None,
        "of rope_scaling: turns over the original length up to which the whole factor holds; left "
        "out: 1",
        above=0,
    )
    rope_fast: float | None = key(
        None,
        "of rope_scaling: turns from which on a wavelength stays as it is; left out: 4, yarn 32",
        above=0,
    )
    rope_magnitude: float | None = key(
        None, "of yarn: cos and sin times this; left out: 0.1·ln(rope_factor) + 1", above=0
    )
    rope_theta_sliding: float | None = key(
        None, "base of RoPE's wavelengths in layers with a window; left out or 0: rope_theta", low=0
    )
    window: int | None = key(
        None,
        "positions, its own included, that a sliding layer attends to; 0: no layer slides; left "
        "out: 0, olmo3 4096",
        low=0,
    )
    sliding_layers: tuple[int, ...] | None = key(
        None,
        "layers, from 0, that attend inside the window; left out: all but every fourth and the "
        "last",
    )
    bias: bool | None = key(None, "biases in every linear map")
    qkv_bias: bool | None = key(None, "biases of queries, keys and values alone (Qwen2)")
    clip_qkv: float | None = key(
        None,
        "largest |number| of queries, keys and values; 0: no clip (OLMo 1.7 and 0724: 8)",
        low=0,
    )
    activation: str | None = key(None, "", choices=("swiglu", "gelu", "gelu_tanh"))
    embed_scale: float | None = key(
        None,
        "embeddings are multiplied by it where the stream begins; 0: √width (arXiv 2312.16903); "
        "left out: 1",
        low=0,
    )
    init: str = key(
        "normal",
        "normal: std init_std everywhere; scaled: init_std / √(2·layers) for maps into the stream "
        "(Megatron); small: √(2/(5·width)), and that / √(2·layers) for those (arXiv 2312.16903); "
        "olmo: std 1/√(2·fan·(layer+1)) for those, 1/√fan for others, embeddings init_std; openlm: "
        "olmo's, and embeddings 1/√width (OpenLM; OLMo 1 where it names no other)",
        choices=("normal", "scaled", "small", "olmo", "openlm"),
    )
    init_std: float = key(0.02, "of normal and scaled, and of olmo's embeddings", above=0)
    init_embedding_std: float | None = key(
        None, "of embeddings and positions; left out: as `init` says", above=0
    )
    init_cutoff: float = key(
        0.0,
        "numbers are drawn within so many std; 0: no bound. olmo and openlm have 3 in any case",
        low=0,
    )
    tied: bool | None = key(None, "unembedding is the embedding")
    max_positions: int | None = key(
        None, "longest sequence of learned positions; left out: T", low=1
    )
    document_mask: bool = key(False, "attention does not cross documents")


@dataclass(frozen=True)
class Train:
    """Optimisation."""

    steps: int = key(300, "updates", low=1)
    batch: int = key(16, "sequences per step", low=1)
    micro_batch: int | None = key(
        None, "sequences per forward; left out: batch; must divide it", low=1
    )
    seed: int = key(0, "of initialisation and of the data order", low=0)
    learning_rate: float = key(3e-3, "peak", low=0)
    schedule: str = key(
        "cosine",
        "shape after warm-up; formulas in train/schedule.py",
        choices=SCHEDULES,
    )
    warmup: int = key(20, "steps of linear warm-up", low=0)
    warmup_from: float = key(0.0, "share of the peak that the warm-up begins at", low=0, high=1)
    warmup_base: float = key(
        1.0, "step that the run's first batch counts as in the warm-up", low=0, high=1
    )
    min_lr: float = key(
        0.1, "share of the peak that every schedule but constant ends at", low=0, high=1
    )
    decay_base: float = key(
        0.0, "step that the run's first batch counts as after the warm-up", low=0, high=1
    )
    decay_start: int | None = key(
        None, "step at which cosine and linear begin to fall; left out: warmup", low=0
    )
    decay_steps: int | None = key(
        None,
        "wsd, cosine_linear: steps of decay at the end; left out: a fifth of the run",
        low=1,
    )
    decay_shape: str = key(
        "linear",
        "wsd: linear; cosine; sqrt: 1 − √x; exponential: 2^(1−x) − 1",
        choices=("linear", "cosine", "sqrt", "exponential"),
    )
    tail_min_lr: float = key(
        0.0, "cosine_linear: share of the peak that its linear end goes to", low=0, high=1
    )
    schedule_steps: int | None = key(
        None, "length the schedule is drawn for; left out: steps", low=1
    )
    update_rule: str = key(
        "adamw",
        "optimizer; formulas in train/optimizers. Muon moves matrices, and AdamW the rest",
        choices=UPDATE_RULES,
    )
    momentum: float = key(0.95, "Muon's, per update", low=0, high=1)
    matrix_scale: str = key(
        "match_rms",
        "Muon's step of an A × B matrix: match_rms: 0.2·√max(A, B), an AdamW step's size; "
        "original: √max(1, A/B)",
        choices=("match_rms", "original"),
    )
    matrix_rate: float = key(1.0, "Muon's learning rate of matrices, times `learning_rate`", low=0)
    betas: tuple[float, float] = key(
        (0.9, 0.95), "decay of Adam's first and second moment, per update; Lion's two β"
    )
    eps: float = key(1e-8, "Adam's ε", above=0)
    weight_decay: float = key(0.1, "λ of AdamW, times the learning rate per update", low=0)
    undecayed: tuple[str, ...] = key(
        UNDECAYED,
        "patterns of tensors' names that weight decay leaves alone; [] decays norms and biases too",
    )
    decay_embeddings: bool = key(
        True,
        "false: embed, positions and unembed are left alone too, beside what `undecayed` names",
    )
    clip: float = key(1.0, "largest ‖g‖₂; 0: no clipping", low=0)
    clip_eps: float = key(
        0.0, "ε of the factor min(1, clip / (‖g‖₂ + ε)); torch's and OLMo's is 1e-6", low=0
    )
    clip_warmup: int = key(0, "first steps at which `clip` is `clip_warmup_factor` times it", low=0)
    clip_warmup_factor: float = key(1.0, "factor of `clip` during `clip_warmup`", above=0)
    clip_warmup_after: int = key(
        0, "of those, first steps whose `clip` is the plain one (OLMo's first)", low=0
    )
    loss_over: str = key(
        "targets",
        "what the loss is divided by: targets: all of the batch; tokens: the sequences' tokens "
        "(OLMo); unmasked: targets of sequences that data.mask_repeats leaves, and the tokens of "
        "those it masks (OLMo-core)",
        choices=("targets", "tokens", "unmasked"),
    )
    z_loss: float = key(
        0.0,
        "weight of Σ (logsumexp)² / the loss's denominator, the auxiliary loss of PaLM",
        low=0,
    )
    skip_step: bool = key(
        False, "SkipStep: no update where loss or gradient norm is 6σ over its last 128 values"
    )
    optimizer: str = key(
        "fused",
        "implementation of the update's arithmetic (of NAdamW `fused` is foreach; Lion has one); "
        "part of the run's identity",
        choices=("fused", "foreach", "loop"),
    )
    device: str = key("auto", "auto | cpu | cuda; auto: CUDA where there is one")
    precision: str = key(
        "auto", "auto: bf16 autocast on CUDA, fp32 on CPU", choices=("auto", "fp32", "bf16")
    )
    compile: bool = key(False, "torch.compile for each block; part of the run's identity")
    checkpoint_activations: bool = key(
        False,
        "blocks are computed again in the backward instead of kept: less memory, a third "
        "more arithmetic, the same bits",
    )
    threads: int = key(
        0, "CPU threads; 0: all of the machine's; the resolved count is stored", low=0
    )
    held_out_every: int = key(
        50, "steps between measurements of held-out loss; 0: only at the end", low=0
    )


@dataclass(frozen=True)
class Checkpoint:
    """What is saved. State 0 and the last always are."""

    every: int = key(50, "steps between checkpoints; 0: only state 0 and the last", low=0)
    steps: tuple[int, ...] = key((), "further states to save")
    ring: int = key(0, "recent states held in memory, written out when a spike is detected", low=0)
    ring_every: int = key(1, "steps between states of the ring", low=1)


@dataclass(frozen=True)
class Record:
    """What is written down. Recording changes no bit of the run."""

    level: str = key(
        "light",
        "off: only steps; light: steps, layers, heads, tensors, sequences; dense: also tokens and"
        " the logit lens",
        choices=("off", "light", "dense"),
    )
    dense: tuple[str, ...] = key((), 'windows "A:B" recorded densely')
    every: dict[str, int] = key(
        {},
        "layers | heads | tensors | sequences → steps between its rows; 1 where left out; every"
        " step has its row in `steps`",
    )
    flush_every: int = key(50, "steps between writes of the tables", low=1)


@dataclass(frozen=True)
class Recipe:
    """All that defines a run."""

    data: Data = field(default_factory=Data)
    model: Model = field(default_factory=Model)
    train: Train = field(default_factory=Train)
    checkpoint: Checkpoint = field(default_factory=Checkpoint)
    record: Record = field(default_factory=Record)

    @property
    def micro_batch(self) -> int:
        """Return the sequences of one micro-batch: the whole batch where the recipe names none."""
        return self.train.micro_batch or self.train.batch


def load(recipe: str | Path, settings: Sequence[str] = ()) -> Recipe:
    """Read a recipe by name or path, apply `section.key=value` settings and check it.

    A setting without effect is refused. Errors: config, missing.
    """
    from forensics.recipe_conflicts import refuse

    raw = with_settings(_read(recipe), settings)
    loaded = from_dict(raw)
    refuse(raw, settings, loaded)
    return loaded


def names() -> list[str]:
    """Return the names of the built-in recipes, sorted."""
    return sorted(path.stem for path in RECIPES.glob("*.toml"))


def _read(recipe: str | Path) -> dict[str, Any]:
    path = Path(recipe)
    if path.suffix != ".toml":
        path = RECIPES / f"{recipe}.toml"
        if path.parent != RECIPES or not path.is_file():
            raise ForensicsError(
                "missing",
                f"wanted a recipe, found none called {str(recipe)!r}",
                nearest(str(recipe), names()) + " (or the path of a .toml file)",
            )
    if not path.is_file():
        raise ForensicsError(
            "missing",
            f"wanted a recipe at {path}, found no such file",
            "packaged recipes: " + ", ".join(names()),
        )
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as e:
        raise ForensicsError(
            "config", f"{path.name} is not TOML: {e}", "see docs/recipes.md for an example"
        ) from None


def with_settings(raw: dict[str, Any], settings: Sequence[str]) -> dict[str, Any]:
    """Put `section.key=value` settings into a parsed recipe, in place. Errors: config."""
    for setting in settings:
        name, equals, text = setting.partition("=")
        parts = name.strip().split(".")
        if not equals or len(parts) < 2 or not all(parts):
            raise ForensicsError(
                "config",
                f"wanted --set section.key=value, found {setting!r}",
                "e.g. --set train.steps=100",
            )
        try:
            value = tomllib.loads(f"value = {text.strip()}")["value"]
        except tomllib.TOMLDecodeError:
            value = text.strip()  # a bare word is a string, so that a shell needs no double quotes
        here = raw
        for section in parts[:-1]:
            here = here.setdefault(section, {})
            if not isinstance(here, dict):
                raise ForensicsError(
                    "config",
                    f"{section!r} in --set {setting!r} is not a section",
                    "name a section's key",
                )
        here[parts[-1]] = value
    return raw


def from_dict(raw: dict[str, Any]) -> Recipe:
    """Build and check a recipe from a parsed TOML or JSON document. Errors: config."""
    recipe: Recipe = _build(Recipe, raw, "")
    _check_together(recipe)
    return recipe


def to_dict(recipe: Any) -> dict[str, Any]:
    """Return the whole configuration as plain JSON types."""
    return dataclasses.asdict(recipe)


def differences(
    a: dict[str, Any], b: dict[str, Any], prefix: str = ""
) -> dict[str, tuple[Any, Any]]:
    """Keys, dotted, at which two configurations differ, with both values."""
    changes: dict[str, tuple[Any, Any]] = {}
    for name in sorted(a.keys() | b.keys()):
        left, right = a.get(name), b.get(name)
        if isinstance(left, dict) and isinstance(right, dict):
            changes |= differences(left, right, f"{prefix}{name}.")
        elif left != right:
            changes[prefix + name] = (left, right)
    return changes


SEE = "see `forensics train --help` and docs/recipes.md"


def _build(cls: type, raw: Any, where: str) -> Any:
    if not isinstance(raw, dict):
        raise ForensicsError(
            "config",
            f"wanted a table at {where or 'the top'}, found {raw!r}",
            f"write [{where}] and its keys",
        )
    hints = typing.get_type_hints(cls)
    fields = {each_field.name: each_field for each_field in dataclasses.fields(cls)}
    values = {}
    for name, value in raw.items():
        dotted = f"{where}.{name}" if where else name
        if name not in fields:
            raise ForensicsError("config", f"unknown key {dotted!r}", nearest(name, fields))
        values[name] = coerce(hints[name], value, dotted, SEE, _build)
        _check_range(fields[name].metadata, values[name], dotted)
    return cls(**values)


def _check_range(meta: Any, value: Any, where: str) -> None:
    if value is None or not meta:
        return
    if meta["choices"] and value not in meta["choices"]:
        raise ForensicsError(
            "config",
            f"{where}: wanted one of {', '.join(meta['choices'])}, found {value!r}",
            nearest(str(value), meta["choices"]),
        )
    if isinstance(value, (int, float)):
        if meta["low"] is not None and value < meta["low"]:
            raise ForensicsError(
                "config",
                f"{where}: wanted at least {meta['low']}, found {value}",
                f"set {where} higher",
            )
        if meta["above"] is not None and value <= meta["above"]:
            raise ForensicsError(
                "config",
                f"{where}: wanted more than {meta['above']}, found {value}",
                f"set {where} higher",
            )
        if meta["high"] is not None and value > meta["high"]:
            raise ForensicsError(
                "config",
                f"{where}: wanted at most {meta['high']}, found {value}",
                f"set {where} lower",
            )


def _check_together(recipe: Recipe) -> None:
    """Check what no key can check of itself. Errors: config."""
    data, train = recipe.data, recipe.train
    if train.batch % recipe.micro_batch:
        raise ForensicsError(
            "config",
            f"train.micro_batch: {recipe.micro_batch} does not divide train.batch = {train.batch}",
            f"e.g. --set train.micro_batch={math.gcd(train.batch, recipe.micro_batch)}",
        )
    if not all(0 <= beta < 1 for beta in train.betas):
        raise ForensicsError(
            "config",
            f"train.betas: wanted numbers in [0, 1), found {list(train.betas)}",
            "e.g. [0.9, 0.95]",
        )
    if train.precision == "bf16" and train.device == "cpu":
        raise ForensicsError(
            "config",
            "train.precision: bf16 needs CUDA, train.device is cpu",
            "set train.precision to fp32",
        )
    for table, every in recipe.record.every.items():
        from forensics.records import LIGHT

        if table not in LIGHT:
            raise ForensicsError(
                "config", f"record.every: {table!r} is not recorded by step", nearest(table, LIGHT)
            )
        if every < 1:
            raise ForensicsError(
                "config",
                f"record.every.{table}: wanted at least 1, found {every}",
                "use record.level to record less",
            )
    for text in recipe.record.dense:
        window(text, "record.dense")
    sources = data.sources or {"main": data.source}
    last = 0
    for i, phase in enumerate(data.phases):
        if not phase.mix or sum(phase.mix.values()) <= 0 or min(phase.mix.values()) < 0:
            raise ForensicsError(
                "config",
                f"data.phases[{i}].mix: wanted shares of at least one source, found {phase.mix}",
                "e.g. mix = { clean = 1.0 }",
            )
        for name in phase.mix:
            if name not in sources:
                raise ForensicsError(
                    "config",
                    f"data.phases[{i}].mix: no source is called {name!r}",
                    nearest(name, sources),
                )
        if phase.until is None and i < len(data.phases) - 1:
            raise ForensicsError(
                "config",
                f"data.phases[{i}].until is missing",
                "only the last phase may leave it out",
            )
        if phase.until is not None and phase.until <= last:
            raise ForensicsError(
                "config",
                f"data.phases[{i}].until: wanted more than {last}, found {phase.until}",
                "phases follow one another",
            )
        last = phase.until or last


def window(text: str, what: str = "window") -> tuple[int, int]:
    """`"A:B"` as the half-open window (A, B). Errors: config."""
    first, colon, last = text.partition(":")
    if colon and first.strip().isdecimal() and last.strip().isdecimal() and int(first) < int(last):
        return int(first), int(last)
    raise ForensicsError(
        "config",
        f"{what}: wanted A:B with A < B, found {text!r}",
        "windows are half-open: 200:204 is 200, 201, 202, 203",
    )
