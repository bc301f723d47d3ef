"""The program `replay`. No logic here: each command calls the part of the engine that does it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from forensics.console import Program, emit, runs_folder, say, state_of, table, warn
from forensics.errors import ForensicsError
from forensics.progress import bar


@click.group(cls=Program, name="replay", example="replay verify demo 390 410")
def main() -> None:
    """Re-run training between any two steps, exactly or with a difference, and compare."""


@main.command(example="replay verify demo 390 410")
@click.argument("run")
@click.argument("a", type=int)
@click.argument("b", type=int)
def verify(run: str, a: int, b: int) -> int:
    """Replay A:B unaltered and compare every bit and every recorded loss."""
    import dataclasses

    from replay.engine import verify as go

    with bar(f"replaying {a}:{b}") as progress:
        report, end = go(runs_folder(), run, a, b, progress)
    document = dataclasses.asdict(report) | {"run": run, "from": a, "to": b, "verified_to": end}
    if not report.fingerprint_equal:
        warn("this machine is not the one that trained: " + ", ".join(report.fingerprint_differs) + " differ")

    def story() -> None:
        say(f"{run} {a}:{end} {report.sentence()}")
        if end != b:
            say(f"no digest was recorded at {b}: went on to the next checkpoint, {end}")

    emit(document, story)
    return 0 if report.bitwise else 1


@main.command(
    example="replay fork demo --from 400 --to 420 \\\n  --remove-documents \"select document from documents where source = 'damaged'\" --placebos 3"
)
@click.argument("run", metavar="RUN|SPEC.toml")
@click.option("--from", "first", type=int, help="The state it starts from.")
@click.option("--to", "last", type=int, help="First step that is no longer run.")
@click.option("--skip", multiple=True, metavar="A:B", help="Consume the batches, compute nothing.")
@click.option("--skip-frozen", multiple=True, metavar="A:B", help="The same with the schedule frozen.")
@click.option("--zero-update", multiple=True, metavar="A:B", help="Forward and backward, no update.")
@click.option("--hold-parameters", multiple=True, metavar="A:B", help="Moments advance, parameters stay.")
@click.option("--drop", multiple=True, metavar="A:B", help="Leave the batches out; later ones move up.")
@click.option("--swap", multiple=True, metavar="S,T", help="Exchange two batches.")
@click.option("--remove-documents", multiple=True, metavar="SQL", help="SQL that returns a column `document`.")
@click.option("--how", type=click.Choice(["replace", "mask", "repack"]), default="replace", show_default=True)
@click.option("--mask-tokens", multiple=True, metavar="SQL", help="SQL that returns a column `token` of ids.")
@click.option("--lr-scale", multiple=True, metavar="F@A:B", help="Learning rate times F.")
@click.option("--placebos", type=int, default=None, metavar="N", help="The same on N sets of random sequences.")
@click.option(
    "--chaos", type=int, default=None, metavar="N", help="N forks whose start moved by one unit in the last place."
)
@click.option("--record", type=click.Choice(["off", "light", "dense"]), default=None, help="What the fork records.")
@click.option("--probe-every", type=click.IntRange(min=1), default=None, help="Steps between probes.")
@click.option("--name", metavar="ID", help="The fork's name; the hash of what it is, where left out.")
@click.option("--dry-run", is_flag=True, help="Print the plan: what differs, hours and memory.")
@click.option("--again", is_flag=True, help="Run it though it is done.")
def fork(run: str, dry_run: bool, again: bool, **flags: Any) -> None:
    """A control and an altered arm in lock-step from state A to B; with null forks to judge the difference by."""
    from replay import spec as specs
    from replay.engine import fork as go
    from replay.engine import plan
    from replay.trajectory import open_trajectory

    runs = runs_folder()
    raw = specs.read(Path(run)) if run.endswith(".toml") else {"parent": run}
    raw |= {k: v for k, v in _from_flags(flags).items() if v not in (None, [])}
    if not isinstance(raw.get("parent"), str):
        raise ForensicsError("config", "the fork file names no parent", 'e.g. parent = "demo"')
    spec = specs.build(runs, open_trajectory(runs, raw["parent"]), raw)
    if dry_run:
        document = plan(spec, runs)
        emit(document, lambda: _tell_plan(document))
        return
    with bar(f"fork of {spec.parent}") as progress:
        document = go(spec, runs, progress, again=again)
    emit(document, lambda: _tell_fork(document))


def _from_flags(flags: dict[str, Any]) -> dict[str, Any]:
    """The flags as a fork file's keys."""
    made: list[dict[str, Any]] = []
    for kind in ("drop", "skip", "skip-frozen", "zero-update", "hold-parameters"):
        made += [{"kind": kind, "window": text} for text in flags[kind.replace("-", "_")]]
    for text in flags["swap"]:
        a, comma, b = text.partition(",")
        if not (comma and a.strip().isdecimal() and b.strip().isdecimal()):
            raise ForensicsError("usage", f"wanted --swap S,T, found {text!r}", "e.g. --swap 200,210")
        made.append({"kind": "swap", "a": int(a), "b": int(b)})
    for text in flags["lr_scale"]:
        factor, at, where = text.partition("@")
        try:
            made.append({"kind": "lr-scale", "factor": float(factor), "window": where})
        except ValueError:
            at = ""
        if not at:
            raise ForensicsError("usage", f"wanted --lr-scale F@A:B, found {text!r}", "e.g. --lr-scale 0.5@200:210")
    made += [{"kind": "remove-documents", "sql": sql, "how": flags["how"]} for sql in flags["remove_documents"]]
    made += [{"kind": "mask-tokens", "sql": sql} for sql in flags["mask_tokens"]]
    kept = {k: flags[k] for k in ("placebos", "chaos", "record", "probe_every", "name")}
    return kept | {"from": flags["first"], "to": flags["last"], "intervention": made}


