"""A Hugging Face folder, a folder of revisions, or a cached repository, as a run made elsewhere.

    run = read_run(Path("pythia-160m"))      # step0, step1000, … below it
    run.checkpoints[1].params["embed.weight"].read()

A state's step is what its revision's or folder's name says (`revision_names`), else what the
Trainer of transformers wrote beside it, else 0.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from forensics.errors import ForensicsError
from forensics.formats.foreign_run import ForeignCheckpoint, ForeignRun
from forensics.formats.huggingface_hub_name import snapshots
from forensics.formats.huggingface_tensors import PlacedModel, placed
from forensics.formats.revision_names import KnownRun, known_run, parse, parse_all
from forensics.formats.trainer_moments import moments_beside
from forensics.formats.weights_folder import has_weights, json_object, listed, stored_tensors
from forensics.model.knobs import section_of

CACHED = "models--"  # of a repository in huggingface_hub's cache
TRAINER_STATE = "trainer_state.json"
GATHERED = ("checkpoints", "revisions")  # folders that say nothing of their run's name


class Place(NamedTuple):
    """Where a run's states lie: folders by the name of their revision, and the repository."""

    repository: str
    folders: dict[str, Path]
    asked: str | None = None  # the one that was given, where it was one of them


def is_model_folder(folder: Path) -> bool:
    """Tell whether config.json says a model's type, with weights beside it."""
    if not (folder / "config.json").is_file() or not has_weights(folder):
        return False
    try:
        return "model_type" in json_object(folder / "config.json")
    except ForensicsError:
        return True  # damaged: reading says so


def is_run(path: Path) -> bool:
    """Tell whether it is a model's folder, a folder of them, or a cached repository."""
    return path.is_dir() and bool(place_of(path).folders)


def place_of(path: Path) -> Place:
    """Find the states at a path, and what their repository is called."""
    if path.name.startswith(CACHED):
        found = {name: f for name, f in snapshots(path).items() if is_model_folder(f)}
        return Place(_cached_name(path), found)
    if is_model_folder(path):
        return _one(path)
    levels = [path, *(path / name for name in GATHERED)]
    for level in levels:
        if level.is_dir():
            folders = {f.name: f for f in sorted(level.iterdir()) if is_model_folder(f)}
            if folders:
                return Place(_name_of(path), folders)
    return Place(_name_of(path), {})


def _one(path: Path) -> Place:
    """Place one state among those beside it, by whose names its own is understood."""
    absolute = path.absolute()
    cached = absolute.parent.parent
    if absolute.parent.name == "snapshots" and cached.name.startswith(CACHED):
        names = [name for name, f in snapshots(cached).items() if f.name == absolute.name]
        name = next((n for n in names if parse(n)), names[0] if names else absolute.name)
        every = dict(snapshots(cached))
        return Place(_cached_name(cached), every | {name: path}, name)
    if parse(absolute.name) is None:
        return Place(absolute.name, {absolute.name: path}, absolute.name)
    beside = {f.name: f for f in absolute.parent.iterdir() if f.is_dir() and parse(f.name)}
    return Place(_name_of(absolute.parent), beside | {absolute.name: path}, absolute.name)


def _cached_name(path: Path) -> str:
    return path.name.removeprefix(CACHED).replace("--", "/")


def _name_of(folder: Path) -> str:
    absolute = folder.absolute()
    return absolute.parent.name if absolute.name in GATHERED else absolute.name


