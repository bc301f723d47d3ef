"""`replay blame` where what spiked is no finite loss: NaN and infinity, the gradient norm."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from forensics.cli.console import emit, runs_folder, say, table, warn
from forensics.cli.progress_bar import bar
from forensics.errors import ForensicsError
from replay import tolerance

if TYPE_CHECKING:
    from replay.blame.nonfinite.result import NonFiniteResult
    from replay.blame.norm.result import NormBlameResult

SEQUENCES = 8  # rows of the table of sequences
# flags that ask about a finite spike of the loss alone
LOSS_ONLY = ("method", "window", "placebos", "null_windows", "tokens", "float64", "html")


def blame_another_quantity(run: str, spike: int | None, of: str | None, force: bool) -> int | None:
    """Explain a number that is not finite; None where a finite loss is asked about."""
    from replay.blame.quantity import blamed_quantity

    quantity = blamed_quantity(runs_folder(), run, spike, of, force)  # type: ignore[arg-type]
    if quantity.metric == "loss" and (quantity.finite or _given(("method",))):
        return None  # what is not finite is bisected, or whatever was asked for
    if quantity.finite:
        return _blame_norm(run, quantity.step.step, force)
    _refuse("one that is not finite")
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


def _blame_norm(run: str, spike: int, force: bool) -> int:
    _refuse("one of the gradient norm")
    from replay.blame.norm.investigate import blame_norm

    with bar(f"blame of {run}") as progress:
        result = blame_norm(runs_folder(), run, spike, force, progress)
    emit(result, lambda: tell_norm(result))
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


def _refuse(found: str) -> None:
    """Refuse flags that say how a finite spike of the loss is gone into. Errors: usage."""
    refused = _given(LOSS_ONLY)
    if refused:
        raise ForensicsError(
            "usage",
            f"{', '.join(refused)} asks about a finite spike of the loss, found {found}",
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


def tell_norm(result: NormBlameResult) -> None:
    """Tell what made the gradient norm spike."""
    if not result.control.bitwise:
        say(tolerance.limits(tolerance.WINDOW))
    say(result.sentence)
    excess, spike = result.excess, result.spike
    height = f", {spike.sigma:.1f}σ above the steps before" if spike.sigma is not None else ""
    say(f"\nStep {spike.step}: gradient norm {spike.value:.4g}{height}.")
    if spike.remark:
        say(spike.remark)
    say(f"Control ({result.control.level}): {result.control.sentence}.")
    say(
        f"Excess {excess.total:+.3g}: {excess.data:+.3g} because the batch itself is odd (data"
        f" part), {excess.state:+.3g} because every batch's has grown (state part)."
    )
    for note in result.notes:
        say(f"Note: {note}")
    say(
        "\nSequences of the batch. share: of the gradient norm (they sum to it); falls: by how much"
        " it falls without the sequence alone"
    )
    table(
        ["slot", "sequence", "share", "falls", "source", "document"],
        [
            [c.slot, c.sequence, c.influence, c.replayed_effect, c.source, c.path]
            for c in result.candidates
        ],
    )
    say(f"\n{result.passes} passes of a batch, {result.replays} replays, {result.seconds:.0f} s.")
