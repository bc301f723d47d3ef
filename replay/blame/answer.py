"""The answer: the result made of a case's facts and evidence, and how it is kept."""

from __future__ import annotations

import dataclasses
import math
import time

from forensics.store.writer import replace_table, write_atomic
from forensics.train.header import now
from replay.blame import candidates, sentences, verdict
from replay.blame.case import Case
from replay.blame.result import (
    BlameResult,
    Candidate,
    DocumentInfluence,
    GroupInfluence,
    ProbeLoss,
    UpdateBlame,
)
from replay.blame.rules import NEGLIGIBLE
from replay.forks.result import ControlResult
from replay.interventions.rows import Slot
from replay.step.update_split import layer_blame, line_scan, split_update
from replay.verify import Level

SHOWN = 16  # candidates in the result
REPLAYED = 4  # of them removed by themselves, where that takes replays
STALE_SHOWN = 8  # tensors
# columns of the table `blame`, in their order
FROM_CANDIDATE = (
    "step",
    "slot",
    "sequence",
    "document",
    "source",
    "part",
    "influence",
    "replayed_effect",
)
COLUMNS = ("spike", "rank", *FROM_CANDIDATE, "method")


def look_closer(case: Case) -> None:
    """Take the worst update apart where the model became worse; remove the strongest singly."""
    excess = case.control.excess
    worse = excess.total * NEGLIGIBLE < excess.state < math.inf
    if verdict.explains(case.facts) and worse:
        _take_update_apart(case)
    _remove_one_by_one(case)


def _take_update_apart(case: Case) -> None:
    """Take the update after which P's loss rose most apart, by tensor."""
    run, control = case.run, case.control
    update = control.worst_update()
    before, after = control.state(update).clone(), control.state(update + 1)
    split = split_update(before, after, run.policy(before.counters), run.model, run.stream)

    def progress(done: int, total: int | None, note: str = "") -> None:
        case.steps.add(0, f"tensors, {note}")

    layers = layer_blame(run, split, control.batch, progress)
    tensors = layers.tensors
    if layers.rise_probe is not None:
        tensors = tuple(sorted(tensors, key=lambda tensor: -(tensor.alone_probe or 0.0)))
    case.evidence.tensors = UpdateBlame(
        **{f.name: getattr(layers, f.name) for f in dataclasses.fields(layers)}
        | {"tensors": tensors},
        update=update,
        stale=case.facts.stale[:STALE_SHOWN],
        line=line_scan(run, split, control.batch),
        batch=case.S,
    )


def _remove_one_by_one(case: Case) -> None:
    """Remove the strongest one by one; those of batch S cost nothing."""
    replayed, effects = 0, case.evidence.effects
    for row in _strongest(case)[:SHOWN]:
        if row in effects:
            continue
        if row.step < case.S:
            replayed += 1
            if replayed > REPLAYED:
                continue
        effects[row] = case.replays.excess_removed([row], "one by one")


def _proved_slots(case: Case) -> tuple[Slot, ...]:
    proof = case.facts.proof
    return proof.removal if proof is not None and proof.causal else ()


def _strongest(case: Case) -> list[Slot]:
    """List sequences by influence, those of the proved set before all others."""
    rows = list(dict.fromkeys(case.replays.row(s.step, s.slot) for s in case.evidence.ranked))
    proved = {(slot.step, slot.slot) for slot in _proved_slots(case)}
    return sorted(rows, key=lambda row: (row.step, row.slot) not in proved)


def _documents(case: Case) -> list[DocumentInfluence]:
    """List documents by influence, those of the proved set before all others."""
    bisection, replays = case.evidence.bisection, case.replays
    rows = bisection.removal if bisection else replays.rows(range(case.first, case.S + 1))
    documents = candidates.by_document(replays, case.influences, rows)
    of_proof = candidates.by_document(replays, case.influences, _proved_slots(case))
    proved = {document.document for document in of_proof}
    return sorted(documents, key=lambda document: document.document not in proved)


def answer(case: Case) -> BlameResult:
    """Judge the facts, and give them with all that was found."""
    facts, control, replays, evidence = case.facts, case.control, case.replays, case.evidence
    judgement = verdict.judge(facts)
    documents, stretch = _documents(case), control.stretch
    level: Level = "exact" if stretch.report.bitwise else "reproduces"
    level = "absent" if facts.absent else level
    return BlameResult(
        run=case.run.name,
        spike=case.blamed,
        height=facts.height,
        calm=case.window.calm,
        window=(case.first, case.S),
        before=control.first,
        method=case.options.method,
        control=ControlResult(level, stretch.report.bitwise, stretch.report.sentence()),
        probes=control.probes.words,
        excess=control.excess,
        verdict=judgement.verdict,
        reason=judgement.reason,
        sentence=sentences.sentence(judgement, facts),
        look_from=facts.look_from if judgement.verdict == "before the window" else None,
        p=facts.proof.p if facts.proof else None,
        proof=facts.proof,
        candidates=tuple(_candidate(case, row) for row in _strongest(case)[:SHOWN]),
        documents=tuple(documents[:SHOWN]),
        sources=tuple(candidates.by_source(documents)),
        smallest=evidence.smallest,
        deletion_curve=tuple(evidence.curve),
        bisection=evidence.bisection,
        trials=facts.trials,
        tensors=evidence.tensors,
        condition=evidence.condition,
        notes=tuple(evidence.notes),
        probe_losses=tuple(ProbeLoss(*pair) for pair in sorted(control.probe.items())),
        replays=1 + replays.replays + case.null_replays,
        steps_replayed=case.S + 1 - control.start + replays.steps + case.null_steps,
        interrupted=facts.interrupted,
        seconds=time.perf_counter() - case.started,
        created=now(),
        groups=tuple(_groups(case, documents)),
    )


def _groups(case: Case, documents: list[DocumentInfluence]) -> list[GroupInfluence]:
    group = case.options.group
    return candidates.by_attribute(case.run, documents, group) if group else []


def _candidate(case: Case, row: Slot) -> Candidate:
    effect = case.evidence.effects.get(row)
    return candidates.candidate(case.replays, case.influences, row, effect, case.options.tokens)


def keep(case: Case, result: BlameResult) -> None:
    """Write `blame-<step>.json`, and the candidates as rows; those of other spikes stay."""
    write_atomic(case.run.folder / f"blame-{case.S}.json", result.to_json())
    rows = [row for row in case.run.table("blame").to_pylist() if row["spike"] != case.S]
    for rank, candidate in enumerate(result.candidates):
        row = {"spike": case.S, "rank": rank, "method": case.options.method}
        rows.append(row | {name: getattr(candidate, name) for name in FROM_CANDIDATE})
    columns = {name: [row[name] for row in rows] for name in COLUMNS}
    replace_table(case.run.folder, "blame", columns)
