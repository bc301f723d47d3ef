"""`forensics tokens` as a sheet that people read: counts, what is suspect, what prompts told."""

from __future__ import annotations

from typing import Any

from forensics.cli.console import say, table
from forensics.visible import quoted

RANGES = 12  # of ids, that fit a line


def print_sheet(document: dict[str, Any]) -> None:
    """Print the document of `forensics tokens --json` as sentences and tables."""
    _print_counts(document)
    if document["indicator"]:
        _print_indicator(document)
    _print_verification(document["verification"])
    if document["tokens"]:
        say()
        _print_tokens(document)


def _print_counts(document: dict[str, Any]) -> None:
    sentences = [f"{document['target']} has {document['vocabulary']:,} tokens."]
    if document["tied"] is not None:
        output = (
            "is also its output matrix (tied)"
            if document["tied"]
            else "is not its output matrix (untied)"
        )
        sentences.append(f"Its embedding has {document['rows']:,} rows and {output}.")
    if document["padded"]:
        sentences.append(f"{document['padded']:,} rows of the embedding have no token (padding).")
    if document["without_row"]:
        sentences.append(
            f"{document['without_row']:,} tokens have no row in the embedding: they cannot be used."
        )
    say(" ".join(sentences))
    table(["category", "tokens"], [[name, n] for name, n in document["counts"].items()])
    summary = document["summary"]
    say(
        f"{summary['bytes_ascii']} tokens are an ASCII byte, {summary['bytes_utf8']} another byte"
        f" of UTF-8, {summary['bytes_unused_utf8']} a byte that no UTF-8 text holds,"
        f" {summary['special']} are special. Of the others {summary['unreachable']:,} are"
        " unreachable (no text is encoded to them), and"
        f" {summary['partial_utf8']:,} are part of a character."
    )


def _print_indicator(document: dict[str, Any]) -> None:
    from forensics.tokens.indicators import INDICATORS

    name, reference = document["indicator"], document["reference"]
    say(f"\nIndicator: {name}, {INDICATORS[name]}. The lower, the more suspect.")
    say(
        f"Reference (ids known to be unused): {reference['why']}: {_ranges(reference['ids'])}"
        if reference
        else "Reference (ids known to be unused): none."
    )
    if document["threshold"] is not None:
        say(
            f"Candidates: {document['candidates']:,} reachable tokens whose {name} is at most"
            f" {document['threshold']:.4g}, the 2nd percentile of the tokens in OK."
        )


def _print_verification(verification: dict[str, Any] | None) -> None:
    if verification is None:
        return
    if not verification["copies"]:
        say(f"Verification: {verification['verdict']}.")
        return
    say(
        f"Verification: prompted to repeat {verification['asked']:,} tokens, the model fails on"
        f" {verification['verified']:,} (verified: P < 0.01), on {verification['strong']:,} of"
        f" them strongly (P < 0.001). As a check, {verification['verdict']}. The prompts are"
        f" written around the token {quoted(verification['placeholder']['text'])}."
    )
    census = verification["census"]
    if census is not None:
        recall, precision = (
            f"{census[key]:.0%}" if census[key] is not None else "–"
            for key in ("recall", "precision")
        )
        say(
            f"Held against the whole vocabulary, the candidates (lowest 2%) hold {census['hits']:,}"
            f" of the {census['verified']:,} reachable verified tokens (recall {recall}), and"
            f" {census['hits']:,} of the {census['candidates']:,} candidates are verified"
            f" (precision {precision})."
        )


def _print_tokens(document: dict[str, Any]) -> None:
    tokens, indicator = document["tokens"], document["indicator"]
    exposed = any(token["exposure_in"] is not None for token in tokens)
    caused = any(token["cause"] for token in tokens)
    prompted = document["verification"] is not None
    columns = ["id", "text", "category"]
    columns += [indicator] if indicator else []
    columns += ["as input", "as target", "by gradient"] if exposed else []
    columns += ["P", "verified"] if prompted else []
    columns += ["cause"] if caused else []
    columns += ["encodes to"] if not indicator else []
    rows = []
    for token in tokens:
        row = [token["id"], _spelled(token), token["category"]]
        row += [token["indicator"]] if indicator else []
        if exposed:
            row += [token["exposure_in"], token["exposure_out"], token["exposure_grad"]]
        if prompted:
            row += [_probability(token), "strongly" if token["strong"] else token["verified"]]
        row += [token["cause"]] if caused else []
        row += [" ".join(map(str, token["encodes_to"] or []))] if not indicator else []
        rows.append(row)
    table(columns, rows)


def _probability(token: dict[str, Any]) -> str:
    if token["max_prob"] is None:
        return "–"
    return f"{'≥ ' if token['max_prob_is'] == 'at least' else ''}{token['max_prob']:.2g}"


def _spelled(token: dict[str, Any]) -> str:
    """Return its text; of a part of a character, what the vocabulary calls it."""
    return f"{quoted(token['raw'])} raw" if "\ufffd" in token["text"] else quoted(token["text"])


def _ranges(ids: list[int]) -> str:
    """5, 7–16, …, at most a line of them."""
    spans: list[list[int]] = []
    for id in ids:
        if spans and id == spans[-1][1] + 1:
            spans[-1][1] = id
        else:
            spans.append([id, id])
    words = [str(low) if low == high else f"{low}–{high}" for low, high in spans]
    return ", ".join(words[:RANGES]) + (f", … ({len(ids):,} in all)" if len(words) > RANGES else "")
