"""`replay boost`: the command and how it tells its result."""

from __future__ import annotations

from typing import Any

import click

from forensics.cli.console import Command, emit, runs_folder, say, table
from forensics.cli.progress_bar import bar
from forensics.errors import ForensicsError


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
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Processes of one thread.",
)
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
        document = boost_token(
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
    emit(document, lambda: tell(document))


def tell(b: dict[str, Any]) -> None:
    """Return a line for the control, one for each n, and the verdict."""
    control = b["arms"][0]
    if not b["control"]["bitwise"]:
        say("TOLERANCE ONLY")
    say(
        f"token {b['token']} {b['text']!r} of {b['run']}, from state {b['from']} to {b['to']}; seen"
        f" {b['exposure_in']:,} times before"
    )
    say(f"control: {b['control']['level']}; {b['control']['sentence']}")
    say(
        f"contexts: {b['contexts']['positions']} places in {b['contexts']['sequences']} sequences"
        f" ({b['contexts']['why']})"
    )
    rows: list[list[Any]] = [
        [
            "unmodified",
            0,
            control["value"],
            control["rank"],
            control["loss"],
            control["p"],
            None,
            None,
            None,
        ]
    ]
    for row in b["summary"]:
        for kind in ("boosted", "placebo"):
            arm = row[kind]
            rows.append(
                [
                    kind,
                    row["times"],
                    arm["value"],
                    arm["rank"],
                    arm["loss"],
                    arm["p"],
                    arm["held_out_gap"],
                    arm["held_out_error"],
                    _verdict(row) if kind == "boosted" else None,
                ]
            )
    table(
        [
            "arm",
            "n",
            control["indicator"],
            "rank",
            "loss",
            "P",
            "elsewhere",
            "±",
            "its loss against the placebos",
        ],
        rows,
    )
    say(b["verdict"])


def _verdict(row: dict[str, Any]) -> str | None:
    takes = row["takes"]
    return None if takes is None else f"{-takes['change']:+.3f}, {takes['verdict']}"