def _tell_plan(p: dict[str, Any]) -> None:
    say(f"{p['fork']}: {p['parent']} from state {p['from']} to {p['to']}, {p['does']}")
    if p["sequences"]:
        steps = sorted(p["sequences_by_step"])
        say(
            f"{p['sequences']} sequences of {len(steps)} steps ({steps[0]} to {steps[-1]}) are touched, {p['tokens']:,} targets, {len(p['documents'])} documents"
        )
    say(
        f"{p['arms']} arms, {p['steps_to_compute']:,} steps, about {p['hours']:.3f} hours, {p['memory_bytes'] / 2**20:,.0f} MiB of states"
    )


def _tell_fork(r: dict[str, Any]) -> None:
    final = r["final"]
    if not r["control"]["bitwise"]:
        say("TOLERANCE ONLY")
    say(f"{r['fork']} {r['does']}, from state {r['from']} to {r['to']}")
    say(f"control: {r['control']['level']}; {r['control']['sentence']}")
    if final["loss_fork"] is not None:
        gap = final["loss_fork"] - final["loss_control"]
        say(
            f"probe loss {final['loss_control']:.3f} → {final['loss_fork']:.3f} ({gap:+.3f} ± {final['loss_error'] or 0:.3f}, {final['probe_sequences']} sequences), KL {final['logit_kl']:.3g}, L2 {final['l2']:.3g}"
        )
    times = (
        f"{final['effect']:.3g} times the placebos' median, p = {final['p']:.2g}, N = {final['placebos']}: "
        if final["effect"] is not None
        else ""
    )
    say(times + final["verdict"])
    if r["time_to_reconverge"] is not None:
        say(f"back among the placebos after {r['time_to_reconverge']} steps")
    elif r["censored"]:
        say(f"not back among the placebos within the window ({r['censored']} steps)")


@main.command(
    example="replay scan demo@400 --batches 394:410\nreplay scan ./some-model --tokens ids.npy --batches 0:64"
)
@click.argument("state", metavar="RUN@STEP|FOLDER")
@click.option("--batches", required=True, metavar="A:B", help="The batches to hold against the state.")
@click.option("--per-sequence", is_flag=True, help="Each sequence by itself.")
@click.option(
    "--tokens", type=click.Path(path_type=Path), help="With a folder: a flat file of token ids, .npy or uint16 .bin."
)
@click.option("--sequence-length", type=click.IntRange(min=2), default=128, show_default=True, help="With a folder: T.")
@click.option(
    "--batch-size", type=click.IntRange(min=1), default=8, show_default=True, help="With a folder: sequences per batch."
)
@click.option("--top", type=click.IntRange(min=1), default=20, show_default=True, help="Rows shown; --json has all.")
def scan(
    state: str, batches: str, per_sequence: bool, tokens: Path | None, sequence_length: int, batch_size: int, top: int
) -> None:
    """One frozen state against many batches, no update: loss and gradient norm of each, worst first."""
    from forensics.config import window
    from replay import scan as scans

    first, last = window(batches, "--batches")
    if tokens is not None or ("/" in state and Path(state).is_dir()):
        if tokens is None:
            raise ForensicsError(
                "usage",
                "wanted --tokens FILE with a model folder, found none",
                "a flat file of token ids, .npy or uint16 .bin",
            )
        target = scans.of_folder(Path(state), tokens, sequence_length, batch_size, runs_folder())
    else:
        name, step = state_of(state)
        target = scans.of_run(runs_folder(), name, step)
    with bar("scanning", "batches") as progress:
        rows = scans.scan(target, first, last, per_sequence, progress)

    def story() -> None:
        columns = ["step", "slot", "loss", "grad_norm"] if per_sequence else ["step", "loss", "grad_norm"]
        table(columns, [[row[c] for c in columns] for row in rows[:top]])

    emit({"state": state, "batches": rows}, story)


