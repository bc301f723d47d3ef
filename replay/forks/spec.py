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
import math
import re
import tempfile
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash

from forensics.config import window
from forensics.errors import ForensicsError, nearest
from forensics.store.sandbox import run_sandboxed
from forensics.train.run import Run
from replay.compare.loss_barrier import probe_loss
from replay.interventions import rows as slots
from replay.interventions.registry import (
    KINDS,
    Intervention,
    Windowed,
    from_dict,
    refuse_lost,
    to_dict,
)

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
    barrier: tuple[
        int, ...
    ] = ()  # states at which the loss between arm and control is followed along their line

    @property
    def fork(self) -> str:
        """The fork's id: the hash of parent, window and interventions, unless it was given a
        name.
        """
        if self.name:
            return self.name
        document = [self.parent, self.first, self.last, [to_dict(i) for i in self.interventions]]
        return f"{self.parent}-fork-{xxhash.xxh3_64_hexdigest(json.dumps(document, sort_keys=True).encode())[:8]}"

    def sentence(self) -> str:
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
        """The spec as a fork file, which `read` and `build` take back to an equal spec."""
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
        lines = [f"{key} = {_toml(value)}" for key, value in head.items() if value is not None]
        for intervention in self.interventions:
            lines += [
                "",
                "[[intervention]]",
                *(f"{k} = {_toml(v)}" for k, v in to_dict(intervention).items()),
            ]
        return "\n".join(lines) + "\n"


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace(
            "\x7f", "\\u007f"
        )  # the one character TOML escapes and JSON does not
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_toml(each) for each in value) + "]"
    return repr(value)


def read(path: Path) -> dict[str, Any]:
    """A fork file as a dictionary. Errors: missing, config."""
    if not path.is_file():
        raise ForensicsError(
            "missing", f"wanted a fork file at {path}, found none", "docs/forks.md has an example"
        )
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as e:
        raise ForensicsError(
            "config", f"{path.name} is not TOML: {e}", "docs/forks.md has an example"
        ) from None
    for key in raw:
        if key not in KEYS:
            raise ForensicsError(
                "config", f"unknown key {key!r} in {path.name}", nearest(key, KEYS)
            )
    return raw


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


def build(runs: Path, run: Run, raw: dict[str, Any]) -> Spec:
    """A spec from a fork file's keys; SQL is run now, so that the fork's id tells what was chosen.
    Errors: config, sql.
    """
    for key in ("from", "to"):
        if type(raw.get(key)) is not int:
            raise ForensicsError(
                "config", f"wanted a step as {key!r}, found {raw.get(key)!r}", f"e.g. {key} = 200"
            )
    first, last = raw["from"], raw["to"]
    _check_window(run, first, last)
    counts = {key: raw.get(key, 0) for key in ("placebos", "chaos", "seed")}
    for key, value in counts.items():
        if type(value) is not int:
            raise ForensicsError(
                "config", f"{key}: wanted a whole number, found {value!r}", f"e.g. {key} = 3"
            )
    barrier = raw.get("barrier", [])
    if not isinstance(barrier, list) or any(type(step) is not int for step in barrier):
        raise ForensicsError(
            "config", f"barrier: wanted a list of states, found {barrier!r}", "e.g. barrier = [420]"
        )
    interventions = []
    for each in raw.get("intervention", []):
        intervention = from_dict(_chosen(runs, run, dict(each), first, last))
        intervention.check(run, first, last)
        interventions.append(intervention.resolved(run))
    return Spec(
        run.name,
        first,
        last,
        tuple(interventions),
        **counts,
        probe_every=raw.get("probe_every"),
        record=raw.get("record", "light"),
        name=raw.get("name"),
        barrier=tuple(barrier),
    )


# ---- what SQL chooses

Rows = dict[str, list[Any]]
Filled = tuple[str, Any]


def _chosen(runs: Path, run: Run, each: dict[str, Any], first: int, last: int) -> dict[str, Any]:
    """A fork file's intervention with its window, and with what its SQL chose under the key that it
    fills.
    """
    kind = each.get("kind", "")
    cls = KINDS.get(kind)
    where = (first, last)
    if cls is not None and issubclass(cls, Windowed):
        if "window" in each:
            each["first"], each["last"] = window(str(each.pop("window")), kind)
        where = each.setdefault("first", first), each.setdefault("last", last)
    if kind in CHOICES and each.get("sql"):
        choices, filled, fill = CHOICES[kind]
        if not any(key in each for key in filled):
            Windowed(*where).check(run, first, last)
            rows = select(runs, run, str(each["sql"]), choices, where)
            key, value = fill(run, rows, *where)
            if not value:
                raise ForensicsError(
                    "sql",
                    f"{kind}: the statement selected nothing inside {where[0]}:{where[1]}",
                    "try it with `forensics query --sql`",
                )
            each[key] = value
    return each


def _ids(column: str) -> Callable[[Run, Rows, int, int], Filled]:
    return lambda run, rows, first, last: (
        column + "s",
        sorted({int(value) for value in rows[column]}),
    )


def _in_order(run: Run, rows: Rows, first: int, last: int) -> Filled:
    return "sequences", list(dict.fromkeys(int(value) for value in rows["sequence"]))


def _places(run: Run, rows: Rows, first: int, last: int) -> list[tuple[int, int]]:
    """(step, slot) of the selected rows that lie inside the window, each once, in the statement's
    order.
    """
    if "slot" in rows:
        found = [
            (int(step), int(slot))
            for step, slot in zip(rows["step"], rows["slot"])
            if first <= step < last
        ]
        return list(dict.fromkeys(found))
    return slots.places_of(run.stream, [int(value) for value in rows["sequence"]], first, last)


