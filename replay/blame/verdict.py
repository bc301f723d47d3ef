"""Why did it spike? Trials that tell data from state, and the verdict in words with its numbers.

other data, same state      the touched batches give way to others: a spike that comes all the same is not the data's
same data, other states     the same batches from states before the window (PaLM's test)
up-to-date moments          the same batches and parameters, but second moments with a short memory
a steady learning rate      the same batches at the rate that held before the window
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from replay.blame.blamed_step import SIGMAS, Asked
from replay.blame.counterfactuals import (
    OTHERS,
    STALE,
    Trial,
)
from replay.blame.deletion import HALF, Proof
from replay.blame.excess import Excess
from replay.verify import Report

DATA, BOTH, STATE, NUMERICS, UNKNOWN = (
    "data",
    "data and state",
    "state or schedule",
    "numerics",
    "cannot tell",
)


@dataclass
class Facts:
    """All that a verdict rests on; what was not tried is None or empty."""

    asked: Asked
    report: Report
    absent: bool
    control_loss: float
    excess: Excess
    proof: Proof | None = None
    largest: float = 0.0  # nats that the strongest removal took away
    tried: int = 0  # how many removals were tried
    other_data: Sequence[Trial] = ()
    other_states: Sequence[Trial] = ()
    up_to_date: Trial | None = None
    steady_rate: Trial | None = None
    stale: Sequence[dict[str, Any]] = ()
    who: str = ""  # the proved set, in words
    documents: str = ""  # its documents
    interrupted: bool = False


def rises(asked: Asked, excess: Excess) -> bool:
    """Whether there is a spike to explain: an excess beyond what the detector calls one."""
    if not math.isfinite(excess.total):
        return True
    return excess.total > 0 and (asked.spike or excess.total > SIGMAS * excess.scale)


def judge(f: Facts) -> tuple[str, str]:
    """(verdict, the sentence that gives its reasons and numbers)."""
    if f.absent:
        where = f.report.first_difference or {}
        return (
            NUMERICS,
            (
                f"The control does not spike: recorded {f.asked.value:.3f}, replayed"
                f" {f.control_loss:.3f} nats at step {f.asked.step}. The replay differs from step"
                f" {where.get('step')} on ({where.get('what')}): suspect hardware or numerics of"
                " that step. Nothing is said about data."
            ),
        )
    if not rises(f.asked, f.excess):
        size = (
            f"{f.excess.total / f.excess.scale:.1f}σ of the batches before; a spike has more than"
            f" {SIGMAS:g}σ"
        )
        return (
            UNKNOWN,
            f"There is no spike to explain: an excess of {f.excess.total:+.3f} nats ({size}).",
        )
    if f.interrupted and (f.proof is None or not f.proof.random):
        return UNKNOWN, "Interrupted before any removal was held against random ones."
    others = [t.spikes for t in f.other_data]
    if len(others) >= OTHERS and all(others):
        return STATE, _state_sentence(f)
    if f.proof is None or f.proof.taken < HALF * f.excess.total:
        tried = (
            f"The strongest of {f.tried} removals takes {f.largest:.3f} of the excess of"
            f" {f.excess.total:.3f} nats away"
            if f.tried
            else "No removal helps"
        )
        return UNKNOWN, f"{tried}; {_others_words(f)}, so no set of sequences is blamed."
    if not f.proof.causal or f.proof.beyond < HALF * f.excess.total:
        reason = (
            f.proof.words
            if not f.proof.causal
            else f"random ones take {f.proof.taken - f.proof.beyond:.3f} nats too"
        )
        return UNKNOWN, f"{_removal_words(f)}, but that is no proof: {reason}."
    if others and sum(others) * 2 >= len(others):
        return (
            UNKNOWN,
            (
                f"{_removal_words(f)}, but {_others_words(f)}: neither data nor state alone"
                " explains it."
            ),
        )
    return _data_sentence(f)


def _data_sentence(f: Facts) -> tuple[str, str]:
    moments = f.up_to_date is not None and not f.up_to_date.spikes
    elsewhere = [t.spikes for t in f.other_states]
    lonely = bool(elsewhere) and not any(elsewhere)
    words = f"{_removal_words(f)}, {f.proof.words if f.proof else ''}; {_others_words(f)}."
    if f.documents and not f.who.startswith("document "):
        words += f" They hold {f.documents}."
    if elsewhere:
        words += (
            f" From other states the same batches spike {sum(elsewhere)} of {len(elsewhere)} times"
            f" ({', '.join(t.what.removeprefix('from state ') for t in f.other_states)})."
        )
    if f.up_to_date is not None:
        words += (
            f" With up-to-date second moments ({f.up_to_date.what}) {f.up_to_date.left:.3f} of"
            f" {f.excess.total:.3f} nats are left."
        )
    if not moments and not lonely:
        return DATA, words
    return BOTH, words + _stale_words(f)


def _stale_words(f: Facts) -> str:
    worst = next((t for t in f.stale if t["times"]), None)
    if worst is None:
        return " Staleness of the moments was not recorded."
    rms = f", rms_t {worst['rms_t']:.2f}" if worst["rms_t"] is not None else ""
    called = "out of date" if worst["times"] >= STALE else "not out of date by its staleness"
    return (
        f" Its second moment {called}: {worst['tensor']}, staleness {worst['staleness']:.2f} at"
        f" step {worst['step']} ({worst['usual']:.2f} before{rms})."
    )


def _state_sentence(f: Facts) -> str:
    words = (
        f"With other data it spikes too ({_counted(f.other_data)},"
        f" {min(t.left for t in f.other_data):.3f} to {max(t.left for t in f.other_data):.3f} of"
        f" {f.excess.total:.3f} nats are left)"
    )
    if f.tried:
        words += f"; the strongest of {f.tried} removals takes {f.largest:.3f} away"
    words += "."
    if f.steady_rate is not None:
        verb = "does not take it away" if f.steady_rate.spikes else "takes it away"
        words += f" The {f.steady_rate.what} {verb} ({f.steady_rate.left:.3f} nats are left)."
    else:
        words += " The learning rate is steady over the window."
    if f.up_to_date is not None:
        words += (
            f" With up-to-date second moments ({f.up_to_date.what}) {f.up_to_date.left:.3f} nats"
            " are left."
        )
    return words


def _removal_words(f: Facts) -> str:
    proof = f.proof
    assert proof is not None
    n, steps = proof.sequences, sorted({s.step for s in proof.removal})
    where = (
        f"batch {steps[0]}"
        if len(steps) == 1
        else f"{len(steps)} batches ({steps[0]} to {steps[-1]})"
    )
    null = (
        f"{min(proof.random):.3f} to {max(proof.random):.3f} (N = {len(proof.random)}, p ="
        f" {proof.p:.2g})"
        if proof.random and proof.p is not None
        else "untried"
    )
    return (
        f"Without {f.who} ({n} sequence{'s' * (n != 1)} of {where}) {proof.share:.0%} of the excess"
        f" of {f.excess.total:.3f} nats goes: {proof.taken:.3f} nats, as many random ones {null}"
    )


def _others_words(f: Facts) -> str:
    return (
        f"with other data it spikes {_counted(f.other_data)}"
        if f.other_data
        else "other data were not tried"
    )


def _counted(trials: Sequence[Trial]) -> str:
    return f"{sum(t.spikes for t in trials)} of {len(trials)} times"
