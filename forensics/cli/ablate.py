"""`forensics ablate`: from one recipe to another, one difference at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from forensics.cli.console import Command, emit, runs_folder, say, table, workers
from forensics.cli.progress_bar import bar

if TYPE_CHECKING:
    from replay.experiments.ablation_result import AblationArm, AblationResult


@click.command(cls=Command, example="forensics ablate amber-like olmo2-like --seeds 3 --workers 2")
@click.argument("a", metavar="A.toml")
@click.argument("b", metavar="B.toml")
@click.option("--pairs", is_flag=True, help="Also take two differences over at a time.")
@click.option(
    "--seeds",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Seeds of each arm; with two or more, p is told.",
)
@click.option(
    "--steps",
    type=click.IntRange(min=1),
    metavar="N",
    help="Length of every arm; A's where it is left out.",
)
@workers
@click.option("--dry-run", is_flag=True, help="Tell the differences and the arms; train nothing.")
def ablate(
    a: str, b: str, pairs: bool, seeds: int, steps: int | None, workers: int, dry_run: bool
) -> None:
    """Train the runs between two recipes: A with each difference from B, A and B themselves.

    A and B are recipes, by name or as files. Finished arms are used again.
    """
    from replay.experiments.ablation import ablate as run_ablation
    from replay.experiments.ablation import plan

    if dry_run:
        planned = plan(runs_folder(), a, b, pairs=pairs, seeds=seeds, steps=steps)
        emit(planned, lambda: _tell_plan(planned))
        return
    with bar("ablation", "runs") as progress:
        result = run_ablation(
            runs_folder(),
            a,
            b,
            pairs=pairs,
            seeds=seeds,
            steps=steps,
            workers=workers,
            progress=progress,
        )
    emit(result, lambda: _tell(result))


def _tell_plan(planned: AblationResult) -> None:
    _tell_differences(planned)
    say(f"{len(planned.arms)} runs of {planned.steps} steps:")
    for arm in planned.arms:
        say(f"  {_arm_text(planned, arm.changed)}, seed {arm.seed}: {arm.run or arm.refused}")


def _tell(result: AblationResult) -> None:
    """Tell what differs, how every arm trained, and what each change does."""
    _tell_differences(result)
    table(
        ["arm", "seed", "spike score %", "norm slope /1,000", "final loss", "held-out", "diverged"],
        [
            [
                _arm_text(result, arm.changed),
                arm.seed,
                arm.spike_score,
                arm.grad_norm_slope,
                arm.final_loss,
                arm.held_out,
                arm.diverged,
            ]
            for arm in result.arms
            if arm.run
        ],
    )
    for arm in _once(result.arms):
        say(f"Not trained: {_arm_text(result, arm.changed)}: {arm.refused}")
    _tell_effects(result)
    if any(effect.p is not None for effect in result.effects):
        say(
            "p is corrected for the number of single changes; an effect is called shown where p,"
            " corrected for the number of measures too, is at most 0.05."
        )
    for note in result.notes:
        say(note)
    runs = [arm.run for arm in result.arms if arm.run]
    if runs:
        say(f"Each arm is a run: forensics show {runs[0]}")


def _tell_differences(result: AblationResult) -> None:
    say(f"From {result.a} to {result.b}:")
    table(
        ["key", result.a, result.b, ""],
        [[d.key, str(d.a), str(d.b), d.not_varied] for d in result.differences],
    )


def _tell_effects(result: AblationResult) -> None:
    """Tell what each change does, against A with the same seed."""
    from replay.experiments.ablation_result import MEASURES

    for measure, text in MEASURES.items():
        effects = [effect for effect in result.effects if effect.measure == measure]
        if not effects:
            continue
        say(f"Change of the {text.title}, {text.unit}, against {result.a} with the same seed:")
        table(
            [
                "taken over",
                "median",
                "least",
                "most",
                "beyond the sum",
                "p",
                "p at best",
                "seeds",
                "",
            ],
            [
                [
                    _arm_text(result, effect.changed),
                    effect.median,
                    effect.low,
                    effect.high,
                    effect.beyond_sum,
                    effect.p,
                    effect.least_p,
                    effect.seeds,
                    effect.finding,
                ]
                for effect in sorted(effects, key=lambda effect: -abs(effect.median))
            ],
        )


def _arm_text(result: AblationResult, changed: Sequence[str]) -> str:
    """Name an arm by what it takes over."""
    if not changed:
        return result.a
    if set(changed) == {d.key for d in result.differences if not d.not_varied}:
        return f"{result.b} (all of them)"
    return " + ".join(changed)


def _once(arms: Sequence[AblationArm]) -> list[AblationArm]:
    """Return the arms that are no recipe, one for all seeds."""
    refused = {arm.changed: arm for arm in reversed(arms) if arm.refused}
    return list(refused.values())
