"""`forensics demo`: the whole line on real text, told as a short story with numbers.

Train on the standard library with a planted shard of damaged documents; find the spike; replay
across it; scan the batches around it from one frozen state; fork without the damaged documents;
compare with control and placebos; blame.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from forensics import config
from forensics.errors import ForensicsError
from forensics.progress import ProgressCallback
from forensics.result_records import ResultRecord, json_key
from forensics.store.sandbox import run_sandboxed
from forensics.train.loop import train
from forensics.train.run import open_run
from replay.blame.investigate import BlameOptions, blame
from replay.blame.result import BlameResult
from replay.blame.sentences import cause, excess_sentence
from replay.experiments import batch_scan
from replay.experiments.results import ScanRow
from replay.forks import spec as fork_specs
from replay.forks.result import ForkResult
from replay.forks.run import fork
from replay.lineage import open_trajectory
from replay.spike_list import SpikeRow, SpikeScore, spikes_of
from replay.verify import verify

DAMAGED = "select document from documents where source = 'damaged'"
BEFORE, AFTER = 10, 6  # steps around the damaged ones that are replayed
SCANNED = 6  # batches before and after the damaged ones that are scanned
FORKED = 16  # steps after the damaged ones that the fork goes on
PLACEBOS = 3
DOCUMENTS = 3  # that are named
Say = Callable[[str], None]


@dataclass(frozen=True)
class ReplayCheck:
    """The replay across the spike, against the record."""

    bitwise: bool
    first: int = json_key("from")
    last: int = json_key("to")
    compared: int = 0  # steps of which something was recorded


@dataclass(frozen=True)
class DemoResult(ResultRecord):
    """What the demo found."""

    VERSION: ClassVar[int] = 1
    KIND: ClassVar[str] = "demo"
    AGAIN: ClassVar[str] = "run `forensics demo` again"

    run: str
    spikes: tuple[SpikeRow, ...]
    spike_score: SpikeScore
    verify: ReplayCheck
    scan: tuple[ScanRow, ...]  # batches, largest gradient norm first
    worst: tuple[int, ...]  # steps of the first of them, as many as are planted
    planted: tuple[int, ...]  # steps whose batches hold damaged documents
    fork: ForkResult
    blame: BlameResult
    seconds: float


@dataclass(frozen=True)
class Planted:
    """The steps first … last−1 whose batches hold damaged documents."""

    first: int
    last: int


def tell(runs: Path, quick: bool, progress: ProgressCallback, say: Say) -> DemoResult:
    """Run all of it, saying what is found."""
    started = time.perf_counter()
    recipe_name = "demo-quick" if quick else "demo"
    recipe = config.load(recipe_name)
    first = recipe.data.phases[0].until or 0
    planted = Planted(first, recipe.data.phases[1].until or first)
    name = _train(recipe, recipe_name, planted, runs, progress, say)
    spikes = spikes_of(runs, name)
    spike = _largest_spike(name, spikes.spikes)
    _tell_spike(runs, name, spike, spikes.spike_score, say)
    check = _replay(runs, name, planted, progress, say)
    scan = _scan(runs, name, planted, progress, say)
    result = _fork(runs, name, planted, progress)
    _tell_fork(result, say)
    force = spike.metric != "loss"
    blamed = blame(runs, name, spike.step, BlameOptions(force=force), progress)
    _tell_blame(blamed, say)
    seconds = time.perf_counter() - started
    again = f"replay blame {name} --spike {spike.step}{' --force' if force else ''}"
    say(
        f"\nThe demo took {seconds:.0f} seconds. Next steps: forensics batch {name} {first + 1} ·"
        f" {again} · replay diff {name} {result.fork} · forensics query --list"
    )
    return DemoResult(
        run=name,
        spikes=spikes.spikes,
        spike_score=spikes.spike_score,
        verify=check,
        scan=tuple(scan),
        worst=tuple(_worst(scan, planted)),
        planted=tuple(range(planted.first, planted.last)),
        fork=result,
        blame=blamed,
        seconds=seconds,
    )


def _train(
    recipe: config.Recipe,
    recipe_name: str,
    planted: Planted,
    runs: Path,
    progress: ProgressCallback,
    say: Say,
) -> str:
    """Train the demo's run, or go on with it, or find it done."""
    name = recipe_name
    exists = (runs / name / "run.json").is_file()
    if exists and open_run(runs, name).header.config != json.loads(
        json.dumps(config.to_dict(recipe))
    ):
        raise ForensicsError(
            "usage",
            f"wanted the demo's own run {name!r}, found one of another recipe",
            f"--runs DIR takes another folder, or delete {name}",
        )
    started = time.perf_counter()
    outcome = train(
        recipe,
        name=name,
        recipe_name=recipe_name,
        runs=runs,
        resume=exists,
        arguments=["demo"],
        progress=progress,
    )
    if outcome.interrupted:
        raise KeyboardInterrupt
    header = open_run(runs, name).header
    tokens = sum(source["tokens"] for source in header.corpus_sources)
    say(
        f"1. The run. A model of {header.parameters / 1e6:.1f}M parameters learned from"
        f" {tokens:,} tokens of the Python standard library: {outcome.steps} steps in"
        f" {time.perf_counter() - started:.0f} s. Half of the text in batches"
        f" {planted.first}:{planted.last} is damaged: its characters are shuffled."
    )
    say(
        f"   The loss on held-out text is {outcome.held_out_loss:.3f} nats/token. Every step's"
        " state has a digest; attention, layers, tensors and sequences are recorded at every step."
    )
    return name


