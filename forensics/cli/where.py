"""`forensics where`: which documents hold a text, and at which steps it was read."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from forensics.cli.console import Command, emit, runs_folder, say, table
from forensics.cli.progress_bar import bar
from forensics.counted import counted, times
from forensics.errors import ForensicsError
from forensics.visible import visible

if TYPE_CHECKING:
    from replay.where import WhereResult

SHOWN = 20  # documents, and readings, of the tables


@click.command(
    cls=Command,
    example="forensics where demo 'import os'\nforensics where demo --file passage.txt --json",
)
@click.argument("run")
@click.argument("text", required=False)
@click.option(
    "--file",
    "path",
    type=click.Path(path_type=Path),
    help="The text as a file, to its last byte.",
)
@click.option(
    "--most",
    type=click.IntRange(1),
    default=1000,
    show_default=True,
    help="Documents and readings that --json names; all are counted.",
)
def where(run: str, text: str | None, path: Path | None, most: int) -> None:
    """Find a text in a run's data: the documents that hold it, the steps at which it was read, the
    loss on it.

    The search is over what the tokens spell, so no cut between tokens hides it; capitals count. An
    index is made once for each corpus and kept beside it.
    """
    from forensics.data.text_file import read_text_file
    from replay.where import where_of

    if (text is None) == (path is None):
        raise ForensicsError(
            "usage",
            f"wanted TEXT or --file, found {'neither' if text is None else 'both'}",
            "e.g. forensics where demo 'import os'",
        )
    wanted = read_text_file(path, "--file") if path is not None else str(text)
    with bar("indexing the text", "tokens") as progress:
        result = where_of(runs_folder(), run, wanted, most, progress)
    emit(result, lambda: _tell(result))


def _tell(result: WhereResult) -> None:
    """Tell where the text stands, and when it was read."""
    name = visible(result.text if len(result.text) <= 60 else result.text[:60] + "…")
    if not result.times:
        say(f"No document of {result.run} holds {name!r}.")
        return
    say(
        f"{name!r} stands {times(result.times)} in {counted(result.in_documents, 'document')} of"
        f" {result.run}; {counted(result.in_sequences, 'sequence')} hold a token of it,"
        f" {result.held_out} of them kept out of training."
    )
    shown = result.documents[:SHOWN]
    say()
    table(
        ["document", "source", "path", "times", "first at token"],
        [[d.document, d.source, d.path, d.times, d.offset] for d in shown],
    )
    _more(result.in_documents - len(shown), "document")
    say()
    if not result.times_read:
        say(f"No batch before step {result.steps} held it.")
    else:
        say(
            f"Read {times(result.times_read)} before step {result.steps}:"
            f" {result.times_read_whole:,} whole,"
            f" {result.times_read - result.times_read_whole:,} cut by the end of a sequence."
        )
        readings = result.readings[:SHOWN]
        table(
            ["step", "slot", "sequence", "position", "tokens", "whole", "loss", "loss on it"],
            [
                [
                    *(r.step, r.slot, r.sequence, r.position, r.tokens),
                    *("yes" if r.whole else "no", r.loss, r.text_loss),
                ]
                for r in readings
            ],
        )
        _more(result.times_read - len(readings), "reading")
    if result.unsearched:
        say(
            f"{counted(result.unsearched, 'row')} that interventions made are not of the corpus"
            " and were not searched."
        )


def _more(count: int, noun: str) -> None:
    if count > 0:
        say(f"and {counted(count, f'more {noun}')}; --json names more")