def read_run(path: Path) -> ForeignRun:
    """Read a model, or the states of a run that was published. Errors: missing, data, config."""
    place = place_of(path)
    if not place.folders and (path / "config.json").is_file():
        _placed(path)  # says what is wrong with it
    if not place.folders:
        raise ForensicsError(
            "missing",
            f"wanted a Hugging Face folder or a folder of revisions, found no config.json beside "
            f"*.safetensors in {path}",
            "give the folder that holds the weights, or the folder of such folders",
        )
    known = known_run(place.repository)
    revisions = parse_all(place.folders)
    chosen = [r for r in revisions.parsed if place.asked in (None, r.name)]
    notes: list[str] = []
    if known is not None and known.note:
        notes.append(f"{place.repository}: {known.note}")
    steps = [(r, known.updates(r) if known else r.step) for r in chosen]
    left_out = [r.name for r, step in steps if step is None]
    checkpoints, models, train = [], [], dict[str, Any]()
    for revision, step in steps:
        if step is not None:
            folder = place.folders[revision.name]
            model = _placed(folder)
            models.append(model)
            moments = moments_beside(folder, model.shape, json_object(folder / "config.json"))
            train |= moments.train
            notes += [moments.note] if moments.note else []
            checkpoints.append(
                ForeignCheckpoint(
                    step,
                    folder,
                    model.params,
                    moments.exp_avg,
                    moments.exp_avg_sq,
                    moments.updates,
                    stage=revision.stage_name,
                    tokens=known.tokens(revision) if known else None,
                )
            )
    unparsed = [n for n in revisions.unparsed if place.asked in (None, n)]
    if not checkpoints:
        name = place.asked or (unparsed[0] if "main" not in unparsed else "main")
        checkpoints, models = _without_name(place.folders[name], notes)
        unparsed = [n for n in unparsed if n != name]
    if unparsed or left_out:
        notes.append(f"no step in their names, left where they are: {listed(unparsed + left_out)}")
    read = _run(path, checkpoints, models, notes, known, tuple(unparsed + left_out))
    if train:
        read.recipe["train"] = train | read.recipe.get("train", {})
    return read


def _without_name(
    folder: Path, notes: list[str]
) -> tuple[list[ForeignCheckpoint], list[PlacedModel]]:
    """Read a state whose name tells no step: the Trainer's file may."""
    model = _placed(folder)
    step = _trainer_state(folder).get("global_step")
    if not isinstance(step, int) or step < 0:
        step = 0
        notes.append(f"no step is known of {folder.name}: it is state 0 here")
    return [ForeignCheckpoint(step, folder, model.params)], [model]


def _placed(folder: Path) -> PlacedModel:
    return placed(stored_tensors(folder), json_object(folder / "config.json"))


def _trainer_state(folder: Path) -> dict[str, Any]:
    path = folder / TRAINER_STATE
    return json_object(path) if path.is_file() else {}


def _run(
    path: Path,
    checkpoints: list[ForeignCheckpoint],
    models: list[PlacedModel],
    notes: list[str],
    known: KnownRun | None,
    unparsed: tuple[str, ...],
) -> ForeignRun:
    last = checkpoints[-1].path
    shape = models[-1].shape
    for checkpoint, model in zip(checkpoints, models):
        if model.shape != shape:
            notes.append(f"{checkpoint.path.name} has another decoder than {last.name}")
    configuration = json_object(last / "config.json")
    recipe: dict[str, dict[str, Any]] = {
        "model": section_of(shape, str(configuration["model_type"]))
    }
    if known is not None:
        recipe["data"] = {"sequence_length": known.sequence_length}
        recipe["train"] = {"batch": known.batch}
    elif any(checkpoint.step for checkpoint in checkpoints):
        recipe["train"] = {}
    tokenizers = (folder / "tokenizer.json" for folder in (last, last.parent, path))
    logs = (c.path / TRAINER_STATE for c in reversed(checkpoints))
    return ForeignRun(
        "folder",
        tuple(checkpoints),
        recipe,
        logs=tuple(log for log in logs if log.is_file())[:1],
        tokenizer=next((file for file in tokenizers if file.is_file()), None),
        unplaced=tuple(dict.fromkeys(name for model in models for name in model.unplaced)),
        notes=tuple(dict.fromkeys([*notes, *_each_once(models)])),
        configuration=configuration,
        unparsed=unparsed,
    )


def _each_once(models: Iterable[PlacedModel]) -> list[str]:
    return [note for model in models for note in model.notes]