def _largest_spike(name: str, spikes: Sequence[SpikeRow]) -> SpikeRow:
    """Choose the highest spike of the loss, or of the gradient norm. Errors: mismatch."""
    of_loss = [spike for spike in spikes if spike.metric == "loss"] or spikes
    if not of_loss:
        raise ForensicsError(
            "mismatch",
            f"wanted a spike in {name}, found none",
            "was the recipe changed? `forensics spikes` tells more",
        )
    return max(of_loss, key=lambda spike: spike.sigma or 0.0)


def _tell_spike(runs: Path, name: str, spike: SpikeRow, score: SpikeScore, say: Say) -> None:
    series = "loss" if spike.metric == "loss" else "gradient norm"
    back = (
        f"it is back in its usual range at step {spike.recovered_at}"
        if spike.recovered_at
        else "it does not come back into its usual range"
    )
    say(
        f"\n2. The spike. At step {spike.step} the {series} jumps from {spike.baseline or 0:.2f}"
        f" to {spike.value:.2f}, {spike.sigma or 0:.0f}σ above the steps before"
        f" ({spike.kind}); {back}."
    )
    head = _largest_logit(runs, name, spike.step)
    say(
        f"   The spike score (share of steps 7 standard deviations from up to 1,000 before them) is"
        f" {score.loss or 0:.2f}% for loss, {score.grad_norm or 0:.2f}% for gradient norm. The"
        " largest attention logit at that step is"
        f" {head['attn_logit_max']:.1f}, in layer {head['layer']}, head {head['head']}."
    )


def _largest_logit(runs: Path, name: str, step: int) -> dict[str, Any]:
    sql = (
        "select layer, head, attn_logit_max from heads where run = $run and step = $step order by"
        " attn_logit_max desc limit 1"
    )
    return run_sandboxed(runs, sql, params={"run": name, "step": step}).to_pylist()[0]


def _replay(
    runs: Path, name: str, planted: Planted, progress: ProgressCallback, say: Say
) -> ReplayCheck:
    first, last = planted.first - BEFORE, planted.last + AFTER
    report = verify(runs, name, first, last, progress)
    say(
        f"\n3. The replay. Steps {first}:{last} were run again from the checkpoint before them:"
        f" {report.sentence()}."
    )
    return ReplayCheck(report.bitwise, first, last, report.compared)


def _scan(
    runs: Path, name: str, planted: Planted, progress: ProgressCallback, say: Say
) -> Sequence[ScanRow]:
    first, last = planted.first - SCANNED, planted.last + SCANNED
    target = batch_scan.of_run(runs, name, planted.first)
    rows = batch_scan.scan(target, first, last, progress=progress)
    worst = _worst(rows, planted)
    listed = ", ".join(map(str, worst))
    which = f"batch {listed} has" if len(worst) == 1 else f"batches {listed} have"
    say(
        f"\n4. The scan. The model of state {planted.first} met batches {first}:{last} without"
        f" being updated: {which} the largest gradient norm."
    )
    for row in rows[: len(worst) + 1]:
        say(f"     batch {row.step}  loss {row.loss:.3f}  gradient norm {row.grad_norm:.2f}")
    return rows


def _worst(rows: Sequence[ScanRow], planted: Planted) -> list[int]:
    """List the steps of the batches that stand first, as many as are planted."""
    return sorted(row.step for row in rows[: planted.last - planted.first])


def _fork(runs: Path, name: str, planted: Planted, progress: ProgressCallback) -> ForkResult:
    last = planted.last + FORKED
    remove = {"kind": "remove-documents", "sql": DAMAGED, "window": f"{planted.first}:{last}"}
    document = {
        "parent": name,
        "from": planted.first,
        "to": last,
        "placebos": PLACEBOS,
        "probe_every": 2,
        "intervention": [remove],
    }
    spec = fork_specs.build(runs, open_trajectory(runs, name), document)
    return fork(spec, runs, progress)


def _tell_fork(result: ForkResult, say: Say) -> None:
    final = result.final
    say(
        f"\n5. The fork. State {result.first} was trained on to {result.last} without the damaged"
        f" documents ({result.does}), beside a control on the recorded data"
        f" ({result.control.level}: {result.control.sentence}) and {final.placebos} placebos, which"
        " had other data in their place."
    )
    peak = max(
        (row for row in result.divergence if row.loss_gap is not None),
        key=lambda row: -(row.loss_gap or 0.0),
    )
    say(
        f"   Held-out loss, fork − control: {peak.loss_gap:+.3f} nats/token at step {peak.step},"
        f" {final.gap or 0.0:+.3f} ± {final.loss_error or 0.0:.3f} at the end; of the placebos at"
        f" the end {min(final.placebo_loss_gaps):+.3f} to {max(final.placebo_loss_gaps):+.3f}."
    )
    say(
        "   The fork's predictions are"
        f" {final.logit_kl or 0.0:.4f} nats from the control's (KL), {final.effect or 0.0:.0f}"
        f" times the placebos' median: {final.verdict}, p = {final.p or 0.0:.2f}."
    )
    if final.causal:
        say(
            f"   So the damaged documents made the difference (N = {final.placebos} placebos, the"
            f" largest of them {final.placebo_largest or 0.0:.4f} nats)."
        )


def _tell_blame(result: BlameResult, say: Say) -> None:
    say(f"\n6. The cause. {excess_sentence(result.excess, result.spike.step)}")
    say(f"   {cause(result.verdict)} {result.sentence}")
    names = ", ".join(
        f"{document.path} ({document.source}, {document.influence:+.3f})"
        for document in result.documents[:DOCUMENTS]
        if document.influence is not None
    )
    if names:
        say(f"   The most influential documents, in nats: {names}.")
