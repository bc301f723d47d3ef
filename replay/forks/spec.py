"""A fork as a file: parent, window, interventions, what to compare. TOML, and the same by flags.

parent = "demo"
from = 290
to = 330
placebos = 3
[[intervention]]
kind = "remove-documents"
window = "300:304"
sql = "select document from documents where source = 'damaged'"

SQL sees the tables of the parent's lineage only. It may name `$run`, `$first` and `$last`, the
parent and the window that it chooses for.
"""

from __future__ import annotations

import json
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash

from forensics.errors import ForensicsError, nearest
from forensics.train.run import Run
from replay.compare.loss_barrier import probe_loss
from replay.forks import toml_text
from replay.forks.statement import with_choice
from replay.interventions.base import Intervention
from replay.interventions.composition import refuse_lost
from replay.interventions.registry import from_dict, to_dict

ForkFile = dict[str, Any]  # the keys of a fork file, before they are checked
KEYS = {
    "parent",
    "from",
    "to",
    "placebos",
    "chaos",
    "probe_every",
    "record",
    "seed",
    "name",
    "barrier",
    "intervention",
}


@dataclass(frozen=True)
class Spec:
    """One fork. `first:last` is the window; null forks and probes are compared, they do not change
    the fork's bits.
    """

    parent: str
    first: int
    last: int
    interventions: tuple[Intervention, ...]
    placebos: int = 0
    chaos: int = 0
    probe_every: int | None = None  # steps between probes; None: about twenty over the window
    record: str = "light"  # off | light | dense
    seed: int = 0  # of placebos and chaos
    name: str | None = None
    barrier: tuple[int, ...] = ()  # states at which the loss is followed from arm to control

    @property
    def fork(self) -> str:
        """Name the fork: by the hash of parent, window and interventions, unless it has a name."""
        if self.name:
            return self.name
        document = [self.parent, self.first, self.last, [to_dict(i) for i in self.interventions]]
        text = json.dumps(document, sort_keys=True)
        return f"{self.parent}-fork-{xxhash.xxh3_64_hexdigest(text.encode())[:8]}"

    def sentence(self) -> str:
        """Say in one line what its interventions do."""
        return "; ".join(i.sentence() for i in self.interventions) or "changes nothing"

    def check(self, run: Run) -> None:
        """Refuse what cannot be run, before any step runs. Errors: usage, missing."""
        _check_window(run, self.first, self.last)
        if min(self.placebos, self.chaos) < 0:
            raise ForensicsError(
                "usage", "wanted --placebos and --chaos of at least 0", "19 placebos allow p = 0.05"
            )
        for step in self.barrier:
            if not self.first < step <= self.last:
                raise ForensicsError(
                    "missing",
                    f"wanted a barrier at a state of {self.first}:{self.last}, found {step}",
                    f"the arms differ at states {self.first + 1} to {self.last}",
                )
        if self.barrier:
            probe_loss(run)
        for intervention in self.interventions:
            intervention.check(run, self.first, self.last)
        refuse_lost(self.interventions, run)

    def toml(self) -> str:
        """Write the spec as a fork file, which `read` and `build` take back to an equal spec."""
        head = {
            "parent": self.parent,
            "from": self.first,
            "to": self.last,
            "placebos": self.placebos,
            "chaos": self.chaos,
            "probe_every": self.probe_every,
            "record": self.record,
            "seed": self.seed,
            "name": self.name,
            "barrier": list(self.barrier) or None,
        }
        return toml_text.written(head, [to_dict(i) for i in self.interventions])


def read(path: Path) -> ForkFile:
    """Read a fork file's keys. Errors: missing, config."""
    if not path.is_file():
        raise ForensicsError(
            "missing", f"wanted a fork file at {path}, found none", "docs/forks.md has an example"
        )
    try:
        keys: ForkFile = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as e:
        raise ForensicsError(
            "config", f"{path.name} is not TOML: {e}", "docs/forks.md has an example"
        ) from None
    for key in keys:
        if key not in KEYS:
            raise ForensicsError(
                "config", f"unknown key {key!r} in {path.name}", nearest(key, KEYS)
            )
    return keys


def _check_window(run: Run, first: int, last: int) -> None:
    if first >= last:
        raise ForensicsError(
            "usage", f"wanted --from below --to, found {first} and {last}", "windows are half-open"
        )
    if not run.header.first_step <= first <= run.header.steps:
        raise ForensicsError(
            "missing",
            f"wanted a state of {run.name} to start from, found {first}",
            f"it has states {run.header.first_step} to {run.header.steps}",
        )


def build(runs: Path, run: Run, file: ForkFile) -> Spec:
    """Make a spec from a fork file's keys; SQL runs now, so that the fork's id tells what it chose.
    Errors: config, sql.
    """
    for key in ("from", "to"):
        if type(file.get(key)) is not int:
            raise ForensicsError(
                "config", f"wanted a step as {key!r}, found {file.get(key)!r}", f"e.g. {key} = 200"
            )
    first, last = file["from"], file["to"]
    _check_window(run, first, last)
    counts = {key: file.get(key, 0) for key in ("placebos", "chaos", "seed")}
    for key, value in counts.items():
        if type(value) is not int:
            raise ForensicsError(
                "config", f"{key}: wanted a whole number, found {value!r}", f"e.g. {key} = 3"
            )
    barrier = file.get("barrier", [])
    if not isinstance(barrier, list) or any(type(step) is not int for step in barrier):
        raise ForensicsError(
            "config", f"barrier: wanted a list of states, found {barrier!r}", "e.g. barrier = [420]"
        )
    interventions = []
    for keys in file.get("intervention", []):
        intervention = from_dict(with_choice(runs, run, keys, first, last))
        intervention.check(run, first, last)
        interventions.append(intervention.resolved(run))
    return Spec(
        run.name,
        first,
        last,
        tuple(interventions),
        **counts,
        probe_every=file.get("probe_every"),
        record=file.get("record", "light"),
        name=file.get("name"),
        barrier=tuple(barrier),
    )
