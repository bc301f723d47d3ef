"""The program `replay`. No logic here: each command calls the part of the engine that does it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from forensics.cli.console import NOT_EXACT, Program, emit, runs_folder, say, table, warn, workers
from forensics.cli.progress_bar import bar
from forensics.errors import ForensicsError
from forensics.state_name import parse_state
from replay.cli import output, step_output
from replay.cli.blame import blame
from replay.cli.boost import boost
from replay.cli.fork_options import ForkCommand, from_flags, steps
from replay.cli.imported import warm_moments


@click.group(cls=Program, name="replay", example="replay verify demo 390 410")
def main() -> None:
    """Re-run training between any two steps, exactly or with a difference, and compare."""


@main.command(example="replay verify demo 390 410")
@click.argument("run")
@click.argument("a", type=int)
@click.argument("b", type=int)
@warm_moments
def verify(run: str, a: int, b: int) -> int:
    """Replay A:B unaltered and compare every bit and every recorded loss."""
    from replay.verify import verify as verify_window

    with bar(f"replaying {a}:{b}") as progress:
        report = verify_window(runs_folder(), run, a, b, progress)
    if not report.fingerprint_equal:
        warn(
            "this machine is not the one that trained: "
            + ", ".join(report.fingerprint_differs)
            + " differ"
        )

    def story() -> None:
        say(f"{run} {a}:{report.verified_to}: {report.sentence()}.")
        if report.verified_to != b:
            say(
                f"State {b} has no recorded digest: the replay went on to the next saved state,"
                f" {report.verified_to}."
            )

    emit(report, story)
    return 0 if report.holds else 1


@main.command(
    cls=ForkCommand,
    example=(
        'replay fork demo --from 400 --to 420 \\\n  --remove-documents "select document from'
        " documents where source = 'damaged'\" --placebos 3"
    ),
)
@click.argument("run", metavar="RUN|SPEC.toml")
@click.option("--from", "first", type=int, help="The state it starts from.")
@click.option("--to", "last", type=int, help="First step that is no longer run.")
@click.option(
    "--placebos",
    type=int,
    default=None,
    metavar="N",
    help="The same on N sets of random sequences.",
)
@click.option(
    "--chaos",
    type=int,
    default=None,
    metavar="N",
    help="N forks whose start moved by one unit in the last place.",
)
@click.option(
    "--record",
    type=click.Choice(["off", "light", "dense"]),
    default=None,
    help="What the fork records.",
)
@click.option(
    "--probe-every", type=click.IntRange(min=1), default=None, help="Steps between probes."
)
@click.option(
    "--barrier", metavar="S,T,…", help="States at which to follow the loss from arm to control."
)
@click.option(
    "--name", metavar="ID", help="The fork's name; the hash of what it is, where left out."
)
@click.option("--dry-run", is_flag=True, help="Print the plan: what differs, hours and memory.")
@click.option("--again", is_flag=True, help="Run it though it is done.")
@warm_moments
def fork(run: str, dry_run: bool, again: bool, **flags: Any) -> None:
    """Run a control and an altered arm in lock-step from state A to B.

    Null forks (placebos, chaos) judge the difference.
    """
    from replay.forks import spec as specs
    from replay.forks.plan import plan
    from replay.forks.run import fork as run_fork
    from replay.lineage import open_trajectory

    runs = runs_folder()
    file = specs.read(Path(run)) if run.endswith(".toml") else {"parent": run}
    keys = specs.joined(file, from_flags(flags))
    spec = specs.build(runs, open_trajectory(runs, specs.parent_of(keys)), keys)
    if dry_run:
        planned = plan(spec, runs, again=again)
        emit(planned, lambda: output.plan(planned))
        return
    with bar(f"fork of {spec.parent}") as progress:
        result = run_fork(spec, runs, progress, again=again)
    emit(result, lambda: output.fork(result))


@main.command(
    example=(
        "replay scan demo@400 --batches 394:410\nreplay scan ./some-model --tokens ids.npy"
        " --batches 0:64"
    )
)
@click.argument("state", metavar="RUN@STEP|FOLDER")
@click.option(
    "--batches", required=True, metavar="A:B", help="The batches to hold against the state."
)
@click.option("--per-sequence", is_flag=True, help="Each sequence by itself.")
@click.option(
    "--tokens",
    type=click.Path(path_type=Path),
    help="With a folder: a file of token ids: .npy, bare, Megatron's .bin, datatrove's .ds.",
)
@click.option(
    "--dtype",
    type=click.Choice(["uint8", "uint16", "uint32", "int32", "int64"]),
    help="With a bare file of token ids: the type of one.",
)
@click.option(
    "--sequence-length", type=click.IntRange(min=2), help="With a folder: T.  [default: 128]"
)
@click.option(
    "--batch-size",
    type=click.IntRange(min=1),
    help="With a folder: sequences per batch.  [default: 8]",
)
@click.option(
    "--top",
    type=click.IntRange(min=1),
    default=20,
    show_default=True,
    help="Rows shown; --json has all.",
)
def scan(
    state: str,
    batches: str,
    per_sequence: bool,
    tokens: Path | None,
    dtype: str | None,
    sequence_length: int | None,
    batch_size: int | None,
    top: int,
) -> None:
    """One frozen state against many batches, no update: loss and gradient norm of each, worst
    first.
    """
    from forensics.config import window
    from replay.experiments import batch_scan as scans
    from replay.experiments.results import ScanResult

    first, last = window(batches, "--batches")
    if tokens is not None or ("/" in state and Path(state).is_dir()):
        if tokens is None:
            raise ForensicsError(
                "usage",
                "wanted --tokens FILE with a model folder, found none",
                "a file of token ids: .npy, bare, Megatron's .bin, datatrove's .ds",
            )
        target = scans.of_folder(
            Path(state), tokens, sequence_length or 128, batch_size or 8, runs_folder(), dtype
        )
    elif any(flag is not None for flag in (dtype, sequence_length, batch_size)):
        raise ForensicsError(
            "usage",
            "wanted --dtype, --sequence-length and --batch-size with a model folder, found"
            " RUN@STEP",
            "a run has its own; leave them out",
        )
    else:
        name, step = parse_state(state)
        target = scans.of_run(runs_folder(), name, step)
    for note in target.notes:
        warn(note)
    with bar("scanning", "batches") as progress:
        rows = scans.scan(target, first, last, per_sequence, progress)
    result = ScanResult(state, rows)
    emit(result, lambda: output.scan(result, per_sequence, top))


@main.command(example="replay diff demo demo-fork-1a2b3c4d")
@click.argument("run")
@click.argument("fork", metavar="FORK")
def diff(run: str, fork: str) -> None:
    """First step, layer and tensor that differ; distances by step."""
    from replay.run_diff import between

    result = between(runs_folder(), run, fork)

    def story() -> None:
        first = result.first_difference
        if first is None:
            say(f"{run} and {fork}: no difference was found over {len(result.divergence)} steps.")
        else:
            differing = first.tensor or first.what
            say(f"{run} and {fork} differ first at step {first.step}, in {differing}.")
        columns = ("step", "loss_gap", "logit_kl", "l2")
        if result.divergence:
            table(
                ["step", "loss gap (nats/token)", "KL (nats)", "L2 of the parameters"],
                [[getattr(row, column) for column in columns] for row in result.divergence],
            )
        if result.time_to_reconverge is not None:
            say(f"The fork is back among the placebos after {result.time_to_reconverge} steps.")

    emit(result, story)


@main.command(
    example=(
        "replay matrix demo\nreplay matrix demo --batches 398:406 --states 200,390,401\nreplay"
        " matrix demo --batches 398:406 --states 200,390 --window"
    )
)
@click.argument("run")
@click.option("--spike", type=int, metavar="S", help="The spike; left out, the largest.")
@click.option("--batches", metavar="A:B", help="The batches; left out, four from the spike on.")
@click.option(
    "--states",
    metavar="S,T,…",
    help="Any steps, the latest is judged; left out, the spike's and 20 before its onset.",
)
@click.option(
    "--window",
    "whole",
    is_flag=True,
    help="Run the whole window from each state: does it spike there too?",
)
@warm_moments
def matrix(
    run: str, spike: int | None, batches: str | None, states: str | None, whole: bool
) -> None:
    """Each batch from each state: is it the data, the state, or the two together?"""
    from forensics.config import window
    from replay.experiments import data_state_matrix as matrices
    from replay.experiments import windows_from_states

    first, last = window(batches, "--batches") if batches is not None else (None, None)
    chosen = steps(states, "--states") if states is not None else None
    with bar("matrix", "batches") as progress:
        arguments = (runs_folder(), run, first, last, chosen, progress, spike)
        if whole:
            windows = windows_from_states.windows(*arguments)
        else:
            cells = matrices.matrix(*arguments)
    if whole:
        emit(windows, lambda: output.windows(windows))
    else:
        emit(cells, lambda: output.matrix(cells))


@main.command(example="replay noise demo --at 50,200,390")
@click.argument("run")
@click.option(
    "--at", required=True, metavar="S,T,…", help="The states; any step, not only checkpoints."
)
@click.option(
    "--window", type=click.IntRange(min=3), default=32, show_default=True, help="Steps after each."
)
@click.option(
    "--seeds", type=click.IntRange(min=1), default=3, show_default=True, help="Chaos forks of each."
)
@warm_moments
def noise(run: str, at: str, window: int, seeds: int) -> None:
    """Null forks: how fast the smallest noise grows at each step."""
    from replay.experiments.divergence_rate import noise as measure_noise

    with bar("noise") as progress:
        result = measure_noise(runs_folder(), run, steps(at, "--at"), window, seeds, progress)
    emit(result, lambda: output.noise(result))


@main.command(example="replay sweep fork.toml --at 50,150,250 --workers 2 --seeds 3")
@click.argument("spec", metavar="SPEC.toml", type=click.Path(path_type=Path))
@click.option(
    "--at",
    required=True,
    metavar="S,T,…",
    help="Starting steps; the file's windows move with them.",
)
@workers
@click.option(
    "--seeds",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Draws of the null forks.",
)
@warm_moments
def sweep(spec: Path, at: str, workers: int, seeds: int) -> None:
    """Fork at many steps, by the run's own learning rate and at an equal one."""
    from replay.experiments.sweep import sweep as run_sweep
    from replay.forks import spec as specs

    keys = specs.read(spec)
    with bar("sweep", "forks") as progress:
        result = run_sweep(
            runs_folder(), keys, steps(at, "--at"), workers=workers, seeds=seeds, progress=progress
        )
    emit(result, lambda: output.sweep(result))


