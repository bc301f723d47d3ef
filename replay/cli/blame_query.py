"""`replay blame --query` and `--eval`: their flags, and how the result is told."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from forensics.cli.console import emit, runs_folder, say, table, warn
from forensics.cli.progress_bar import bar
from forensics.errors import ForensicsError
from replay import tolerance

if TYPE_CHECKING:
    from replay.blame.query.result import InfluenceResult

SPIKE_ONLY = ("spike", "method", "force", "of")  # flags that ask about a spike
QUERY_ONLY = ("at", "validate")
SUBSETS = 32  # replay.blame.query.datamodel_score.SUBSETS, without loading it
FEWEST_SUBSETS = 8
STEPS, SEQUENCES = 16, 16  # rows of the tables


class WindowType(click.ParamType):
    """K steps, or batches A to B−1 as A:B."""

    name = "window"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> int | tuple[int, int]:
        """Read `16` or `84:100`."""
        if not isinstance(value, str):
            return value  # type: ignore[no-any-return]
        first, colon, last = value.partition(":")
        if not colon and first.isdecimal() and int(first) > 0:
            return int(first)
        if colon and first.isdecimal() and last.isdecimal() and int(first) < int(last):
            return int(first), int(last)
        self.fail(f"wanted K of at least 1, or A:B with A < B, found {value!r}", param, ctx)


@dataclass(frozen=True)
class QuestionFlags:
    """What is asked where it is no spike."""

    query: str | None
    eval: Path | None
    at: int | None
    validate: int | None

    @property
    def given(self) -> bool:
        """Return whether a text is asked about."""
        return self.query is not None or self.eval is not None


def query_options(command: Callable[..., int]) -> Callable[..., int]:
    """Add the flags of a question; the command gets them as `question`."""

    @functools.wraps(command)
    def called(
        query: str | None, eval: Path | None, at: int | None, validate: int | None, **flags: Any
    ) -> int:
        question = QuestionFlags(query, eval, at, validate)
        _refuse_mixed(question)
        return command(question=question, **flags)

    for option in reversed(_OPTIONS):
        called = option(called)
    return called


_OPTIONS = (
    click.option(
        "--query", metavar="TEXT", help="Ask about the loss of this text instead of a spike."
    ),
    click.option(
        "--eval",
        type=click.Path(path_type=Path, dir_okay=False),
        metavar="FILE",
        help=(
            "The same of a text file, or of a .jsonl with a `text` in every line; a text longer"
            " than the context is cut into windows that share one token."
        ),
    ),
    click.option(
        "--at",
        type=int,
        metavar="STATE",
        help="The state whose loss is asked about; left out, the run's last.",
    ),
    click.option(
        "--validate",
        is_flag=False,
        flag_value=str(SUBSETS),
        type=click.IntRange(min=FEWEST_SUBSETS),
        metavar="[N]",
        help=(
            "Measure how good the influences are: leave N (32) random tenths of the window out by"
            " replay and rank what was foretold against what came (linear datamodeling score)."
        ),
    ),
)


def spike_window(window: int | tuple[int, int] | None) -> int | None:
    """Return K. Errors: usage, for A:B, which is the window of a question."""
    if isinstance(window, tuple):
        raise ForensicsError(
            "usage",
            f"wanted --window K, found {window[0]}:{window[1]}: a spike's window ends at the spike",
            "--window K, or --query TEXT --window A:B",
        )
    return window


def _refuse_mixed(question: QuestionFlags) -> None:
    """Refuse flags that contradict each other. Errors: usage."""
    context = click.get_current_context()

    def given(names: Sequence[str]) -> list[str]:
        source = context.get_parameter_source
        return [
            f"--{name}"
            for name in names
            if name in context.params and source(name) is ParameterSource.COMMANDLINE
        ]

    with_text = given(("query", "eval"))
    if len(with_text) > 1:
        raise ForensicsError(
            "usage", "wanted one text, found --query and --eval", "leave one of them out"
        )
    if with_text and given(SPIKE_ONLY):
        raise ForensicsError(
            "usage",
            f"{', '.join(given(SPIKE_ONLY))} asks about a spike, {with_text[0]} about a text",
            "leave one of them out",
        )
    if not with_text and given(QUERY_ONLY):
        raise ForensicsError(
            "usage",
            f"{', '.join(given(QUERY_ONLY))} asks about a text, found none",
            "--query TEXT or --eval FILE",
        )


def blame_query(
    run: str,
    question: QuestionFlags,
    window: int | tuple[int, int] | None,
    placebos: int | None,
    float64: bool,
    tokens: bool,
    html: Path | None,
) -> int:
    """Answer which data moved the loss of a text, and tell it."""
    from forensics.store.writer import write_atomic
    from replay.blame.query.investigate import QueryOptions, ask
    from replay.blame.query.page import html_page
    from replay.blame.query.text import query_of_file, query_of_text
    from replay.cli.blame import tell_text

    options = QueryOptions(
        at=question.at,
        window=window,
        placebos=placebos,
        validate=question.validate,
        precision="float64" if float64 else "float32",
        tokens=tokens,
    )
    with bar(f"blame of {run}") as progress:
        answer = ask(
            runs_folder(),
            run,
            lambda opened: (
                query_of_file(opened, question.eval)
                if question.eval is not None
                else query_of_text(opened, question.query or "")
            ),
            options,
            progress,
        )
    result = answer.result
    texts = [answer.candidate_text(candidate) for candidate in result.candidates]
    if html is not None:
        write_atomic(html, html_page(result, texts).encode())

    def story() -> None:
        tell(result)
        tell_text(texts[:3], "raises the loss", "lowers it")

    emit(result, story)
    if result.interrupted:
        warn("interrupted: this is what was known by then")
    return 130 if result.interrupted else 0


def tell(result: InfluenceResult) -> None:
    """Tell the result, its sentence first."""
    from replay.cli.blame import tell_sums

    if not result.control.bitwise:
        say(tolerance.limits(tolerance.WINDOW))
    say(result.sentence)
    first, last = result.window
    say(f"\nThe text: {' '.join(result.query.text.split())}")
    say(f"Control ({result.control.level}): {result.control.sentence}.")
    say(f"Batches {first} to {last - 1} were examined.")
    for note in result.notes:
        say(f"Note: {note}")
    if result.condition is not None and result.condition.ok:
        say(result.condition.sentence)
    if result.validation is not None:
        say(result.validation.sentence)
    say(
        "\nMost influential sequences. influence: nats/token by which the text's loss falls without"
        " the sequence, to first order; below 0 the sequence lowers the loss"
    )
    table(
        ["step", "slot", "sequence", "influence", "source", "document"],
        [
            [c.step, c.slot, c.sequence, c.influence, c.source, c.path]
            for c in result.candidates[:SEQUENCES]
        ],
    )
    tell_sums(result.documents, result.sources, "nats/token")
    strongest = sorted(result.steps, key=lambda step: -abs(step.influence))[:STEPS]
    say("\nInfluence by batch (nats/token)")
    table(["step", "influence"], [[step.step, step.influence] for step in strongest])
    say(
        f"\n{result.replays} replays, {result.steps_replayed:,} training steps in all,"
        f" {result.seconds:.0f} s."
    )