@main.command(example="replay diff demo demo-fork-1a2b3c4d")
@click.argument("run")
@click.argument("fork", metavar="FORK")
def diff(run: str, fork: str) -> None:
    """First step, layer and tensor that differ; distances by step."""
    from replay.difference import between

    document = between(runs_folder(), run, fork)

    def story() -> None:
        first = document["first_difference"]
        if first is None:
            say(f"{run} and {fork}: no difference found")
        else:
            say(f"first difference: step {first['step']}, {first.get('tensor') or first.get('what')}")
        rows = [[row[k] for k in ("step", "loss_gap", "logit_kl", "l2")] for row in document["divergence"]]
        if rows:
            table(["step", "loss_gap", "logit_kl", "l2"], rows)
        if document["time_to_reconverge"] is not None:
            say(f"back among the placebos after {document['time_to_reconverge']} steps")

    emit(document, story)


@main.command(example="replay state demo@401 ./state-401")
@click.argument("state", metavar="RUN@STEP")
@click.argument("dest", type=click.Path(path_type=Path))
def state(state: str, dest: Path) -> None:
    """The exact state at any step, as a checkpoint folder."""
    from replay.look import export_state

    name, step = state_of(state)
    with bar("replaying") as progress:
        document = export_state(runs_folder(), name, step, dest, progress)
    emit(document, lambda: say(f"{name}@{document['step']} is in {dest}, digest {document['digest']}"))


@main.command(example="replay trace demo 401 --perfetto step-401.json")
@click.argument("run")
@click.argument("step", type=int)
@click.option("--perfetto", type=click.Path(path_type=Path), help="Write a Chrome trace, which Perfetto opens.")
@click.option("--top", type=click.IntRange(min=1), default=15, show_default=True, help="Rows shown of each table.")
def trace(run: str, step: int, perfetto: Path | None, top: int) -> None:
    """One step under the microscope, event by event, beside the step before."""
    from replay import microscope

    with bar("taking the update apart", "tensors") as progress:
        document = microscope.trace(runs_folder(), run, step, progress)
    if perfetto is not None:
        microscope.write_perfetto(document, perfetto)
    emit(document, lambda: _tell_trace(document, top))


def _tell_trace(t: dict[str, Any], top: int) -> None:
    same = {
        True: "the recorded step, bit for bit",
        False: "NOT the recorded step: tolerance only",
        None: "no digest was recorded",
    }
    say(f"{t['run']} step {t['step']} beside step {t['baseline']}: {same[t['exact']]}")
    say("\nin order")
    rows = []
    for e in t["events"]:
        if e["phase"] == "update":
            continue
        shown = "  ".join(
            f"{n} {v:.4g}" + (f" ({e['ratio'][n]:.2f}×)" if e["ratio"].get(n) else "")
            for n, v in e["values"].items()
            if v is not None
        )
        rows.append([round(e["start"] * 1e3, 2), round(e["seconds"] * 1e3, 2), e["name"], shown])
    table(["at ms", "ms", "event", "values (ratio to the step before)"], rows)
    say("\nmoved most")
    table(
        ["event", "what", "value", "before", "ratio"],
        [[r["event"], r["what"], r["value"], r["baseline"], r["ratio"]] for r in t["largest"][:top]],
    )
    blame = t["layer_blame"]
    say(f"\nupdate {t['baseline']} moved the loss of batch {t['step']} by {blame['rise_batch']:+.4f} "
        f"(what the moments carried {blame['memory_batch']:+.4f}, what the data added {blame['data_batch']:+.4f})")  # fmt: skip
    table(
        ["tensor", "alone", "all but it"],
        [[r["tensor"], r["alone_batch"], r["without_batch"]] for r in blame["tensors"][:top]],
    )
    say("\nalong the update")
    table(["α", "batch", "probe"], [[r["alpha"], r["batch"], r["probe"]] for r in t["line_scan"]])


if __name__ == "__main__":
    main()
