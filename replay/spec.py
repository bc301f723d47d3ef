"""A fork as a file: parent, window, interventions, what to compare. TOML, and the same by flags.

parent = "demo"
from = 290
to = 330
placebos = 3
[[intervention]]
kind = "remove-documents"
window = "300:304"
sql = "select document from documents where source = 'damaged'"
"""

from __future__ import annotations

import json
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash

from forensics.errors import ForensicsError, nearest
from forensics.store.sandbox import run_sandboxed
from forensics.train.run import Run
from replay.interventions import Intervention, from_dict, to_dict

KEYS = {"parent", "from", "to", "placebos", "chaos", "probe_every", "record", "seed", "name", "intervention"}


@dataclass(frozen=True)
class Spec:
    """One fork. `first:last` is the window; null forks and probes are compared, they do not change the fork's bits."""

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

    @property
    def fork(self) -> str:
        """The fork's id: the hash of parent, window and interventions, unless it was given a name."""
        if self.name:
            return self.name
        document = [self.parent, self.first, self.last, [to_dict(i) for i in self.interventions]]
        return f"{self.parent}-fork-{xxhash.xxh3_64_hexdigest(json.dumps(document, sort_keys=True).encode())[:8]}"

    def sentence(self) -> str:
        return "; ".join(i.sentence() for i in self.interventions) or "changes nothing"

    def check(self, run: Run) -> None:
        """Refuse what cannot be run, before any step runs. Errors: usage, missing."""
        if self.first >= self.last:
            raise ForensicsError(
                "usage", f"wanted --from below --to, found {self.first} and {self.last}", "windows are half-open"
            )
        if not run.header.first_step <= self.first <= run.header.steps:
            raise ForensicsError("missing", f"wanted a state of {run.name} to start from, found {self.first}",
                                 f"it has states {run.header.first_step} to {run.header.steps}")  # fmt: skip
        if min(self.placebos, self.chaos) < 0:
            raise ForensicsError("usage", "wanted --placebos and --chaos of at least 0", "19 placebos allow p = 0.05")
        for intervention in self.interventions:
            intervention.check(run, self.first, self.last)


def read(path: Path) -> dict[str, Any]:
    """A fork file as a dictionary. Errors: missing, config."""
    if not path.is_file():
        raise ForensicsError("missing", f"wanted a fork file at {path}, found none", "docs/forks.md has an example")
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as e:
        raise ForensicsError("config", f"{path.name} is not TOML: {e}", "docs/forks.md has an example") from None
    for key in raw:
        if key not in KEYS:
            raise ForensicsError("config", f"unknown key {key!r} in {path.name}", nearest(key, KEYS))
    return raw


def build(runs: Path, run: Run, raw: dict[str, Any]) -> Spec:
    """A spec from a fork file's keys; SQL is run now, so that the fork's id tells what was chosen. Errors: config, sql."""
    for key in ("from", "to"):
        if not isinstance(raw.get(key), int):
            raise ForensicsError("config", f"wanted a step as {key!r}, found {raw.get(key)!r}", f"e.g. {key} = 200")
    first, last = raw["from"], raw["to"]
    interventions = []
    for each in raw.get("intervention", []):
        each = dict(each)
        if each.get("kind") not in ("swap", "ulp"):
            if "window" not in each and "first" not in each:
                each["window"] = f"{first}:{last}"
        column = {"remove-documents": "document", "mask-tokens": "token"}.get(each.get("kind", ""))
        if column and each.get("sql") and column + "s" not in each:
            each[column + "s"] = choose(runs, run, each["sql"], column)
        interventions.append(from_dict(each))
    counts = {key: raw.get(key, 0) for key in ("placebos", "chaos", "seed")}
    for key, value in counts.items():
        if not isinstance(value, int):
            raise ForensicsError("config", f"{key}: wanted a whole number, found {value!r}", f"e.g. {key} = 3")
    return Spec(run.name, first, last, tuple(interventions), **counts, probe_every=raw.get("probe_every"),
                record=raw.get("record", "light"), name=raw.get("name"))  # fmt: skip


def choose(runs: Path, run: Run, sql: str, column: str) -> list[int]:
    """Ids of `column` that a SELECT over the runs' tables returns, each once, sorted.

    Where the statement returns a column `run` too, only the rows of this run's lineage count. Errors: sql.
    """
    table = run_sandboxed(runs, sql, limit=1_000_000)
    if column not in table.column_names:
        raise ForensicsError("sql", f"wanted a column {column!r}, found {', '.join(table.column_names)}",
                             f"select {column} from …")  # fmt: skip
    if table.schema.metadata and table.schema.metadata.get(b"truncated") == b"true":
        raise ForensicsError("sql", "the statement selects more than 1,000,000 rows", "narrow it down")
    rows = table.select([column]).to_pydict()[column]
    if "run" in table.column_names:
        lineage = {run.name}
        above = run.parent
        while above is not None:
            lineage.add(above.name)
            above = above.parent
        rows = [value for value, name in zip(rows, table["run"].to_pylist()) if name in lineage]
    chosen = sorted({int(value) for value in rows if value is not None})
    if not chosen:
        raise ForensicsError("sql", "the statement selected nothing", "try it with `forensics query --sql`")
    return chosen
