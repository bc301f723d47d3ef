"""What the commands of `replay` say of their documents, for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

from forensics.cli.console import cell, say, table
from replay import tolerance

if TYPE_CHECKING:
    from replay.experiments.results import (
        MatrixResult,
        NoiseResult,
        ScanResult,
        SweepResult,
        WindowsResult,
    )
    from replay.forks.result import ForkPlan, ForkResult


def plan(made: ForkPlan) -> None:
    """Tell what a fork would do and cost."""
    say(f"{made.fork}: {made.parent} from state {made.first} to {made.last}, {made.does}")
    if made.sequences:
        steps = sorted(made.sequences_by_step)
        say(
            f"It touches {made.sequences} sequences of {len(steps)} steps ({steps[0]} to"
            f" {steps[-1]}): {made.tokens:,} targets, {len(made.documents)} documents."
        )
    say(
        f"It runs {made.arms} arms{_nulls(made)}, {made.steps_to_compute:,} steps in all, and"
        f" reads the probes {made.probe_readings:,} times: about {duration(made.hours)}. It holds"
        f" {made.memory_bytes / 2**20:,.0f} MiB of states."
    )


def _nulls(made: ForkPlan) -> str:
    if not made.placebos_exist:
        return " (these interventions have no placebo)"
    return f" (for {made.placebos} placebos)" if made.placebos else ""


def duration(hours: float) -> str:
    """Write a time in the unit that a person would use."""
    seconds = hours * 3600
    if seconds < 90:
        return f"{seconds:.0f} seconds"
    if seconds < 5400:
        return f"{seconds / 60:.0f} minutes"
    return f"{hours:.1f} hours"


def fork(result: ForkResult) -> None:
    """Tell how fork and control stand at the end, and what the null forks say of it."""
    from replay.forks import sentences

    final = result.final
    if not result.control.bitwise:
        say(tolerance.limits(tolerance.CONTROL))
    say(f"{result.fork} {result.does}, from state {result.first} to {result.last}.")
    say(f"Control ({result.control.level}): {result.control.sentence}.")
    for sentence in sentences.spikes(result):
        say(sentence)
    if final.gap is not None:
        say(
            f"Probe loss at the end: {final.loss_control:.3f} in the control, {final.loss_fork:.3f}"
            f" in the fork ({final.gap:+.4f} ± {final.loss_error or 0:.4f} nats/token over"
            f" {final.probe_sequences} held-out sequences)."
        )
    if final.loss_change is not None:
        say(sentences.change(final.loss_change))
    if final.unseen.gap is not None:
        say(
            f"On {final.unseen.sequences} sequences that no arm has consumed: fork − control"
            f" {final.unseen.gap:+.4f} ± {final.unseen.loss_error or 0:.4f} nats/token."
        )
    divergence = (
        f"KL(control ‖ fork) {final.logit_kl:.3g} nats, " if final.logit_kl is not None else ""
    )
    say(f"Distance: {divergence}L2 of the parameters {final.l2:.3g}.")
    for barrier in result.barriers:
        if barrier.arm == "fork":
            say(
                f"Loss barrier at state {barrier.step}: {barrier.height:.4f} nats above the line"
                f" from control to fork, highest at α = {barrier.alpha:.1f}."
            )
    for sentence in (*sentences.verdict(result), *sentences.back(result)):
        say(sentence)


MATRIX_TITLES = {
    "loss": "Loss of the batch at the state (nats/token)",
    "jump": "Jump of the probe loss after one step, over the placebo batches' median (nats)",
    "grad_norm": "Gradient norm of the batch at the state",
}


def matrix(result: MatrixResult) -> None:
    """Tell what the rise is made of, then each measure by state and batch, and its parts."""
    from replay.experiments.matrix_text import beside_blame, headline

    say(headline(result))
    if result.blame is not None:
        say(beside_blame(result))
    first, last = result.batches
    for measure, title in MATRIX_TITLES.items():
        say(f"\n{title}; * the state has already been trained on the batch: left out of the parts")
        states = result.states if measure == "loss" else result.jump_states
        rows = []
        for state in states:
            cells = [matrix_cell for matrix_cell in result.cells if matrix_cell.state == state]
            rows.append(
                [state, *(cell(getattr(c, measure)) + ("*" if c.consumed else "") for c in cells)]
            )
        table(["state", *(str(step) for step in range(first, last))], rows)
        effects = result.effects[measure]
        if effects is None:
            say("No parts: a cell is missing or not finite, or no other state stands beside it.")
        else:
            say(
                f"Parts of the rise at state {effects.judged}, against {len(states) - 1} other"
                f" states and {result.placebos} placebo batches"
            )
            table(
                ["part", "rise", "batch", "p", "p at best", "mean square / noise", "df"],
                [
                    [p.part, p.rise, p.step, p.p, p.p_at_best, p.over_noise, p.freedom]
                    for p in effects.parts
                ],
            )


def windows(result: WindowsResult) -> None:
    """Tell from which states the window spikes too."""
    first, last = result.batches
    say(
        f"Batches {first}:{last} of {result.run}, run from each state; * the state has already been"
        " trained on some of them"
    )
    rows = [
        [
            f"{w.state}{'*' if w.consumed else ''}",
            w.peak,
            w.placebo_median,
            w.sigma,
            w.spiked,
            w.jump,
        ]
        for w in result.windows
    ]
    table(
        [
            "state",
            "highest loss",
            "placebos' median loss",
            "σ above it",
            "spikes",
            "probe loss after it, over placebos'",
        ],
        rows,
    )


def sweep(result: SweepResult) -> None:
    """Tell how large the fork is from each step, and whether it comes back."""
    if not all(row.bitwise for row in result.summary):
        say(tolerance.limits(tolerance.A_CONTROL))
    say(
        f"{result.does} (as written from {result.first}), over {result.horizon} steps of"
        f" {result.run} from each step"
    )
    rate = f"{result.equal_learning_rate:.3g}"
    if any(row.arm == "equal" for row in result.summary):
        say(
            f"Arm own: the run's own learning rate. Arm equal: {rate} throughout, in control and"
            " fork alike."
        )
    else:
        say(f"One arm: the run's own learning rate is {rate} throughout.")
    rows = []
    for row in result.summary:
        after: object = row.time_to_reconverge
        if after is None and row.placebos:
            after = f"> {result.horizon}"
        rows.append(
            [
                row.step,
                row.arm,
                row.learning_rate,
                row.l2,
                row.l2_over_moved,
                row.over_placebos,
                row.p,
                row.placebos,
                after,
            ]
        )
    table(
        [
            "step",
            "arm",
            "learning rate",
            "L2",
            "L2 / moved",
            "× placebos",
            "p",
            "N",
            "back after (steps)",
        ],
        rows,
    )


def noise(result: NoiseResult) -> None:
    """Tell how fast the smallest noise grows at each step."""
    if not all(point.control.bitwise for point in result.points):
        say(tolerance.limits(tolerance.A_CONTROL))
    table(
        [
            "step",
            "exponent per step",
            "steps it rests on",
            "L2 at the start",
            f"L2 after {result.window}",
            "L2 of the placebo",
        ],
        [
            [
                point.step,
                point.divergence_exponent,
                max(point.fitted_steps),
                point.start,
                point.l2[-1],
                point.placebo[-1],
            ]
            for point in result.points
        ],
    )
    if any(point.divergence_exponent is None for point in result.points):
        say(
            "No exponent (–): on fewer than 3 steps the noise stood above 10 times its start and"
            " below a tenth of the placebo, a fork with one other sequence."
        )
    for point in result.points:
        if point.cast_weights:
            say(
                f"From state {point.step}, {point.cast_weights[0]:.0f} weights are another bf16"
                f" number at the start, {point.cast_weights[-1]:.0f} after {result.window} steps."
            )


def scan(result: ScanResult, per_sequence: bool, top: int) -> None:
    """Tell the batches or sequences of the largest gradient norm."""
    columns = (
        ["step", "slot", "loss", "grad_norm"] if per_sequence else ["step", "loss", "grad_norm"]
    )
    table(columns, [[getattr(row, c) for c in columns] for row in result.batches[:top]])
