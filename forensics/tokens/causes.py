"""Why a token is under-trained: each reason with its evidence, counted from the tokenizer, the
corpus and the data order.

    causes(run, ledger(run, 300), ids)[4711]
    # [Cause("merge-scaffold", "12 of its 12,004 occurrences stand alone …", {…})]

    unreachable       the tokenizer never makes it, from any text
    partial-utf8      part of a character: only text that holds such characters has it
    tokenizer-only    frequent in the tokenizer's training text, rare in what the model was shown
    merge-scaffold    nearly always inside a longer token that was merged from it (intersection
                      over self, arXiv 2409.04599)
    single-document   met in one document only, several times
    forgotten         met early, and for long not any more
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from forensics.progress import ProgressCallback, silent
from forensics.tokens.categories import Categories
from forensics.tokens.exposure import Exposure
from forensics.tokens.exposure_tally import UNSEEN
from forensics.tokens.vocabulary import texts
from forensics.train.run import Run

if TYPE_CHECKING:
    from tokenizers import Tokenizer

NAMES = (
    "unreachable",
    "partial-utf8",
    "tokenizer-only",
    "merge-scaffold",
    "single-document",
    "forgotten",
)
CHUNK = 1 << 22  # tokens of the corpus counted together
FEW = 100  # exposures up to which a token is looked into where no ids are given
EXPECTED = 10.0  # times that a token must be expected before its absence says anything
ABSENT = 0.1  # of what was expected
# intersection over self from which a token is a scaffold; the threshold of arXiv 2409.04599
SCAFFOLD = 0.9
EARLY = 0.5  # of the run, by which a forgotten token was seen last
CHANCE = 1e-3  # that a token which comes as often throughout was seen last so early


@dataclass(frozen=True)
class Cause:
    """One reason why a token is under-trained, with its evidence."""

    name: str  # one of NAMES
    sentence: str
    evidence: dict[str, Any]

    def document(self) -> dict[str, Any]:
        """Return the cause as plain JSON."""
        return {"cause": self.name, "sentence": self.sentence, "evidence": self.evidence}


def causes(
    run: Run,
    exposure: Exposure,
    ids: Iterable[int] | None = None,
    categories: Categories | None = None,
    progress: ProgressCallback = silent,
) -> dict[int, list[Cause]]:
    """Token → its reasons, the strongest first, in the order of NAMES; tokens without any are left
    out.

    Without `ids`, every token with at most FEW exposures is looked into, and those that no text can
    reach. `exposure` is the run's ledger. Errors: missing, integrity.
    """
    from forensics.tokens.categories import categorise

    categories = categories or categorise(run.corpus.tokenizer)
    ids = suspects(exposure, categories) if ids is None else ids
    chosen = [int(id) for id in ids if id in categories.position and id < run.shape.vocabulary]
    causes_of: dict[int, list[Cause]] = {}
    by_source = corpus_counts(run, progress)
    each_found = [
        of_tokenizer(categories, chosen),
        _tokenizer_only(run, exposure, by_source, chosen),
        _scaffolds(run, by_source.sum(0), chosen),
        _single_document(run, exposure, chosen),
        _forgotten(exposure, chosen),
    ]
    for rule in each_found:
        for id, cause in rule.items():
            causes_of.setdefault(id, []).append(cause)
    return dict(sorted(causes_of.items()))


def suspects(exposure: Exposure, categories: Categories) -> np.ndarray:
    """Ids (n,) with at most FEW exposures, and those that no text can reach."""
    few = np.flatnonzero(np.maximum(exposure.exposure_in, exposure.exposure_out) <= FEW)
    return np.union1d(few, categories.ids[~categories.reachable])


def strongest(found: dict[int, list[Cause]]) -> dict[int, str]:
    """Token → the name of its first reason: the column `cause` of `vocabulary`."""
    return {id: reasons[0].name for id, reasons in found.items()}


def corpus_counts(run: Run, progress: ProgressCallback = silent) -> np.ndarray:
    """How often each token stands in each source of the corpus, read or not: (sources, V) int64."""
    counts, counted = np.zeros((len(run.corpus.sources), run.shape.vocabulary), np.int64), 0
    for s, source in enumerate(run.corpus.sources):
        for at in range(0, source.tokens, CHUNK):
            tokens = run.corpus.tokens(s, at, min(at + CHUNK, source.tokens))
            counts[s] += np.bincount(tokens, minlength=counts.shape[1])
            counted += len(tokens)
            progress(counted, run.corpus.tokens_in_all, "counting the corpus")
    return counts


# ---- the reasons


def of_tokenizer(categories: Categories, ids: Iterable[int]) -> dict[int, Cause]:
    """Tell what a tokenizer says by itself, without a model or data: unreachable, partial-utf8."""
    causes_of = {}
    for id in ids:
        place = categories.position[id]
        category, spelled = categories.category[place], categories.raw[place]
        if category.startswith("UNREACHABLE"):
            again = categories.again[place]
            causes_of[id] = Cause(
                "unreachable",
                f"its text {categories.text[place]!r} is encoded as {again}, never as {id}",
                {"text": categories.text[place], "encoded_as": again},
            )
        elif category == "UNDECODEABLE":
            kind = categories.byte[place]
            words = (
                "a byte that no UTF-8 text holds"
                if kind == "unused_utf8"
                else "part of a character"
            )
            causes_of[id] = Cause(
                "partial-utf8", f"{spelled!r} is {words}", {"spelling": spelled, "byte": kind}
            )
    return causes_of


def _tokenizer_only(
    run: Run, exposure: Exposure, by_source: np.ndarray, ids: Iterable[int]
) -> dict[int, Cause]:
    """Where the tokenizer was trained on the corpus: tokens it holds far more of than the model was
    shown.
    """
    if run.recipe.data.tokenizer != "train":
        return {}  # what another tokenizer was trained on is not known
    names = [source.name for source in run.corpus.sources]
    in_all = by_source.sum(0)
    share = exposure.exposure_in.sum() / max(
        int(in_all.sum()), 1
    )  # of the corpus that was read; above 1 after an epoch
    causes_of = {}
    for id in ids:
        met, expected = int(exposure.exposure_in[id]), float(in_all[id] * share)
        if expected < EXPECTED or met > ABSENT * expected:
            continue
        by_source_name = {name: int(n) for name, n in zip(names, by_source[:, id]) if n}
        where = ", ".join(f"{n:,} in {name}" for name, n in by_source_name.items())
        causes_of[id] = Cause(
            "tokenizer-only",
            f"the tokenizer's data holds it {in_all[id]:,} times ({where}); the model was shown "
            f"it {met:,} times, where {expected:,.0f} were to be expected",
            {
                "in_tokenizer_data": int(in_all[id]),
                "by_source": by_source_name,
                "exposure_in": met,
                "expected": expected,
            },
        )
    return causes_of


def _scaffolds(run: Run, counts: np.ndarray, ids: Iterable[int]) -> dict[int, Cause]:
    inside, longest = inside_longer(run.corpus.tokenizer, counts)
    text, causes_of = texts(run), {}
    for id in ids:
        occurrences = int(inside[id] + counts[id])
        if not occurrences or inside[id] / occurrences < SCAFFOLD or longest[id] < 0:
            continue
        longer = int(longest[id])
        causes_of[id] = Cause(
            "merge-scaffold",
            f"{counts[id]:,} of its {occurrences:,} occurrences stand alone, the rest inside "
            f"longer tokens, most often {text[longer]!r}",
            {
                "alone": int(counts[id]),
                "inside": int(inside[id]),
                "intersection_over_self": inside[id] / occurrences,
                "longer": longer,
                "longer_text": text[longer],
                "longer_count": int(counts[longer]),
            },
        )
    return causes_of


def inside_longer(tokenizer: Tokenizer, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How often each token stands inside longer tokens that were merged from it, given each token's
    own count, and the
    longer token it stands in most often (−1: in none): (V,), (V,) int64. All 0 where the tokenizer
    is not BPE.
    """
    model = json.loads(tokenizer.to_str())["model"]
    inside, longest = np.zeros_like(counts), np.full_like(counts, -1)
    if model.get("type") != "BPE":
        return inside, longest
    vocabulary, merged_from = model["vocab"], dict[int, tuple[int, int]]()
    for merge in model["merges"]:
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        merged_from.setdefault(
            vocabulary[left + right], (vocabulary[left], vocabulary[right])
        )  # the first to apply makes it
    for longer, parts in reversed(
        merged_from.items()
    ):  # longer tokens are made of ones that were merged before them
        for piece in parts:
            inside[piece] += counts[longer] + inside[longer]
            best = (
                longer
                if longest[longer] < 0 or counts[longer] >= counts[longest[longer]]
                else longest[longer]
            )
            if counts[best] and (longest[piece] < 0 or counts[best] > counts[longest[piece]]):
                longest[piece] = best
    return inside, longest


