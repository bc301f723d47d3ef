"""`forensics tokens`: categories, indicators, candidates and, where asked for, verification of one
target.

    findings = find(open_target("demo@300", runs))
    document(findings)["tokens"][0]     # the most suspect token; forensics.tokens.findings_document
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from forensics.errors import ForensicsError
from forensics.progress import ProgressCallback, silent
from forensics.tokens import reference as references
from forensics.tokens.categories import Categories, categorise
from forensics.tokens.causes import Cause, causes, of_tokenizer, strongest, suspects
from forensics.tokens.exposure import Exposure, ledger
from forensics.tokens.indicators import measure
from forensics.tokens.reference import Reference
from forensics.tokens.target import Target
from forensics.tokens.verification import Verification
from forensics.tokens.verification_cache import keep

RULE = 2.0  # percentile of the indicator over OK tokens, up to which a token is a candidate
CANNOT_COPY = "this model cannot copy: verification says nothing"


@dataclass(frozen=True, eq=False)
class Findings:
    """All that was found of a target. `values` are (V,) by row of the embedding; `candidates` are
    places in the categories.
    """

    target: Target
    categories: Categories
    indicator: str | None
    values: dict[str, np.ndarray]
    reference: Reference | None
    exposure: Exposure | None
    threshold: float | None
    candidates: np.ndarray
    verification: Verification | None
    causes: dict[int, list[Cause]] = field(default_factory=dict)  # by id, the strongest first

    def of_tokens(self, name: str) -> np.ndarray:
        """Return an indicator of each of the categories' ids, NaN where the embedding has no row
        for it.
        """
        return by_token(self.values[name], self.categories)


def by_token(values: np.ndarray, categories: Categories) -> np.ndarray:
    """Return values (V,) by row of the embedding as (n,) by token, NaN without a row."""
    ids = categories.ids
    by_token = np.full(len(ids), np.nan, np.float32)
    by_token[ids < len(values)] = values[ids[ids < len(values)]]
    return by_token


def find(
    target: Target,
    *,
    indicator: str | None = None,
    reference: str | None = None,
    verify: bool = False,
    census: bool = False,
    reading: ProgressCallback = silent,
    verifying: ProgressCallback = silent,
) -> Findings:
    """Categories of any target; indicators and candidates where there are weights; P of the
    candidates, or of all.

    `indicator` is one of INDICATORS, by default the one that fits the tying; `reference` is
    `3,7-16`, by default found. Of a run's state the rows of the table `vocabulary` are written, and
    what the prompts told. Errors: usage, data.
    """
    categories = categorise(target.tokenizer, target.special)
    weights = target.weights
    if weights is None:
        if verify or census or indicator or reference:
            raise ForensicsError(
                "usage",
                f"{target.name} is a tokenizer alone: it has categories, no indicators",
                "give the model's folder, its GGUF file or a run",
            )
        return _of_tokenizer_alone(target, categories)
    exposure = (
        ledger(target.run, target.step, reading)
        if target.run is not None and target.step is not None
        else None
    )
    chosen_reference = _reference(target, categories, reference, exposure)
    values = measure(weights, chosen_reference.ids if chosen_reference else None)
    name = _indicator(indicator, weights.default(), values, target)
    indicator_of_tokens = by_token(values[name], categories)
    suspect = _candidates(categories, indicator_of_tokens)
    verification = (
        _verify(
            target, categories, indicator_of_tokens, exposure, suspect.places, census, verifying
        )
        if verify or census
        else None
    )
    why = _why(target, categories, suspect.places, exposure, reading)
    if target.run is not None and target.step is not None:
        _record(target, categories, values.get(weights.default()), exposure, strongest(why))
        if verification is not None:
            keep(target.run, target.step, categories.ids, verification)
    return Findings(
        target,
        categories,
        name,
        values,
        chosen_reference,
        exposure,
        suspect.threshold,
        suspect.places,
        verification,
        why,
    )


class _Candidates(NamedTuple):
    """Places in the categories, the most suspect first, and the indicator up to which they are."""

    threshold: float | None
    places: np.ndarray


def _candidates(categories: Categories, indicator: np.ndarray) -> _Candidates:
    """Return the reachable tokens up to the RULE-th percentile of the OK ones; indicator (n,)."""
    is_ok = np.array([category == "OK" for category in categories.category], bool)
    ok = is_ok & np.isfinite(indicator)
    if not ok.any():
        return _Candidates(None, np.empty(0, np.int64))
    threshold = float(np.percentile(indicator[ok], RULE))
    below = np.flatnonzero(categories.reachable & (indicator <= threshold))
    return _Candidates(threshold, below[np.argsort(indicator[below], kind="stable")])


def _of_tokenizer_alone(target: Target, categories: Categories) -> Findings:
    none = np.empty(0, np.int64)
    causes_of = _causes_of_tokenizer(categories)
    return Findings(target, categories, None, {}, None, None, None, none, None, causes_of)


def _causes_of_tokenizer(categories: Categories) -> dict[int, list[Cause]]:
    """Return what the tokenizer alone tells of each token."""
    alone = of_tokenizer(categories, categories.ids.tolist())
    return {id: [cause] for id, cause in alone.items()}


def _why(
    target: Target,
    categories: Categories,
    candidates: np.ndarray,
    exposure: Exposure | None,
    reading: ProgressCallback,
) -> dict[int, list[Cause]]:
    """Return the causes of the candidates and of what was seldom met.

    Without the data, what the tokenizer tells.
    """
    if target.run is None or exposure is None:
        return _causes_of_tokenizer(categories)
    ids = np.union1d(suspects(exposure, categories), categories.ids[candidates])
    return causes(target.run, exposure, ids, categories, reading)


def _reference(
    target: Target, categories: Categories, wanted: str | None, exposure: Exposure | None
) -> Reference | None:
    """Given ids, else the never met where the data is known, else what the rows show."""
    assert target.weights is not None, "a tokenizer alone was turned away"
    if wanted is not None:
        return references.given(wanted, target.weights.rows)
    if exposure is not None:
        assert target.run is not None and target.step is not None, "exposure is a run's"
        never = exposure.never_met
        return references.never_met(never, target.run.name, target.step) if len(never) else None
    return references.found(target.weights, categories)


def _indicator(
    wanted: str | None, default: str, values: dict[str, np.ndarray], target: Target
) -> str:
    name = wanted or default
    if name in values:
        return name
    if name == "bias":
        raise ForensicsError(
            "usage", f"the LM head of {target.name} has no bias", f"known: {', '.join(values)}"
        )
    raise ForensicsError(
        "data",
        f"{'tied embeddings need' if wanted is None else name + ' needs'} ids that are known to be"
        f" unused, found none in {target.name}",
        "--reference IDS names them, or --indicator input-norm, which needs none",
    )


def _verify(
    target: Target,
    categories: Categories,
    own: np.ndarray,
    exposure: Exposure | None,
    candidates: np.ndarray,
    census: bool,
    progress: ProgressCallback,
) -> Verification:
    from forensics.tokens.verify import Verifier, can_copy, choose_controls

    assert target.forward is not None and target.weights is not None, (
        "a tokenizer alone was turned away"
    )
    n = len(categories.ids)
    met = None if exposure is None else exposure.exposure_out[categories.ids]
    trained = _trained(
        categories,
        own if met is None or not met.any() else np.where(met > 0, met, np.nan).astype(np.float64),
    )
    verifier = Verifier(target.tokenizer, target.forward(), categories, trained)
    untold = np.full(n, np.nan, np.float32)
    if verifier.placeholder is None:
        return Verification(
            None, [], False, f"{CANNOT_COPY} ({verifier.why})", untold, np.zeros(n, bool), census
        )
    count = categories.ids if met is None else met
    controls = verifier.controls(choose_controls(categories, trained, count, candidates))
    repeated = (
        f"{sum(c.repeated for c in controls)} of {len(controls)} well-trained control tokens"
        " were repeated"
    )
    if not can_copy(controls):
        return Verification(
            verifier.placeholder,
            controls,
            False,
            f"{CANNOT_COPY} ({repeated})",
            untold,
            np.zeros(n, bool),
            census,
        )
    has_row = np.flatnonzero(np.isfinite(own))
    # a census goes from the suspect to the others too, so that what is cut off is what matters
    # least
    places = has_row[np.argsort(own[has_row], kind="stable")] if census else candidates
    p, bound = verifier.max_prob(categories.ids[places], progress=progress)
    max_prob, at_least = untold, np.zeros(n, bool)
    max_prob[places], at_least[places] = p, bound
    return Verification(verifier.placeholder, controls, True, repeated, max_prob, at_least, census)


def _trained(categories: Categories, measure: np.ndarray) -> np.ndarray:
    """Rank of a measure among the OK tokens that have it, from 0 to 1; 0 for all others."""
    ok = np.array([category == "OK" for category in categories.category], bool) & np.isfinite(
        measure
    )
    places = np.flatnonzero(ok)
    trained = np.zeros(len(measure))
    trained[places[np.argsort(measure[places], kind="stable")]] = np.linspace(0, 1, len(places))
    return trained


def _record(
    target: Target,
    categories: Categories,
    indicator: np.ndarray | None,
    exposure: Exposure | None,
    cause: dict[int, str],
) -> None:
    from forensics.tokens.vocabulary import write_vocabulary

    assert target.run is not None and target.step is not None, "only a run's state has a table"
    category_of = dict(zip(categories.ids.tolist(), categories.category))
    write_vocabulary(
        target.run,
        target.step,
        indicator=indicator,
        category=category_of,
        cause=cause,
        exposure=exposure,
    )