def _rows(run: Run, rows: Rows, first: int, last: int) -> Filled:
    T = run.recipe.data.sequence_length
    return "at", [(step, slot, 0, T) for step, slot in sorted(_places(run, rows, first, last))]


def _ranked(run: Run, rows: Rows, first: int, last: int) -> Filled:
    """Rows by rank; equal ranks keep the order of the batches."""
    if "slot" in rows:
        keyed = {
            (int(s), int(b)): rank
            for s, b, rank in zip(rows["step"], rows["slot"], rows["rank"])
            if first <= s < last
        }
    else:
        ranks = dict(zip((int(value) for value in rows["sequence"]), rows["rank"]))
        B = range(first, last)
        keyed = {
            (s, b): ranks[i]
            for s in B
            for b, i in enumerate(run.stream(s).sequence.tolist())
            if i in ranks
        }
    try:
        return "rows", sorted(keyed, key=lambda place: (keyed[place], place))
    except TypeError:
        raise ForensicsError(
            "sql", "reorder: wanted ranks that compare, found several types", "cast `rank`"
        ) from None


def _targets(run: Run, rows: Rows, first: int, last: int) -> Filled:
    if "token" in rows:
        return _ids("token")(run, rows, first, last)
    found = zip(rows["step"], rows["slot"], rows["position"])
    return "at", sorted({(int(s), int(b), int(p)) for s, b, p in found if first <= s < last})


# kind → (sets of key columns, the first that the statement returns holds; keys that say the same by
# hand; what is filled)
CHOICES: dict[
    str,
    tuple[tuple[tuple[str, ...], ...], tuple[str, ...], Callable[[Run, Rows, int, int], Filled]],
] = {
    "remove-documents": ((("document",),), ("documents",), _ids("document")),
    "remove-sequences": ((("step", "slot"), ("sequence",)), ("at",), _rows),
    "mask-tokens": ((("step", "slot", "position"), ("token",)), ("tokens", "at"), _targets),
    "replace": ((("sequence",),), ("sequences", "batch", "text"), _in_order),
    "insert": ((("sequence",),), ("sequences", "text"), _in_order),
    "reorder": ((("step", "slot", "rank"), ("sequence", "rank")), ("rows",), _ranked),
}


def select(
    runs: Path, run: Run, sql: str, choices: tuple[tuple[str, ...], ...], where: tuple[int, int]
) -> Rows:
    """Key columns that a SELECT over the tables of the run's lineage returns, in its order; rows
    with a NULL are left out.

    Of several sets of columns the first that it returns whole holds. Where it returns `run` too, a
    step counts only in the run whose window it lies in: an ancestor's steps after the fork left it
    are not of this lineage. Errors: sql, where it lacks the columns or selects nothing.
    """
    lineage = _lineage(run)
    params = {"run": run.name, "first": where[0], "last": where[1]}
    params = {name: value for name, value in params.items() if re.search(rf"\${name}\b", sql)}
    with tempfile.TemporaryDirectory() as folder:
        for name in lineage:  # the other runs' rows cannot be meant
            Path(folder, name).symlink_to((runs / name).absolute(), target_is_directory=True)
        table = run_sandboxed(folder, sql, params=params or None, limit=1_000_000)
    columns = next((c for c in choices if set(c) <= set(table.column_names)), None)
    if columns is None:
        wanted = " or ".join(" and ".join(repr(name) for name in c) for c in choices)
        raise ForensicsError(
            "sql",
            f"wanted a column {wanted}, found {', '.join(table.column_names)}",
            f"select {', '.join(choices[0])} from …",
        )
    if table.schema.metadata and table.schema.metadata.get(b"truncated") == b"true":
        raise ForensicsError(
            "sql", "the statement selects more than 1,000,000 rows", "narrow it down"
        )
    told = "run" in table.column_names
    if len(lineage) > 1 and "step" in columns and not told:
        raise ForensicsError(
            "sql", f"wanted a column 'run' too, because {run.name} is a fork", "select run, step, …"
        )
    rows = table.select([*columns, "run"] if told else list(columns)).to_pylist()
    kept = [
        row
        for row in rows
        if None not in (row[c] for c in columns) and (not told or _of_lineage(row, lineage))
    ]
    for column in columns:
        if column != "rank" and any(isinstance(row[column], str) for row in kept):
            raise ForensicsError(
                "sql", f"wanted whole numbers as {column!r}, found text", "select the id itself"
            )
    if not kept:
        raise ForensicsError(
            "sql", "the statement selected nothing", "try it with `forensics query --sql`"
        )
    return {column: [row[column] for row in kept] for column in columns}


def _lineage(run: Run) -> dict[str, tuple[int, float]]:
    """The run and its ancestors, each with the steps first … last−1 that are its part of the
    lineage.
    """
    found: dict[str, tuple[int, float]] = {}
    end = math.inf
    above: Run | None = run
    while above is not None:
        found[above.name] = (above.header.first_step, end)
        end = min(end, above.header.first_step)
        above = above.parent
    return found


def _of_lineage(row: dict[str, Any], lineage: dict[str, tuple[int, float]]) -> bool:
    if row["run"] not in lineage:
        return False
    first, last = lineage[row["run"]]
    return "step" not in row or first <= row["step"] < last


def choose(runs: Path, run: Run, sql: str, column: str) -> list[int]:
    """Ids of `column` that a SELECT over the lineage's tables returns, each once, sorted. Errors:
    sql.
    """
    return sorted(
        {
            int(value)
            for value in select(runs, run, sql, ((column,),), (0, run.header.steps))[column]
        }
    )
