"""What boosting a token found: its arms, what they come to, and the verdict."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import numpy as np

from forensics.result_records import ResultRecord, json_key
from replay.compare import null_test
from replay.compare.medians import median_of_present
from replay.compare.null_test import Finding
from replay.verify import Level

Kind = Literal["unmodified", "boosted", "placebo"]


@dataclass(frozen=True)
class TokenReading:
    """How a state stands to the token."""

    indicator: str  # its name
    value: float | None  # of the token; None: the indicator needs unused ids, and there are none
    rank: float | None  # share of all tokens whose indicator is lower
    loss: float | None  # nats, mean over its places in the contexts; None without contexts
    p: float | None  # probability, mean over the same places
    positions: int  # places in the contexts
    held_out: tuple[float, ...] | None  # loss of each held-out sequence without the token's places


@dataclass(frozen=True)
class BoostControl:
    """How the unmodified arm stands to the recorded run."""

    level: Level
    bitwise: bool
    sentence: str


@dataclass(frozen=True)
class BoostArm(TokenReading):
    """One arm at the end of the window."""

    arm: Kind
    times: int  # sequences exchanged
    seed: int
    other: int | None  # the token that a placebo boosts
    control: BoostControl | None  # of the unmodified arm
    before: TokenReading | None  # of the unmodified arm: at the window's start


@dataclass(frozen=True)
class ArmMedians:
    """Medians over the seeds of one kind of arm."""

    value: float | None
    rank: float | None
    loss: float | None
    p: float | None
    held_out_gap: float | None  # held-out loss over the control's, nats
    held_out_error: float | None  # its standard error


@dataclass(frozen=True)
class BoostEffect:
    """A median change, held against the placebos' changes as a group."""

    change: float  # nats
    p: float | None
    placebos: int
    largest_placebo: float | None
    causal: bool
    verdict: str  # the finding in words
    finding: Finding


@dataclass(frozen=True)
class BoostRow:
    """All seeds of one number of sequences."""

    times: int
    seeds: int
    placebos: int
    boosted: ArmMedians
    placebo: ArmMedians
    takes: BoostEffect | None  # how far the token's own loss falls
    costs: BoostEffect | None  # how far the held-out loss rises


@dataclass(frozen=True)
class BoostContexts:
    """Where the token's loss was read."""

    sequences: int
    positions: int
    why: str  # which sequences they are


@dataclass(frozen=True)
class BoostResult(ResultRecord):
    """How often a token must be seen, and what that costs elsewhere."""

    VERSION: ClassVar[int] = 1
    KIND: ClassVar[str] = "boost"
    AGAIN: ClassVar[str] = "run `replay boost` again: finished arms are kept"

    run: str
    token: int
    text: str
    first: int = json_key("from")  # the state that every arm starts from
    last: int = json_key("to")
    exposure_in: int = 0  # before the window
    exposure_out: int = 0
    contexts: BoostContexts = BoostContexts(0, 0, "")
    control: BoostControl | None = None
    seeds: int = 1
    arms: tuple[BoostArm, ...] = ()  # the unmodified one first
    summary: tuple[BoostRow, ...] = ()
    verdict: str = ""


def summarise(arms: Sequence[BoostArm]) -> tuple[BoostRow, ...]:
    """Take for each number of sequences medians over its seeds, and hold the changes against the
    placebos' changes.
    """
    control, rows = arms[0], []
    for times in sorted({arm.times for arm in arms[1:]}):
        boosted = [arm for arm in arms if arm.times == times and arm.arm == "boosted"]
        placebos = [arm for arm in arms if arm.times == times and arm.arm == "placebo"]
        rows.append(
            BoostRow(
                times=times,
                seeds=len(boosted),
                placebos=len(placebos),
                boosted=_medians(boosted, control),
                placebo=_medians(placebos, control),
                takes=effect_of(
                    [_fall(arm, control) for arm in boosted],
                    [_fall(arm, control) for arm in placebos],
                ),
                costs=effect_of(
                    [_held_out_gap(arm, control).gap for arm in boosted],
                    [_held_out_gap(arm, control).gap for arm in placebos],
                ),
            )
        )
    return tuple(rows)


def effect_of(
    changes: Sequence[float | None], placebos: Sequence[float | None]
) -> BoostEffect | None:
    """Hold the seeds' changes against the placebos' as a group."""
    present = [change for change in changes if change is not None]
    if not present:
        return None
    effect = null_test.judge_group(present, [size for size in placebos if size is not None])
    return BoostEffect(
        change=float(np.median(present)),
        p=effect.p,
        placebos=effect.placebos,
        largest_placebo=effect.largest,
        causal=effect.causal,
        verdict=effect.sentence(),
        finding=effect.finding,
    )


def verdict_of(control: BoostArm, summary: Sequence[BoostRow]) -> str:
    """Say how many sequences it takes, and what they cost elsewhere."""
    if control.loss is None:
        return "No sequence that holds the token is left to read its loss in."
    enough = next((row for row in summary if row.takes and row.takes.causal), None)
    chosen = enough or summary[-1]
    assert chosen.takes is not None, "its loss was read"
    placebo = f" (placebos: to {chosen.placebo.loss:.3f})" if chosen.placebos else ""
    sentences = [
        f"With {_sequences(chosen)} its loss goes from {control.loss:.3f} to"
        f" {chosen.boosted.loss:.3f} nats{placebo}: {chosen.takes.verdict}."
    ]
    if enough is None and len(summary) > 1:
        sentences.append("No smaller number is beyond the placebos either.")
    costly = next((row for row in summary if row.costs and row.costs.causal), None)
    if (row := costly or summary[-1]).costs:
        sentences.append(
            f"With {_sequences(row)} the held-out loss, without the token's own places, changes"
            f" by {row.costs.change:+.4f} nats: {row.costs.verdict}."
        )
    return " ".join(sentences)


def _sequences(row: BoostRow) -> str:
    return "one sequence that holds it" if row.times == 1 else f"{row.times} sequences that hold it"


class _Gap(NamedTuple):
    """The held-out loss over the control's, and its standard error over paired sequences."""

    gap: float | None
    error: float | None


def _held_out_gap(arm: BoostArm, control: BoostArm) -> _Gap:
    if arm.held_out is None or control.held_out is None:
        return _Gap(None, None)
    gaps = np.array(arm.held_out) - np.array(control.held_out)
    error = float(gaps.std(ddof=1) / math.sqrt(len(gaps))) if len(gaps) > 1 else None
    return _Gap(float(gaps.mean()), error)


def _fall(arm: BoostArm, control: BoostArm) -> float | None:
    """Return how far the token's own loss lies below the control's."""
    return None if control.loss is None or arm.loss is None else control.loss - arm.loss


def _medians(arms: Sequence[BoostArm], control: BoostArm) -> ArmMedians:
    gaps = [_held_out_gap(arm, control) for arm in arms]
    return ArmMedians(
        value=median_of_present([arm.value for arm in arms]),
        rank=median_of_present([arm.rank for arm in arms]),
        loss=median_of_present([arm.loss for arm in arms]),
        p=median_of_present([arm.p for arm in arms]),
        held_out_gap=median_of_present([gap.gap for gap in gaps]),
        held_out_error=median_of_present([gap.error for gap in gaps]),
    )
