"""`replay boost`: the command and how it tells its result."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from forensics.cli.console import Command, emit, runs_folder, say, table, workers
from forensics.cli.progress_bar import bar
from forensics.errors import ForensicsError
from replay import tolerance
from replay.cli.imported import warm_moments

if TYPE_CHECKING:
    from replay.experiments.boost_result import BoostResult, BoostRow


@click.command(
    cls=Command,
    example=(
        "replay boost planted-tokens --token 1234\nreplay boost planted-tokens --token 1234 --from"
        " 500 --times 1,10 --seeds 5"
    ),
)
@click.argument("run")
@click.option(
    "--token",
    required=True,
    type=click.IntRange(min=0),
    metavar="ID",
    help="As `forensics tokens` lists it.",
)
@click.option(
    "--from",
    "first",
    type=int,
    help="The state it starts from; left out, the latest with room enough.",
)
@click.option(
    "--to",
    "last",
    type=int,
    help="First step that is no longer run; left out, the last checkpoint.",
)
@click.option(
    "--times",
    default="1,3,10,30,100",
    show_default=True,
    metavar="N,M,…",
    help="Sequences that hold it.",
)
@click.option(
    "--seeds",
    type=click.IntRange(min=1),
    default=3,
    show_default=True,
    help="Draws of each number.",
)
@workers
@warm_moments
def boost(
    run: str, token: int, first: int | None, last: int | None, times: str, seeds: int, workers: int
) -> None:
    """How often must a token be seen to be trained, and what does that cost elsewhere? Arms against
    placebos.
    """
    from replay.experiments.token_boost import boost as boost_token

    parts = [number_text.strip() for number_text in times.split(",")]
    if not all(number_text.isdecimal() and int(number_text) for number_text in parts):
        raise ForensicsError(
            "usage", f"wanted --times N,M,…, found {times!r}", "e.g. --times 1,3,10"
        )
    with bar(f"boosting {token}", "arms") as progress:
        result = boost_token(
            runs_folder(),
            run,
            token,
            first=first,
            last=last,
            times=[int(number_text) for number_text in parts],
            seeds=seeds,
            workers=workers,
            progress=progress,
        )
    emit(result, lambda: tell(result))


def tell(result: BoostResult) -> None:
    """Return a line for the control, one for each n, and the verdict."""
    unmodified, control = result.arms[0], result.control
    assert control is not None, "an unmodified arm is held against the run"
    if not control.bitwise:
        say(tolerance.limits(tolerance.CONTROL))
    say(
        f"Token {result.token} {result.text!r} of {result.run}, from state {result.first} to"
        f" {result.last}; seen {result.exposure_in:,} times before."
    )
    say(f"Control ({control.level}): {control.sentence}.")
    say(
        f"Its loss is read at {result.contexts.positions} places in {result.contexts.sequences}"
        f" sequences ({result.contexts.why})."
    )
    rows: list[list[Any]] = [
        ["unmodified", 0, unmodified.value, unmodified.rank, unmodified.loss, unmodified.p]
        + [None] * 3
    ]
    for row in result.summary:
        for kind, arm in (("boosted", row.boosted), ("placebo", row.placebo)):
            rows.append(
                [
                    kind,
                    row.times,
                    arm.value,
                    arm.rank,
                    arm.loss,
                    arm.p,
                    arm.held_out_gap,
                    arm.held_out_error,
                    _verdict(row) if kind == "boosted" else None,
                ]
            )
    table(
        [
            "arm",
            "sequences",
            unmodified.indicator,
            "rank",
            "loss",
            "P",
            "held-out loss − control",
            "±",
            "its loss against the placebos",
        ],
        rows,
    )
    say(result.verdict)


def _verdict(row: BoostRow) -> str | None:
    takes = row.takes
    return None if takes is None else f"{-takes.change:+.3f}, {takes.verdict}"
