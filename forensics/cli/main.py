"""The program `forensics`. No logic here: each command calls the part of the library that does
it.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import click

from forensics.cli import source_notes
from forensics.cli.ablate import ablate
from forensics.cli.console import (
    NOT_EXACT,
    Program,
    emit,
    runs_folder,
    say,
    settings,
    table,
    visible,
    warn,
)
from forensics.cli.import_ import import_
from forensics.cli.progress_bar import bar
from forensics.cli.query import query
from forensics.cli.run_commands import batch, doctor, first_bad, list_runs, note, show, spikes
from forensics.cli.tokens import tokens
from forensics.cli.where import where
from forensics.state_name import parse_state


@click.group(cls=Program, name="forensics", example="forensics demo")
def main() -> None:
    """Train language models so that every step can be replayed, and look into the steps that went
    wrong.
    """


@main.command(example="forensics demo --quick")
@click.option(
    "--quick", is_flag=True, help="A smaller model and a shorter run: the same line in a minute."
)
def demo(quick: bool) -> None:
    """Train on real text, find the spike, replay it, and fork the run without its cause."""
    from replay.demo import tell

    with bar("demo") as progress:
        quiet = settings().json
        document = tell(runs_folder(), quick, progress, (lambda text: None) if quiet else say)
    emit(document, lambda: None)


@main.command(
    example=(
        "forensics train demo --name first --set train.steps=100\n"
        "forensics train demo --log-to tensorboard:./tb --log-to wandb:small-runs"
    )
)
@click.argument("recipe", metavar="RECIPE|FILE.toml")
@click.option(
    "--name", metavar="ID", help="The run's name; the recipe's, numbered, where it is left out."
)
@click.option(
    "--set",
    "changes",
    multiple=True,
    metavar="a.b=c",
    help="Change a key of the recipe; may be repeated.",
)
@click.option("--resume", is_flag=True, help="Go on from the last checkpoint.")
@click.option(
    "--log-to",
    multiple=True,
    metavar="KIND[:WHERE]",
    help="Also tell a tracker each step's numbers: tensorboard[:FOLDER], wandb[:PROJECT],"
    " trackio[:PROJECT]; may be repeated.",
)
def train(
    recipe: str,
    name: str | None,
    changes: tuple[str, ...],
    resume: bool,
    log_to: tuple[str, ...],
) -> int:
    """Train a run: record every step and save checkpoints."""
    from forensics import config

    loaded = config.load(recipe, changes)
    runs = runs_folder()
    stem = Path(recipe).stem
    name = name or (stem if resume else _unused(runs, stem))
    from forensics.store.reader import check_run_name

    check_run_name(name)
    from forensics.train.loop import train as train_run
    from forensics.train.run import open_run

    with bar("reading text", "bytes") as preparing, bar(f"training {visible(name)}") as progress:
        outcome = train_run(
            loaded,
            name=name,
            recipe_name=stem,
            runs=runs,
            resume=resume,
            arguments=sys.argv[1:],
            preparing=preparing,
            progress=progress,
            log_to=log_to,
            warn=warn,
        )

    def story() -> None:
        loss = f"loss {outcome.final_loss:.3f}" if outcome.final_loss is not None else "no loss"
        ending = (
            f", held-out {outcome.held_out_loss:.3f}" if outcome.held_out_loss is not None else ""
        )
        say(
            f"{outcome.run}: {outcome.steps:,} steps, {loss}{ending} nats/token,"
            f" {outcome.tokens_per_second:,.0f} tokens/s, {outcome.peak_memory_bytes / 2**20:,.0f}"
            " MiB at most"
        )
        if outcome.nonfinite:
            last = outcome.last_finite_state
            say(
                f"its last saved state holds {outcome.nonfinite:,} numbers that are not finite; "
                + (f"the last finite one is {last}" if last is not None else "none is finite")
                + f": forensics spikes {name} tells where it began"
            )
        for line in source_notes.lines(open_run(runs, outcome.run).corpus):
            say(line)
        if outcome.interrupted:
            say(
                f"interrupted at step {outcome.steps}: go on with `forensics train {recipe} --name"
                f" {name} --resume`"
            )
        else:
            say(f"next: forensics spikes {name}")

    emit(dataclasses.asdict(outcome), story)
    return 130 if outcome.interrupted else 0


def _unused(runs: Path, stem: str) -> str:
    number, name = 2, stem
    while (runs / name).exists():
        name, number = f"{stem}-{number}", number + 1
    return name


@main.command("export", example="forensics export demo@300 ./demo-300")
@click.argument("state", metavar="RUN@STEP")
@click.argument("dest", type=click.Path(path_type=Path))
def export(state: str, dest: Path) -> None:
    """Write a state at any step as a Hugging Face folder, which AutoModelForCausalLM opens."""
    from replay.state_export import export_state

    name, step = parse_state(state)
    with bar("replaying") as progress:
        document = export_state(runs_folder(), name, step, dest, progress)
    if document["exact"] is False:
        warn(NOT_EXACT)
    emit(document, lambda: say(f"{name} at step {document['step']} is in {dest}"))


@main.command(
    example=(
        "forensics probe demo loss --text passage.txt\nforensics probe demo my_metric.py:sharpness"
        " --steps 0:200"
    )
)
@click.argument("run")
@click.argument("probe", metavar="PROBE|FILE.py:FUNCTION")
@click.option(
    "--steps", metavar="A:B|S,T,…", help="Only these checkpoints; all where it is left out."
)
@click.option(
    "--text",
    type=click.Path(path_type=Path),
    help="A text to read; the held-out set where it is left out.",
)
def probe(run: str, probe: str, steps: str | None, text: Path | None) -> None:
    """One metric over all checkpoints: loss, norms, group-norms, attention, effective-rank, cka, or
    your function.

    A function is called with (params, model, run) and returns a number or a dictionary of numbers.
    """
    from forensics.probes.runner import probe as probe_run

    with bar(f"probing {visible(run)}", "checkpoints") as progress:
        document = probe_run(runs_folder(), run, probe, steps, text, progress)

    def story() -> None:
        say(f"{probe} of {run}" + (f" on {document['text']}" if document["text"] else ""))
        points = document["points"]
        names = list(
            dict.fromkeys(n for p in points if isinstance(p["value"], dict) for n in p["value"])
        )
        if not names:
            table(["step", "value"], [[p["step"], p["value"]] for p in points])
            return
        # a line per name: there are more names than fit across
        table(
            ["", *(str(p["step"]) for p in points)],
            [[n, *((p["value"] or {}).get(n) for p in points)] for n in names],
        )

    emit(document, story)


@main.command(example="forensics app --port 8501")
@click.option(
    "--port", type=click.IntRange(1, 65535), default=8501, show_default=True, help="On 127.0.0.1."
)
def app(port: int) -> None:
    """Serve the app in the browser until Ctrl-C: runs, spikes, batches, heads, forks, tokens."""
    from app.start import ADDRESS, serve

    emit(
        {"url": f"http://{ADDRESS}:{port}"},
        lambda: say(f"the app is on http://{ADDRESS}:{port} — Ctrl-C ends it"),
    )
    serve(runs_folder(), port)


for command in (
    *(list_runs, show, batch, spikes, first_bad, query, where, note, doctor, tokens, ablate),
    import_,
):
    main.add_command(command)

if __name__ == "__main__":
    main()
