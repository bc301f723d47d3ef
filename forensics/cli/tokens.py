"""`forensics tokens`: what is asked for, handed to the library, and told."""

from __future__ import annotations

import unicodedata
from typing import Any

import click

from forensics.cli.console import Command, emit, runs_folder, say, table, warn
from forensics.cli.progress_bar import bar

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
UNSEEN = {0x115F, 0x1160, 0x3164, 0xFFA0, 0x034F}  # letters and marks without a shape


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
    emit(shown_document, lambda: _tell(shown_document))
    return 0


def _unusual(indicator: str | None, as_json: bool) -> tuple[str, ...]:
    """Return a table of a tokenizer alone lists what cannot be reached."""
    return () if indicator or as_json else CATEGORIES[2:]


def _tell(told: dict[str, Any]) -> None:
    matrix = (
        ""
        if told["tied"] is None
        else f" · {told['rows']:,} rows, {'tied' if told['tied'] else 'untied'}"
    )
    say(f"{told['target']}: {told['vocabulary']:,} tokens{matrix}")
    if told["padded"]:
        say(f"{told['padded']:,} rows of the embedding have no token: padding")
    if told["without_row"]:
        say(f"{told['without_row']:,} tokens have no row in the embedding: they cannot be used")
    table(["category", "tokens"], [[k, v] for k, v in told["counts"].items()])
    s = told["summary"]
    say(
        f"beside bytes ({s['bytes_ascii']} ascii, {s['bytes_utf8']} utf8, {s['bytes_unused_utf8']}"
        f" unused_utf8) and {s['special']} specials: {s['unreachable']:,} unreachable,"
        f" {s['partial_utf8']:,} partial UTF-8"
    )
    if told["indicator"]:
        from forensics.tokens.indicators import INDICATORS as meaning

        say(f"\nindicator: {told['indicator']}, {meaning[told['indicator']]}; low is suspect")
        say(
            f"reference: {told['reference']['why']}: {_ranges(told['reference']['ids'])}"
            if told["reference"]
            else "reference: none"
        )
        if told["threshold"] is not None:
            say(
                f"candidates: {told['candidates']:,} reachable tokens up to the 2nd percentile,"
                f" {told['threshold']:.4g}"
            )
    _tell_verification(told["verification"])
    if told["tokens"]:
        say()
        _list(told)


def _tell_verification(told: dict[str, Any] | None) -> None:
    if told is None:
        return
    if not told["copies"]:
        say(f"verification: {told['verdict']}")
        return
    say(
        f"verification: {told['verified']:,} of {told['asked']:,} tokens are verified (P < 0.01),"
        f" {told['strong']:,} of them strongly (P < 0.001); {told['verdict']}; placeholder"
        f" {shown(told['placeholder']['text'])}"
    )
    if (census := told["census"]) is not None:
        recall, precision = (
            f"{census[k]:.0%}" if census[k] is not None else "–" for k in ("recall", "precision")
        )
        say(
            f"the 2% rule against the census: recall {recall}, precision {precision}"
            f" ({census['hits']:,} of {census['verified']:,} true ones among"
            f" {census['candidates']:,})"
        )


def _list(told: dict[str, Any]) -> None:
    columns = ["id", "text", "category"]
    exposed = any(t["exposure_in"] is not None for t in told["tokens"])
    caused = any(t["cause"] for t in told["tokens"])
    rows = []
    if told["indicator"]:
        columns.append(told["indicator"])
    columns += ["in", "out", "grad"] if exposed else []
    columns += ["P", "verified"] if told["verification"] else []
    columns += ["cause"] if caused else []
    columns += ["encodes to"] if not told["indicator"] else []
    for t in told["tokens"]:
        row = [t["id"], _spelled(t), t["category"]]
        row += [t["indicator"]] if told["indicator"] else []
        row += [t["exposure_in"], t["exposure_out"], t["exposure_grad"]] if exposed else []
        row += [_p(t), "strongly" if t["strong"] else t["verified"]] if told["verification"] else []
        row += [t["cause"]] if caused else []
        row += [" ".join(map(str, t["encodes_to"] or []))] if not told["indicator"] else []
        rows.append(row)
    table(columns, rows)


def _p(token: dict[str, Any]) -> str:
    if token["max_prob"] is None:
        return "–"
    return f"{'≥ ' if token['max_prob_is'] == 'at least' else ''}{token['max_prob']:.2g}"


def _spelled(token: dict[str, Any]) -> str:
    """Its text; of a part of a character, what the vocabulary calls it."""
    return f"{shown(token['raw'])} raw" if "\ufffd" in token["text"] else shown(token["text"])


def shown(text: str) -> str:
    """Return a token between quotation marks.

    What has no shape, or would move others, as ⟨U+202E⟩.
    """
    return "'" + "".join(f"⟨U+{ord(c):04X}⟩" if _shapeless(c) else c for c in text) + "'"


def _shapeless(c: str) -> bool:
    # control, format (bidi, zero-width), surrogate, private, unassigned, line and paragraph
    # separators, spaces but " "
    return (
        unicodedata.category(c) in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")
        or (unicodedata.category(c) == "Zs" and c != " ")
        or ord(c) in UNSEEN
        or 0xFE00 <= ord(c) <= 0xFE0F
    )


def _ranges(ids: list[int]) -> str:
    """5, 7–16, …, at most a line of them."""
    parts: list[list[int]] = []
    for id in ids:
        if parts and id == parts[-1][1] + 1:
            parts[-1][1] = id
        else:
            parts.append([id, id])
    words = [str(a) if a == b else f"{a}–{b}" for a, b in parts]
    return ", ".join(words[:12]) + (f", … ({len(ids):,} in all)" if len(words) > 12 else "")
