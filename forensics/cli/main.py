"""The program `forensics`. No logic here: each command calls the part of the library that does
it.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import click

from forensics.cli.console import Program, cell, emit, runs_folder, say, settings, table, visible
from forensics.cli.progress_bar import bar
from forensics.cli.tokens import tokens
from forensics.errors import ForensicsError
from forensics.json_documents import plain
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
    """Return the whole line on real text.

    Train, find the spike, replay it, scan it, fork without its cause.
    """
    from replay.demo import tell

    with bar("demo") as progress:
        quiet = settings().json
        document = tell(runs_folder(), quick, progress, (lambda text: None) if quiet else say)
    emit(document, lambda: None)


@main.command(example="forensics train demo --name first --set train.steps=100")
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
def train(recipe: str, name: str | None, changes: tuple[str, ...], resume: bool) -> int:
    """Train, record, save."""
    from forensics import config

    loaded = config.load(recipe, changes)
    runs = runs_folder()
    stem = Path(recipe).stem
    name = name or (stem if resume else _unused(runs, stem))
    from forensics.store.reader import check_run_name

    check_run_name(name)
    from forensics.train.loop import train as go

    with bar("reading text", "bytes") as preparing, bar(f"training {visible(name)}") as progress:
        outcome = go(
            loaded,
            name=name,
            recipe_name=stem,
            runs=runs,
            resume=resume,
            arguments=sys.argv[1:],
            preparing=preparing,
            progress=progress,
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


@main.command("list", example="forensics list --json")
def list_runs() -> None:
    """List runs and forks as a tree."""
    from forensics.store.reader import runs_in
    from forensics.train.run import open_run

    headers = [open_run(runs_folder(), name).header for name in runs_in(runs_folder())]
    names = {h.name for h in headers}
    shown = (
        "name",
        "status",
        "recipe",
        "parent",
        "parent_step",
        "first_step",
        "steps",
        "parameters",
        "created",
    )
    document = {"runs": [{k: getattr(h, k) for k in shown} for h in headers]}

    def story() -> None:
        if not headers:
            say(f"no run in {runs_folder()} yet: forensics demo")

        def branch(parent: str | None, indent: str) -> None:
            children = [
                h
                for h in headers
                if h.parent == parent or (parent is None and h.parent not in names)
            ]
            for h in sorted(children, key=lambda h: (h.parent_step or 0, h.created)):
                where = f"{h.first_step}:{h.steps}" if h.parent else f"{h.steps:,} steps"
                say(
                    f"{indent}{h.name}  {where}  {h.status}  {h.parameters / 1e6:.1f}M parameters "
                    f" {h.created}"
                )
                branch(h.name, indent + "  └ ")

        branch(None, "")

    emit(document, story)


@main.command(example="forensics show demo")
@click.argument("run")
def show(run: str) -> None:
    """One run's header: its recipe, data, model, machine and saved states."""
    from forensics.train.run import open_run

    opened = open_run(runs_folder(), run)
    document = dataclasses.asdict(opened.header) | {"checkpoints": opened.saved_steps()}

    def story() -> None:
        for key, value in document.items():
            if isinstance(value, dict):
                say(f"{key}:")
                for inner, v in value.items():
                    say(f"  {inner}: {v}")
            else:
                say(f"{key}: {value}")

    emit(document, story)


@main.command(example="forensics batch demo 401\nforensics batch demo 401 --token-losses --json")
@click.argument("run")
@click.argument("step", type=int)
@click.option(
    "--token-losses",
    "by_token",
    is_flag=True,
    help="--json holds each target's loss, by exact replay.",
)
def batch(run: str, step: int, by_token: bool) -> None:
    """Tell what the model saw at a step.

    Each sequence's text, documents and loss, highest loss first.
    """
    from replay.step.batch_contents import batch_at, token_losses_at

    if by_token:
        with bar(f"replaying to {step}") as progress:
            contents = token_losses_at(runs_folder(), run, step, progress)
    else:
        contents = batch_at(runs_folder(), run, step)

    def story() -> None:
        elsewhere = contents.origin not in (None, step)
        say(f"batch {step} of {run}" + (f", in the place of {contents.origin}" * elsewhere))
        for sequence in contents.sequences:
            loss = f"loss {sequence.loss:.3f}" if sequence.loss is not None else "loss not recorded"
            say(f"\nslot {sequence.slot} · sequence {sequence.sequence} · {loss}")
            for place in sequence.documents:
                say(f"  {place.source}: {place.path} from token {place.offset}")
            if sequence.token_losses is not None:
                say("  loss by token: " + " ".join(f"{x:.2f}" for x in sequence.token_losses))
            for line in sequence.text.splitlines():
                say(f"  │ {line}")

    emit(contents, story)


@main.command(example="forensics spikes demo --metric grad_norm")
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
)
def spikes(run: str, metric: str | None, detector: str) -> None:
    """Spikes with their kind, the spike score and the trend of the gradient norm."""
    from replay.spike_list import spikes_of

    document = spikes_of(runs_folder(), run, metric, detector)

    def story() -> None:
        score = document["spike_score"]
        for name in ("loss", "grad_norm"):
            value = f"{score[name]:.2f}%" if score[name] is not None else "too short to tell"
            say(f"spike score of {name}: {value} (n = {score['n']})")
        slope = document["trend"]["grad_norm"]
        if slope and slope.get("slope") is not None:
            say(f"gradient norm: {100 * slope['slope'] * 1000:+.1f}% per 1,000 steps")
        rows = [
            [
                s[k]
                for k in (
                    "step",
                    "metric",
                    "kind",
                    "value",
                    "baseline",
                    "sigma",
                    "onset",
                    "recovered_at",
                )
            ]
            for s in document["spikes"]
        ]
        if rows:
            table(
                ["step", "metric", "kind", "value", "baseline", "sigma", "onset", "recovered"], rows
            )
        else:
            say("no spike")

    emit(document, story)


