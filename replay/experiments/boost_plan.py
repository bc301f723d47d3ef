"""What a boost will run: its window, the contexts its loss is read in, and the arms."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from forensics.errors import ForensicsError
from forensics.tokens.applied_steps import sequence_ids
from forensics.tokens.trajectories import reference_ids
from forensics.train.run import Run
from replay.executors.local import Task
from replay.interventions.boost_token import BoostToken, another_token
from replay.interventions.corpus_search import holding
from replay.interventions.registry import to_dict

CONTEXTS = 16  # sequences the token's loss is read in
TRIES = 32  # tokens tried as a placebo
FREE = 2  # sequences of the default window for each that is exchanged


class Window(NamedTuple):
    """The states that every arm runs between."""

    first: int
    last: int


@dataclass(frozen=True)
class BoostPlan:
    """The arms, and where and against what the token is measured."""

    arms: tuple[Task, ...]  # arm, times, seed, other, intervention; the unmodified one first
    contexts: tuple[int, ...]  # ids of sequences
    why: str  # which they are
    reference: tuple[int, ...]  # ids known to be unused


class _Contexts(NamedTuple):
    ids: np.ndarray  # (n,)
    why: str


def window_of(
    run: Run, first: int | None, last: int | None, most: int, seeds: int, workers: int
) -> Window:
    """Return the window asked for, or the latest with room for the largest number of sequences.

    Errors: usage, missing.
    """
    if most < 1 or seeds < 1 or workers < 1:
        raise ForensicsError(
            "usage",
            f"wanted --times, --seeds and --workers of at least 1, found {most}, {seeds} and "
            f"{workers}",
            "e.g. --times 1,3,10 --seeds 3",
        )
    last = run.last_step() if last is None else last
    B = run.recipe.train.batch
    if first is None:
        fitting = [s for s in run.saved_steps() if s < last and (last - s) * B >= FREE * most]
        if not fitting:
            raise ForensicsError(
                "usage",
                f"wanted a checkpoint of {run.name} with {FREE * most} sequences after it, found"
                " none",
                "boost it less (--times), or name the window (--from, --to)",
            )
        first = fitting[-1]
    if not run.header.first_step <= first < last <= run.last_step():
        raise ForensicsError(
            "missing",
            f"wanted a window of {run.name}, found {first}:{last}",
            f"it has states {run.header.first_step} to {run.last_step()}",
        )
    return Window(first, last)


def plan_arms(
    run: Run, token: int, first: int, last: int, times: list[int], seeds: int
) -> BoostPlan:
    """Return the arms' interventions, the sequences of the contexts and the reference of the
    indicator. Errors: usage, missing.
    """
    BoostToken(first, last, token, 1).resolved(run)  # refuses a token that no sequence holds
    holders = holding(run, token)
    contexts = _contexts(run, token, holders, last)
    pool = np.setdiff1d(holders, contexts.ids)
    arms: list[Task] = [
        {"arm": "unmodified", "times": 0, "seed": 0, "other": None, "intervention": None}
    ]
    for n in times:
        for seed in range(seeds):
            boosted = _boosted(run, token, first, last, n, seed, pool)
            placebo = _placebo(run, boosted, first, last, seed, holders)
            arms.append(
                {
                    "arm": "boosted",
                    "times": n,
                    "seed": seed,
                    "other": None,
                    "intervention": to_dict(boosted),
                }
            )
            if placebo is not None:
                arms.append(
                    {
                        "arm": "placebo",
                        "times": n,
                        "seed": seed,
                        "other": placebo.token,
                        "intervention": to_dict(placebo),
                    }
                )
    reference = reference_ids(run, first)
    return BoostPlan(
        arms=tuple(arms),
        contexts=tuple(contexts.ids.tolist()),
        why=contexts.why,
        reference=tuple(reference.ids.tolist()) if reference else (),
    )


def _contexts(run: Run, token: int, holders: np.ndarray, last: int) -> _Contexts:
    """Sequences that hold the token as a target and that no arm trains on: (n,) ids, and what they
    are in words.
    """
    held_out = run.batches.held_out()
    held_out_ids = held_out.sequence[(held_out.tokens[:, 1:] == token).any(1)].numpy()
    unread = np.random.default_rng(0).permutation(np.setdiff1d(holders, sequences_read(run, last)))
    spare = unread[: max(len(unread) // 2, int(len(holders) > 1))]  # the rest is what boosts it
    chosen = np.concatenate((held_out_ids, spare))[:CONTEXTS]
    if not len(chosen):
        return _Contexts(
            chosen,
            "none: the run trains on every sequence that holds the token, so its loss is not read",
        )
    mine = min(len(held_out_ids), CONTEXTS)
    return _Contexts(
        chosen, f"{mine} held-out sequences and {len(chosen) - mine} that the run never reads"
    )


def sequences_read(run: Run, step: int) -> np.ndarray:
    """Ids of the sequences that a run has read before state `step`, its ancestors' included,
    ascending.
    """
    if run.parent is None:
        return (
            np.unique(sequence_ids(run.batches.order, np.arange(step)))
            if step
            else np.empty(0, np.int64)
        )
    below = sequences_read(run.parent, min(step, run.header.first_step))
    return np.unique(
        np.concatenate(
            [below, *(run.stream(s).sequence.numpy() for s in range(run.header.first_step, step))]
        )
    )


def _boosted(
    run: Run, token: int, first: int, last: int, n: int, seed: int, pool: np.ndarray
) -> BoostToken:
    """Return the intervention with its sequences drawn from `pool`."""
    resolved = BoostToken(first, last, token, n, seed).resolved(run)
    come = np.random.default_rng(seed).permutation(pool)
    return replace(resolved, sequences=tuple(int(come[i % len(come)]) for i in range(n)))


def _placebo(
    run: Run, own: BoostToken, first: int, last: int, seed: int, holders: np.ndarray
) -> BoostToken | None:
    """As many sequences of another token of about the same count, none of which holds this one."""
    for attempt in range(TRIES):
        placebo = another_token(own, run, first, last, seed + attempt * 1009)
        if placebo is None:
            return None
        pool = np.setdiff1d(holding(run, placebo.token), holders)
        if len(pool):
            return _boosted(run, placebo.token, first, last, own.times, seed, pool)
    return None
