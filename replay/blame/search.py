"""The search: rank the window's sequences, remove them, and prove the best suspect."""

from __future__ import annotations

import dataclasses
import math

from replay.blame import candidates, sentences, verdict
from replay.blame.bisect import bisect
from replay.blame.blamed_step import spikes_along
from replay.blame.case import Case
from replay.blame.deletion import Suspect, deletion_curve, hold_against_random
from replay.blame.null_windows import WindowsWithoutSpike
from replay.blame.ranking import add_metagradient
from replay.blame.result import CurvePoint, Method, NullWindows, Proof
from replay.blame.rules import AWAY, BUDGET, HALF, NEGLIGIBLE, NULL_WINDOWS, RESCUE
from replay.blame.trials import try_otherwise
from replay.blame.window_memory import free_memory, memory_needed
from replay.interventions.rows import Slot

SEED = 0
RANKED_AGAIN = 64  # sequences that are left out before the ranking is made anew


def search(case: Case) -> None:
    """Rank, remove, and hold what takes the spike away against chance; a fact at a time."""
    rising = verdict.explains(case.facts)
    method = _method_that_can(case)
    if method == "bisect":
        if rising:
            _bisect(case, BUDGET)
        return
    _measure_influences(case, method)
    case.evidence.ranked = case.influences.ranked(case.replays)
    if rising:
        case.steps.expect(60 * (case.S - case.first))
        _prove_or_try(case, _remove(case))
        _bisect_where_helpless(case)


def _method_that_can(case: Case) -> Method:
    """Return the method to use: a gradient needs finite numbers."""
    if case.options.method != "bisect" and not math.isfinite(case.control.excess.total):
        case.evidence.notes.append(
            "The loss is not finite at the spike, so nothing can be differentiated: the window"
            " was bisected instead."
        )
        return "bisect"
    return case.options.method


def _only_the_batch(case: Case) -> bool:
    """Whether the model had not become worse, so that only the spike's own batch is gone into."""
    excess = case.control.excess
    return case.blamed.is_spike and excess.state <= NEGLIGIBLE * max(excess.total, 0.0)


def _measure_influences(case: Case, method: Method) -> None:
    evidence = case.evidence
    if method == "leave-one-out":
        _leave_one_out(case)
        return
    if _only_the_batch(case):
        evidence.notes.append(
            "The model had not become worse before the spike (state part"
            f" {sentences.nats(case.control.excess.state, signed=True)} nats), so only the"
            " sequences of the spike's own batch were searched."
        )
        return
    precision = case.options.precision
    condition = add_metagradient(case.influences, case.control, case.steps.add, precision).condition
    evidence.condition = condition
    if condition is not None and not condition.ok:
        float64 = "--float64, " if precision == "float32" else ""
        evidence.notes.append(
            f"{condition.sentence} Ways to do so: {float64}--method leave-one-out, --method bisect."
        )


def _leave_one_out(case: Case) -> None:
    rows = case.replays.rows(range(case.first, case.S))
    case.steps.expect(sum(case.S - row.step for row in rows))
    for i, row in enumerate(rows):
        note = f"leaving out sequence {i + 1} of {len(rows)}"
        effect = case.replays.excess_removed([row], note)
        case.evidence.effects[row] = effect
        k = row.step - case.first
        case.influences.by_token[k, row.slot] = effect / (row.last - row.first)
        case.influences.known[k, row.slot] = True
        if i % RANKED_AGAIN == RANKED_AGAIN - 1:
            case.evidence.ranked = case.influences.ranked(case.replays)


def _remove(case: Case) -> Suspect | None:
    """Remove the most influential together, and each suspect; hold the best against chance."""
    replays, evidence, facts = case.replays, case.evidence, case.facts
    window = len(replays.rows(range(case.first, case.S + 1)))
    facts.tried = 0

    def on_point(point: CurvePoint) -> None:
        evidence.curve.append(point)
        facts.tried = len(evidence.curve)
        facts.largest = max(facts.largest, point.excess_removed)

    evidence.smallest = deletion_curve(replays, evidence.ranked, window, SEED, on_point)
    best = evidence.smallest or (
        max(evidence.curve, key=lambda point: point.excess_removed).removed if evidence.curve else 0
    )
    suspected = candidates.suspects(replays, case.influences, window, case.options.group)
    strongest = Suspect("strongest", tuple(evidence.ranked[:best]), count=best)
    suspects = [suspect for suspect in (*suspected, strongest) if suspect.slots]
    removed = {
        suspect: replays.excess_removed(suspect.slots, f"without {suspect.words}")
        for suspect in suspects
    }
    facts.largest = max([facts.largest, *removed.values()])
    facts.tried += len(suspected)
    enough = [s for s in suspects if removed[s] >= AWAY * case.control.excess.total]
    if suspects:
        suspect = enough[0] if enough else max(suspects, key=lambda s: removed[s])
        _hold_against_random(case, suspect, case.options.placebos)
        return suspect
    return None


