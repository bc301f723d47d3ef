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
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import xxhash

from forensics.coercion import coerce
from forensics.errors import ForensicsError, first_line, nearest
from forensics.store.reader import check_run_name
from forensics.train.run import Run
from replay.compare.loss_barrier import probe_loss
from replay.forks import toml_text
from replay.forks.draft import Draft, settled
from replay.forks.statement import with_choice
from replay.interventions.base import Intervention
from replay.interventions.composition import altered_shape, refuse_lost, refuse_undone
from replay.interventions.fields import fields_of
from replay.interventions.registry import from_dict, to_dict

ForkFile = dict[str, Any]  # the keys of a fork file, before they are checked
HEAD: dict[str, Any] = {  # the type of each key but `intervention`
    "parent": str,
    "from": int,
    "to": int,
    "placebos": int,
    "chaos": int,
    "probe_every": int,
    "record": str,
    "seed": int,
    "name": str,
    "barrier": tuple[int, ...],
}
EXAMPLES = {
    "parent": '"demo"',
    "from": "400",
    "to": "440",
    "placebos": "19",
    "chaos": "3",
    "probe_every": "2",
    "record": '"light"',
    "seed": "0",
    "name": '"without-it"',
    "barrier": "[420]",
}
INTERVENTION = "intervention"
RECORDED = ("off", "light", "dense")  # each holds what those before it hold
MOST = 2**63  # of a number that NumPy and torch are given as a seed
PROBES = 20  # readings of the probe set over a window, where nothing is said
SEE = "docs/forks.md has an example"


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
    probe_every: int | None = None  # steps between probes; None: PROBES over the window
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

    @property
    def steps_between_probes(self) -> int:
        """Return the steps from one reading of the probe set to the next."""
        return self.probe_every or max(1, (self.last - self.first) // PROBES)

    def settled(self, run: Run) -> Spec:
        """Write down all that its interventions depend on, under the same name. Errors: usage,
        missing.
        """
        interventions = settled(self.interventions, run, self.first, self.last)
        if interventions == self.interventions:
            return self
        return replace(self, name=self.fork, interventions=interventions)

    def sentence(self) -> str:
        """Say in one line what its interventions do."""
        return "; ".join(i.sentence() for i in self.interventions) or "changes nothing"

    def check(self, run: Run) -> None:
        """Refuse what cannot be run, before any step runs. Errors: usage, missing."""
        _check_window(run, self.first, self.last)
        _check_numbers(self)
        for step in self.barrier:
            if not self.first < step <= self.last:
                raise ForensicsError(
                    "missing",
                    f"wanted a barrier at a state of {self.first}:{self.last}, found {step}",
                    f"the arms differ at states {self.first + 1} to {self.last}",
                )
        if self.barrier:
            probe_loss(run)
            if altered_shape(self.interventions, run) != run.shape:
                raise ForensicsError(
                    "usage",
                    "wanted a barrier between two states of one shape, found a fork with tensors"
                    " that its control has not",
                    "leave --barrier out",
                )
        for intervention in self.interventions:
            _check_seeds(intervention)
            intervention.check(run, self.first, self.last)
        refuse_lost(self.interventions, run)
        refuse_undone(self.interventions, run, self.first, self.last)

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
        raise ForensicsError("missing", f"wanted a fork file at {path}, found none", SEE)
    try:
        return read_text(path.read_text(encoding="utf-8"), path.name)
    except UnicodeDecodeError as e:
        raise ForensicsError("config", f"{path.name} is not TOML: {first_line(e)}", SEE) from None


def read_text(text: str, where: str = "the fork file") -> ForkFile:
    """Read the keys of a fork file's text. Errors: config."""
    try:
        keys: ForkFile = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as e:
        raise ForensicsError("config", f"{where} is not TOML: {first_line(e)}", SEE) from None
    return checked(keys, where)


def checked(keys: ForkFile, where: str) -> ForkFile:
    """Return a fork file's keys, each of its type. Errors: config, naming the key in `where`."""
    for key in keys:
        if key not in HEAD and key != INTERVENTION:
            allowed = [*HEAD, INTERVENTION]
            raise ForensicsError("config", f"unknown key {key!r} in {where}", nearest(key, allowed))
    values = {
        key: coerce(kind, keys[key], key, f"e.g. {key} = {EXAMPLES[key]}")
        for key, kind in HEAD.items()
        if key in keys
    }
    tables = keys.get(INTERVENTION, [])
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        present = "a table" if isinstance(tables, dict) else repr(tables)
        raise ForensicsError(
            "config",
            f"intervention: wanted a list of tables, found {present}",
            "each begins with [[intervention]], in double brackets",
        )
    return {**values, INTERVENTION: tables}


def joined(file: ForkFile, flags: ForkFile) -> ForkFile:
    """Add what flags say to a fork file: keys that it lacks, and interventions after its own.
    Errors: usage, where both say something else of the same key.
    """
    flags = checked(flags, "the flags")
    for key in [key for key in HEAD if key in flags and key in file]:
        if flags[key] != file[key]:
            raise ForensicsError(
                "usage",
                f"{key}: the fork file says {_shown(file[key])}, the flag {_shown(flags[key])}",
                "a flag adds to the file and replaces nothing: leave one of the two out",
            )
    return {
        **file,
        **flags,
        INTERVENTION: [*file.get(INTERVENTION, []), *flags.get(INTERVENTION, [])],
    }


def parent_of(file: ForkFile) -> str:
    """Return the run that a fork file forks. Errors: config."""
    if "parent" not in file:
        raise ForensicsError("config", "the fork file names no parent", 'e.g. parent = "demo"')
    return str(file["parent"])


def build(runs: Path, run: Run, file: ForkFile) -> Spec:
    """Make a spec from a fork file's keys; SQL runs now, so that the fork's id tells what it chose.
    Errors: config, usage, sql, missing.
    """
    file = checked(file, "the fork file")
    for key, flag in (("from", "--from"), ("to", "--to")):
        if key not in file:
            raise ForensicsError(
                "config", f"wanted a step as {key!r}, found none", f"e.g. {key} = 200, or {flag}"
            )
    first, last = file["from"], file["to"]
    _check_window(run, first, last)
    draft = Draft(run, first, last)
    chosen = []  # what SQL chooses is carried through what stands before it
    for keys in file[INTERVENTION]:
        intervention = from_dict(with_choice(runs, draft, keys))
        _check_seeds(intervention)
        intervention.check(run, first, last)
        chosen.append(intervention)
        draft.add(intervention)
    head = {key: value for key, value in file.items() if key in Spec.__dataclass_fields__}
    spec = Spec(
        **head | {"parent": run.name},
        first=first,
        last=last,
        interventions=settled(chosen, run, first, last),
    )
    _check_numbers(spec)
    return spec


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


def _check_numbers(spec: Spec) -> None:
    """Refuse counts, seeds and names that cannot be. Errors: config, usage."""
    for key, least in (("placebos", 0), ("chaos", 0), ("seed", 0), ("probe_every", 1)):
        value = getattr(spec, key)
        if value is not None and not least <= value < MOST:
            raise ForensicsError(
                "config",
                f"{key}: wanted at least {least}, found {value}"
                if value < least
                else f"{key}: wanted a number below 2**63, found {value}",
                f"e.g. {key} = {EXAMPLES[key]}",
            )
    if spec.record not in RECORDED:
        raise ForensicsError(
            "config",
            f"record: wanted {', '.join(RECORDED)}, found {spec.record!r}",
            nearest(spec.record, RECORDED),
        )
    if spec.name is not None:
        check_run_name(spec.name)


def _check_seeds(intervention: Intervention) -> None:
    """Refuse a seed that no generator takes. Errors: config."""
    for field in fields_of(type(intervention)):
        seed = getattr(intervention, field.name) if field.about.seed else 0
        if not 0 <= seed < MOST:
            raise ForensicsError(
                "config",
                f"{intervention.kind}.{field.name}: wanted a number from 0 to 2**63 - 1, found"
                f" {seed}",
                f"e.g. {field.name} = 1",
            )


def _shown(value: Any) -> str:
    return str(list(value)) if isinstance(value, tuple | list) else repr(value)
