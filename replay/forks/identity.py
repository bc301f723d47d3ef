"""What a fork depends on, all of it; and whether what lies under its name is the fork that is asked
for.

    runs/<fork>/run.json · identity: a ForkIdentity's document, written before the first step

Two forks are the same where parent, window, interventions and donors agree. What they are compared
with may be more in the one that is there; nothing that is there is ever lost to one that has less.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from forensics.errors import ForensicsError
from forensics.result_records import ResultRecord, json_key
from forensics.store.reader import check_run_name, runs_in
from forensics.train.run import Run, open_run
from replay import lineage
from replay.forks.result import RESULT_FILE, ForkResult
from replay.forks.spec import RECORDED, Spec
from replay.interventions.registry import from_dict, to_dict


@dataclass(frozen=True)
class ForkIdentity(ResultRecord):
    """Everything that a fork's bits and what is said of them depend on."""

    VERSION: ClassVar[int] = 1
    KIND: ClassVar[str] = "fork's identity"
    AGAIN: ClassVar[str] = "run the fork again with --again"

    parent: dict[str, Any]  # as `lineage.identity` tells it
    first: int = json_key("from")
    last: int = json_key("to")
    interventions: tuple[dict[str, Any], ...] = ()
    donors: dict[str, str] = dataclasses.field(default_factory=dict)  # RUN@STEP → digest
    seed: int = 0  # of the null forks; 0 where there are none
    placebos: int = 0  # as asked for
    chaos: int = 0
    record: str = "light"
    probe_every: int = 1  # steps
    barrier: tuple[int, ...] = ()  # ascending


def identity_of(spec: Spec, parent: Run) -> ForkIdentity:
    """Tell what a fork of `parent` depends on. Errors: usage, missing."""
    donors: dict[str, str] = {}
    for intervention in spec.interventions:
        donors |= intervention.donors(parent)
    return ForkIdentity(
        parent=lineage.identity(parent),
        first=spec.first,
        last=spec.last,
        interventions=tuple(to_dict(intervention) for intervention in spec.interventions),
        donors=donors,
        seed=spec.seed if spec.placebos or spec.chaos else 0,
        placebos=spec.placebos,
        chaos=spec.chaos,
        record=spec.record,
        probe_every=spec.steps_between_probes,
        barrier=tuple(sorted(set(spec.barrier))),
    )


class Standing(NamedTuple):
    """What is to be done for a fork that is asked for."""

    finished: ForkResult | None  # the result that answers it; None: it has to be run
    probe_every: int | None  # steps, of the fork that is there; None where there is none
    anew: bool  # nothing that is there goes on


def standing(spec: Spec, parent: Run, again: bool = False) -> Standing:
    """Look at what lies under the fork's name: its result, half of it, or nothing.

    Refused is a name that holds something else, and what would lose more than it brings; `again`
    makes a fork of this parent anew, whatever it was. Errors: usage, missing, integrity.
    """
    folder = parent.runs / check_run_name(spec.fork)
    _refuse_foreign(spec, parent, folder)
    if not (folder / "run.json").is_file():
        return Standing(None, None, anew=True)
    asked, header = identity_of(spec, parent), open_run(parent.runs, spec.fork).header
    if again:
        _refuse_orphans(asked, spec, parent, header.interventions, header.first_step, header.steps)
        return Standing(None, None, anew=True)
    if header.identity is None:
        raise ForensicsError(
            "usage",
            f"{spec.fork} was made before forks wrote down all that they depend on, so it cannot"
            " be told whether it is the one that is asked for",
            "run it anew with --again, or give another --name",
        )
    recorded = ForkIdentity.from_document(header.identity, f"run.json of {spec.fork}")
    if spec.probe_every is None:  # any will do
        asked = dataclasses.replace(asked, probe_every=recorded.probe_every)
    _refuse_another(asked, recorded, spec.fork)
    missing, lost = list(_lacking(recorded, asked)), list(_lacking(asked, recorded))
    if (folder / RESULT_FILE).is_file():
        result = ForkResult.read(folder / RESULT_FILE)
        if not missing:
            return Standing(result, recorded.probe_every, anew=False)
    elif not missing and not lost:
        return Standing(None, recorded.probe_every, anew=False)
    if lost:
        has, wants = _listed(asked, recorded)
        raise ForensicsError(
            "usage",
            f"{spec.fork}: wanted this fork with {wants}, found it with {has}",
            "--again runs it anew with what is asked for now, another --name keeps both",
        )
    return Standing(None, None, anew=True)


