"""`replay blame`: from a spike to the step, sequence, document, token and tensor that made it, with
a verdict.

    document = blame(runs, "demo", 400)

Control → excess → influence → deletion curve against random removals → trials that tell data from
state → verdict. The document is kept as `blame-<step>.json` in the run's folder, its candidates as
rows of the table `blame`.
"""

from __future__ import annotations

import dataclasses
import math
import time
from pathlib import Path
from typing import Any

import numpy as np

from forensics.errors import ForensicsError
from forensics.json_documents import dumps
from forensics.progress import ProgressCallback, silent
from forensics.store.writer import replace_table, write_atomic
from forensics.train.loop import now
from forensics.train.run import Run
from replay.blame import candidates, counterfactuals, influence_text, suspects, verdict
from replay.blame.bisect import BUDGET, Found, bisect
from replay.blame.blamed_step import Asked, the_spike
from replay.blame.candidates import Influences
from replay.blame.deletion import AWAY, HALF, Point, Proof, deletion_curve, prove
from replay.blame.excess import BEFORE, Control, clean_probes, lowest
from replay.blame.suspects import Suspect
from replay.blame.window_replays import Replays
from replay.interventions.rows import Slot
from replay.lineage import open_trajectory, require_intact
from replay.step.update_split import layer_blame, line_scan, split_update

METHODS = ("metagradient", "leave-one-out", "bisect")
WINDOW = 16  # steps before the spike
SHOWN = 16  # candidates in the result
REPLAYED = 4  # of them removed by themselves, where that takes replays
NEGLIGIBLE = 0.05  # share of the excess below which the state part is not gone into
RESCUE = 80  # replays of a bisection where influences find nothing
SEED = 0


def blame(
    runs: Path,
    name: str,
    spike: int | None = None,
    *,
    window: int | None = None,
    method: str = "metagradient",
    placebos: int | None = None,
    precision: str = "float32",
    tokens: bool = False,
    force: bool = False,
    progress: ProgressCallback = silent,
    page: Path | None = None,
) -> dict[str, Any]:
    """Explain the spike at `spike` (the largest, where left out); returns and keeps the result's
    document.

    Causes are looked for in the `window` steps before it; left out, in those of the last 16 since
    shortly before the probes' loss began to rise. Ctrl-C during the search returns what is known so
    far, with `interrupted`. `page` is an HTML file to write. Errors: usage (no spike there, unless
    `force`), missing (no state before it), memory (a window too long), integrity.
    """
    if method not in METHODS:
        raise ForensicsError(
            "usage",
            f"wanted a method of {', '.join(METHODS)}, found {method!r}",
            "metagradient is the default",
        )
    if window is not None and window < 1:
        raise ForensicsError(
            "usage",
            f"wanted a window of at least 1 step, found {window}",
            f"the default is {WINDOW}",
        )
    run = open_trajectory(runs, name)
    asked = the_spike(run, spike, force)
    first = _first(run, asked.step, window or WINDOW)
    require_intact(run)
    if method == "metagradient":
        _require_memory(run, asked.step - first, precision)
    return _Blame(
        run, asked, first, window is None, method, placebos, precision, tokens, progress
    ).go(page)


def _first(run: Run, step: int, window: int) -> int:
    """The window's first step. Errors: missing, where no state lies before the spike."""
    first = max(lowest(run), step - window)
    if first >= step:
        raise ForensicsError(
            "missing",
            f"wanted a state of {run.name} before step {step}, found none: it starts at {first}",
            "blame a later spike",
        )
    return first


def _require_memory(run: Run, steps: int, precision: str) -> None:
    """Refuse a window that does not fit. Errors: memory."""
    from replay.blame.window_memory import longest_window, memory_needed

    free, needed = _free_memory(run), memory_needed(run, steps, precision)
    if free is not None and needed > free:
        fits = longest_window(run, free, precision)
        hint = f"--window {fits} fits" if fits else "--method bisect needs less"
        raise ForensicsError(
            "memory",
            f"a window of {steps} steps of {run.name} needs {needed / 2**30:.1f} GiB, found"
            f" {free / 2**30:.1f} GiB free",
            hint,
        )


