"""A run's header as sections that a person can read: `forensics show`.

sheet(header, [0, 50, 100])[0]      Section("Model", [("family", "llama"), ("layers", "4"), …])
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from forensics.train.header import Header

Row = tuple[str, str]


@dataclass(frozen=True)
class Section:
    """One table of the sheet: its title, and a setting and its value in each row."""

    title: str
    rows: list[Row]


def headline(header: Header) -> str:
    """Return one sentence: what the run is, how far it went and when it began."""
    if header.parent is not None:
        origin = f"a fork of {header.parent} at step {header.parent_step}"
    elif header.origin is not None:
        origin = f"imported ({header.origin['format']}) from {header.origin['source']}"
    else:
        origin = f"a run of the recipe {header.recipe}"
    size = f"{header.parameters:,} parameters" if header.shape else "a log alone"
    return (
        f"{header.name} is {origin}: steps {header.first_step:,} to {header.steps:,},"
        f" {size}, {header.status}; begun {header.created}."
    )


def sheet(header: Header, saved_steps: Sequence[int]) -> list[Section]:
    """Return all that a run's header holds, section by section; what was not set is left out."""
    recipe = header.config
    changes = [
        (str(number), readable(change)) for number, change in enumerate(header.interventions or [])
    ]
    data = {
        **(recipe.get("data", {}) if header.corpus else {}),
        "corpus": header.corpus or "not here",
        "order": header.order,
        "end_of_text": header.eot if header.corpus else None,
    }
    data["sources"] = [
        f"{source['source']} ({source['tokens']:,} tokens in {source['sequences']:,} sequences)"
        for source in header.corpus_sources
    ]
    checkpoints = {**recipe.get("checkpoint", {}), "saved": list(saved_steps)}
    machine = {
        "device": header.device,
        "precision": header.precision,
        "threads": header.threads,
        **header.fingerprint,
    }
    command = {"arguments": " ".join(header.arguments), "git_commit": header.git_commit}
    sections = [
        Section("Interventions", changes),
        Section("Origin", _rows(_origin(header))),
        Section("Model", _rows({"family": recipe.get("model", {}).get("family"), **header.shape})),
        Section("Data", _rows(data)),
        Section("Training", _rows(recipe.get("train", {}))),
        Section("Checkpoints", _rows(checkpoints)),
        Section("Recording", _rows(recipe.get("record", {}))),
        Section("Machine", _rows(machine)),
        Section("Command", _rows(command)),
    ]
    return [section for section in sections if section.rows]


def _origin(header: Header) -> dict[str, Any]:
    """Return what is known of where a run comes from that another trainer made."""
    if header.origin is None:
        return {}
    told = dict(header.origin)
    stages = told.pop("stages", [])
    if len(stages) > 1:
        told["stages"] = [stage["name"] or "without a name" for stage in stages]
    told["linked"] = told.get("linked") or None
    trained = told.pop("trained", True)
    told["replays"] = "to tolerance only" if trained else "of what is trained here"
    return told


def _rows(settings: Mapping[str, Any]) -> list[Row]:
    return [
        (_words(name), readable(value))
        for name, value in settings.items()
        if value is not None and value != "" and value != [] and value != {}
    ]


def readable(value: Any) -> str:
    """Return a JSON value as a person writes it: lists by commas, keys before their values."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, Mapping):
        return ", ".join(
            f"{_words(str(name))} {_bracketed(item)}"
            for name, item in value.items()
            if item is not None
        )
    if isinstance(value, (list, tuple)):
        nested = any(isinstance(item, (Mapping, list, tuple)) for item in value)
        return ("; " if nested else ", ").join(readable(item) for item in value)
    return str(value)


def _words(name: str) -> str:
    """Return a key as words; a variable of the environment keeps its spelling."""
    return name.replace("_", " ") if name.islower() else name


def _bracketed(value: Any) -> str:
    compound = isinstance(value, (Mapping, list, tuple))
    return f"({readable(value)})" if compound else readable(value)


def machine_rows(fingerprint: Mapping[str, Any]) -> list[Row]:
    """Return the rows that tell of a machine and its software, without what it lacks."""
    return _rows(fingerprint)
