"""From one recipe to another: what differs, and what taking each difference over does.

    ablate(runs, Path("a.toml"), Path("b.toml"), seeds=3)  →  AblationResult

Both recipes are made explicit first: what a family decides is written out knob by knob, so that
"olmo2" against "llama" is four differences and not one word. Each arm is A with one difference
(with `pairs`, also two) taken from B; A and B themselves stand beside them. Keys that make no sense
apart travel together. Arms of one seed share initialisation and order where their recipes do. An
arm is a run like any other, under `<a>-to-<b>-…`: one that is finished is used again, one that was
cut off goes on.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xxhash

from forensics import config
from forensics.errors import ForensicsError
from forensics.progress import ProgressCallback, silent
from forensics.recipe_conflicts import RULES
from forensics.result_records import part_to_document, read_part
from forensics.store import reader
from replay.executors.local import Map, Result, Task, here, spawned
from replay.experiments.ablation_result import (
    AblationArm,
    AblationResult,
    Difference,
    effects_of,
)
from replay.result_files import keep_result

# keys that say how long a run is, what is kept of it or on what it runs, and not how it is trained
NOT_VARIED = {
    "record": "it says what is recorded; recording changes no bit",
    "checkpoint": "it says what is saved",
    "train.seed": "--seeds varies it in all arms alike",
    "train.steps": "all arms are equally long: A's, or --steps",
    "train.threads": "it changes no bit",
    "train.device": "all arms run on A's",
    "train.held_out_every": "it says how often the held-out loss is measured",
}
# keys that make no sense apart
TOGETHER = (
    ("data.source", "data.sources", "data.phases"),
    ("data.tokenizer", "data.vocabulary"),
    ("data.sequence_length", "data.window", "train.loss_over"),
    ("train.batch", "train.micro_batch"),
    (
        *("train.schedule", "train.min_lr", "train.decay_base", "train.decay_start"),
        *("train.decay_steps", "train.decay_shape", "train.tail_min_lr", "train.schedule_steps"),
    ),
    ("train.warmup", "train.warmup_from", "train.warmup_base"),
    (
        "train.clip",
        "train.clip_eps",
        "train.clip_warmup",
        "train.clip_warmup_factor",
        "train.clip_warmup_after",
    ),
    ("train.undecayed", "train.decay_embeddings"),
    ("model.width", "model.heads", "model.kv_heads", "model.head_width", "model.mlp_width"),
    ("model.position", "model.rope_theta", "model.rope_fraction", "model.max_positions"),
    (
        *("model.rope_scaling", "model.rope_factor", "model.rope_original_length"),
        *("model.rope_slow", "model.rope_fast", "model.rope_magnitude"),
    ),
    ("model.window", "model.sliding_layers", "model.rope_theta_sliding"),
)
LAST = 10  # steps whose mean loss is an arm's final loss
# A run has diverged where its final loss lies more than this above the lowest mean of LAST steps
# before it: far more than batches differ among each other, and less than a blow-up costs.
DIVERGED = 1.0  # nats
CHANGED_SHOWN = 3  # keys that a run's name spells out


class Change(NamedTuple):
    """Keys that travel together from B to A."""

    keys: tuple[str, ...]


def ablate(
    runs: Path,
    a: str | Path,
    b: str | Path,
    *,
    pairs: bool = False,
    seeds: int = 1,
    steps: int | None = None,
    workers: int = 1,
    hand_out: Map | None = None,
    progress: ProgressCallback = silent,
) -> AblationResult:
    """Train the runs between two recipes. Errors: config, usage, data, storage.

    `steps` sets the length of all arms; `pairs` also takes two changes over at a time.
    """
    planned, tasks = _prepare(runs, a, b, pairs, seeds, steps, workers)
    arms: dict[int, AblationArm] = {}
    progress(0, len(tasks), "")
    hand_out = hand_out or (spawned(workers) if workers > 1 else here)
    for index, document in hand_out(train_arm, tasks):
        arms[index] = read_part(AblationArm, document)
        progress(len(arms), len(tasks), " + ".join(arms[index].changed) or planned.a)
    ordered = [arms[index] for index in range(len(tasks))]
    result = dataclasses.replace(planned, arms=tuple(ordered), effects=tuple(effects_of(ordered)))
    first_run = next((arm.run for arm in ordered if arm.run), None)
    if first_run is not None:
        keep_result(runs / first_run, "ablation", json.dumps(tasks, sort_keys=True), result)
    return result


def plan(
    runs: Path,
    a: str | Path,
    b: str | Path,
    *,
    pairs: bool = False,
    seeds: int = 1,
    steps: int | None = None,
) -> AblationResult:
    """Return what `ablate` would train: its differences, and arms that are not measured.

    Errors: config, usage.
    """
    planned, tasks = _prepare(runs, a, b, pairs, seeds, steps, workers=1)
    arms = []
    for task in tasks:
        changed = tuple(task["changed"])
        try:
            _recipe_of(task)
            arms.append(_not_measured(changed, task["seed"], task["name"], ""))
        except ForensicsError as error:
            arms.append(_not_measured(changed, task["seed"], "", error.message))
    return dataclasses.replace(planned, arms=tuple(arms))


class _Prepared(NamedTuple):
    planned: AblationResult  # without arms
    tasks: list[Task]


def _prepare(
    runs: Path,
    a: str | Path,
    b: str | Path,
    pairs: bool,
    seeds: int,
    steps: int | None,
    workers: int,
) -> _Prepared:
    """Read both recipes and lay the arms out. Errors: config, usage."""
    if seeds < 1 or workers < 1 or (steps is not None and steps < 1):
        raise ForensicsError(
            "usage",
            f"wanted --seeds, --workers and --steps of at least 1, found {seeds}, {workers} and"
            f" {steps}",
            "e.g. --seeds 3",
        )
    name_a, name_b = Path(a).stem, Path(b).stem
    explicit_a, explicit_b = explicit(config.load(a)), explicit(config.load(b))
    if steps is not None:
        explicit_a["train"]["steps"] = steps
    listed = differences(explicit_a, explicit_b)
    changes = list(changes_of(listed))
    if not changes:
        raise ForensicsError(
            "usage",
            f"wanted two recipes that train otherwise, found {name_a} and {name_b} equal"
            + (" but for " + ", ".join(d.key for d in listed) if listed else ""),
            "`forensics ablate A.toml B.toml` takes over what differs",
        )
    tasks = [
        _task(runs, f"{name_a}-to-{name_b}", explicit_a, explicit_b, changed, seed, workers)
        for seed in range(seeds)
        for changed in _combinations(changes, pairs)
    ]
    planned = AblationResult(
        a=name_a,
        b=name_b,
        steps=explicit_a["train"]["steps"],
        seeds=seeds,
        pairs=pairs,
        differences=tuple(listed),
        arms=(),
        effects=(),
        notes=tuple(_notes(changes, seeds)),
    )
    return _Prepared(planned, tasks)


def explicit(recipe: config.Recipe) -> dict[str, Any]:
    """Return a recipe as plain JSON in which every knob of the family is written out."""
    from forensics.model.families import FAMILIES
    from forensics.model.knobs import shape_of

    document = json.loads(json.dumps(config.to_dict(recipe)))
    model = document["model"]
    decided = dataclasses.asdict(
        shape_of(recipe.model, recipe.data.vocabulary, recipe.data.sequence_length)
    )
    written_out = {"kv_heads", "head_width", "mlp_width"} | FAMILIES[
        recipe.model.family
    ].knobs.keys()
    if decided["position"] != "rope":
        written_out -= {"rope_theta", "rope_fraction"}
    for knob in written_out & model.keys():
        model[knob] = decided[knob]
    document["train"]["micro_batch"] = recipe.micro_batch
    return document


def differences(a: dict[str, Any], b: dict[str, Any]) -> list[Difference]:
    """List the keys in which two explicit recipes differ, `model.family` left out.

    A family is a name for its knobs, which are all written out.
    """
    listed = []
    flat_a, flat_b = _flat(a), _flat(b)
    for key, value_a in sorted(flat_a.items()):
        value_b = flat_b[key]
        if value_a == value_b or key == "model.family":
            continue
        why = next((w for k, w in NOT_VARIED.items() if f"{key}.".startswith(f"{k}.")), "")
        listed.append(Difference(key, value_a, value_b, why))
    return listed


def _flat(recipe: dict[str, Any]) -> dict[str, Any]:
    """Return a recipe by dotted keys; a table inside a section counts as one value."""
    return {
        f"{section}.{key}": value for section, keys in recipe.items() for key, value in keys.items()
    }


def changes_of(listed: Sequence[Difference]) -> Iterator[Change]:
    """Yield what arms take over: each key that differs, with those that it travels with."""
    varied = [difference.key for difference in listed if not difference.not_varied]
    taken_along: set[str] = set()
    for key in varied:
        if key in taken_along:
            continue
        group = next((group for group in TOGETHER if key in group), (key,))
        change = Change(tuple(member for member in varied if member in group))
        taken_along |= set(change.keys)
        yield change


def _combinations(changes: Sequence[Change], pairs: bool) -> list[tuple[str, ...]]:
    """Return the keys that each arm takes over: none, one change each, two each, all."""
    sizes = [0, 1, 2] if pairs else [0, 1]
    chosen = [
        combination for size in sizes for combination in itertools.combinations(changes, size)
    ]
    chosen.append(tuple(changes))
    keys = [
        tuple(key for change in changes if change in part for key in change.keys) for part in chosen
    ]
    return list(dict.fromkeys(keys))


def _task(
    runs: Path,
    prefix: str,
    a: dict[str, Any],
    b: dict[str, Any],
    changed: tuple[str, ...],
    seed: int,
    workers: int,
) -> Task:
    """Return one arm as plain JSON: its recipe and its run's name."""
    recipe = json.loads(json.dumps(a))
    for key in changed:
        section, _, name = key.partition(".")
        recipe[section][name] = b[section][name]
    recipe["train"]["seed"] = a["train"]["seed"] + seed
    if workers > 1 and not recipe["train"]["threads"]:
        recipe["train"]["threads"] = 1  # each worker has one core
    return {
        "runs": str(runs),
        "name": _run_name(prefix, changed, changed_all=b, seed=seed, recipe=recipe),
        "recipe": recipe,
        "changed": list(changed),
        "seed": seed,
    }


