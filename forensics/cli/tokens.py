"""`forensics tokens`: what is asked for, handed to the library, and told; see tokens_sheet."""

from __future__ import annotations

import click

from forensics.cli.console import Command, emit, runs_folder, warn
from forensics.cli.progress_bar import bar
from forensics.cli.tokens_sheet import print_sheet

# As `categories.CATEGORIES` and `indicators.INDICATORS`, which a test holds them to: those modules
# load numpy and torch.
CATEGORIES = (
    "OK",
    "OK_SPECIAL",
    "UNREACHABLE_SPECIAL",
    "UNDECODEABLE",
    "UNREACHABLE_SINGLE_TOKEN",
    "UNREACHABLE_MULTI_TOKEN",
)
INDICATORS = ("cosine", "cosine-centred", "cosine-without-pc", "euclidean", "input-norm", "bias")
SHOWN = 30  # rows of the table where --top is left out


@click.command(
    cls=Command,
    example=(
        "forensics tokens demo@300 --top 20\nforensics tokens model.gguf --verify --json\nforensics"
        " tokens ./olmo-1b --reference 50280-50303"
    ),
)
@click.argument("target", metavar="RUN[@STEP]|FOLDER|FILE.gguf|tokenizer.json")
@click.option(
    "--indicator",
    type=click.Choice(INDICATORS),
    help="Rank by this one; by default cosine where embeddings are tied, else input-norm.",
)
@click.option(
    "--reference",
    metavar="IDS",
    help="Ids that are known to be unused, e.g. 5,7-16; found by itself where left out.",
)
@click.option("--verify", is_flag=True, help="Prompt the model to repeat each candidate.")
@click.option(
    "--census",
    is_flag=True,
    help="Prompt for the whole vocabulary, and hold the 2% rule against it.",
)
@click.option(
    "--category",
    "only",
    multiple=True,
    type=click.Choice(CATEGORIES),
    help="List only these; may be repeated.",
)
@click.option(
    "--top",
    type=click.IntRange(min=1),
    help=f"List at most so many; {SHOWN} in a table, all in JSON where left out.",
)
@click.option(
    "--exact", is_flag=True, help="Of a run: hold the data order against the bits of the embedding."
)
@click.option(
    "--over-time",
    is_flag=True,
    help="Of a run: each indicator over all checkpoints, when tokens were trained, a forecast.",
)
def tokens(
    target: str,
    indicator: str | None,
    reference: str | None,
    verify: bool,
    census: bool,
    only: tuple[str, ...],
    top: int | None,
    exact: bool,
    over_time: bool,
) -> int:
    """Under-trained tokens of a run's state, a Hugging Face folder or a GGUF file; of a tokenizer,
    the categories.
    """
    from forensics.cli.console import settings
    from forensics.tokens.findings_document import document
    from forensics.tokens.target import open_target
    from forensics.tokens.under_trained import find
    from replay.lineage import open_trajectory

    if exact or over_time:
        from forensics.cli.tokens_data import tell_of_data

        with bar("reading", "") as reading:
            return tell_of_data(target, runs_folder(), open_trajectory, exact, over_time, reading)
    with bar("reading") as reading, bar("verifying", "tokens") as verifying:
        opened = open_target(target, runs_folder(), open_trajectory, reading)
        findings = find(
            opened,
            indicator=indicator,
            reference=reference,
            verify=verify,
            census=census,
            reading=reading,
            verifying=verifying,
        )
    limit = top if settings().json else top or SHOWN
    shown_document = document(
        findings, limit, only or _unusual(findings.indicator, settings().json)
    )
    for note in shown_document["notes"]:
        warn(note)
    emit(shown_document, lambda: print_sheet(shown_document))
    return 0


def _unusual(indicator: str | None, as_json: bool) -> tuple[str, ...]:
    """Return a table of a tokenizer alone lists what cannot be reached."""
    return () if indicator or as_json else CATEGORIES[2:]
