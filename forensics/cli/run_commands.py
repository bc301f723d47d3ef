"""Commands that tell of runs: list, show, batch, spikes, note, doctor."""

from __future__ import annotations

import contextlib
import dataclasses
from typing import TYPE_CHECKING, Any

import click

from forensics.cli import source_notes
from forensics.cli.console import Command, emit, runs_folder, say, table, warn
from forensics.cli.progress_bar import bar
from forensics.cli.run_sheet import headline, machine_rows, sheet
from forensics.cli.spike_story import tell_first_bad, tell_spikes
from forensics.errors import ForensicsError

if TYPE_CHECKING:
    from replay.integrity import Examination
    from replay.step.result import BatchContents


@click.command("list", cls=Command, example="forensics list --json")
def list_runs() -> None:
    """List runs and their forks as a tree, each folder once under its own name."""
    from forensics.cli import run_tree
    from forensics.store.reader import runs_in
    from forensics.train.header import read_header

    headers, damaged = [], []
    for name in runs_in(runs_folder()):
        try:
            headers.append(read_header(runs_folder(), name))
        except ForensicsError as e:
            damaged.append({"name": name, "problem": e.message})
    shown = (
        *("name", "status", "recipe", "parent", "parent_step", "first_step", "steps"),
        *("parameters", "created"),
    )
    document = {
        "runs": [
            {key: getattr(header, key) for key in shown}
            | {"origin": header.origin["format"] if header.origin else None}
            for header in headers
        ],
        "damaged": damaged,
    }

    def story() -> None:
        if not headers and not damaged:
            say(f"There is no run in {runs_folder()} yet; `forensics demo` makes one.")
            return
        table(run_tree.COLUMNS, run_tree.rows(headers))
        for each in damaged:
            say(f"{each['problem']}: `forensics doctor {each['name']}`")

    emit(document, story)


@click.command(cls=Command, example="forensics show demo")
@click.argument("run")
def show(run: str) -> None:
    """Show what a run is: its recipe, data, model, machine and saved states."""
    from forensics.train.run import open_run

    opened = open_run(runs_folder(), run)
    document = dataclasses.asdict(opened.header) | {"checkpoints": opened.saved_steps()}
    notes: list[str] = []
    with contextlib.suppress(ForensicsError):  # `doctor` tells of a corpus that is gone
        notes = source_notes.lines(opened.corpus)
        document["text"] = source_notes.as_json(opened.corpus)

    def story() -> None:
        say(headline(opened.header))
        for note in notes:
            say(note)
        for section in sheet(opened.header, opened.saved_steps()):
            say()
            table([section.title, ""], [list(row) for row in section.rows])

    emit(document, story)


@click.command(
    cls=Command,
    example=(
        "forensics batch demo 401\nforensics batch demo 401 --token-losses --json\n"
        "forensics batch demo 390:410 --json"
    ),
)
@click.argument("run")
@click.argument("steps", metavar="STEP|A:B")
@click.option(
    "--token-losses",
    "by_token",
    is_flag=True,
    help="--json holds each target's loss, by exact replay.",
)
def batch(run: str, steps: str, by_token: bool) -> None:
    """Show what the model saw at a step, or at each of a window: texts, documents and losses, the
    highest loss first.
    """
    from forensics.config import window
    from replay.step.batch_contents import batch_at, batches_at, token_losses_at

    if ":" in steps:
        if by_token:
            raise ForensicsError(
                "usage",
                f"wanted one step with --token-losses, found {steps}",
                "each step is replayed by itself: ask for them one by one",
            )
        first, last = window(steps, "STEP")
        with bar("reading", "batches") as progress:
            batches = batches_at(runs_folder(), run, first, last, progress)

        def story() -> None:
            for contents in batches.batches:
                _tell_batch(contents)

        emit(batches, story)
        _say_what_text_is(run)
        return
    if not steps.isdecimal():
        raise ForensicsError("usage", f"wanted STEP or A:B, found {steps!r}", "e.g. 401 or 390:410")
    step = int(steps)
    if by_token:
        with bar(f"replaying to {step}") as progress:
            contents = token_losses_at(runs_folder(), run, step, progress)
    else:
        contents = batch_at(runs_folder(), run, step)
    emit(contents, lambda: _tell_batch(contents))
    _say_what_text_is(run)


def _say_what_text_is(run: str) -> None:
    """Warn where no tokenizer of the run's data is at hand."""
    from forensics.train.run import open_run

    if open_run(runs_folder(), run).corpus.ids_only:
        warn(
            "no tokenizer was found for these tokens: text is shown as ids (`forensics import`"
            " --tokenizer)"
        )