def _run_name(
    prefix: str, changed: tuple[str, ...], changed_all: dict[str, Any], seed: int, recipe: Any
) -> str:
    """Name a run by what it takes over; the hash tells apart what the words do not."""
    shown = [key.rpartition(".")[2] for key in changed[:CHANGED_SHOWN]]
    if len(changed) > CHANGED_SHOWN:
        shown = [f"{len(changed)}-keys"]
    words = "+".join(shown) or "base"
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", f"{prefix}-{words}-s{seed}").strip("-.")
    digest = xxhash.xxh3_64_hexdigest(json.dumps(recipe, sort_keys=True).encode())[:8]
    return f"{plain}-{digest}"


def train_arm(task: Task) -> Result:
    """Train one arm, or read the one that is finished, and measure it; plain JSON in and out."""
    runs, name = Path(task["runs"]), task["name"]
    changed, seed = tuple(task["changed"]), task["seed"]
    try:
        recipe = _recipe_of(task)
        _train(recipe, name, runs)
    except ForensicsError as error:
        if error.kind != "config":
            raise
        return part_to_document(_not_measured(changed, seed, "", error.message))
    return part_to_document(measure(runs, name, changed, seed))


def _recipe_of(task: Task) -> config.Recipe:
    """Return an arm's recipe. Errors: config, for keys that do not go together."""
    from forensics.model.knobs import shape_of

    recipe = config.from_dict(task["recipe"])
    shape_of(recipe.model, recipe.data.vocabulary, recipe.data.sequence_length)
    _refuse_without_effect(task["changed"], recipe)
    return recipe