def _hold_against_random(case: Case, suspect: Suspect, number: int | None) -> None:
    def on_proof(proof: Proof) -> None:
        case.facts.proof = proof

    proof = hold_against_random(case.replays, suspect, SEED + 1, number, on_proof)
    case.facts.proof = proof
    case.facts.documents = candidates.documents_in(case.replays, case.influences, proof.removal)


def _prove_or_try(case: Case, suspect: Suspect | None) -> None:
    """Try other data and policies, and hold a removal that may be the cause against its null."""
    try_otherwise(case)
    facts = case.facts
    needed = facts.policy_takes_it_away and not facts.half_of_others_spike
    if suspect and needed and facts.proof and facts.proof.beyond_random:
        # windows without a spike were trained under another policy: chance within this one counts
        _hold_against_random(case, suspect, case.options.placebos or NULL_WINDOWS)
    _hold_against_null(case)


def _hold_against_null(case: Case) -> None:
    """Search windows without a spike the same way, where a removal may still be the cause."""
    facts, proof, options = case.facts, case.facts.proof, case.options
    half = HALF * case.control.excess.total
    if proof is None or not proof.beyond_random or proof.excess_removed < half:
        return
    if facts.half_of_others_spike:
        return
    depth = 0 if _only_the_batch(case) else case.S - case.first
    free = free_memory(case.run)
    if depth and free is not None and memory_needed(case.run, depth, options.precision) > free:
        case.evidence.notes.append(
            "Windows without a spike could not be searched: their influences do not fit into the"
            " memory."
        )
        return

    def on_null(null: NullWindows) -> None:
        facts.proof = dataclasses.replace(proof, null=null)

    windows = WindowsWithoutSpike(
        case.run,
        case.control,
        case.window.calm,
        depth,
        spikes_along(case.run),
        case.steps.add,
        options.group,
    )
    try:
        on_null(windows.hold_against(proof.excess_removed, options.null_windows, on_null))
    finally:
        case.null_replays += windows.replays
        case.null_steps += windows.steps


def _bisect_where_helpless(case: Case) -> None:
    """Where the most influential do not carry the spike, real replays look for what does."""
    proof = case.facts.proof
    if proof is not None and proof.excess_removed >= HALF * case.control.excess.total:
        return
    if case.facts.trials.other_data and all(t.spikes for t in case.facts.trials.other_data):
        return
    case.evidence.notes.append(
        "The most influential sequences do not carry the spike, so the window was bisected by"
        " real replays too."
    )
    _bisect(case, RESCUE)


def _bisect(case: Case, budget: int) -> None:
    """Run delta debugging; its set is proved as any other."""
    evidence, facts = case.evidence, case.facts

    def on_smaller(removal: tuple[Slot, ...]) -> None:
        evidence.ranked = list(removal)
        facts.largest = max(facts.largest, case.replays.excess_removed(removal))

    case.steps.expect(budget * (case.S - case.first) // 3)
    bisection = evidence.bisection = bisect(case.replays, budget, on_smaller)
    facts.tried = max(facts.tried, case.replays.replays)
    if bisection is None:
        evidence.notes.append(
            "The spike stays though all data of the window are replaced by others."
        )
        if not facts.trials.other_data:
            try_otherwise(case)
        return
    if not bisection.complete:
        evidence.notes.append(
            f"Bisection ended after its budget of {budget} replays: the set may not be the"
            " smallest."
        )
    evidence.ranked = list(bisection.removal)
    count = len({(slot.step, slot.slot) for slot in bisection.removal})
    suspect = Suspect("bisection", bisection.removal, count=count)
    _hold_against_random(case, suspect, case.options.placebos)
    _prove_or_try(case, suspect)
