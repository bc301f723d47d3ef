"""`forensics import`: a run made elsewhere comes in, and what came is told."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from forensics.cli.console import Command, cell, emit, runs_folder, say, table, warn
from forensics.cli.progress_bar import bar
from forensics.counted import counted
from forensics.errors import ForensicsError

if TYPE_CHECKING:
    from forensics.foreign.result import ImportedRun

SHOWN = 12  # checkpoints, and names without a place, that a table lists


@click.command(
    "import",
    cls=Command,
    example=(
        "forensics import ./OLMo-1B --data ./dolma --log wandb.csv\n"
        "forensics import smol.gguf --data stdlib --batch 4 --sequence-length 128\n"
        "forensics import hf:EleutherAI/pythia-70m@step1000 --link\nforensics import wandb.csv"
    ),
)
@click.argument("source", metavar="FOLDER|FILE|hf:ORG/NAME[@REVISION]")
@click.option("--name", metavar="ID", help="The run's name; the source's where it is left out.")
@click.option(
    "--format",
    "format_name",
    metavar="F",
    help="Its format; recognised by content where it is left out.",
)
@click.option(
    "--data",
    multiple=True,
    metavar="PATH",
    help="Where its token files lie now: files, or folders that are searched; may be repeated. Of a"
    " model alone also a source of text.",
)
@click.option(
    "--order",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Sequence ids in the order they were read; its configuration's where it is left out.",
)
@click.option("--dtype", metavar="T", help="Of bare token files: uint16, uint32, …")
@click.option("--sequence-length", type=click.IntRange(min=2), metavar="T", help="In tokens.")
@click.option("--batch", type=click.IntRange(min=1), metavar="B", help="Sequences a step.")
@click.option(
    "--log",
    "logs",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="A log of any tracker; may be repeated. One beside the checkpoints is found by itself.",
)
@click.option("--log-run", metavar="NAME", help="Which run of a log that holds several.")
@click.option(
    "--log-step-base",
    type=click.IntRange(min=0),
    metavar="N",
    help="The number under which the log holds its first step; its trainer's where it is left out.",
)
@click.option("--steps", metavar="S,T,…", help="Only these checkpoints; all where it is left out.")
@click.option("--stage", metavar="NAME", help="Only this stage of a run whose steps begin again.")
@click.option("--link", is_flag=True, help="Leave the weights where they are.")
@click.option(
    "--tokenizer",
    metavar="bytes|PATH",
    help="Its tokenizer.json; the one beside the checkpoints where it is left out.",
)
@click.option(
    "--set",
    "changes",
    multiple=True,
    metavar="a.b=c",
    help="Change a key of the recipe that was read; may be repeated.",
)
def import_(
    source: str,
    name: str | None,
    format_name: str | None,
    data: tuple[str, ...],
    order: Path | None,
    dtype: str | None,
    sequence_length: int | None,
    batch: int | None,
    logs: tuple[Path, ...],
    log_run: str | None,
    log_step_base: int | None,
    steps: str | None,
    stage: str | None,
    link: bool,
    tokenizer: str | None,
    changes: tuple[str, ...],
) -> None:
    """Bring in a run or a model that was made elsewhere: checkpoints, moments, data, order, log.

    From then on it is a run as any other; replays of it are compared with its log and its
    checkpoints, to tolerance.
    """
    from forensics.foreign.bring_in import import_run
    from forensics.foreign.options import ImportOptions

    options = ImportOptions(
        format=format_name,
        data=data,
        order=order,
        dtype=dtype,
        sequence_length=sequence_length,
        batch=batch,
        logs=logs,
        log_run=log_run,
        log_step_base=log_step_base,
        steps=_steps(steps),
        stage=stage,
        link=link,
        tokenizer=tokenizer,
        settings=changes,
    )
    with bar("importing", "") as progress:
        result = import_run(source, runs_folder(), name, options, progress, sys.argv[1:])
    for note in result.notes:
        warn(note)
    emit(result, lambda: _tell(result))


def _steps(text: str | None) -> tuple[int, ...]:
    if text is None:
        return ()
    numbers = [each.strip() for each in text.split(",")]
    if not all(each.isdecimal() for each in numbers):
        raise ForensicsError(
            "usage", f"wanted --steps S,T,…, found {text!r}", "e.g. --steps 0,1000"
        )
    return tuple(sorted(set(map(int, numbers))))


def _tell(result: ImportedRun) -> None:
    """Tell what came in, what is not known, and what to do next."""
    where = ", its weights left there" * result.linked
    if not result.checkpoints:
        say(f"{result.run} is a log alone, of {result.source}.")
    else:
        say(
            f"{result.run} comes from {result.source} ({result.format}{where}):"
            f" {result.parameters:,} parameters, {counted(len(result.checkpoints), 'state')}."
        )
        rows: list[list[Any]] = [
            [c.step, c.stage or None, c.tokens, c.moments] for c in result.checkpoints
        ]
        table(["state", "stage", "tokens read", "moments"], rows[:SHOWN])
        if len(rows) > SHOWN:
            say(f"… and {len(rows) - SHOWN} more")
    for line in _lines(result):
        say(line)


def _lines(result: ImportedRun) -> list[str]:
    """Return a sentence for data, order, log, logits, and what has no place."""
    lines = []
    if result.tokens is not None:
        files = counted(len(result.data), "file")
        lines.append(
            f"Data: {result.tokens:,} tokens in {files}; T {cell(result.sequence_length)},"
            f" {cell(result.batch)} sequences a step."
        )
    if result.order == "known":
        lines.append("Order: known, so every batch can be shown and replayed.")
    elif result.checkpoints:
        lines.append(f"Order: unknown: {result.order_why}.".replace("..", "."))
    if result.log is not None:
        log = result.log
        lines.append(
            f"Log: {counted(log.steps, 'step')}, {counted(log.metrics, 'metric')}; {log.repeated}"
            f" repeated, {log.nonfinite} values not finite."
        )
    if result.checkpoints:
        said = result.logits.sentence()
        lines.append(f"{said[0].upper()}{said[1:]}.")
    if result.unplaced:
        names = ", ".join(result.unplaced[:SHOWN]) + ", …" * (len(result.unplaced) > SHOWN)
        lines.append(f"{counted(len(result.unplaced), 'stored name')} without a place: {names}")
    lines.append(f"next: {_next(result)}")
    return lines


def _next(result: ImportedRun) -> str:
    if not result.checkpoints:
        return f"forensics spikes {result.run}"
    able = [c.step for c in result.checkpoints if c.moments]
    if result.order == "known" and len(able) > 1:
        return f"replay verify {result.run} {able[-2]} {able[-1]}"
    return f"forensics show {result.run}"