def _not_measured(changed: tuple[str, ...], seed: int, run: str, refused: str) -> AblationArm:
    return AblationArm(changed, seed, run, None, None, None, None, None, None, refused)


def _refuse_without_effect(changed: Sequence[str], recipe: config.Recipe) -> None:
    """Refuse an arm of which a change has no effect by itself. Errors: config."""
    without = {rule.key: rule.why for rule in RULES if rule.key in changed and rule.applies(recipe)}
    if changed and len(without) == len(changed):
        key, why = next(iter(without.items()))
        raise ForensicsError(
            "config",
            f"{key} has no effect alone: {why}",
            "arms of several changes may take it over",
        )


def _train(recipe: config.Recipe, name: str, runs: Path) -> None:
    from forensics.train.header import read_header
    from forensics.train.loop import train

    begun = name in reader.runs_in(runs)
    if begun and read_header(runs, name).status == "finished":
        return
    outcome = train(
        recipe, name=name, recipe_name=name, runs=runs, resume=begun, arguments=["ablate"]
    )
    if outcome.interrupted:
        raise KeyboardInterrupt


def measure(runs: Path, name: str, changed: tuple[str, ...], seed: int) -> AblationArm:
    """Measure one finished arm by its recorded steps. Errors: missing, integrity."""
    from replay.spike_list import spikes_of

    table = reader.read(runs / name, "steps", ["step", "loss", "held_out_loss"])
    rows = sorted(zip(*(table[column].to_pylist() for column in table.column_names)))
    losses = np.array([math.nan if loss is None else loss for _, loss, _ in rows], np.float64)
    held_out = [value for _, _, value in rows if value is not None]
    spikes = spikes_of(runs, name)
    slope = spikes.trend.grad_norm.slope
    return AblationArm(
        changed,
        seed,
        name,
        spikes.spike_score.grad_norm,
        spikes.spike_score.loss,
        None if slope is None else 1000.0 * slope,
        float(losses[-LAST:].mean()),
        held_out[-1] if held_out else None,
        diverged(losses),
        "",
    )


def diverged(losses: np.ndarray) -> bool:
    """Whether a run's loss (N,) is not finite at the end, or far above what it was before."""
    if not np.isfinite(losses[-LAST:]).all():
        return True
    means = np.convolve(losses, np.full(LAST, 1 / LAST), "valid") if len(losses) >= LAST else losses
    lowest = np.nanmin(np.where(np.isfinite(means), means, np.nan))
    return bool(means[-1] > lowest + DIVERGED)


def _notes(changes: Sequence[Change], seeds: int) -> Iterator[str]:
    if any(key.startswith("data.") for change in changes for key in change.keys):
        yield (
            "Arms that take over a key of [data] read other text: their losses are not losses on "
            "A's text."
        )
    if any(key == "train.z_loss" for change in changes for key in change.keys):
        yield "The loss is the cross-entropy alone, z-loss left out, in every arm."
    if seeds == 1:
        yield "One seed shows no p: --seeds 5 and more can."
