"""`replay blame`: the command and how it tells its result."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from forensics.cli.console import Command, emit, runs_folder, say, table, visible, warn
from forensics.cli.progress_bar import bar

BAR = 30  # characters of the longest bar of the deletion curve


@click.command(
    cls=Command,
    example="replay blame demo --spike 400\nreplay blame demo --spike 400 --html blame.html",
)
@click.argument("run")
@click.option(
    "--spike", type=int, metavar="S", help="The step; left out, the largest spike of the loss."
)
@click.option(
    "--window",
    type=click.IntRange(min=1),
    metavar="K",
    help=(
        "Steps before it that are gone into; left out, those of the last 16 in which the model"
        " became worse."
    ),
)
@click.option(
    "--method",
    type=click.Choice(["metagradient", "leave-one-out", "bisect"]),
    default="metagradient",
    show_default=True,
)
@click.option(
    "--placebos",
    type=click.IntRange(min=1),
    metavar="N",
    help="Random removals; left out, as many as the rule for causal words needs.",
)
@click.option(
    "--tokens", is_flag=True, help="--json holds the influence of every token of the candidates."
)
@click.option(
    "--float64",
    "wide",
    is_flag=True,
    help="Metagradient in float64, where float32 is ill-conditioned.",
)
@click.option(
    "--html",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="The suspects' text, coloured, as a page.",
)
@click.option("--force", is_flag=True, help="Blame a step that no detector calls a spike.")
def blame(
    run: str,
    spike: int | None,
    window: int | None,
    method: str,
    placebos: int | None,
    tokens: bool,
    wide: bool,
    html: Path | None,
    force: bool,
) -> int:
    """Which step, sequence, document, token and tensor made a spike; proved by replay against
    random removals.
    """
    from replay.blame.investigate import blame as go

    with bar(f"blame of {run}") as progress:
        document = go(
            runs_folder(),
            run,
            spike,
            window=window,
            method=method,
            placebos=placebos,
            tokens=tokens,
            force=force,
            precision="float64" if wide else "float32",
            progress=progress,
            page=html,
        )
    coloured = document.pop("coloured")
    emit(document, lambda: tell(document, coloured))
    if document["interrupted"]:
        warn("interrupted: this is what was known by then")
    return 130 if document["interrupted"] else 0


def tell(d: dict[str, Any], coloured: list[list[tuple[str, float]]]) -> None:
    """The result as a story, the verdict first."""
    spike, excess = d["spike"], d["excess"]
    if not d["control"]["bitwise"]:
        say("TOLERANCE ONLY")
    say(f"{d['verdict'].upper()}. {d['sentence']}")
    if spike["words"]:
        say(spike["words"])
    size = f", {spike['sigma']:.1f}σ" if spike["sigma"] is not None else ""
    say(
        f"\nstep {spike['step']}: loss {spike['value']:.3f}{size}; control: {d['control']['level']}"
        f" ({d['control']['sentence']})"
    )
    say(
        f"excess {_nats(excess['total'])} = data part {_nats(excess['data'])} + state part"
        f" {_nats(excess['state'])}, on {d['probes']}, window {d['window'][0]}:{d['window'][1]}"
    )
    for note in d["notes"]:
        say(f"note: {note}")
    if d["condition"] and d["condition"]["ok"]:
        say(d["condition"]["sentence"])
    _tell_curve(d)
    _tell_candidates(d, coloured)
    _tell_tensors(d)
    say(f"\n{d['replays']} replays of {d['steps_replayed']:,} steps, {d['seconds']:.0f} s")


def _tell_curve(d: dict[str, Any]) -> None:
    if not d["deletion_curve"]:
        return
    say("\nremoved together: nats of the excess that go (█), and with as many random ones (░)")
    largest = max((p["taken"] for p in d["deletion_curve"]), default=0.0)
    for p in d["deletion_curve"]:
        random = p["random"] or 0.0
        say(
            f"{p['removed']:>6}  {p['taken']:>8.3f} {_bar(p['taken'], largest, '█'):<{BAR}} "
            f" {random:>8.3f} {_bar(random, largest, '░')}".rstrip()
        )


def _bar(value: float, largest: float, mark: str) -> str:
    return mark * round(BAR * min(value, largest) / largest) if largest > 0 and value > 0 else ""


def _tell_candidates(d: dict[str, Any], coloured: list[list[tuple[str, float]]]) -> None:
    if not d["candidates"]:
        return
    say("\nstrongest sequences")
    rows = [
        [
            c["step"],
            c["slot"],
            c["sequence"],
            c["part"],
            c["influence"],
            c["replayed_effect"],
            c["source"],
            c["path"],
        ]
        for c in d["candidates"]
    ]
    table(["step", "slot", "sequence", "part", "influence", "replayed", "source", "document"], rows)
    say("\nby document")
    table(
        ["document", "source", "path", "influence", "sequences"],
        [
            [r["document"], r["source"], r["path"], r["influence"], r["sequences"]]
            for r in d["documents"][:8]
        ],
    )
    say("\nby source")
    table(
        ["source", "influence", "documents"],
        [[s["source"], s["influence"], s["documents"]] for s in d["sources"]],
    )
    _tell_text(d, coloured)


def _tell_text(d: dict[str, Any], coloured: list[list[tuple[str, float]]]) -> None:
    from rich.console import Console

    from replay.blame.influence_text import coloured as shaded

    console = Console(file=sys.stdout, highlight=False, soft_wrap=True)
    largest = max((abs(v) for parts in coloured for _, v in parts), default=0.0)
    say("\nwhat the strongest say (red raises the spike, blue lowers it)")
    for each, parts in zip(d["candidates"], coloured):
        say(
            f"— batch {each['step']}, slot {each['slot']}, {each['source']}"
            f" {visible(str(each['path']))}"
        )
        console.print(shaded(parts, largest), markup=False, emoji=False)


def _tell_tensors(d: dict[str, Any]) -> None:
    t = d["tensors"]
    if t is None:
        return
    probe = (
        f"the probes' loss by {_nats(t['rise_probe'])} and " if t["rise_probe"] is not None else ""
    )
    say(
        f"\nupdate {t['update']} moved {probe}that of batch {d['spike']['step']} by"
        f" {_nats(t['rise_batch'])}; by tensor"
    )
    table(
        ["tensor", "alone: probes", "alone: batch", "all but it: probes"],
        [
            [r["tensor"], r["alone_probe"], r["alone_batch"], r["without_probe"]]
            for r in t["tensors"][:6]
        ],
    )
    stale = [s for s in t["stale"] if s["times"]][:3]
    if stale:
        table(
            ["second moment", "staleness", "before", "at step", "rms_t"],
            [[s["tensor"], s["staleness"], s["usual"], s["step"], s["rms_t"]] for s in stale],
        )


def _nats(x: float | None) -> str:
    return "–" if x is None else f"{x:+.3f}"