def _free_memory(run: Run) -> int | None:
    """Bytes; None where this system does not tell."""
    if run.header.device == "cuda":
        import torch

        return int(torch.cuda.mem_get_info()[0])
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(
            int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")
        )
    except (OSError, StopIteration, ValueError):
        return None


class _Work:
    """Steps done of the steps foreseen, for the bar."""

    def __init__(self, report: ProgressCallback) -> None:
        self.report, self.done, self.planned = report, 0, 0

    def expect(self, steps: int) -> None:
        self.planned = self.done + steps

    def did(self, steps: int, note: str) -> None:
        self.done += steps
        self.planned = max(self.planned, self.done)
        self.report(self.done, self.planned, note)


class _Blame:
    """One spike being explained; what is found lands in fields, so that an interrupt loses none of
    it.
    """

    def __init__(
        self,
        run: Run,
        asked: Asked,
        first: int,
        narrow: bool,
        method: str,
        placebos: int | None,
        precision: str,
        tokens: bool,
        progress: ProgressCallback,
    ) -> None:
        self.run, self.asked, self.first, self.narrow, self.method = (
            run,
            asked,
            first,
            narrow,
            method,
        )
        self.placebos, self.precision, self.tokens = placebos, precision, tokens
        self.work = _Work(progress)
        self.began = time.perf_counter()
        self.notes: list[str] = []
        self.curve: list[Point] = []
        self.proof: Proof | None = None
        self.found: Found | None = None
        self.condition: dict[str, Any] | None = None
        self.tensors: dict[str, Any] | None = None
        self.smallest: int | None = None
        self.effects: dict[Slot, float] = {}
        self.ranked: list[Slot] = []
        self.interrupted = False

    def go(self, page: Path | None) -> dict[str, Any]:
        S, steps = self.asked.step, self.asked.step - self.first
        self.work.expect(2 * (BEFORE + steps) + 8 * steps)
        probes = clean_probes(self.run, max(lowest(self.run), self.first - BEFORE))
        self.control = Control(self.run, self.first, S, probes, self.work.did, self.narrow)
        self.first = self.control.begin
        steps = S - self.first
        self.replays = Replays(self.control, self.work.did)
        B, T = self.control.batch.weight.shape
        self.influences = Influences(
            self.first, np.zeros((steps + 1, B, T)), np.zeros((steps + 1, B), bool)
        )
        self.influences.by_token[-1] = self.control.own_influence().numpy()
        self.influences.known[-1] = True
        self.facts = verdict.Facts(
            self.asked,
            self.control.report,
            self.control.recorded_absent(self.asked),
            self.control.excess.loss,
            self.control.excess,
        )
        try:
            if not self.facts.absent:
                self._search()
        except KeyboardInterrupt:
            self.interrupted = self.facts.interrupted = True
            if self.found is None and self.method != "bisect":
                self.ranked = self.influences.ranked(self.replays)
        document = self._document()
        self._keep(document)
        if page is not None:
            shown = [(c, self.pieces(c)) for c in document["candidates"]]
            write_atomic(page, influence_text.page(document, shown).encode())
        document["coloured"] = [self.pieces(c) for c in document["candidates"][:3]]
        return document

    # ---- the search

    def _search(self) -> None:
        steps, rising = self.asked.step - self.first, verdict.rises(self.asked, self.control.excess)
        method = self._method_that_can()
        if method == "bisect":
            if rising:
                self._bisect(BUDGET)
        else:
            self._influences(method)
            self.ranked = self.influences.ranked(self.replays)
            if rising:
                self.work.expect(40 * steps)
                self._curve()
                self._trials()
                if self._helpless() and not (
                    self.facts.other_data and all(t.spikes for t in self.facts.other_data)
                ):
                    self.notes.append(
                        "the strongest influences do not carry the spike: bisected by real replays"
                        " instead"
                    )
                    self._bisect(RESCUE)
        if rising and self.control.excess.total * NEGLIGIBLE < self.control.excess.state < math.inf:
            self._tensors()
        self._single_effects()

    def _method_that_can(self) -> str:
        """A gradient needs finite numbers."""
        if self.method != "bisect" and not math.isfinite(self.control.excess.total):
            self.notes.append(
                "the loss is not finite at the spike, so nothing can be differentiated: bisected"
                " instead"
            )
            return "bisect"
        return self.method

    def _influences(self, method: str) -> None:
        excess = self.control.excess
        if method == "leave-one-out":
            self._leave_one_out()
        elif excess.state <= NEGLIGIBLE * max(excess.total, 0.0) and self.asked.spike:
            self.notes.append(
                "the model had not become worse before the spike (state part "
                f"{excess.state:+.3f} nats), so only the spike's own batch is gone into"
            )
        else:
            self._metagradient()

    def _metagradient(self) -> None:
        from replay.blame.metagradient import influence, probe_target

        last = [0]

        def progress(done: int, total: int | None, note: str = "") -> None:
            self.work.did(max(0, done - last[0]), f"metagradient, {note}")
            last[0] = done

        found = influence(
            self.run,
            self.first,
            self.asked.step,
            probe_target(self.run, self.control.probes.batch),
            start=self.control.state(self.first),
            precision=self.precision,
            tokens=True,
            progress=progress,
        )
        assert found.by_token is not None, "tokens were asked for"
        self.influences.by_token[:-1] = found.by_token
        self.influences.known[:-1] = True
        self.condition = dataclasses.asdict(found.condition) if found.condition else None
        if found.condition is not None and not found.condition.ok:
            offer = "--float64 or " if self.precision == "float32" else ""
            self.notes.append(
                f"{found.condition.sentence}; try {offer}--method leave-one-out or bisect"
            )

    def _leave_one_out(self) -> None:
        rows = self.replays.rows(range(self.first, self.asked.step))
        self.work.expect(sum(self.asked.step - row.step for row in rows))
        for i, row in enumerate(rows):
            taken = self.replays.taken([row], f"leaving out sequence {i + 1} of {len(rows)}")
            self.effects[row] = taken
            self.influences.by_token[row.step - self.first, row.slot] = taken / (
                row.last - row.first
            )
            self.influences.known[row.step - self.first, row.slot] = True
            self.ranked = self.influences.ranked(self.replays) if i % 64 == 63 else self.ranked

    def _curve(self) -> None:
        window = len(self.replays.rows(range(self.first, self.asked.step + 1)))
        self.facts.tried = 0

        def point(p: Point) -> None:
            self.curve.append(p)
            self.facts.tried = len(self.curve)
            self.facts.largest = max(self.facts.largest, p.taken)

        self.smallest = deletion_curve(self.replays, self.ranked, window, SEED, point)
        best = self.smallest or max(self.curve, key=lambda p: p.taken).removed if self.curve else 0
        named = suspects.wholes(self.replays, self.influences, window)
        every = [
            s
            for s in (*named, Suspect(f"the {best} strongest sequences", tuple(self.ranked[:best])))
            if s.slots
        ]
        for s in every:
            self.facts.largest = max(
                self.facts.largest, self.replays.taken(s.slots, f"without {s.words}")
            )
        self.facts.tried += len(named)
        enough = [
            s for s in every if self.replays.taken(s.slots) >= AWAY * self.control.excess.total
        ]
        if every:
            self._prove(
                enough[0] if enough else max(every, key=lambda s: self.replays.taken(s.slots))
            )

    def _prove(self, suspect: Suspect) -> None:
        def known(proof: Proof) -> None:
            self.proof = self.facts.proof = proof

        self.facts.who = suspect.words
        known(prove(self.replays, suspect.slots, SEED + 1, self.placebos, known))
        assert self.proof is not None
        self.facts.documents = suspects.documents_of(
            self.replays, self.influences, self.proof.removal
        )

    def _helpless(self) -> bool:
        return self.proof is None or self.proof.taken < HALF * self.control.excess.total

    def _bisect(self, budget: int) -> None:
        """Delta debugging; its set is proved as any other."""

        def known(removal: tuple[Slot, ...]) -> None:
            self.ranked = list(removal)
            self.facts.largest = max(self.facts.largest, self.replays.taken(removal))

        self.work.expect(budget * (self.asked.step - self.first) // 3)
        self.found = bisect(self.replays, budget, known)
        self.facts.tried = max(self.facts.tried, self.replays.replays)
        if self.found is None:
            self.notes.append("the spike stays though all data of the window are others")
            if not self.facts.other_data:
                self._trials()
            return
        if not self.found.complete:
            self.notes.append(
                f"bisection ended after its budget of {budget} replays: the set may not be the"
                " smallest"
            )
        self.ranked = list(self.found.removal)
        n = len({(s.step, s.slot) for s in self.found.removal})
        self._prove(Suspect(f"{n} sequence{'s' * (n != 1)} found by bisection", self.found.removal))
        self._trials()

    def _trials(self) -> None:
        """Tell data from state: from the first touched step where a set was found, else over the
        whole window.
        """
        f, S = self.facts, self.asked.step
        found = self.proof is not None and self.proof.share >= AWAY
        first = (
            self.replays.first_step(self.proof.removal)
            if self.proof is not None and found
            else self.first
        )
        f.other_data = counterfactuals.other_data(self.replays, first)
        f.stale = counterfactuals.stale_tensors(self.run, min(first, S - 1), S)
        if all(t.spikes for t in f.other_data):
            f.steady_rate = counterfactuals.steady_rate(self.replays)
            f.up_to_date = counterfactuals.up_to_date(self.replays, self.first)
        elif self.proof is not None and self.proof.causal:
            f.other_states = counterfactuals.other_states(self.replays, first)
            f.up_to_date = counterfactuals.up_to_date(self.replays, first)

    def _tensors(self) -> None:
        """The update of the window after which P's loss rose most, taken apart by tensor."""
        run, control, S = self.run, self.control, self.asked.step
        update = control.worst_update()
        before = control.state(update).clone()
        after = control.state(update + 1)
        split = split_update(before, after, run.policy(before.counters), run.model, run.stream)
        batch = control.batch

        def progress(done: int, total: int | None, note: str = "") -> None:
            self.work.did(0, f"tensors, {note}")

        found = layer_blame(run, split, batch, progress)
        if found["rise_probe"] is not None:
            found["tensors"].sort(key=lambda row: -row["alone_probe"])
        self.tensors = {
            "update": update,
            "stale": list(self.facts.stale)[:8],
            **found,
            "line": line_scan(run, split, batch),
            "batch": S,
        }

    def _single_effects(self) -> None:
        """What the strongest take away one by one; those of batch S cost nothing."""
        dear = 0
        for row in self._strongest()[:SHOWN]:
            if row.step < self.asked.step and row not in self.effects:
                dear += 1
                if dear > REPLAYED:
                    continue
            if row not in self.effects:
                self.effects[row] = self.replays.taken([row], "one by one")

    # ---- the result

    def pieces(self, candidate: dict[str, Any]) -> list[tuple[str, float]]:
        """The coloured text of a candidate."""
        return influence_text.pieces(
            self.replays, self.influences, self.replays.row(candidate["step"], candidate["slot"])
        )

    def _strongest(self) -> list[Slot]:
        """Sequences by influence, those of the proved set before all others."""
        rows = list(dict.fromkeys(self.replays.row(r.step, r.slot) for r in self.ranked))
        proved = (
            {(s.step, s.slot) for s in self.proof.removal}
            if self.proof and self.proof.causal
            else set()
        )
        return sorted(rows, key=lambda r: (r.step, r.slot) not in proved)

    def _proved_documents(self) -> set[int]:
        """They come before all others too."""
        removal = self.proof.removal if self.proof and self.proof.causal else ()
        return {
            d["document"] for d in candidates.by_document(self.replays, self.influences, removal)
        }

    def _document(self) -> dict[str, Any]:
        f, control, replays = self.facts, self.control, self.replays
        word, sentence = verdict.judge(f)
        rows = self._strongest()
        everything = replays.rows(range(self.first, self.asked.step + 1))
        documents = candidates.by_document(
            replays, self.influences, self.found.removal if self.found else everything
        )
        proved = self._proved_documents()
        documents.sort(key=lambda d: d["document"] not in proved)
        excess = dataclasses.asdict(control.excess) | {"total": control.excess.total}
        return {
            "run": self.run.name,
            "spike": dataclasses.asdict(self.asked) | {"sigma": self.asked.sigma},
            "window": [self.first, self.asked.step],
            "before": self.control.first,
            "method": self.method,
            "control": {
                "level": (
                    "absent" if f.absent else "exact" if control.report.bitwise else "reproduces"
                ),
                "bitwise": control.report.bitwise,
                "sentence": control.report.sentence(),
            },
            "probes": control.probes.words,
            "excess": excess,
            "verdict": word,
            "sentence": sentence,
            "p": self.proof.p if self.proof else None,
            "proof": (
                None
                if self.proof is None
                else {
                    "who": f.who,
                    "removal": [dataclasses.asdict(s) for s in self.proof.removal],
                    "sequences": self.proof.sequences,
                    "taken": self.proof.taken,
                    "share": self.proof.share,
                    "away": self.proof.away,
                    "data": self.proof.data,
                    "state": self.proof.state,
                    "random": list(self.proof.random),
                    "effect": self.proof.effect,
                    "p": self.proof.p,
                    "causal": self.proof.causal,
                    "words": self.proof.words,
                }
            ),
            "candidates": [
                candidates.candidate(
                    replays,
                    self.influences,
                    replays.row(r.step, r.slot),
                    self.effects.get(r),
                    self.tokens,
                )
                for r in rows[:SHOWN]
            ],
            "documents": documents[:SHOWN],
            "sources": candidates.by_source(documents),
            "smallest": self.smallest,
            "deletion_curve": [dataclasses.asdict(p) for p in self.curve],
            "bisection": dataclasses.asdict(self.found) if self.found else None,
            "trials": {
                "other_data": [dataclasses.asdict(t) for t in f.other_data],
                "other_states": [dataclasses.asdict(t) for t in f.other_states],
                "up_to_date": dataclasses.asdict(f.up_to_date) if f.up_to_date else None,
                "steady_rate": dataclasses.asdict(f.steady_rate) if f.steady_rate else None,
            },
            "tensors": self.tensors,
            "condition": self.condition,
            "notes": self.notes,
            "probe_losses": [{"state": s, "loss": x} for s, x in sorted(control.probe.items())],
            "replays": 1 + replays.replays,
            "steps_replayed": self.asked.step + 1 - control.start + replays.steps,
            "interrupted": self.interrupted,
            "seconds": time.perf_counter() - self.began,
            "created": now(),
        }

    def _keep(self, document: dict[str, Any]) -> None:
        """`blame-<step>.json`, and the candidates as rows; those of other spikes stay."""
        text = dumps(document) + "\n"
        write_atomic(self.run.folder / f"blame-{self.asked.step}.json", text.encode())
        old = self.run.table("blame").to_pylist()
        rows = [row for row in old if row["spike"] != self.asked.step]
        rows += [
            {"spike": self.asked.step, "rank": rank, "method": self.method}
            | {
                k: c[k]
                for k in (
                    "step",
                    "slot",
                    "sequence",
                    "document",
                    "source",
                    "part",
                    "influence",
                    "replayed_effect",
                )
            }
            for rank, c in enumerate(document["candidates"])
        ]
        columns = (
            "spike",
            "rank",
            "step",
            "slot",
            "sequence",
            "document",
            "source",
            "part",
            "influence",
            "replayed_effect",
            "method",
        )
        replace_table(self.run.folder, "blame", {c: [row[c] for row in rows] for c in columns})
