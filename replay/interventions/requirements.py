"""Refuse what an intervention cannot be asked for, in one line, before a step runs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from forensics.errors import ForensicsError, nearest
from replay.interventions.base import Windowed
from replay.interventions.rows import Place

if TYPE_CHECKING:
    from forensics.train.run import Run


def require(holds: bool, kind: str, wanted: str, found: Any, hint: str) -> None:
    """Refuse what does not hold. Errors: usage."""
    if not holds:
        raise ForensicsError("usage", f"{kind}: wanted {wanted}, found {found}", hint)


def require_choice(kind: str, key: str, value: str, choices: Sequence[str]) -> None:
    """Refuse a value that is none of the choices. Errors: usage."""
    require(
        value in choices,
        kind,
        f"{key} = {', '.join(choices)}",
        repr(value),
        nearest(value, choices),
    )


def require_tokens(run: Run, kind: str, tokens: Sequence[int]) -> None:
    """Refuse an id outside the vocabulary. Errors: usage."""
    for token in tokens:
        require(
            0 <= token < run.shape.vocabulary,
            kind,
            f"ids below {run.shape.vocabulary}",
            token,
            "ids are the tokenizer's",
        )


def require_sequences(run: Run, kind: str, sequences: Sequence[int]) -> None:
    """Refuse an id that the corpus has not, or that is held out. Errors: missing, usage."""
    layout = run.corpus.layout(run.recipe.data.cut)
    total, held_out = sum(layout.n_sequences), set(run.batches.order.held_out.tolist())
    for sequence in sequences:
        if not 0 <= sequence < total:
            raise ForensicsError(
                "missing",
                f"{kind}: wanted a sequence of {run.name}, found id {sequence}",
                f"it has sequences 0 to {total - 1}",
            )
        require(
            sequence not in held_out,
            kind,
            "sequences that may be trained on",
            f"{sequence}, which is held out",
            "forks are probed on what no arm has seen",
        )


def require_places(run: Run, intervention: Windowed, places: Iterable[Place]) -> None:
    """Refuse a row outside the window or the batch. Errors: usage."""
    B = run.recipe.train.batch
    for step, slot in places:
        require(
            intervention.first <= step < intervention.last,
            intervention.kind,
            f"rows inside {intervention.window}",
            f"step {step}",
            "widen the window",
        )
        require(
            0 <= slot < B,
            intervention.kind,
            f"slots below {B}",
            slot,
            "`slot` is a row of the batch, from 0",
        )


def tensor_shapes(run: Run) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the run's parameters by name, in the order of the forward."""
    from forensics.model.shape import parameter_shapes

    return parameter_shapes(run.shape)


def matching_tensors(run: Run, kind: str, patterns: Sequence[str]) -> list[str]:
    """List the run's tensors that match a name or glob pattern, in the order of the forward.
    Errors: usage, missing.
    """
    names = list(tensor_shapes(run))
    require(
        bool(patterns),
        kind,
        "names or patterns of tensors",
        "none",
        'e.g. tensors = ["layers.0.*"]',
    )
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            hint = nearest(pattern, names)
            raise ForensicsError(
                "missing",
                f"{kind}: no tensor of {run.name} is called {pattern!r}",
                hint if hint.startswith("did") else f"e.g. {names[0]}, or a pattern as layers.0.*",
            )
    return [name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)]
