"""What each token was exposed to, exactly: counted from the data order, the shards and what every
step did.

    ledger(run, 300).exposure_grad      (V,) int64
    ledgers(run, run.saved_steps())     one pass over order and shards for all of them

A step is *applied* where its update moved the parameters (`steps.update` is apply). Steps of a run
are taken from its own stream; below a fork's first step they are its ancestors'. Memory: a few
numbers for each token and each state asked for, 4 bytes for each sequence of the corpus, and a
fixed number of tokens at a time.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from forensics.data.order import Order
from forensics.data.shards import Corpus
from forensics.errors import ForensicsError
from forensics.progress import ProgressCallback, silent
from forensics.step.batch import MADE, Batch
from forensics.step.state import Counters
from forensics.store.parts import write_atomic
from forensics.train.run import Run

CHUNK = 1 << 19  # tokens counted together
FIELDS = ("exposure_in", "exposure_out", "exposure_grad", "documents", "first_step", "last_step")
UNSEEN = -1  # first_step and last_step of a token that was never met
LATER = np.iinfo(np.int64).max
VERSION = 1  # of what is kept


@dataclass(frozen=True, eq=False)
class Exposure:
    """Of every token id, up to state `step`: (V,) int64 each. A token is met as an input or as a
    counted target.

    exposure_in: times it was an input in applied steps. exposure_out: times it was a target whose
    weight is not 0 in applied steps. exposure_grad: input positions from which a counted target is
    reachable (not before it; under a document mask in the same document), in steps whose gradient
    the optimizer took: applied ones, and those that held the parameters, because the moments keep
    the gradient and move the row later; not where the embedding was frozen. documents: distinct
    documents of the corpus it was met in; text that an intervention made is no document of it.
    """

    step: int
    exposure_in: np.ndarray
    exposure_out: np.ndarray
    exposure_grad: np.ndarray
    documents: np.ndarray
    first_step: np.ndarray  # −1: never met in an applied step
    last_step: np.ndarray

    @property
    def never(self) -> np.ndarray:
        """Ids (n,) that no gradient of the input embedding ever reached."""
        return np.flatnonzero(self.exposure_grad == 0)

    @property
    def never_met(self) -> np.ndarray:
        """Ids (n,) that were neither an input whose gradient counted nor a counted target:
        references of any kind.
        """
        return np.flatnonzero(
            (self.exposure_grad == 0) & (self.exposure_in == 0) & (self.exposure_out == 0)
        )


def ledger(run: Run, step: int, progress: ProgressCallback = silent) -> Exposure:
    """Return the exposure of every token up to state `step` of a run or fork. Errors: missing,
    integrity.

    A fork must be opened with its lineage (replay.lineage.open_trajectory).
    """
    return ledgers(run, [step], progress)[0]


def ledgers(run: Run, steps: Sequence[int], progress: ProgressCallback = silent) -> list[Exposure]:
    """Return the same at several states, in their order.

    Kept beside the run, so that asking again is quick.
    """
    ledger_of: dict[int, Exposure] = {
        step: ledger_then for step in set(steps) if (ledger_then := _kept(run, step)) is not None
    }
    missing_steps = sorted(set(steps) - ledger_of.keys())
    if missing_steps:
        _require_trained(run, missing_steps[-1])
        for ledger_then in _count(run, missing_steps, progress):
            ledger_of[ledger_then.step] = ledger_then
            _keep(run, ledger_then)
    return [ledger_of[step] for step in steps]


@dataclass(frozen=True)
class Moves:
    """What a run did at the steps of a window whose gradient the optimizer took; one entry a step,
    in order.
    """

    run: Run
    steps: np.ndarray  # (n,) int64
    applied: np.ndarray  # (n,) bool: the parameters moved; else only the moments
    counters: tuple[Counters, ...]  # before each step


def moves(run: Run, step: int) -> list[Moves]:
    """Those of a run up to state `step`, ancestors first, each over its own window. Errors:
    missing, integrity.
    """
    assert run.header.parent is None or run.parent is not None, (
        "a fork is opened by replay.lineage.open_trajectory"
    )
    windows = [] if run.parent is None else moves(run.parent, min(step, run.header.first_step))
    first = run.header.first_step
    if step <= first:
        return windows
    table = run.table("steps", ["step", "update", "schedule", "updates"])
    at, schedule, updates = (table[name].to_numpy() for name in ("step", "schedule", "updates"))
    action = np.array(table["update"].to_pylist(), dtype=object)
    order = np.argsort(at, kind="stable")
    order = order[(at[order] >= first) & (at[order] < step)]
    if not np.array_equal(at[order], np.arange(first, step)):
        raise ForensicsError(
            "integrity",
            f"wanted a row of `steps` for each of {run.name}'s steps {first}:{step}, "
            f"found {len(order)}",
            "`forensics doctor RUN` tells what is damaged",
        )
    order = order[(action[order] == "apply") | (action[order] == "hold")]
    counters = tuple(
        Counters(*map(int, each)) for each in zip(at[order], schedule[order], updates[order])
    )
    return [*windows, Moves(run, at[order].astype(np.int64), action[order] == "apply", counters)]


def _require_trained(run: Run, step: int) -> None:
    if step < 0 or step > run.last_step():
        raise ForensicsError(
            "missing",
            f"wanted the exposure of {run.name} up to step {step}, found it trained to "
            f"{run.last_step()}",
            f"a step from 0 to {run.last_step()}",
        )


# ---- counting


def _count(run: Run, steps: list[int], progress: ProgressCallback) -> list[Exposure]:
    """At these states, ascending: one pass over the batches, then one over the corpus for the
    documents.
    """
    T = run.recipe.data.sequence_length
    tally = _Tally(run.shape.vocabulary, sum(run.corpus.layout(T).n_sequences), len(steps))
    windows = moves(run, steps[-1])
    total = sum(len(move.steps) for move in windows)
    steps_done, snapshots = 0, dict[int, tuple[np.ndarray, ...]]()
    counted = tally.snapshot()
    for window in windows:
        for low, high, snap, complete in _chunks(window, steps):
            tally.add(window, low, high, snap)
            if complete:
                snapshots[snap] = tally.snapshot()
            steps_done += high - low
            progress(steps_done, total, "counting tokens")
    documents = _documents(run.corpus, T, tally, progress)
    exposures = []
    for i, step in enumerate(steps):
        counted = snapshots.get(
            i, counted
        )  # where no step led here since the state before, nothing was added
        inputs, targets, reached, first, last = counted
        exposures.append(Exposure(step, inputs, targets, reached, documents[i], first, last))
    return exposures


def _chunks(window: Moves, states: list[int]) -> Iterator[tuple[int, int, int, bool]]:
    """Stretches low:high of a window's steps of about CHUNK tokens, none across a state: (low,
    high, the number of the
    first state that a stretch counts for, whether it is the last one before that state)."""
    recipe = window.run.recipe
    size = max(1, CHUNK // (recipe.train.batch * (recipe.data.sequence_length + 1)))
    edges = np.searchsorted(window.steps, states)  # how many of the steps lie before each state
    low = 0
    for snap, edge in enumerate(edges.tolist()):
        while low < edge:
            high = min(low + size, edge)
            yield low, high, snap, high == edge
            low = high


class _Tally:
    """Counts while the batches go by."""

    def __init__(self, vocabulary: int, sequences: int, states: int) -> None:
        self.states = states
        self.counts = np.zeros((3, vocabulary), np.int64)  # in, out, grad
        self.first = np.full(vocabulary, LATER)
        self.last = np.full(vocabulary, UNSEEN, np.int64)
        # of each sequence the first state that has met its first T tokens, and its last one;
        # `states`: none has
        self.met = np.full(sequences, states, np.uint16)
        self.met_last = np.full(sequences, states, np.uint16)

    def snapshot(self) -> tuple[np.ndarray, ...]:
        return (
            *self.counts.copy(),
            np.where(self.first == LATER, UNSEEN, self.first),
            self.last.copy(),
        )

    def add(self, window: Moves, low: int, high: int, snap: int) -> None:
        """Return the batches of a stretch of the window's steps, met by state number `snap` and all
        later ones.
        """
        run, steps = window.run, window.steps[low:high]
        batch = _batches(run, steps)
        tokens, counted = batch.tokens.numpy(), batch.weight.numpy() != 0
        per_step = len(tokens) // len(steps)
        step_n = np.repeat(steps, per_step)
        applied_n = np.repeat(window.applied[low:high], per_step)
        thawed = ["embed.weight" not in run.policy(c).frozen for c in window.counters[low:high]]
        grad_n = np.repeat(np.array(thawed), per_step)
        ids = batch.sequence.numpy()
        plain_n = counted.all(1) & applied_n & grad_n  # the common case: every token counts
        if plain_n.all():
            self._add_whole(tokens, step_n)
        else:
            self._add_whole(tokens[plain_n], step_n[plain_n])
            partly = ~plain_n
            eot = run.header.eot if run.shape.document_mask else None
            self._add_partly(
                tokens[partly],
                counted[partly],
                step_n[partly],
                applied_n[partly],
                grad_n[partly],
                eot,
            )
        _meet(self.met, ids[applied_n], snap)
        _meet(self.met_last, ids[applied_n & counted[:, -1]], snap)

    def _add_whole(self, tokens_nT: np.ndarray, step_n: np.ndarray) -> None:
        """Rows of T + 1 tokens of which every target counts."""
        if not len(tokens_nT):
            return
        every = self._bincount(tokens_nT.reshape(-1))
        inputs = every - self._bincount(tokens_nT[:, -1])
        self.counts += np.stack([inputs, every - self._bincount(tokens_nT[:, 0]), inputs])
        self._met_at(tokens_nT.reshape(-1), np.repeat(step_n, tokens_nT.shape[1]))

    def _add_partly(
        self,
        tokens_nT: np.ndarray,
        counted_nT: np.ndarray,
        step_n: np.ndarray,
        applied_n: np.ndarray,
        grad_n: np.ndarray,
        eot: int | None,
    ) -> None:
        inputs, targets = tokens_nT[:, :-1], tokens_nT[:, 1:]
        step_nT = np.broadcast_to(step_n[:, None], inputs.shape)
        out = counted_nT & applied_n[:, None]
        reached = reachable(inputs, counted_nT, eot) & grad_n[:, None]
        self.counts += np.stack(
            [
                self._bincount(each)
                for each in (inputs[applied_n].reshape(-1), targets[out], inputs[reached])
            ]
        )
        self._met_at(inputs[applied_n].reshape(-1), step_nT[applied_n].reshape(-1))
        self._met_at(targets[out], step_nT[out])

    def _bincount(self, tokens: np.ndarray) -> np.ndarray:
        return np.bincount(tokens, minlength=len(self.last))

    def _met_at(self, tokens: np.ndarray, steps: np.ndarray) -> None:
        """Tokens met at these steps, ascending."""
        if not len(tokens):
            return
        last = np.full_like(self.last, UNSEEN)
        last[tokens] = steps  # of repeated indices the last assignment stays
        np.maximum(self.last, last, out=self.last)
        new = self.first[tokens] >= steps[0]  # few: most were met in an earlier stretch
        if new.any():
            first = np.full_like(self.first, LATER)
            first[tokens[new][::-1]] = steps[new][::-1]
            np.minimum(self.first, first, out=self.first)


def _batches(run: Run, steps: np.ndarray) -> Batch:
    """Return the batches of these steps as one: (n·B) rows."""
    if (
        run.parent is None
    ):  # its own stream: rows are pure functions of their ids, whatever batch they stand in
        return run.batches.make(sequence_ids(run.batches.order, steps))
    import torch

    parts = [run.stream(int(step)) for step in steps]
    tokens, weight, sequence = (
        torch.cat([getattr(p, name) for p in parts]) for name in ("tokens", "weight", "sequence")
    )
    return Batch(tokens, weight, 0.0, sequence)


def sequence_ids(order: Order, steps: np.ndarray) -> np.ndarray:
    """Return the ids of these batches, one after the other: (n·B,).

    Within a phase the order is one list of ids, cut into batches: with 2^j times the batch it gives
    2^j of them at once.
    """
    chunks = []
    starts = [0] if order.file is not None else [stretch.start for stretch in order.stretches]
    i = 0
    while i < len(steps):
        step, start = int(steps[i]), max(s for s in starts if s <= steps[i])
        n = 1
        while (step - start) % (2 * n) == 0 and i + 2 * n <= len(steps):
            n *= 2
        last = min([s for s in starts if s > step], default=LATER)
        while (
            steps[i + n - 1] != step + n - 1 or step + n > last
        ):  # a step in between took no gradient, or a phase ends
            n //= 2
        wide = dataclasses.replace(order, batch=n * order.batch)
        chunks.append(wide.sequence_ids(start + (step - start) // n))
        i += n
    return np.concatenate(chunks)


def reachable(inputs_BT: np.ndarray, counted_BT: np.ndarray, eot: int | None) -> np.ndarray:
    """(B, T) whether a counted target lies at or after a position, and in its document where `eot`
    ends documents.

    Documents as train.advance.documents has them: an end-of-text token belongs to the document it
    ends.
    """
    if eot is None:
        return np.logical_or.accumulate(counted_BT[:, ::-1], axis=1)[:, ::-1]
    ends = (inputs_BT == eot).astype(np.int64)
    document = ends.cumsum(1) - ends
    following = np.where(
        counted_BT, document, LATER
    )  # documents count up, so the smallest that follows is the next
    return np.minimum.accumulate(following[:, ::-1], axis=1)[:, ::-1] == document


def _meet(met: np.ndarray, ids: np.ndarray, snap: int) -> None:
    ids = ids[ids != MADE]
    met[ids] = np.minimum(met[ids], snap)


# ---- documents


def _documents(corpus: Corpus, T: int, tally: _Tally, progress: ProgressCallback) -> np.ndarray:
    """Distinct documents that each token was met in, up to each state: (S, V) int64; the corpus is
    read in its order.
    """
    layout, S, V = corpus.layout(T), tally.states, len(tally.last)
    counts = np.zeros(
        (S + 1, V), np.int64
    )  # by the state that met the pair of token and document first; S: none
    firsts = corpus.documents["first_token"].to_numpy()
    rows, total, scanned = max(1, CHUNK // T), sum(layout.n_sequences), 0
    for s, source in enumerate(corpus.sources):
        n, offset = layout.n_sequences[s], layout.first_sequence[s]
        met, met_last = (each[offset : offset + n] for each in (tally.met, tally.met_last))
        first_D = firsts[source.first_document :][: source.documents]
        pending = _Pending(V, S)
        for a in range(0, n, rows):
            b = min(a + rows, n)
            snap_P = _met_positions(met, met_last, a, b, T, S)
            if (snap_P < S).any():
                tokens_P = corpus.tokens(s, a * T, a * T + len(snap_P))
                _count_pairs(tokens_P, snap_P, a * T, first_D, counts, pending)
            scanned += b - a
            progress(scanned, total, "counting documents")
    return counts[:S].cumsum(0)


def _met_positions(
    met: np.ndarray, met_last: np.ndarray, a: int, b: int, T: int, never: int
) -> np.ndarray:
    """Return the state that first met each position of sequences a … b−1.

    (P,); neighbours share a position.
    """
    snap_P = np.repeat(met[a:b], T)
    before = np.concatenate(
        (met_last[a - 1 : a] if a else np.full(1, never, met.dtype), met_last[a : b - 1])
    )
    np.minimum(snap_P[::T], before, out=snap_P[::T])
    return np.append(snap_P, met_last[b - 1]) if b == len(met) else snap_P


class _Pending:
    """The document at the end of a stretch, which may go on in the next: the state that first met
    each token in it.
    """

    def __init__(self, vocabulary: int, never: int) -> None:
        self.document, self.never = -1, never
        self.met = np.full(vocabulary, never, np.int64)


def _count_pairs(
    tokens_P: np.ndarray,
    snap_P: np.ndarray,
    start: int,
    first_D: np.ndarray,
    counts: np.ndarray,
    pending: _Pending,
) -> None:
    """Add each pair of token and document among the positions from `start` on, once, at the state
    that met it first.
    """
    low, high = (
        np.searchsorted(first_D, [start, start + len(tokens_P) - 1], side="right") - 1
    ).tolist()
    edges = np.concatenate(([0], first_D[low + 1 : high + 1] - start, [len(tokens_P)]))
    D, S = high - low + 1, pending.never
    document_P = np.repeat(np.arange(D), np.diff(edges))
    keep = snap_P < S
    key = (tokens_P[keep] * D + document_P[keep]) * S + snap_P[keep]
    if len(counts[0]) * D * S < 1 << 32:
        key = key.astype(np.uint32)  # sorts in half the time
    key = np.sort(key)
    pair = key // S if S > 1 else key
    first = np.flatnonzero(
        np.concatenate(([True], pair[1:] != pair[:-1])) if len(pair) else np.zeros(0, bool)
    )
    snap = (key[first] % S).astype(np.int64) if S > 1 else np.zeros(len(first), np.int64)
    token, document = np.divmod(pair[first].astype(np.int64), D)
    going_on = low == pending.document
    if (
        going_on
    ):  # the first document was in the stretch before: what it held there is counted already
        here = np.flatnonzero(document == 0)
        before = pending.met[token[here]]
        np.subtract.at(counts, (before, token[here]), 1)
        np.add.at(counts, (np.minimum(before, snap[here]), token[here]), 1)
        pending.met[token[here]] = np.minimum(before, snap[here])
    new = document > 0 if going_on else slice(None)
    np.add.at(counts, (snap[new], token[new]), 1)
    if not (going_on and D == 1):
        pending.document = high
        pending.met[:] = S
        of_last = document == D - 1
        pending.met[token[of_last]] = snap[of_last]


# ---- what is kept


def _path(run: Run, step: int) -> Path:
    import xxhash

    identity: list[Any] = [VERSION]
    ancestor: Run | None = run
    while ancestor is not None:
        identity.append(
            (
                ancestor.name,
                ancestor.header.created,
                ancestor.header.order,
                ancestor.header.corpus,
                ancestor.header.interventions,
            )
        )
        ancestor = ancestor.parent
    return (
        run.folder
        / "exposure"
        / f"{step:06d}-{xxhash.xxh3_64_hexdigest(repr(identity).encode())}.npy"
    )


def _kept(run: Run, step: int) -> Exposure | None:
    try:
        arrays = np.load(_path(run, step), allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return Exposure(step, *arrays) if arrays.shape == (len(FIELDS), run.shape.vocabulary) else None


def _keep(run: Run, exposure: Exposure) -> None:
    path, data = _path(run, exposure.step), io.BytesIO()
    np.save(data, np.stack([getattr(exposure, name) for name in FIELDS]), allow_pickle=False)
    with contextlib.suppress(
        ForensicsError, OSError
    ):  # a folder that may not be written is read all the same
        path.parent.mkdir(exist_ok=True)
        write_atomic(path, data.getvalue())
