"""Opening a run or a fork as something to replay: a fork's stream and policy are its parent's,
altered.

Below a fork's first step its stream and states are its ancestors'; past the parent's end the stream
goes on. A parent is the run of the name that the fork carries, where it is that run still: another
one of the name, or none, is refused.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from forensics.errors import ForensicsError
from forensics.step.state import TrainState
from forensics.store import reader
from forensics.train import warm_setting
from forensics.train.header import Header, is_parent, read_header
from forensics.train.run import Run, open_run
from replay.interventions.composition import composed
from replay.interventions.registry import from_dict

WARM = "warm_moments"  # of an identity: batches that moments which were not saved are made of


def open_trajectory(runs: Path, name: str) -> Run:
    """Open a run or fork with the stream and policy that made it. Errors: usage, missing,
    integrity.
    """
    run = _with_parents(open_run(runs, name), ())
    if run.parent is None:  # a fork's identity says what its ancestors' moments are made of
        run.warm_moments = warm_setting.asked_for() if run.header.origin else 0
    return run


def _with_parents(run: Run, below: tuple[str, ...]) -> Run:
    """Open a run's ancestors; `below` are the forks through which it was reached."""
    below = (*below, run.name)
    if run.header.parent is not None:
        run.parent = parent = _with_parents(_parent_of(run, below), below)
        written = (run.header.identity or {}).get("parent")
        parent.warm_moments = (written or {}).get(WARM, 0)
        if written is not None and written != json.loads(json.dumps(identity(parent))):
            raise _another_parent(run, parent)
        run.stream, run.policy = composed(
            [from_dict(document) for document in run.header.interventions or []], parent
        )
    return run


def _parent_of(run: Run, below: tuple[str, ...]) -> Run:
    """Open the run that a fork left. Errors: missing, integrity."""
    fork, name = run.header, run.header.parent
    assert name is not None, "callers ask"
    begun = f" (begun {fork.parent_created})" if fork.parent_created else ""
    if name in below:
        raise ForensicsError(
            "integrity",
            f"{run.name} is a fork of {name}{begun}, found that name on "
            + ("the fork itself" if name == run.name else "a fork of it"),
            f"was a folder renamed? give {name} back to the run that {run.name} left",
        )
    try:
        parent = open_run(run.runs, name)
    except ForensicsError as e:
        if e.kind != "missing":
            raise
        raise ForensicsError(
            "missing",
            f"{run.name} is a fork of {name}{begun}, found no such run in {run.runs}",
            _where_it_may_be(run.runs, fork),
        ) from None
    if not is_parent(vars(parent.header), vars(fork)):
        raise _another_parent(run, parent)
    return parent


def _another_parent(run: Run, found: Run) -> ForensicsError:
    """Say that the run of a parent's name is not the one that the fork left."""
    begun = f" (begun {run.header.parent_created})" if run.header.parent_created else ""
    return ForensicsError(
        "integrity",
        f"{run.name} is a fork of {found.name}{begun}, found another run of that name (begun"
        f" {found.header.created})",
        _where_it_may_be(run.runs, run.header),
    )


def _where_it_may_be(runs: Path, fork: Header) -> str:
    """Say which folders may be the run that a fork left, if it was renamed."""
    alike = []
    for name in reader.runs_in(runs):
        try:
            header = read_header(runs, name)
        except (ForensicsError, OSError):
            continue
        # a fork of that run inherits all but the time at which it was made
        if fork.parent_created == header.created and is_parent(vars(header), vars(fork)):
            alike.append(name)
    if not alike:
        return "bring its folder back"
    return f"{' or '.join(alike)} was begun then: if it was renamed, give it its name back"


def ancestors(run: Run) -> Iterator[Run]:
    """Yield the run, then its parent, and so on to the run of its own that all descend from."""
    above: Run | None = run
    while above is not None:
        yield above
        above = above.parent


def require_intact(run: Run) -> None:
    """Refuse to replay a run whose data changed on disk since. Errors: missing, integrity."""
    run.corpus.require_intact()


def own_steps(run: Run) -> dict[str, tuple[int, float]]:
    """Return the run and its ancestors, each with the steps first … last−1 that are its part of the
    lineage; the run's own last is infinite.
    """
    steps: dict[str, tuple[int, float]] = {}
    last = math.inf
    for ancestor in ancestors(run):
        steps[ancestor.name] = (ancestor.header.first_step, last)
        last = min(last, ancestor.header.first_step)
    return steps


def identity(run: Run) -> dict[str, Any]:
    """Tell everything that a run's states depend on: its own making; of a fork its window and
    interventions, and its parent's identity.
    """
    header = run.header
    if run.parent is None:
        own = {
            "name": run.name,
            "created": header.created,
            "order": header.order,
            "corpus": header.corpus,
        }
        return own | ({WARM: run.warm_moments} if run.warm_moments else {})
    return {
        "name": run.name,
        "from": header.first_step,
        "to": header.steps,
        "interventions": header.interventions or [],
        "parent": identity(run.parent),
    }


def identity_text(run: Run) -> str:
    """Return a run's identity as one line, for what is kept under all that it depends on."""
    return json.dumps(identity(run), sort_keys=True)


def root(run: Run) -> Run:
    """Return the run of its own that a fork descends from; a run itself."""
    *_, oldest = ancestors(run)
    return oldest


def holder_of(run: Run, step: int) -> Run:
    """Return the run or ancestor that ran batch `step`: below a fork's start it is an ancestor."""
    reaching = (ancestor for ancestor in ancestors(run) if ancestor.header.first_step <= step)
    return next(reaching, root(run))


def lowest_state(run: Run) -> int:
    """Return the first state from which the run's stream and policy lead to its own states.

    A fork agrees with its parent below its start, unless it moved the state there.
    """
    moved = (ancestor for ancestor in ancestors(run) if _moves_the_state(ancestor))
    return next(moved, root(run)).header.first_step


def _moves_the_state(run: Run) -> bool:
    return any(from_dict(document).moves_start() for document in run.header.interventions or [])


def checkpoint_at_or_before(run: Run, step: int) -> int | None:
    """Return the latest saved state at or before `step` along the lineage; None: there is none."""
    for ancestor in ancestors(run):
        saved = [state for state in ancestor.saved_steps() if state <= step]
        if saved:
            return saved[-1]
    return None


def is_recorded(run: Run, state: TrainState) -> bool | None:
    """Whether the state is the recorded one bit for bit; None where no digest was recorded.

    The digest is that of the step that led to it, else that of its checkpoint. A replay of a run
    that was trained elsewhere never is.
    """
    step = state.counters.step
    holder = holder_of(run, step)
    recorded = recorded_digests(holder).get(step)
    if recorded is None:
        return False if is_elsewhere(holder) else None
    return recorded == state.digest()


def is_elsewhere(run: Run) -> bool:
    """Whether the run itself was trained elsewhere; a fork of it was trained here."""
    return run.parent is None and bool((run.header.origin or {}).get("trained"))


def recorded_digests(run: Run) -> dict[int, str]:
    """Return the digest that a run itself recorded of each of its states, where it did."""
    saved = run.table("checkpoints", ["step", "digest"]).to_pylist()
    steps = run.table("steps", ["step", "state_digest"]).to_pylist()
    digests = {row["step"]: row["digest"] for row in saved}
    digests |= {row["step"] + 1: row["state_digest"] for row in steps if row["state_digest"]}
    return digests