def clear(parent: Run, name: str, asked: ForkIdentity) -> None:
    """Remove what lies under a fork's name before it is run anew: all of it where that was another
    fork, else its states and its result. Errors: missing.
    """
    folder = parent.runs / name
    if not (folder / "run.json").is_file():
        return
    header = open_run(parent.runs, name).header
    window = (header.first_step, header.steps)
    if _same_question(asked, header.interventions, *window):
        (folder / RESULT_FILE).unlink(missing_ok=True)
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    else:
        shutil.rmtree(folder)


def _refuse_foreign(spec: Spec, parent: Run, folder: Path) -> None:
    """Refuse the name of the parent, of an ancestor, and of what is no fork of this parent."""
    another = "give the fork another --name"
    if spec.fork in lineage.own_steps(parent):
        which = "its parent" if spec.fork == parent.name else f"an ancestor of {parent.name}"
        raise ForensicsError(
            "usage", f"wanted a name for a new fork, found {spec.fork!r}, {which}", another
        )
    if not (folder / "run.json").is_file():
        if folder.exists() and any(folder.iterdir()):
            raise ForensicsError(
                "usage",
                f"wanted a name for a new fork, found {spec.fork!r}, a folder that is no run",
                another,
            )
        return
    holder = open_run(parent.runs, spec.fork).header.parent
    if holder != parent.name:
        holding = "a run of its own" if holder is None else f"a fork of {holder}"
        raise ForensicsError(
            "usage",
            f"wanted a fork of {parent.name} under the name {spec.fork!r}, found {holding}",
            another,
        )


def _refuse_orphans(
    asked: ForkIdentity,
    spec: Spec,
    parent: Run,
    interventions: list[dict[str, Any]] | None,
    first: int,
    last: int,
) -> None:
    """Refuse to put another fork in the place of one that has forks of its own."""
    if _same_question(asked, interventions, first, last):
        return
    children = [
        name
        for name in runs_in(parent.runs)
        if open_run(parent.runs, name).header.parent == spec.fork
    ]
    if children:
        raise ForensicsError(
            "usage",
            f"wanted to make another fork of the name {spec.fork!r}, found {children[0]}, which is"
            " a fork of the one that is there",
            "give another --name",
        )


def _same_question(
    asked: ForkIdentity, interventions: list[dict[str, Any]] | None, first: int, last: int
) -> bool:
    there = [_plain(document) for document in interventions or []]
    window = (asked.first, asked.last)
    return window == (first, last) and [_plain(d) for d in asked.interventions] == there


def _refuse_another(asked: ForkIdentity, found: ForkIdentity, name: str) -> None:
    """Refuse where parent, window, interventions or donors differ, and say which."""
    wants, has = [], []
    if parents := _difference_of_parents(asked.parent, found.parent):
        wants.append(f"a fork of {parents[0]}")
        has.append(f"one of {parents[1]}")
    if (asked.first, asked.last) != (found.first, found.last):
        wants.append(f"from {asked.first} to {asked.last}")
        has.append(f"from {found.first} to {found.last}")
    ours, theirs = ([_plain(d) for d in identity.interventions] for identity in (asked, found))
    if ours != theirs:
        sentences = _does(asked.interventions), _does(found.interventions)
        if sentences[0] == sentences[1]:
            sentences = sentences[0], f"the same with other {_first_other_key(ours, theirs)}"
        wants.append(f"one that {sentences[0]}")
        has.append(f"one that {sentences[1]}" if sentences[1][:8] != "the same" else sentences[1])
    if asked.donors != found.donors:
        wants.append("tensors of " + _checkpoints(asked.donors))
        has.append(_checkpoints(found.donors))
    if wants:
        raise ForensicsError(
            "usage",
            f"{name} holds another fork: wanted {', '.join(wants)}; found {', '.join(has)}",
            "give another --name, or put this one in its place with --again",
        )


