"""`forensics demo`: the whole line on real text, told as a short story with numbers.

Train on the standard library with a planted shard of damaged documents; find the spike; replay
across it; scan the batches around it from one frozen state; fork without the damaged documents;
compare with control and placebos; blame.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from forensics import config
from forensics.errors import ForensicsError
from forensics.progress import ProgressCallback
from forensics.store.sandbox import run_sandboxed
from forensics.train.loop import train
from forensics.train.run import open_run
from replay.blame.investigate import blame
from replay.experiments import batch_scan as scans
from replay.forks import spec as specs
from replay.forks.run import fork
from replay.lineage import open_trajectory
from replay.spike_list import spikes_of
from replay.verify import verify

DAMAGED = "select document from documents where source = 'damaged'"
Say = Callable[[str], None]


def tell(runs: Path, quick: bool, progress: ProgressCallback, say: Say) -> dict[str, Any]:
    """Run all of it, saying what is found; returns the document of `forensics demo --json`."""
    began = time.perf_counter()
    recipe_name = "demo-quick" if quick else "demo"
    recipe = config.load(recipe_name)
    planted = recipe.data.phases[0].until or 0
    after = recipe.data.phases[1].until or planted
    name = _train(recipe, recipe_name, runs, progress, say)
    spikes = spikes_of(runs, name, None, "robust")
    found = [s for s in spikes["spikes"] if s["metric"] == "loss"] or spikes["spikes"]
    if not found:
        raise ForensicsError(
            "mismatch",
            f"wanted a spike in {name}, found none",
            "was the recipe changed? `forensics spikes` tells more",
        )
    spike = max(found, key=lambda s: s["sigma"] or 0.0)
    back = (
        f"back in the band at step {spike['recovered_at']}"
        if spike["recovered_at"]
        else "not back in the band"
    )
    say(
        f"\n2. The spike. {spike['metric']} {spike['baseline']:.2f} → {spike['value']:.2f} at step"
        f" {spike['step']} ({spike['sigma']:.0f}σ, {spike['kind']}): {back}."
    )
    head = _largest_logit(runs, name, spike["step"])
    say(
        f"   Spike score {spikes['spike_score']['loss']:.2f}% of loss,"
        f" {spikes['spike_score']['grad_norm']:.2f}% of gradient norm; largest attention logit at"
        f" that step {head['attn_logit_max']:.1f}, in layer {head['layer']}, head {head['head']}."
    )

    first, last = planted - 10, after + 6
    report, _ = verify(runs, name, first, last, progress)
    say(
        f"\n3. The replay. Steps {first}:{last} again, from the checkpoint before:"
        f" {report.sentence()}."
    )

    target = scans.of_run(runs, name, planted)
    rows = scans.scan(target, planted - 6, after + 6, progress=progress)
    worst = sorted(row.step for row in rows[: after - planted])
    say(
        f"\n4. The scan. State {planted} held still, batches {planted - 6}:{after + 6}, no update."
        f" By gradient norm the worst {len(worst)} are {', '.join(map(str, worst))}:"
    )
    for row in rows[: len(worst) + 1]:
        say(f"     batch {row.step}  loss {row.loss:.3f}  gradient norm {row.grad_norm:.2f}")

    run = open_trajectory(runs, name)
    raw = {
        "parent": name,
        "from": planted,
        "to": after + 16,
        "placebos": 3,
        "probe_every": 2,
        "intervention": [
            {"kind": "remove-documents", "sql": DAMAGED, "window": f"{planted}:{after + 16}"}
        ],
    }
    made = fork(specs.build(runs, run, raw), runs, progress).to_document()
    _tell_fork(made, say)
    blamed = blame(runs, name, spike["step"], force=spike["metric"] != "loss", progress=progress)
    del blamed["coloured"]
    _tell_blame(blamed, say)
    again = f"replay blame {name} --spike {spike['step']}" + " --force" * (
        spike["metric"] != "loss"
    )
    seconds = time.perf_counter() - began
    say(
        f"\n{seconds:.0f} seconds in all. Go on with: forensics batch {name} {planted + 1} ·"
        f" {again} · replay diff {name} {made['fork']} · forensics query --list"
    )
    return {
        "run": name,
        "spikes": spikes["spikes"],
        "spike_score": spikes["spike_score"],
        "verify": {
            "bitwise": report.bitwise,
            "from": first,
            "to": last,
            "compared": report.compared,
        },
        "scan": rows,
        "worst": worst,
        "planted": list(range(planted, after)),
        "fork": made,
        "blame": blamed,
        "seconds": seconds,
    }


def _train(
    recipe: config.Recipe, recipe_name: str, runs: Path, progress: ProgressCallback, say: Say
) -> str:
    """Train the demo's run, or go on with it, or find it done."""
    name = recipe_name
    there = (runs / name / "run.json").is_file()
    if there and open_run(runs, name).header.config != json.loads(
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
        resume=there,
        arguments=["demo"],
        progress=progress,
    )
    if outcome.interrupted:
        raise KeyboardInterrupt
    run = open_run(runs, name)
    planted, after = recipe.data.phases[0].until, recipe.data.phases[1].until
    tokens = sum(s["tokens"] for s in run.header.corpus_sources)
    say(
        f"1. The run. {run.header.parameters / 1e6:.1f}M parameters on {tokens:,} tokens of the"
        f" Python standard library, {outcome.steps} steps in {time.perf_counter() - started:.0f} s;"
        f" batches {planted}:{after} are half damaged text (characters shuffled)."
    )
    say(
        f"   Held-out loss {outcome.held_out_loss:.3f} nats/token. Every step's state has a digest;"
        " attention, layers, tensors and sequences are recorded at every step."
    )
    return name


