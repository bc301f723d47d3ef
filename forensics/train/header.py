"""Describe a run in run.json and in its row of the table `runs`."""

from __future__ import annotations

import dataclasses
import datetime
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from forensics.errors import ForensicsError
from forensics.store.writer import replace_table, write_atomic

# of the table `runs`, as run.json names them
COLUMNS = (
    *("name", "parent", "parent_step", "parent_created", "status", "recipe"),
    *("first_step", "steps"),
    *("parameters", "corpus", "git_commit", "created"),
)

# by a fork from its parent; its shape may have more tensors
INHERITED = ("config", "corpus", "order")


@dataclass(frozen=True)
class Header:
    """Hold run.json: what a run is. Paths inside are relative to the runs folder.

    A run is where it lies: `name` is its folder's, whatever the file says (`read_header`).
    """

    name: str
    recipe: str
    config: dict[str, Any]
    first_step: int
    steps: int  # the step at which it ends
    corpus: str
    corpus_sources: list[dict[str, Any]]
    order: str  # fingerprint of the data order
    shape: dict[str, Any]
    parameters: int
    eot: int
    device: str  # cpu | cuda
    precision: str
    threads: int
    fingerprint: dict[str, Any]
    arguments: list[str]
    created: str
    git_commit: str | None = None
    status: str = "running"
    parent: str | None = None
    parent_step: int | None = None
    # when the parent was made, where it is no fork: another run of its name is another parent
    parent_created: str | None = None
    interventions: list[dict[str, Any]] | None = None
    identity: dict[str, Any] | None = None  # of a fork: all that it depends on
    # of a run that another trainer made, and of its forks (`forensics.train.origin`)
    origin: dict[str, Any] | None = None


def read_header(runs: Path, name: str) -> Header:
    """Read the header of the run in folder `name`, and call it by that name.

    Errors: integrity; FileNotFoundError.
    """
    try:
        document = json.loads((runs / name / "run.json").read_bytes())
        known = {
            key: value for key, value in document.items() if key in Header.__dataclass_fields__
        }
        return Header(**known | {"name": name})
    except (ValueError, TypeError, AttributeError) as e:
        raise ForensicsError(
            "integrity", f"run.json of {name} is damaged: {e}", "restore it from a copy"
        ) from None


def is_parent(parent: Mapping[str, Any], fork: Mapping[str, Any]) -> bool:
    """Whether a run of the name that a fork carries is the one that it left; headers as mappings.

    A fork carries its parent's recipe, corpus and order, and the time at which the parent was made
    (forks of before that was written down: only the former).
    """
    return fork.get("parent_created") in (None, parent.get("created")) and all(
        parent.get(key) == fork.get(key) for key in INHERITED
    )


def write_header(runs: Path, header: Header) -> None:
    """Write run.json and the run's row of the table `runs`. Errors: storage."""
    folder = runs / header.name
    folder.mkdir(parents=True, exist_ok=True)
    document = dataclasses.asdict(header)
    write_atomic(folder / "run.json", (json.dumps(document, indent=1) + "\n").encode())
    row = {
        **{column: document[column] for column in COLUMNS},
        "config": json.dumps(header.config),
        "fingerprint": json.dumps(header.fingerprint),
        "interventions": (
            json.dumps(header.interventions) if header.interventions is not None else None
        ),
        "arguments": json.dumps(header.arguments),
        "device": header.fingerprint["device"],
    }
    replace_table(folder, "runs", {column: [value] for column, value in row.items()})


def now() -> str:
    """Return the time in UTC to the second, as a run's rows carry it."""
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