def _difference_of_parents(
    asked: Mapping[str, Any], found: Mapping[str, Any]
) -> tuple[str, str] | None:
    """Name what differs first between two lineages, the youngest run first; None: nothing."""
    for key, words in (
        ("name", "{}"),
        ("created", "the run made at {}"),
        ("order", "data order {}"),
        ("corpus", "corpus {}"),
        ("from", "a parent that starts from {}"),
        ("to", "a parent that ends at {}"),
    ):
        if asked.get(key) != found.get(key):
            return words.format(asked.get(key)), words.format(found.get(key))
    ours, theirs = (
        [_plain(d) for d in lineage_of.get("interventions") or []] for lineage_of in (asked, found)
    )
    if ours != theirs:
        name = asked.get("name")
        return (
            f"{name}, which {_does(asked['interventions'])}",
            f"{name} when it {_does(found['interventions'])}",
        )
    if asked.get("parent") or found.get("parent"):
        return _difference_of_parents(asked.get("parent") or {}, found.get("parent") or {})
    return None


def _lacking(there: ForkIdentity, wanted: ForkIdentity) -> Iterator[str]:
    """Name what `wanted` is compared with and `there` is not."""
    for count in ("placebos", "chaos"):
        if getattr(there, count) < getattr(wanted, count):
            yield count
    nulls = wanted.placebos + wanted.chaos
    if nulls and there.placebos + there.chaos and there.seed != wanted.seed:
        yield "seed"
    if RECORDED.index(there.record) < RECORDED.index(wanted.record):
        yield "record"
    if wanted.probe_every % there.probe_every:
        yield "probe_every"
    if set(wanted.barrier) - set(there.barrier):
        yield "barrier"


def _listed(asked: ForkIdentity, found: ForkIdentity) -> tuple[str, str]:
    """Spell the keys that differ as a fork file does: (found, asked)."""
    keys = ("placebos", "chaos", "seed", "record", "probe_every", "barrier")
    differing = [key for key in keys if getattr(asked, key) != getattr(found, key)]
    has, wants = (
        ", ".join(f"{key} = {_spelled(getattr(identity, key))}" for key in differing)
        for identity in (found, asked)
    )
    return has, wants


def _spelled(value: Any) -> str:
    return str(list(value)) if isinstance(value, tuple) else str(value)


def _plain(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return an intervention's document as JSON would: lists, no tuples."""

    def listed(value: Any) -> Any:
        return [listed(item) for item in value] if isinstance(value, list | tuple) else value

    return {key: listed(value) for key, value in document.items()}


def _does(interventions: Any) -> str:
    """Say what interventions do; those that this version does not know, by their kind."""
    sentences = []
    for document in interventions:
        try:
            sentences.append(from_dict(document).sentence())
        except ForensicsError:
            sentences.append(f"has an intervention {document.get('kind')!r}")
    return "; ".join(sentences) or "changes nothing"


def _first_other_key(ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> str:
    for mine, counterpart in zip(ours, theirs):
        for key in {**mine, **counterpart}:
            if mine.get(key) != counterpart.get(key):
                return f"{mine.get('kind')}.{key}"
    return "interventions"


def _checkpoints(donors: Mapping[str, str]) -> str:
    return ", ".join(f"{state} (digest {digest[:8]})" for state, digest in donors.items())
