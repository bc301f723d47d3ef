"""Conclude a fork: from what was measured at every step to its result."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import numpy as np

from forensics.train.run import Run
from replay.compare import null_test
from replay.compare.spike_outcomes import spike_outcomes
from replay.forks.arms import CHAOS, CONTROL, FORK, PLACEBO
from replay.forks.comparison import Comparison, losses_by_step
from replay.forks.result import (
    BarrierHeight,
    ChaosDistances,
    ControlResult,
    DivergenceRow,
    FirstDifference,
    ForkEnd,
    ForkResult,
    UnseenGap,
)
from replay.forks.spec import Spec
from replay.interventions import placebo
from replay.interventions.registry import to_dict
from replay.verify import Report


def conclude(spec: Spec, parent: Run, measured: Comparison, report: Report) -> ForkResult:
    """Make the result of a fork that has run to its end; `seconds` is left to the caller."""
    notes = measured.notes
    end = _end(spec, measured)
    steps = _steps(spec, notes)
    series, measure = notes["series"], _measure(notes)
    back = _back(spec, series, steps, measure, measured.arms.of(PLACEBO))
    # the smallest noise is seen in parameters long before it is in what the model says
    every_state = list(range(spec.first + 1, spec.last + 1))
    back_to_chaos = _back(spec, series, every_state, "l2", measured.arms.of(CHAOS))
    difference = notes["difference"]
    return ForkResult(
        fork=spec.fork,
        parent=spec.parent,
        first=spec.first,
        last=spec.last,
        does=spec.sentence(),
        interventions=tuple(to_dict(i) for i in spec.interventions),
        placebos=len(measured.arms.of(PLACEBO)),
        placebos_asked=spec.placebos,
        chaos=spec.chaos,
        control=ControlResult(report.level, report.bitwise, report.sentence()),
        first_difference=FirstDifference(**difference) if difference else None,
        spikes=spike_outcomes(
            parent, spec.first, losses_by_step(notes, CONTROL), losses_by_step(notes, FORK)
        ),
        final=end,
        time_to_reconverge=back,
        censored=_censored(spec, measured.arms.of(PLACEBO), back),
        time_to_reconverge_chaos=back_to_chaos,
        censored_chaos=_censored(spec, measured.arms.of(CHAOS), back_to_chaos),
        barriers=tuple(BarrierHeight(**row) for row in notes["barriers"]),
        divergence=tuple(DivergenceRow(**row) for row in notes["rows"]),
    )


def _measure(notes: dict[str, Any]) -> Literal["kl", "l2"]:
    """Name the distance's series: without a set to probe on, only parameters can be compared."""
    return "kl" if notes["series"][FORK]["kl"] else "l2"


def _steps(spec: Spec, notes: dict[str, Any]) -> list[int]:
    """List the states at which that distance was measured."""
    if _measure(notes) == "kl":
        return list(notes["probed"])
    return list(range(spec.first + 1, spec.last + 1))


def _back(
    spec: Spec, series: dict[str, Any], steps: list[int], measure: str, nulls: list[str]
) -> int | None:
    return null_test.time_to_reconverge(
        steps, series[FORK][measure], [series[name][measure] for name in nulls], spec.first
    )


def _censored(spec: Spec, nulls: list[str], back: int | None) -> str | None:
    return f"> {spec.last - spec.first}" if nulls and back is None else None


def _end(spec: Spec, measured: Comparison) -> ForkEnd:
    """Judge the end of the window: distance and loss together, so p is corrected for both."""
    series, measure = measured.notes["series"], _measure(measured.notes)
    fork, names = series[FORK], measured.arms.of(PLACEBO)
    distances = [fork[measure][-1], *(series[name][measure][-1] for name in names)]
    losses, unseen = measured.final_losses(), measured.final_losses(unseen=True)
    end = ForkEnd(
        **losses,
        probe_sequences=measured.probe.sequences,
        unseen=UnseenGap(**unseen, sequences=measured.unseen.sequences),
        logit_kl=fork["kl"][-1] if fork["kl"] else None,
        l2=fork["l2"][-1],
        cosine=fork["cosine"][-1],
        measure="logit_kl" if measure == "kl" else "l2",
    )
    gap = end if end.gap is not None else end.unseen
    change, corrected = None, None
    if names and gap.gap is not None:
        change = null_test.judge_change(gap.gap, gap.placebo_loss_gaps)
        corrected = null_test.corrected_p(distances, [gap.gap, *gap.placebo_loss_gaps])
    effect = null_test.judge_effect(
        distances[0], distances[1:], placebo.exist(spec.interventions), corrected
    )
    chaos = [series[name]["l2"][-1] for name in measured.arms.of(CHAOS)]
    return replace(
        end,
        effect=effect.effect,
        p=effect.p,
        p_corrected=corrected if corrected is not None else effect.p,
        least_p=effect.least_p,
        placebos=effect.placebos,
        causal=effect.causal,
        finding=effect.finding,
        verdict=effect.sentence(),
        placebo_largest=effect.largest,
        loss_change=change,
        chaos=ChaosDistances(len(chaos), float(np.median(chaos)), max(chaos)) if chaos else None,
    )
