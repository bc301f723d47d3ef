"""`replay blame` where what spiked is no finite loss: NaN and infinity, the gradient norm."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from forensics.cli.console import emit, runs_folder, say, table, warn
from forensics.cli.progress_bar import bar
from forensics.errors import ForensicsError

if TYPE_CHECKING:
    from replay.blame.nonfinite.result import NonFiniteResult

SEQUENCES = 8  # rows of the table of sequences
# flags that ask about a finite spike of the loss alone
LOSS_ONLY = ("method", "window", "placebos", "null_windows", "tokens", "float64", "html")


def blame_another_quantity(run: str, spike: int | None, of: str | None, force: bool) -> int | None:
    """Explain a number that is not finite; None where a finite loss is asked about."""
    from replay.blame.quantity import blamed_quantity

    quantity = blamed_quantity(runs_folder(), run, spike, of, force)  # type: ignore[arg-type]
    if quantity.finite:
        if of == "grad_norm":
            raise ForensicsError(
                "usage",
                f"the gradient norm of step {quantity.step.step} is finite",
                "--of grad_norm explains one that is not",
            )
        return None
    if _given(("method",)) and quantity.metric == "loss":
        return None  # the window is bisected, or whatever was asked for
    _refuse(f"a {quantity.metric} that is not finite")
    from replay.blame.nonfinite.search import blame_nonfinite

    step = quantity.step
    with bar(f"blame of {run}") as progress:
        result = blame_nonfinite(
            runs_folder(), run, step.step, quantity.metric, step.value, progress
        )
    emit(result, lambda: tell_nonfinite(result))
    if result.interrupted:
        warn("interrupted: this is what was known by then")
    return 130 if result.interrupted else 0


def _given(names: tuple[str, ...]) -> list[str]:
    context = click.get_current_context()
    return [
        f"--{name.replace('_', '-')}"
        for name in names
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE
    ]


def _refuse(quantity: str) -> None:
    """Refuse flags that say how a finite spike of the loss is gone into. Errors: usage."""
    given = _given(LOSS_ONLY)
    if given:
        raise ForensicsError(
            "usage",
            f"{', '.join(given)} asks about a finite spike of the loss, found {quantity}",
            "leave it out",
        )


def tell_nonfinite(result: NonFiniteResult) -> None:
    """Tell where a step stops being finite, and why."""
    say(result.sentence)
    say(f"\nControl ({result.control.level}): {result.control.sentence}.")
    if result.sequences:
        say("\nWhere each sequence stops being finite")
        table(
            ["slot", "tensor", "value", "position", "token", "source", "document"],
            [
                [
                    place.slot,
                    place.tensor,
                    place.value,
                    place.position,
                    place.text,
                    place.document.source if place.document else None,
                    place.document.path if place.document else None,
                ]
                for place in result.sequences[:SEQUENCES]
            ],
        )
    say(
        f"\n{result.replays} replays, {result.steps_replayed:,} training steps in all,"
        f" {result.seconds:.0f} s."
    )
