"""What was found of a target's tokens as JSON: the document of `forensics tokens --json`.

document(find(open_target("demo@300", runs)))["tokens"][0]      # the most suspect token
"""

from __future__ import annotations

from typing import Any

import numpy as np

from forensics.tokens.under_trained import Findings


def document(found: Findings, top: int | None = None, only: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return the contract's keys and more.

    `tokens` lowest indicator first, at most `top` of them, of the categories `only`.
    """
    target, categories, weights = found.target, found.categories, found.target.weights
    return {
        "target": target.name,
        "kind": target.kind,
        "vocabulary": len(categories.ids),
        "counts": categories.counts(),
        "summary": categories.summary(),
        "tied": None if weights is None else weights.tied,
        "rows": None if weights is None else weights.rows,
        "padded": (
            None if weights is None else len(np.setdiff1d(np.arange(weights.rows), categories.ids))
        ),
        "without_row": None if weights is None else int((categories.ids >= weights.rows).sum()),
        "reference": (
            None
            if found.reference is None
            else {
                "kind": found.reference.kind,
                "ids": found.reference.ids.tolist(),
                "why": found.reference.why,
            }
        ),
        "indicator": found.indicator,
        "indicators": list(found.values),
        "threshold": found.threshold,
        "candidates": len(found.candidates),
        "verification": _told(found),
        "notes": list(target.notes),
        "tokens": _tokens(found, top, only),
    }


def _told(found: Findings) -> dict[str, Any] | None:
    from forensics.tokens.verify import STRONG, VERIFIED

    verification, categories = found.verification, found.categories
    if verification is None:
        return None
    prompted = np.isfinite(verification.max_prob)
    chosen = np.zeros(len(categories.ids), bool)
    chosen[found.candidates] = True
    verified = prompted & (verification.max_prob < VERIFIED)
    return {
        "copies": verification.copies,
        "verdict": verification.verdict,
        "placeholder": (
            None
            if verification.placeholder is None
            else {
                "id": verification.placeholder,
                "text": categories.text[categories.position[verification.placeholder]],
            }
        ),
        "controls": [
            {
                "id": c.id,
                "text": categories.text[categories.position[c.id]],
                "max_prob": c.max_prob,
                "base": c.base,
                "repeated": c.repeated,
            }
            for c in verification.controls
        ],
        "asked": int(prompted.sum()),
        "verified": int(verified.sum()) if verification.copies else None,
        "strong": int((prompted & (verification.max_prob < STRONG)).sum())
        if verification.copies
        else None,
        "census": (
            rule_against(verified, chosen, categories.reachable)
            if verification.whole and verification.copies
            else None
        ),
    }


def rule_against(verified: np.ndarray, chosen: np.ndarray, reachable: np.ndarray) -> dict[str, Any]:
    """Recall and precision of the 2% rule, (n,) bool each, among the reachable tokens, from which
    the rule chooses.
    """
    true, hits = int((verified & reachable).sum()), int((verified & chosen).sum())
    return {
        "verified": true,
        "candidates": int(chosen.sum()),
        "hits": hits,
        "recall": hits / true if true else None,
        "precision": hits / int(chosen.sum()) if chosen.any() else None,
    }


def _tokens(found: Findings, top: int | None, only: tuple[str, ...]) -> list[dict[str, Any]]:
    c = found.categories
    values = {name: found.of_tokens(name) for name in found.values}
    places = np.arange(len(c.ids))
    if found.indicator is not None:
        places = np.argsort(
            values[found.indicator], kind="stable"
        )  # tokens without a row come last
    if only:
        places = places[np.array([c.category[i] in only for i in places], bool)]
    chosen = set(found.candidates.tolist())
    return [_token(found, values, i, i in chosen) for i in places[:top].tolist()]


def _token(
    found: Findings, values: dict[str, np.ndarray], i: int, candidate: bool
) -> dict[str, Any]:
    """Return what is known of the token at place `i` of the categories."""
    from forensics.tokens.verify import STRONG, VERIFIED

    c, verification, exposed = found.categories, found.verification, found.exposure
    id = int(c.ids[i])
    met = exposed is not None and id < len(exposed.exposure_in)
    # without a row nothing was measured; NaN is what a row that is not finite gives
    has_row = found.target.weights is not None and id < found.target.weights.rows
    measured = {name: float(numbers[i]) if has_row else None for name, numbers in values.items()}
    p, p_is = None, None
    if verification is not None and np.isfinite(verification.max_prob[i]):
        p = float(verification.max_prob[i])
        p_is = "at least" if verification.bound[i] else "exact"
    return {
        "id": id,
        "text": c.text[i],
        "raw": c.raw[i],
        "category": c.category[i],
        "byte": c.byte[i],
        "special": bool(c.special[i]),
        "encodes_to": c.again[i] if not c.category[i].startswith("OK") else None,
        "indicator": measured[found.indicator] if found.indicator is not None else None,
        "indicators": measured,
        "candidate": candidate,
        **{
            key: int(getattr(exposed, key)[id]) if met else None
            for key in ("exposure_in", "exposure_out", "exposure_grad")
        },
        "max_prob": p,
        "max_prob_is": p_is,
        "verified": None if p is None else p < VERIFIED,
        "strong": None if p is None else p < STRONG,
        "cause": found.causes[id][0].name if id in found.causes else None,
        "causes": [cause.document() for cause in found.causes.get(id, [])],
    }
