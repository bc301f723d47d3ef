"""What replays showed of a spike: blame's verdict, and the forks that pass it. Only a proof takes
the hedge away.

    sentences, proved = replayed("demo", spike)         # spike: a row of the query `spikes`

A proof has a control that is bit for bit the run, and meets the rule for causal words
(docs/formulas.md, "Forks"), as its own document says: of blame, on the removal that its verdict blames; of a fork, in
which the spike does not happen.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from app import data, formatting
from app.documents import documents
from app.safe_html import Part, accent, code, strong

LOOKED, MOST = (
    8,
    3,
)  # forks whose loss is looked at, those that could prove first; forks that are told of
NEAR = 2  # steps around a peak in which a replayed spike still is the same


def replayed(run: str, spike: Mapping[str, Any]) -> tuple[list[list[Part]], bool]:
    """Sentences, the proofs first; whether there is a proof."""
    step = int(spike["step"])
    holder = holder_of(run, step)
    blamed = [
        d
        for _, d in documents(holder, "blame")
        if (d.get("spike") or {}).get("step") == step and d.get("verdict")
    ]
    found = [of_blame(d) for d in blamed[:1]]
    found = sorted(found + _forks(holder, spike), key=lambda f: not f[1])[: 1 + MOST]
    return [said for said, _ in found], any(proves for _, proves in found)


def holder_of(run: str, step: int) -> str:
    """The run, or the ancestor, whose own step it is."""
    return next(
        (name for name in data.lineage(run) if (data.header(name).get("first_step") or 0) <= step),
        run,
    )


def of_blame(document: Mapping[str, Any]) -> tuple[list[Part], bool]:
    """The sentence of a blame, which holds its p and N, and whether it proves: it blames data, by
    the rule.
    """
    proof, bitwise = (
        document.get("proof") or {},
        bool((document.get("control") or {}).get("bitwise")),
    )
    verdict, sentence = str(document["verdict"]), str(document.get("sentence") or "")
    proves = bitwise and bool(proof.get("causal")) and verdict.startswith("data")
    said: list[Part] = [*_by_replay(bitwise), strong(verdict), f". {sentence}"]
    if proof.get("p") is not None and "p =" not in sentence:
        said.append(f" p = {formatting.number(proof['p'])}, N = {len(proof.get('random') or [])}.")
    return said, proves


def of_fork(
    fork: Mapping[str, Any],
    document: Mapping[str, Any],
    losses: tuple[float, float],
    gone: bool | None,
) -> tuple[list[Part], bool]:
    """The sentence of a finished fork, with p and N, and whether it proves. `losses`: at the spike,
    of the run and of the fork.
    """
    final, bitwise = document.get("final") or {}, bool(fork["control_bitwise"])
    absent = fork["control_level"] == "absent"
    proves = bitwise and not absent and bool(final.get("causal")) and gone is True
    here, there = losses
    said: list[Part] = [
        *_by_replay(bitwise),
        "in ",
        code(fork["fork"]),
        f" ({fork['sentence'] or 'a fork'}) ",
    ]
    if gone and not absent:
        said.append("the spike does not happen: ")
    said += [
        "the loss at this step is ",
        accent(formatting.loss(there)),
        f" instead of {formatting.loss(here)}; ",
    ]
    if absent:
        return [*said, "its control does not show the spike, so this is no verdict."], False
    if not fork["placebos"]:
        return [*said, "it has no placebo (N = 0), so no effect is claimed."], False
    verdict = final.get("verdict") or f"its document is missing (N = {fork['placebos']})"
    return [*said, f"at its end: {verdict}, p = {formatting.number(fork['p'])}."], proves


def _by_replay(bitwise: bool) -> list[Part]:
    return ["By replay: "] if bitwise else ["By replay ", strong("(tolerance only)"), ": "]


def happens(spike: Mapping[str, Any], near: Sequence[float]) -> bool | None:
    """Whether it still happens, at half its excess or more; None where nothing was computed near
    it.
    """
    if not near:
        return None
    low, high = spike["baseline"], spike["value"]
    if low is None or high is None or not math.isfinite(high):
        return any(not math.isfinite(x) for x in near)
    return any(not math.isfinite(x) or x - low >= 0.5 * (high - low) for x in near)


def _forks(run: str, spike: Mapping[str, Any]) -> list[tuple[list[Part], bool]]:
    """Of the finished forks of a run whose window holds the spike, those that could prove first,
    then the newest.
    """
    step = int(spike["step"])
    names = [
        h["name"]
        for h in data.headers()
        if h.get("parent") == run and h["first_step"] <= step < h["steps"]
    ]
    if not names:
        return []
    finished = [
        (f, data.document(data.runs_folder() / f["fork"] / "fork.json"))
        for f in data.rows("forks_of", runs=",".join(names))
    ]  # the newest first
    finished.sort(
        key=lambda f: not ((f[1].get("final") or {}).get("causal") and f[0]["control_bitwise"])
    )
    metric = spike["metric"] if spike["metric"] in ("loss", "grad_norm") else "loss"
    own = _around(run, step).get(step, {}).get("loss")
    found = []
    for fork, document in finished[:LOOKED]:
        around = _around(fork["fork"], step)
        there = around.get(step, {}).get("loss")
        if own is None or there is None:  # a step that computes no loss shows nothing of the spike
            continue
        seen = happens(spike, [r[metric] for r in around.values() if r[metric] is not None])
        found.append(of_fork(fork, document, (own, there), None if seen is None else not seen))
    return sorted(found, key=lambda f: not f[1])[:MOST]


def _around(run: str, step: int) -> dict[int, dict[str, Any]]:
    """Rows of `steps` that are the run's own, from NEAR steps before to NEAR after."""
    rows = data.rows(
        "steps_around",
        run=run,
        step=step,
        before=NEAR,
        after=NEAR,
        window=(max(0, step - NEAR), step + NEAR + 1),
    )
    return {r["step"]: r for r in rows if r["run"] == run}