def _single_document(run: Run, exposure: Exposure, ids: Iterable[int]) -> dict[int, Cause]:
    causes_of = {}
    for id in ids:
        times = int(exposure.exposure_in[id])
        if exposure.documents[id] != 1 or times < 2:
            continue
        first, last = int(exposure.first_step[id]), int(exposure.last_step[id])
        batch = run.stream(first)
        row = int((batch.tokens == id).any(1).nonzero()[0, 0])
        spans = run.corpus.spans(batch.sequence[row : row + 1].numpy(), run.recipe.data.cut)[0]
        at = int((batch.tokens[row] == id).nonzero()[0, 0])
        here = next((span for span in spans if span.start <= at < span.stop), None)
        if here is None:
            continue  # it stands first in text that an intervention made
        causes_of[id] = Cause(
            "single-document",
            f"all {times:,} times in one document, {here.source}: {here.path}, at steps {first:,} "
            f"to {last:,}",
            {
                "document": here.document,
                "source": here.source,
                "path": here.path,
                "exposure_in": times,
                "first_step": first,
                "last_step": last,
            },
        )
    return causes_of


def _forgotten(exposure: Exposure, ids: Iterable[int]) -> dict[int, Cause]:
    causes_of = {}
    for id in ids:
        last, documents = int(exposure.last_step[id]), int(exposure.documents[id])
        if last == UNSEEN or not documents:
            continue
        early = (last + 1) / exposure.step
        chance = early**documents  # that so many documents, spread over the run, all come so early
        if early > EARLY or chance > CHANCE:
            continue
        times = int(exposure.exposure_in[id])
        causes_of[id] = Cause(
            "forgotten",
            f"seen {times:,} times in {documents:,} documents at steps"
            f" {int(exposure.first_step[id]):,} to {last:,}, and not in the"
            f" {exposure.step - 1 - last:,} steps since",
            {
                "exposure_in": times,
                "documents": documents,
                "first_step": int(exposure.first_step[id]),
                "last_step": last,
                "steps_since": exposure.step - 1 - last,
                "chance": chance,
            },
        )
    return causes_of
