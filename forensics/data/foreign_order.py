"""Orders of other trainers: made again from the seed, read from their files, one held to the other.

made = order_of(order, corpus, 48, "inside", batch=4, steps=8, read=[ReadSoFar(4, 16)])
made.order_file                →  "corpus:4f1c….json", for the recipe's data.order_file
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from forensics.data import intact, rank_logs, shuffled_documents
from forensics.data.made_elsewhere import ForeignOrder, ReadSoFar
from forensics.data.order_file import (
    CHUNK,
    ORDERS,
    OrderIds,
    Piece,
    map_ids,
    open_order,
    refuse_outside,
    write_pieces,
)
from forensics.data.shards import Corpus
from forensics.data.token_files import megatron
from forensics.errors import ForensicsError
from forensics.progress import ProgressCallback, silent
from forensics.sequence_window import window_of

TRIED_EPOCHS = 8  # of a file that does not say its epoch: it is held against so many
HEAD = 256  # ids by which a file is known to be of an epoch


@dataclass(frozen=True)
class OrderMade:
    """A foreign order, kept beside its corpus."""

    order_file: str  # value of data.order_file
    known: bool  # False: no batch can be shown; `notes` say why, and what is known all the same
    notes: tuple[str, ...] = ()  # how it is known, a sentence each


def olmo(sequences: int, seed: int, epoch: int, world_size: int, drop_last: bool) -> np.ndarray:
    """Return OLMo's order of one epoch, counted from 0: (n,) uint32.

    Source: allenai/OLMo olmo/data/iterable_dataset.py: PCG64(seed + epoch) shuffles all ids; the
    length is made a multiple of the number of ranks, by leaving the tail out or by repeating.
    """
    ids = np.arange(sequences, dtype=np.uint32)
    np.random.Generator(np.random.PCG64(seed + epoch)).shuffle(ids)
    if drop_last:
        return ids[: sequences // world_size * world_size]
    return np.resize(ids, -(-sequences // world_size) * world_size)


def olmo_core(sequences: int, seed: int, epoch: int, chunk: int) -> np.ndarray:
    """Return OLMo-core's order of one epoch, counted from 1, its tail not yet dropped: (n,).

    Source: allenai/OLMo-core src/olmo_core/data/data_loader.py: PCG64(seed + epoch) shuffles chunks
    of neighbours.
    """
    chunks = np.arange(sequences // chunk, dtype=np.uint32)
    np.random.Generator(np.random.PCG64(seed + epoch)).shuffle(chunks)
    if chunk == 1:
        return chunks
    return (chunks[:, None] * np.uint32(chunk) + np.arange(chunk, dtype=np.uint32)).reshape(-1)


def order_of(
    order: ForeignOrder,
    corpus: Corpus,
    sequence_length: int,
    window: str,
    batch: int,
    steps: int,
    read: Sequence[ReadSoFar] = (),
    progress: ProgressCallback = silent,
) -> OrderMade:
    """Write a run's order beside its corpus.

    Made again from the seed where the rule says how, and held against the file and the ranks' logs
    where they are there: the first difference is refused with both ids. `read` are the run's saved
    states: where they were reached otherwise than by whole batches from the order's start, the
    order goes on from where each says. Errors: data, missing, storage.
    """
    sequences = sum(corpus.layout(window_of(window, sequence_length)).n_sequences)
    making = _Making(order, corpus, sequence_length, sequences, batch, steps, progress)
    try:
        if order.rule == "unknown" or (order.rule == "file" and order.file is None):
            return _of_logs(making) if order.rank_logs else _unknown(order)
        pieces = _pieces(making, read)
        order_file = write_pieces(corpus.folder, pieces)
    except OSError as e:
        raise ForensicsError(
            "storage",
            f"cannot write the order to {corpus.folder / ORDERS}: {e.strerror or e}",
            "free space there, or choose another --runs",
        ) from e
    if order.rank_logs:
        _hold_against_logs(making, order_file)
    return OrderMade(order_file, True, tuple(making.notes))


def _unknown(order: ForeignOrder) -> OrderMade:
    why = order.why_unknown or "nothing says in which order its sequences were read"
    return OrderMade("", False, tuple(note for note in (why, order.still_known) if note))


@dataclass
class _Making:
    """One order while it is made."""

    order: ForeignOrder
    corpus: Corpus
    sequence_length: int
    sequences: int
    batch: int
    steps: int
    progress: ProgressCallback
    notes: list[str] = field(default_factory=list)
    epochs: dict[int, Piece] = field(default_factory=dict)  # those that were made, or read
    last_made: tuple[int, np.ndarray] | None = None

    @property
    def folder(self) -> Path:
        """Return the corpus's folder."""
        return self.corpus.folder

    def epoch(self, number: int) -> Piece:
        """Return one epoch's order, whole batches of it. Errors: data, missing, storage."""
        if number not in self.epochs:
            piece = self._epoch(number)
            whole = piece.count // self.batch * self.batch
            if not whole:
                raise ForensicsError(
                    "data",
                    f"wanted at least one batch of {self.batch} sequences, found {piece.count}",
                    "are these all of its token files? --data",
                )
            self.epochs[number] = Piece(**(vars(piece) | {"count": whole}))
        return self.epochs[number]

    def _epoch(self, number: int) -> Piece:
        order = self.order
        if order.rule == "rows":
            self.note(f"its {self.sequences:,} sequences are read as they lie")
            return Piece(self.sequences)
        if order.rule in shuffled_documents.RULES:
            return self._of_maps(number)
        if (
            order.file is not None
            and order.file_epoch in (None, number)
            and (order.rule == "file" or order.seed is None or number == self._files_epoch())
        ):
            return self._of_file(number)
        if order.rule == "file" or order.seed is None:
            raise ForensicsError(
                "missing",
                f"wanted the order of epoch {number}, found that of one epoch in {order.file}",
                "the run reads its data again in another order; --steps before its end",
            )
        return self._of_seed(number)

    def _files_epoch(self) -> int:
        """Return the epoch that the order file is of: the one whose order begins as it does."""
        order = self.order
        if order.file_epoch is None and self._head is not None:
            for number in range(order.epoch, order.epoch + TRIED_EPOCHS):
                if np.array_equal(self._made(number)[:HEAD], self._head):
                    return number
        return order.epoch if order.file_epoch is None else order.file_epoch

    @property
    def _head(self) -> np.ndarray | None:
        assert self.order.file is not None, "asked before"
        return map_ids(self.order.file, self.order.dtype)[:HEAD]

    def _made(self, number: int) -> np.ndarray:
        """Make an epoch's order from the seed; the last one is kept, for it takes a while."""
        if self.last_made is None or self.last_made[0] != number:
            self.last_made = number, self._from_seed(number)
        return self.last_made[1]

    def _from_seed(self, number: int) -> np.ndarray:
        order = self.order
        assert order.seed is not None, "asked before"
        if self.sequences >= 1 << 32:
            raise ForensicsError(
                "data",
                f"wanted fewer than 2³² sequences, found {self.sequences:,}",
                "its trainer counts them in 32 bits",
            )
        if order.rule == "olmo":
            return olmo(self.sequences, order.seed, number, order.world_size, order.drop_last)
        assert order.rule == "olmo_core", f"no rule {order.rule!r}"
        ids = olmo_core(self.sequences, order.seed, number, order.chunk)
        return ids[: len(ids) // self.batch * self.batch]

    def _of_file(self, number: int) -> Piece:
        """Read the trainer's own file, and hold it against the seed's order where that is known."""
        file = self.order.file
        assert file is not None, "asked before"
        if not file.is_file():
            raise ForensicsError("missing", f"wanted the order {file}, found none", "--order FILE")
        ids = map_ids(file, self.order.dtype)
        largest = 0
        for at in range(0, len(ids), CHUNK):
            chunk = ids[at : at + CHUNK]
            refuse_outside(chunk, self.sequences, at)
            largest = max(largest, int(chunk.max()))
            self.progress(min(at + CHUNK, len(ids)), len(ids), "reading the order")
        if self.order.rule != "file" and self.order.seed is not None:
            self._refuse_difference(ids, self._made(number), file)
            self.note(f"the order file equals the order made again from seed {self.order.seed}")
        else:
            self.note(f"the order is that of {file.name}; no seed was at hand to make it again")
        path = str(file.absolute())
        digest = intact.hash_file(file)
        offset = int(getattr(ids, "offset", 0))
        return Piece(len(ids), 0, path, ids.dtype.str, offset, digest, largest)

    def _refuse_difference(self, found: np.ndarray, made: np.ndarray, file: Path) -> None:
        shared = min(len(found), len(made))
        for at in range(0, shared, CHUNK):
            pair = found[at : min(at + CHUNK, shared)], made[at : min(at + CHUNK, shared)]
            differs = np.flatnonzero(pair[0] != pair[1])
            if len(differs):
                n = int(differs[0])
                raise ForensicsError(
                    "data",
                    f"the order file and the order made again from seed {self.order.seed} differ"
                    f" first at entry {at + n:,}: {int(pair[0][n])} and {int(pair[1][n])}"
                    f" ({file})",
                    "is it another run's, or are these other token files? --order FILE, --data",
                )
        # OLMo-core's file may hold the tail that is dropped, or not
        if len(found) // self.batch != len(made) // self.batch:
            raise ForensicsError(
                "data",
                f"the order file holds {len(found):,} sequences, the order made again from seed"
                f" {self.order.seed} {len(made):,} ({file})",
                "is it another run's, or are these other token files?",
            )

    def _of_seed(self, number: int) -> Piece:
        ids = self._made(number)
        self.note(f"the order of epoch {number} is made again from seed {self.order.seed}")
        return self._written(ids, f"{self.order.rule}-seed{self.order.seed}-epoch{number}")

    def _written(self, ids: np.ndarray, called: str) -> Piece:
        """Write ids that were made here beside the corpus. Errors: OSError."""
        import xxhash

        dtype = np.dtype("<u4") if ids.dtype.itemsize <= 4 else np.dtype("<i8")
        ids = np.ascontiguousarray(ids, dtype)
        digest = xxhash.xxh3_128_hexdigest(ids.data)
        name = f"{called}-{digest[:8]}.ids"
        path = self.folder / ORDERS / name
        if not path.is_file():
            path.parent.mkdir(exist_ok=True)
            temporary = path.with_name(f".{name}-{os.getpid()}")
            ids.tofile(temporary)
            temporary.rename(path)
        return Piece(len(ids), 0, name, dtype.str, 0, digest, int(ids.max()))

    def _of_maps(self, number: int) -> Piece:
        """Return the one order of Megatron's kind; its epochs are one stream."""
        order = self.order
        if number != order.epoch:
            raise ForensicsError(
                "missing",
                f"wanted {self.steps * self.batch:,} samples, found an order of"
                f" {sum(piece.count for piece in self.epochs.values()):,}",
                "its index was made for fewer steps; --steps before its end",
            )
        index = megatron.read_index(Path(self.corpus.sources[0].spec).with_suffix(".idx"))
        ids = shuffled_documents.index_maps(order, index.lengths, self.sequence_length).shuffle
        refuse_outside(ids, self.sequences)
        read = "read from its index maps" if order.file is not None else "made again from its seed"
        self.note(f"the order of its samples is {read}")
        return self._written(np.asarray(ids), f"{order.rule}-{len(ids)}")

    def note(self, sentence: str) -> None:
        """Write a note down, once."""
        if sentence not in self.notes:
            self.notes.append(sentence)


def _pieces(making: _Making, read: Sequence[ReadSoFar]) -> list[Piece]:
    """Lay the epochs out from step 0 on, and go on from where saved states say.

    The last epoch goes on past the run's end, as far as it goes.
    """
    order, B = making.order, making.batch
    pieces: list[Piece] = []
    step, epoch, entry = 0, order.epoch, 0
    for state in sorted(read, key=lambda state: state.step):
        if state.step > making.steps:
            break
        laid, epoch_then, entry_then = _walk(making, step, epoch, entry, state.step)
        # an epoch's end is the next one's start, and a trainer may say either
        ended = entry_then == making.epoch(epoch_then).count
        there = state.sequences == entry_then or (ended and state.sequences == 0)
        other_epoch = state.epoch is not None and not 0 <= state.epoch - epoch_then <= ended
        if there and not other_epoch:
            pieces += laid
            step, epoch, entry = state.step, epoch_then, entry_then
            continue
        why = (
            f"state {state.step} had read {state.sequences:,} sequences of its epoch, where whole"
            f" batches from state {step} on come to {entry_then:,}"
        )
        if state.step > step:
            pieces.append(Piece((state.step - step) * B, unknown=why))
            making.note(f"batches {step} to {state.step - 1} are not known: {why}")
        making.note(f"from batch {state.step} on the order goes on from entry {state.sequences:,}")
        step, epoch, entry = state.step, state.epoch or epoch_then, state.sequences
    laid, epoch, entry = _walk(making, step, epoch, entry, max(making.steps, step))
    pieces += laid
    rest = making.epoch(epoch).count - entry if order.rule != "rows" or entry else 0
    if rest >= B:
        pieces.append(_part(making.epoch(epoch), entry, rest // B * B))
    return _joined(pieces)


def _walk(
    making: _Making, step: int, epoch: int, entry: int, until: int
) -> tuple[list[Piece], int, int]:
    """Lay batches step … until−1 from an epoch's entry on; return where the next one begins."""
    pieces: list[Piece] = []
    wanted = (until - step) * making.batch
    while True:
        left = (making.epoch(epoch).count - entry) // making.batch * making.batch
        taken = min(left, wanted)
        if taken > 0:
            pieces.append(_part(making.epoch(epoch), entry, taken))
        wanted, entry = wanted - taken, entry + taken
        if wanted <= 0:
            return pieces, epoch, entry
        if making.order.rule == "rows":
            why = "the data end there, and how they are read again is not known"
            making.note(f"after batch {until - wanted // making.batch - 1} {why}")
            return [*pieces, Piece(wanted, unknown=why)], epoch, entry
        epoch, entry = epoch + 1, 0


def _part(piece: Piece, entry: int, count: int) -> Piece:
    return Piece(**(vars(piece) | {"first": piece.first + entry, "count": count}))


def _joined(pieces: Sequence[Piece]) -> list[Piece]:
    """Join neighbours that go on in one file."""
    joined: list[Piece] = []
    for piece in pieces:
        last = joined[-1] if joined else None
        if last and _part(last, last.count, piece.count) == piece and not piece.unknown:
            joined[-1] = _part(last, 0, last.count + piece.count)
        else:
            joined.append(piece)
    return joined


def _opened(making: _Making, order_file: str) -> OrderIds:
    path = making.folder / ORDERS / order_file.partition(":")[2]
    return open_order(str(path), "", making.sequences)


def _hold_against_logs(making: _Making, order_file: str) -> None:
    """Hold every logged batch against the order, as a set. Errors: data (the first difference)."""
    ids, B, count = _opened(making, order_file), making.batch, 0
    for step, logged in rank_logs.batches(making.order.rank_logs):
        try:
            expected = np.sort(ids.read(step * B, (step + 1) * B))
        except ForensicsError:
            continue  # a batch that only the logs know
        part = len(logged) < len(expected)  # not all ranks' logs are at hand
        if not (np.isin(logged, expected).all() if part else (expected == np.sort(logged)).all()):
            only = np.setdiff1d(logged, expected)
            raise ForensicsError(
                "data",
                f"batch {step}: the ranks' logs hold "
                + (f"sequence {int(only[0])}" if len(only) else f"{len(logged)} sequences")
                + f", the order {expected[:3].tolist()} … ({len(expected)} of them) does not",
                "are the logs another run's, or was it resumed at another place?",
            )
        count += 1
    making.note(f"the ranks' logs hold the order's sequences at all of {count} logged steps")


def _of_logs(making: _Making) -> OrderMade:
    """Make the order of the ranks' logs, where nothing else says it. Errors: data, storage."""
    B = making.batch
    last, rows = -1, dict[int, np.ndarray]()
    for step, logged in rank_logs.batches(making.order.rank_logs):
        if len(logged) != B:
            why = f"the logs at hand hold {len(logged)} of the {B} sequences of batch {step}"
            return _unknown(replace(making.order, why_unknown=why))
        refuse_outside(logged, making.sequences, step * B)
        rows[step], last = logged, max(last, step)
    if not rows:
        return _unknown(making.order)
    array = np.concatenate([rows[step] for step in sorted(rows)]).astype("<u4")
    name = f"ranks-{len(rows)}-{making.order.rank_logs[0].stat().st_size}.u4"
    path = making.folder / ORDERS / name
    path.parent.mkdir(exist_ok=True)
    array.tofile(path)
    digest, largest = intact.hash_file(path), int(array.max())
    pieces: list[Piece] = []
    expected = 0
    for entry, step in enumerate(sorted(rows)):
        if step > expected:
            why = "the ranks' logs do not hold it"
            pieces.append(Piece((step - expected) * B, unknown=why))
            making.note(f"batches {expected} to {step - 1} are not known: {why}")
        pieces.append(Piece(B, entry * B, name, "<u4", 0, digest, largest))
        expected = step + 1
    making.note("the order is that of the ranks' logs; nothing else was at hand to hold it against")
    return OrderMade(write_pieces(making.folder, _joined(pieces)), True, tuple(making.notes))
