"""What a boost will run: its window, the contexts its loss is read in, and the arms."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from forensics.errors import ForensicsError
from forensics.tokens.applied_steps import sequence_ids
from forensics.tokens.trajectories import reference_ids
from forensics.train.run import Run
from replay.executors.local import Task
from replay.interventions.boost_token import BoostToken
from replay.interventions.corpus_search import holding
from replay.interventions.placebo import NullFork, placebos_of
from replay.interventions.registry import to_dict

CONTEXTS = 16  # sequences the token's loss is read in
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
        window = [BoostToken(first, last, token, n, seed) for seed in range(seeds)]
        boosts = [boost.resolved(run).bringing(pool) for boost in window]
        arms += [_arm("boosted", boost, seed) for seed, boost in enumerate(boosts)]
        placebos = placebos_of(boosts[:1], run, first, last, seeds, 0)
        arms += [_arm("placebo", _boost_of(null), seed) for seed, null in enumerate(placebos)]
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


def _arm(name: str, boost: BoostToken, seed: int) -> Task:
    """Name an arm; `other` is a placebo's token."""
    return {
        "arm": name,
        "times": boost.times,
        "seed": seed,
        "other": boost.token if name == "placebo" else None,
        "intervention": to_dict(boost),
    }


def _boost_of(placebo: NullFork) -> BoostToken:
    """Return what a placebo of a boost does instead."""
    (boost,) = placebo.interventions or ()
    assert isinstance(boost, BoostToken), "a boost's placebo is a boost"
    return boost