def _tell_batch(contents: BatchContents) -> None:
    """Tell each sequence of a batch: where it comes from, its loss, its text."""
    elsewhere = contents.origin not in (None, contents.step)
    instead = f", which a fork put in the place of batch {contents.origin}" * elsewhere
    say(
        f"Batch {contents.step} of {contents.run}{instead}: {len(contents.sequences)} sequences,"
        " highest loss first"
    )
    for sequence in contents.sequences:
        loss = (
            f"loss {sequence.loss:.3f} nats/token"
            if sequence.loss is not None
            else "loss not recorded"
        )
        say(f"\nsequence {sequence.sequence} in row {sequence.slot} of the batch · {loss}")
        for place in sequence.documents:
            say(f"  {place.source}: {place.path} from token {place.offset}")
        if sequence.token_losses is not None:
            say("  loss by token: " + " ".join(f"{loss:.2f}" for loss in sequence.token_losses))
        for line in sequence.text.splitlines():
            say(f"  │ {line}")


@click.command(cls=Command, example="forensics spikes demo --metric grad_norm")
@click.argument("run")
@click.option(
    "--metric",
    type=click.Choice(["loss", "grad_norm"]),
    help="Only this one; both where it is left out.",
)
@click.option(
    "--detector",
    type=click.Choice(["robust", "monitor", "skip-step"]),
    default="robust",
    show_default=True,
    help="robust: far above the band of the values before, which follows a falling loss; the only"
    " one that tells kinds. monitor: far above their mean (OLMo-core's monitor). skip-step: where"
    " SkipStep would hold the update.",
)
@click.option(
    "--sigma",
    type=float,
    default=6.0,
    show_default=True,
    help="How many σ above are a spike.",
)
@click.option(
    "--window",
    type=int,
    default=128,
    show_default=True,
    help="Values before a step that it is judged by; from half of them on.",
)
def spikes(run: str, metric: Any, detector: Any, sigma: float, window: int) -> None:
    """List spikes with their kind, the spike score and the trend of the gradient norm.

    Kinds: batch (the next step is back in the band: the data was odd, the model was not hurt),
    fast (back within 10 steps of the peak), slow (later, or not within 100 steps).
    """
    from replay.spike_list import spikes_of

    listed = spikes_of(runs_folder(), run, metric, detector, sigma, window)
    emit(listed, lambda: tell_spikes(listed))


@click.command("first-bad-step", cls=Command, example="forensics first-bad-step demo")
@click.argument("run")
def first_bad(run: str) -> None:
    """Find the first step at which something went wrong, over every recorded column.

    A step is bad where one in 25 of all series (a column at one place) are 6 scales off what the
    values before let one expect, or eight of them 30 scales for two steps.
    """
    from replay.first_bad_step import first_bad_step_of

    result = first_bad_step_of(runs_folder(), run)
    emit(result, lambda: tell_first_bad(result))


@click.command(cls=Command, example='forensics note demo 401 "shuffled text came in here"')
@click.argument("run")
@click.argument("step", type=int)
@click.argument("text")
def note(run: str, step: int, text: str) -> None:
    """Write a logbook entry into the run's events."""
    from forensics.store.writer import Writer
    from forensics.train.header import now
    from forensics.train.run import open_run

    opened = open_run(runs_folder(), run)
    if not 0 <= step <= opened.header.steps:
        raise ForensicsError(
            "missing",
            f"wanted a step of {run}, found {step}",
            f"it has steps 0 to {opened.header.steps}",
        )
    event = {"step": step, "kind": "note", "text": text, "created": now()}
    with Writer(opened.folder) as writer:
        writer.append("events", **event)
    emit({"event": event}, lambda: say(f"The note stands at step {step} of {run}."))


@click.command(cls=Command, example="forensics doctor demo")
@click.argument("run", required=False)
def doctor(run: str | None) -> int:
    """Tell this machine's fingerprint; with a run, check its files hash by hash."""
    from replay.integrity import examine

    with bar("checking", "checkpoints") as progress:
        found = examine(runs_folder(), run, progress)

    def story() -> None:
        table(["This machine", ""], [list(row) for row in machine_rows(found.fingerprint)])
        if run is not None:
            say()
            _tell(found)

    emit(found, story)
    return 1 if found.problems else 0


def _tell(found: Examination) -> None:
    """Tell what was checked of a run, what was not, and what is wrong."""
    run, problems = found.run, found.problems
    if found.header_name is not None:
        say(f"{run} was copied or renamed: its header calls it {found.header_name}.")
    if differs := found.differs_from_run:
        say(
            f"This machine differs from the one that trained {run} in {', '.join(differs)}:"
            " a replay here may give other bits."
        )
    files = ", ".join(f"{check.files} of its {check.what}" for check in found.checks)
    if not problems:
        say(f"{run} is whole as far as it was checked: {found.checked} files ({files}).")
    else:
        count = f"{len(problems)} problem{'s' * (len(problems) != 1)}"
        say(f"{run} is damaged: {count}; whole are {found.checked} files ({files}).")
    for problem in problems:
        say(f"problem: {problem}")
    for left in found.unchecked:
        say(f"not checked: {left.what}, {left.files} file{'s' * (left.files != 1)} ({left.why})")
    if states := found.nonfinite_states:
        last = found.last_finite_state
        say(
            f"not finite: the states saved at {', '.join(map(str, states))} hold NaN or infinite"
            " numbers; "
            + (f"the last finite one is {last}." if last is not None else "none is finite.")
        )