@main.command(example="forensics query worst_sequences --param run=demo --param step=401")
@click.argument("name", required=False)
@click.option(
    "--param",
    "parameters",
    multiple=True,
    metavar="k=v",
    help="A parameter of the named query; may be repeated.",
)
@click.option("--sql", metavar="TEXT", help="Any one SELECT over the tables, in a sandbox.")
@click.option(
    "--list",
    "listing",
    is_flag=True,
    help="Names of the queries, tables and macros; with NAME, one of them whole.",
)
@click.option(
    "--format",
    "shape",
    type=click.Choice(["table", "json", "csv", "parquet"]),
    default=None,
    help="How rows come out; table where it is left out.",
)
@click.option(
    "--limit", type=click.IntRange(min=1), default=100_000, show_default=True, help="Rows at most."
)
def query(
    name: str | None,
    parameters: tuple[str, ...],
    sql: str | None,
    listing: bool,
    shape: str | None,
    limit: int,
) -> None:
    """Return a named query, or any read-only SQL, over all that was recorded."""
    import queries
    from forensics.store.sandbox import run_sandboxed

    if (sql is not None) + (listing or name is not None) != 1:
        raise ForensicsError(
            "usage",
            "wanted one of NAME, --sql TEXT and --list",
            "`forensics query --list` shows what there is",
        )
    if listing:
        _list_queries(name, as_json=shape == "json")
        return
    if sql is not None:
        rows = run_sandboxed(runs_folder(), sql, limit=limit)
    else:
        assert name is not None
        values = dict(_pair(text) for text in parameters)
        rows = queries.run(runs_folder(), name, values).slice(0, limit)
    _write_rows(rows, shape or ("json" if settings().json else "table"))


def _list_queries(name: str | None, *, as_json: bool) -> None:
    """Print the names of all that can be asked, or one query, table or macro whole."""
    import queries

    settings().json |= as_json
    if name is None:
        emit(queries.listing(), lambda: say(queries.names_text()))
    else:
        emit(queries.about(name), lambda: say(queries.about_text(name)))


def _pair(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals:
        raise ForensicsError(
            "usage", f"wanted --param name=value, found {text!r}", "e.g. --param run=demo"
        )
    return key, value


def _write_rows(rows: Any, shape: str) -> None:
    if shape == "json":
        import json

        click.echo(json.dumps(plain(rows.to_pylist()), default=str))
    elif shape == "table":
        table(rows.column_names, [[_shown(v) for v in row.values()] for row in rows.to_pylist()])
    else:
        import pyarrow.csv
        import pyarrow.parquet

        write = pyarrow.csv.write_csv if shape == "csv" else pyarrow.parquet.write_table
        with click.open_file("-", "wb") as stream:
            write(rows, stream)
    if (rows.schema.metadata or {}).get(b"truncated") == b"true":
        click.echo("warning: cut at --limit rows", err=True)


def _shown(value: Any) -> Any:
    return value if value is None or isinstance(value, (int, float, str)) else cell(value)


@main.command("export", example="forensics export demo@300 ./demo-300")
@click.argument("state", metavar="RUN@STEP")
@click.argument("dest", type=click.Path(path_type=Path))
def export(state: str, dest: Path) -> None:
    """Return a Hugging Face folder of the state at any step: it opens in AutoModelForCausalLM."""
    from replay.state_export import export_state

    name, step = parse_state(state)
    with bar("replaying") as progress:
        document = export_state(runs_folder(), name, step, dest, progress)
    emit(document, lambda: say(f"{name} at step {document['step']} is in {dest}"))


@main.command(example='forensics note demo 401 "shuffled text came in here"')
@click.argument("run")
@click.argument("step", type=int)
@click.argument("text")
def note(run: str, step: int, text: str) -> None:
    """Return a logbook entry into the run's events."""
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
    emit({"event": event}, lambda: say(f"noted at step {step} of {run}"))


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
    from forensics.probes.runner import probe as go

    with bar(f"probing {visible(run)}", "checkpoints") as progress:
        document = go(runs_folder(), run, probe, steps, text, progress)

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


@main.command(example="forensics doctor demo")
@click.argument("run", required=False)
def doctor(run: str | None) -> int:
    """Return this machine's fingerprint and determinism; a run's integrity, hash by hash."""
    from replay.integrity import examine

    with bar("checking", "files") as progress:
        document = examine(runs_folder(), run, progress)

    def story() -> None:
        for key, value in document["fingerprint"].items():
            say(f"{key}: {value}")
        if run is not None:
            say(f"{run}: {document['checked']} checks, {len(document['problems'])} problems")
        for problem in document["problems"]:
            say(f"problem: {problem}")

    emit(document, story)
    return 1 if document["problems"] else 0


@main.command(example="forensics app --port 8501")
@click.option(
    "--port", type=click.IntRange(1, 65535), default=8501, show_default=True, help="On 127.0.0.1."
)
def app(port: int) -> None:
    """Return the app.

    Runs, spikes, batches, heads, forks and tokens in the browser. Ctrl-C ends it; its work goes on.
    """
    from app.start import ADDRESS, serve

    emit(
        {"url": f"http://{ADDRESS}:{port}"},
        lambda: say(f"the app is on http://{ADDRESS}:{port} — Ctrl-C ends it"),
    )
    serve(runs_folder(), port)


main.add_command(tokens)

if __name__ == "__main__":
    main()