@main.command(example="replay state demo@401 ./state-401")
@click.argument("state", metavar="RUN@STEP")
@click.argument("dest", type=click.Path(path_type=Path))
@warm_moments
def state(state: str, dest: Path) -> None:
    """Write the exact state at any step as a checkpoint folder."""
    from replay.state_export import export_state

    name, step = parse_state(state)
    with bar("replaying") as progress:
        document = export_state(runs_folder(), name, step, dest, progress)
    if document["exact"] is False:
        warn(NOT_EXACT)
    emit(
        document,
        lambda: say(f"{name}@{document['step']} is in {dest}, digest {document['digest']}"),
    )


@main.command(example="replay trace demo 401 --perfetto step-401.json")
@click.argument("run")
@click.argument("step", type=int)
@click.option(
    "--perfetto",
    type=click.Path(path_type=Path),
    help="Write a Chrome trace, which Perfetto opens.",
)
@click.option(
    "--save-gradients",
    type=click.Path(path_type=Path),
    metavar="DEST",
    help="Keep the raw gradients and activations in a new folder, as safetensors.",
)
@click.option(
    "--top",
    type=click.IntRange(min=1),
    default=15,
    show_default=True,
    help="Rows shown of each table.",
)
@warm_moments
def trace(
    run: str, step: int, perfetto: Path | None, save_gradients: Path | None, top: int
) -> None:
    """Look inside one step, event by event, beside the step before."""
    from replay.step.perfetto import write_perfetto
    from replay.step.trace import trace as trace_step

    with bar("taking the update apart", "tensors") as progress:
        result = trace_step(runs_folder(), run, step, progress, save_gradients)
    if perfetto is not None:
        write_perfetto(result, perfetto)
    emit(result, lambda: step_output.trace(result, top))


@main.command(
    example="replay attention demo 401\nreplay attention demo 401 --slot 3 --states 350,401,410"
)
@click.argument("run")
@click.argument("step", type=int)
@click.option(
    "--slot",
    type=int,
    metavar="N",
    help="The sequence; left out, that of the batch's highest loss.",
)
@click.option(
    "--states", "at", metavar="S,T,…", help="The states; left out, 16 steps before, at and after."
)
@click.option(
    "--lens/--no-lens",
    default=True,
    show_default=True,
    help="The logit lens too, through TransformerLens.",
)
@click.option(
    "--top",
    type=click.IntRange(min=1),
    default=15,
    show_default=True,
    help="Heads shown; --json has all.",
)
@warm_moments
def attention(run: str, step: int, slot: int | None, at: str | None, lens: bool, top: int) -> None:
    """Follow one sequence through every head before, at and after a step, and the logit lens."""
    from replay.step.attention import attention as study_attention

    with bar("replaying", "states") as progress:
        states = steps(at, "--states") if at else None
        study = study_attention(runs_folder(), run, step, slot, states, lens, progress)
    emit(study, lambda: step_output.attention(study, top))


main.add_command(blame)
main.add_command(boost)


if __name__ == "__main__":
    main()
