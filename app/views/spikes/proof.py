"""What replays showed of a spike: blame's verdict, and the forks that pass it. Only a proof takes
the hedge away.

    shown = replayed("demo", spike)         # spike: a row of the query `spikes`

A proof has a control that is bit for bit the run, and meets the rule for causal words
(docs/formulas.md, "Forks"), as its own document says: of blame, on the removal that its verdict
blames; of a fork, in which the spike does not happen.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from app import data, formatting
from app.documents import documents, read
from app.safe_html import Part, accent, code, strong
from app.views.blame.summary import BLAMES_DATA, VERDICTS, held_against
from app.views.forks.summary import OUTCOMES
from forensics.errors import ForensicsError
from replay.compare.spike_outcomes import still_happens
from replay.forks.result import RESULT_FILE, ForkResult

LOOKED = 8  # forks whose loss is looked at, those that could prove first
MOST = 3  # forks that are told of
NEAR = 2  # steps around a peak in which a replayed spike still is the same


class Shown(NamedTuple):
    """What one replay showed of a spike, and whether that is a proof of its cause."""

    sentence: list[Part]
    proves: bool


def replayed(run: str, spike: Mapping[str, Any]) -> list[Shown]:
    """Return what blame and forks showed of a spike, the proofs first."""
    step = int(spike["step"])
    holder = holder_of(run, step)
    blamed = [
        document.content
        for document in documents(holder, "blame")
        if (document.content.get("spike") or {}).get("step") == step
        and document.content.get("verdict")
    ]
    shown = [of_blame(blame) for blame in blamed[:1]] + _forks(holder, spike)
    return sorted(shown, key=lambda replay: not replay.proves)[: 1 + MOST]


def holder_of(run: str, step: int) -> str:
    """Return the run, or the ancestor, whose own step it is."""
    return next(
        (name for name in data.lineage(run) if (data.header(name).get("first_step") or 0) <= step),
        run,
    )


def of_blame(blame: Mapping[str, Any]) -> Shown:
    """Say what blame found with its p and N; it proves where it blames data, by the rule."""
    proof = blame.get("proof") or {}
    bitwise = bool((blame.get("control") or {}).get("bitwise"))
    proves = bitwise and bool(proof.get("causal")) and blame["verdict"] in BLAMES_DATA
    verdict = VERDICTS.get(blame["verdict"], blame["verdict"])
    sentence: list[Part] = [
        *_by_replay(bitwise),
        strong(verdict),
        f". {blame.get('sentence') or ''}",
    ]
    return Shown([*sentence, *held_against(proof)], proves)


def of_fork(
    row: Mapping[str, Any],
    result: ForkResult | None,
    losses: tuple[float, float],
    gone: bool | None,
) -> Shown:
    """Say what a finished fork shows, with p and N, and whether it proves.

    `row`: of `forks_of`; `losses`: at the spike's step, of the run and of the fork.
    """
    bitwise, absent = bool(row["control_bitwise"]), row["control_level"] == "absent"
    causal = result is not None and result.final.causal
    proves = bitwise and not absent and causal and gone is True
    loss, loss_in_fork = losses
    spike = "the spike does not happen; " if gone and not absent else ""
    sentence: list[Part] = [
        *_by_replay(bitwise),
        "in fork ",
        code(row["fork"]),
        f", which {row['sentence'] or 'alters the run'}, {spike}the loss at this step is ",
        accent(formatting.loss(loss_in_fork)),
        " nats/token, as in the run. "
        if formatting.loss(loss_in_fork) == formatting.loss(loss)
        else f" instead of {formatting.loss(loss)} nats/token. ",
    ]
    if absent:
        return Shown([*sentence, "Its control does not show the spike: no verdict."], False)
    if not row["placebos"]:
        return Shown([*sentence, "It has no placebo, so no effect is claimed."], False)
    outcome = (
        OUTCOMES[result.final.finding]
        if result is not None
        else f"its result cannot be read ({row['placebos']} placebos)"
    )
    return Shown(
        [
            *sentence,
            f"At its end: {outcome}, p = {formatting.number(row['p'])} with"
            f" {row['placebos']} placebos.",
        ],
        proves,
    )


def _by_replay(bitwise: bool) -> list[Part]:
    return ["Trained again: "] if bitwise else ["Trained again ", strong("(tolerance only)"), ": "]


def happens(spike: Mapping[str, Any], near: Sequence[float]) -> bool | None:
    """Whether it still happens, at half its excess or more; None where nothing was computed near
    it.
    """
    if not near:
        return None
    peak = math.nan if spike["value"] is None else spike["value"]
    return any(still_happens(peak, spike["baseline"], loss) for loss in near)


def _forks(run: str, spike: Mapping[str, Any]) -> list[Shown]:
    """Return what the finished forks of a run whose window holds the spike show.

    Those that could prove come first, then the newest.
    """
    step = int(spike["step"])
    names = [
        header["name"]
        for header in data.forks_of(run)
        if header["first_step"] <= step < header["steps"]
    ]
    if not names:
        return []
    finished = [
        (row, _result_of(row["fork"])) for row in data.rows("forks_of", runs=",".join(names))
    ]  # the newest first
    finished.sort(
        key=lambda pair: not (pair[1] and pair[1].final.causal and pair[0]["control_bitwise"])
    )
    metric = spike["metric"] if spike["metric"] in ("loss", "grad_norm") else "loss"
    loss = _around(run, step).get(step, {}).get("loss")
    shown = []
    for row, result in finished[:LOOKED]:
        around = _around(row["fork"], step)
        loss_in_fork = around.get(step, {}).get("loss")
        if loss is None or loss_in_fork is None:  # no loss computed there shows nothing of it
            continue
        still = happens(spike, [row[metric] for row in around.values() if row[metric] is not None])
        gone = None if still is None else not still
        shown.append(of_fork(row, result, (loss, loss_in_fork), gone))
    return sorted(shown, key=lambda replay: not replay.proves)[:MOST]


def _result_of(fork: str) -> ForkResult | None:
    """Return a fork's result; None where there is none that can be read."""
    try:
        return read(ForkResult, data.runs_folder() / fork / RESULT_FILE)
    except ForensicsError:
        return None


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
    return {row["step"]: row for row in rows if row["run"] == run}