def _largest_logit(runs: Path, name: str, step: int) -> dict[str, Any]:
    sql = (
        "select layer, head, attn_logit_max from heads where run = $run and step = $step order by"
        " attn_logit_max desc limit 1"
    )
    return run_sandboxed(runs, sql, params={"run": name, "step": step}).to_pylist()[0]


def _tell_fork(made: dict[str, Any], say: Say) -> None:
    final = made["final"]
    gap = final["loss_fork"] - final["loss_control"]
    peak = max(
        (r for r in made["divergence"] if r["loss_gap"] is not None), key=lambda r: -r["loss_gap"]
    )
    say(
        f"\n5. The fork. From state {made['from']} to {made['to']} without the damaged documents"
        f" ({made['does']}), beside its control ({made['control']['level']}:"
        f" {made['control']['sentence']}) and {final['placebos']} placebos that lose as many clean"
        " sequences."
    )
    say(
        f"   Held-out loss, fork − control: {peak['loss_gap']:+.3f} at step {peak['step']},"
        f" {gap:+.3f} ± {final['loss_error']:.3f} at the end; placebos"
        f" {min(final['placebo_loss_gaps']):+.3f} to {max(final['placebo_loss_gaps']):+.3f}."
    )
    say(
        f"   KL(control ‖ fork) {final['logit_kl']:.4f} nats: {final['effect']:.0f} times the"
        f" placebos' median, p = {final['p']:.2f}; {final['verdict']}."
    )
    if final["causal"]:
        say(
            f"   So the damaged documents made the difference: N = {final['placebos']} placebos,"
            f" the largest of them {final['placebo_largest']:.4f} nats."
        )


def _tell_blame(blamed: dict[str, Any], say: Say) -> None:
    excess, step = blamed["excess"], blamed["spike"]["step"]
    say(
        f"\n6. The verdict. The spike at {step} stands {excess['total']:+.3f} nats above an"
        f" ordinary batch: data part {excess['data']:+.3f}, state part {excess['state']:+.3f}."
    )
    say(f"   {blamed['verdict'].upper()}: {blamed['sentence']}")
    names = ", ".join(
        f"{d['path']} ({d['source']}, {d['influence']:+.3f})"
        for d in blamed["documents"][:3]
        if d["influence"] is not None
    )
    if names:
        say(f"   By document, in nats: {names}.")
