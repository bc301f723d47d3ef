"""`replay blame`: the command and how it tells its result."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from forensics.cli.console import Command, emit, runs_folder, say, table, visible, warn
from forensics.cli.progress_bar import bar
from replay import tolerance
from replay.cli.blame_quantity import blame_another_quantity
from replay.cli.blame_query import (
    QuestionFlags,
    WindowType,
    blame_query,
    query_options,
    spike_window,
)
from replay.cli.imported import warm_moments

if TYPE_CHECKING:
    from rich.text import Text

    from replay.blame.influence_text import CandidateText
    from replay.blame.result import (
        BlameResult,
        DocumentInfluence,
        SourceInfluence,
        UpdateBlame,
    )

BAR = 30  # characters of the longest bar of the deletion curve
COLOURED = 3  # candidates whose text is shown
DOCUMENTS = 8  # rows of the table of documents
TENSORS, STALE = 6, 3  # rows of the tables of tensors


@click.command(
    cls=Command,
    example=(
        "replay blame demo --spike 400\nreplay blame demo --spike 400 --html blame.html\nreplay"
        " blame demo --query 'def parse(text):' --at 400 --window 384:400 --validate"
    ),
)
@click.argument("run")
@click.option(
    "--spike", type=int, metavar="S", help="The step; left out, the largest spike of the loss."
)
@click.option(
    "--window",
    type=WindowType(),
    metavar="K|A:B",
    help=(
        "Look at the K steps before it; left out, at those since the run was calm in which the"
        " model became worse. With --query or --eval also A:B, batches A to B-1; left out, the last"
        " 16 before the state."
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
    help="Random removals; left out, 3, or 19 where they take no step.",
)
@click.option(
    "--null-windows",
    type=click.IntRange(min=1),
    metavar="N",
    help=(
        "Windows without a spike that are searched the same way, for p; left out, as many as"
        " decide, at most 19."
    ),
)
@click.option(
    "--tokens", is_flag=True, help="--json holds the influence of every token of the candidates."
)
@click.option(
    "--float64",
    is_flag=True,
    help="Compute the metagradient in float64, where float32 is ill-conditioned.",
)
@click.option(
    "--html",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write the suspects' text, coloured, as a page.",
)
@click.option("--force", is_flag=True, help="Blame a step that no detector calls a spike.")
@click.option(
    "--of",
    type=click.Choice(["loss", "grad_norm"]),
    help="What spiked; left out, what the detector flagged there.",
)
@click.option(
    "--group",
    metavar="ATTRIBUTE",
    help="An attribute of the documents: those of one value are a suspect, as a source is.",
)
@query_options
@warm_moments
def blame(
    run: str,
    spike: int | None,
    window: int | tuple[int, int] | None,
    method: str,
    placebos: int | None,
    null_windows: int | None,
    tokens: bool,
    float64: bool,
    html: Path | None,
    force: bool,
    of: str | None,
    group: str | None,
    question: QuestionFlags,
) -> int:
    """Find the step, sequence, document, token and tensor that caused a spike, proved by replay.

    With --query or --eval: the data that moved the loss of any text.
    """
    from forensics.store.writer import write_atomic
    from replay.blame.case import BlameOptions
    from replay.blame.influence_text import html_page
    from replay.blame.investigate import investigate

    if question.given:
        return blame_query(run, question, window, placebos, float64, tokens, html)
    steps = spike_window(window)
    another = blame_another_quantity(run, spike, of, force)
    if another is not None:
        return another
    options = BlameOptions(
        window=steps,
        method=method,  # type: ignore[arg-type]
        placebos=placebos,
        null_windows=null_windows,
        precision="float64" if float64 else "float32",
        tokens=tokens,
        force=force,
        group=group,
    )
    with bar(f"blame of {run}") as progress:
        investigation = investigate(runs_folder(), run, spike, options, progress)
    result = investigation.result
    texts = [investigation.candidate_text(candidate) for candidate in result.candidates]
    if html is not None:
        write_atomic(html, html_page(result, texts).encode())
    emit(result, lambda: tell(result, texts[:COLOURED]))
    if result.interrupted:
        warn("interrupted: this is what was known by then")
    return 130 if result.interrupted else 0


def tell(result: BlameResult, texts: Sequence[CandidateText]) -> None:
    """Tell the result as a story, the verdict first; `texts` of the first candidates."""
    from replay.blame.sentences import cause, excess_sentence, rules_lines

    spike = result.spike
    if not result.control.bitwise:
        say(tolerance.limits(tolerance.WINDOW))
    say(f"{cause(result.verdict)} {result.sentence}")
    if spike.remark:
        say(spike.remark)
    height = f", {spike.sigma:.1f}σ above the steps before" if spike.sigma is not None else ""
    say(f"\nStep {spike.step}: loss {spike.value:.3f} nats/token{height}.")
    say(f"Control ({result.control.level}): {result.control.sentence}.")
    say(excess_sentence(result.excess, spike.step))
    first, last = result.window
    say(
        f"Causes were looked for in batches {first} to {last}; the model is measured on"
        f" {result.probes}."
    )
    for note in result.notes:
        say(f"Note: {note}")
    if result.condition is not None and result.condition.ok:
        say(result.condition.sentence)
    _tell_curve(result)
    _tell_candidates(result)
    tell_text(texts, "raises the spike", "lowers it")
    if result.tensors is not None:
        _tell_update(result.tensors)
    say(
        f"\n{result.replays} replays, {result.steps_replayed:,} training steps in all,"
        f" {result.seconds:.0f} s."
    )
    say("\nJudged by (docs/formulas.md has the reasons):")
    for line in rules_lines(result.rules):
        say(line)


def _tell_curve(result: BlameResult) -> None:
    if not result.deletion_curve:
        return
    say(
        f"\nNats by which the loss of step {result.spike.step} falls when the most influential"
        " sequences are removed together (█), and with as many random ones (░)"
    )
    largest = max(point.excess_removed for point in result.deletion_curve)
    for point in result.deletion_curve:
        removed, random = point.excess_removed, point.random or 0.0
        by_influence = f"{removed:>8.3f} {_bar(removed, largest, '█'):<{BAR}}"
        at_random = f"{random:>8.3f} {_bar(random, largest, '░')}"
        say(f"{point.removed:>6}  {by_influence}  {at_random}".rstrip())


def _bar(value: float, largest: float, mark: str) -> str:
    return mark * round(BAR * min(value, largest) / largest) if largest > 0 and value > 0 else ""


def _tell_candidates(result: BlameResult) -> None:
    if not result.candidates:
        return
    say(
        "\nMost influential sequences. influence: nats of the spike that go with the sequence, by"
        " the gradient; replayed: that really go when it alone is removed"
    )
    table(
        ["step", "slot", "sequence", "part", "influence", "replayed", "source", "document"],
        [
            [c.step, c.slot, c.sequence, c.part, c.influence, c.replayed_effect, c.source, c.path]
            for c in result.candidates
        ],
    )
    tell_sums(result.documents, result.sources, "nats")
    if result.groups:
        say(f"\nInfluence by {result.groups[0].attribute} (nats)")
        table(
            [result.groups[0].attribute, "influence", "documents"],
            [[g.value, g.influence, g.documents] for g in result.groups[:DOCUMENTS]],
        )


def tell_sums(
    documents: Sequence[DocumentInfluence], sources: Sequence[SourceInfluence], unit: str
) -> None:
    """Tell influence summed by document and by source."""
    say(f"\nInfluence by document ({unit})")
    table(
        ["document", "source", "path", "influence", "sequences"],
        [[d.document, d.source, d.path, d.influence, d.sequences] for d in documents[:DOCUMENTS]],
    )
    say(f"\nInfluence by source ({unit})")
    table(
        ["source", "influence", "documents"],
        [[s.source, s.influence, s.documents] for s in sources],
    )


def tell_text(texts: Sequence[CandidateText], red: str, blue: str) -> None:
    """Show the text of candidates, coloured by influence: what red does, and blue."""
    from rich.console import Console

    from replay.blame.influence_text import largest_influence

    if not texts:
        return
    console = Console(file=sys.stdout, highlight=False, soft_wrap=True)
    largest = largest_influence(texts)
    say(f"\nText of the most influential sequences: red {red}, blue {blue}")
    for text in texts:
        candidate = text.candidate
        path = visible(str(candidate.path))
        say(f"— batch {candidate.step}, slot {candidate.slot}, {candidate.source} {path}")
        console.print(coloured(text, largest), markup=False, emoji=False)


def coloured(text: CandidateText, largest: float) -> Text:
    """Colour a candidate's text for the terminal; the corpus is never read as markup."""
    from rich.text import Text

    from replay.blame.influence_text import shade

    line = Text()
    for piece in text.pieces:
        darkness = shade(piece.influence, largest)
        channel = 2 * int(90 * abs(darkness))
        if abs(darkness) < 0.15:
            style = None
        elif darkness > 0:
            style = f"white on rgb({40 + channel},30,30)"
        else:
            style = f"white on rgb(30,40,{40 + channel})"
        line.append(piece.text.replace("\n", "⏎"), style=style)
    return line


def _tell_update(update: UpdateBlame) -> None:
    from replay.blame.sentences import nats

    probes = (
        f"the loss on the probe sequences by {nats(update.rise_probe, signed=True)} nats and "
        if update.rise_probe is not None
        else ""
    )
    say(
        f"\nUpdate {update.update} changed {probes}that of batch {update.batch} by"
        f" {nats(update.rise_batch, signed=True)}. By tensor: what its part does alone, and all"
        " others without it"
    )
    table(
        ["tensor", "alone: probes", "alone: batch", "without: probes"],
        [
            [effect.tensor, effect.alone_probe, effect.alone_batch, effect.without_probe]
            for effect in update.tensors[:TENSORS]
        ],
    )
    stale = [tensor for tensor in update.stale if tensor.times][:STALE]
    if stale:
        say("\nSecond moments furthest out of date")
        table(
            ["tensor", "staleness", "before", "at step", "rms_t"],
            [[s.tensor, s.staleness, s.usual, s.step, s.rms_t] for s in stale],
        )
