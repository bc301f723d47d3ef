"""Orders that are read and not drawn: ids in a file, memory-mapped, however many there are.

    ids = open_order("order.npy", "", total=10**6)          a .npy
    ids = open_order("global_indices.npy", "uint32", …)     a bare memory map, as OLMo writes it
    ids = open_order("4f1c….json", "", …)                   pieces, as forensics.data.foreign_order

An order of pieces is a JSON document beside a corpus: stretches of files where they lie, of the
sequences as they lie, and of batches that nobody knows. Its files were read through when it was
written; they are hashed again only where they changed (`forensics.data.intact`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from forensics.data import intact
from forensics.data.token_files.array_file import is_numpy
from forensics.data.token_files.token_file import id_dtype, whole_tokens
from forensics.errors import ForensicsError

CHUNK = 1 << 22  # ids read at once
FORMAT = 1
OF_CORPUS = "corpus:"  # in data.order_file: a file of the corpus's own folder `orders`
ORDERS = "orders"


@dataclass(frozen=True)
class Piece:
    """A stretch of an order: `count` ids of a file, or ids as they lie, or none that is known."""

    count: int
    first: int = 0  # the file's entry, or the id, that it begins with
    file: str = ""  # in full, or within the folder of orders; empty: ids first … first+count−1
    dtype: str = "<u4"
    offset: int = 0  # bytes before the file's first entry
    hash: str = ""  # of the file
    largest: int = 0  # id of the file
    unknown: str = ""  # why nobody knows these


class OrderIds:
    """The ids of an order: `len` of them, mapped and never read whole."""

    def __init__(self, pieces: Sequence[tuple[Piece, np.ndarray | None]], digest: str) -> None:
        self.digest = digest
        self._pieces = list(pieces)
        self._starts = np.cumsum([0, *(piece.count for piece, _ in pieces)])

    def __len__(self) -> int:
        """Count the ids, those that nobody knows among them."""
        return int(self._starts[-1])

    def read(self, start: int, stop: int) -> np.ndarray:
        """Return ids start … stop−1, fewer at the end: (n,) int64. Errors: missing (not known)."""
        out = [np.empty(0, np.int64)]
        for piece, array, low, high in self._within(start, stop):
            if piece.unknown:
                raise ForensicsError(
                    "missing", f"the sequences of this batch are not known: {piece.unknown}", ""
                )
            out.append(_ids(piece, array, low, high))
        return np.concatenate(out)

    def chunks(self, start: int = 0, stop: int | None = None) -> Iterator[np.ndarray]:
        """Yield the known ids of start … stop−1, some at a time, in order: (n,) each."""
        for piece, array, low, high in self._within(start, len(self) if stop is None else stop):
            for at in range(low, high, CHUNK) if not piece.unknown else ():
                yield _ids(piece, array, at, min(at + CHUNK, high))

    def known(self, stop: int) -> bool:
        """Whether each of the first `stop` ids is known."""
        return not any(piece.unknown for piece, *_ in self._within(0, stop))

    def without(self, ids: np.ndarray, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Return those of `ids` (ascending, no two the same) that entries start … stop−1 are not.

        One pass, in memory of `ids` and a chunk.
        """
        left = np.ones(len(ids), bool)
        for chunk in self.chunks(start, stop) if len(ids) else ():
            place = np.minimum(np.searchsorted(ids, chunk), len(ids) - 1)
            left[place[ids[place] == chunk]] = False
        return ids[left]

    def _within(self, start: int, stop: int) -> Iterator[tuple[Piece, np.ndarray | None, int, int]]:
        """Yield the pieces that hold some of start … stop−1, each with its own places of them."""
        at = max(0, int(np.searchsorted(self._starts, start, side="right")) - 1)
        for number in range(at, len(self._pieces)):
            first = int(self._starts[number])
            if first >= stop:
                return
            piece, array = self._pieces[number]
            low, high = max(start - first, 0), min(stop - first, piece.count)
            if low < high:
                yield piece, array, low, high


def _ids(piece: Piece, array: np.ndarray | None, low: int, high: int) -> np.ndarray:
    if array is None:
        return np.arange(piece.first + low, piece.first + high, dtype=np.int64)
    return array[low:high].astype(np.int64)


def open_order(path: str, dtype: str, total: int) -> OrderIds:
    """Open the order that a recipe's data.order_file names, over `total` sequences.

    `dtype` is its data.order_dtype. Errors: data, missing, integrity, usage.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise ForensicsError(
            "missing",
            f"data.order_file: wanted a .npy at {path}, found no such file",
            "paths are read from the folder the command runs in",
        )
    if file.suffix == ".json":
        return _of_pieces(file, total)
    array = map_ids(file, dtype)
    piece = Piece(len(array), dtype=array.dtype.str)
    return OrderIds([(piece, array)], _read_through(array, total))


def map_ids(file: Path, dtype: str) -> np.ndarray:
    """Map a file of ids: a .npy, or a bare one of this type: (n,). Errors: data, usage."""
    if not is_numpy(file):
        if not dtype:
            raise ForensicsError(
                "data",
                f"data.order_file: {file.name} is not a .npy of ids: it has no NumPy header: a"
                " bare memory map?",
                'say its type: data.order_dtype = "uint32"; or numpy.save(path, ids)',
            )
        entries = whole_tokens(file, id_dtype(dtype))
        ids: np.ndarray | None = (
            np.memmap(file, id_dtype(dtype), "r", shape=(entries,)) if entries else None
        )
        if ids is None:
            raise ForensicsError(
                "data", f"data.order_file: {file.name} is empty", "numpy.save(path, ids)"
            )
        return ids
    try:
        ids = np.load(file, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as e:
        raise ForensicsError(
            "data",
            f"data.order_file: {file.name} is not a .npy of ids: {e}",
            "numpy.save(path, ids)",
        ) from None
    if (
        not isinstance(ids, np.ndarray)
        or ids.ndim != 1
        or ids.dtype.kind not in "iu"
        or not len(ids)
    ):
        description = (
            f"{ids.dtype} of shape {ids.shape}" if isinstance(ids, np.ndarray) else "an archive"
        )
        raise ForensicsError(
            "data",
            f"data.order_file: wanted a flat array of whole numbers, found {description}",
            "numpy.save(path, ids.reshape(-1))",
        )
    return ids


def refuse_outside(ids: np.ndarray, total: int, first: int = 0) -> None:
    """Refuse ids that the corpus has not; these are entries first … of an order. Errors: data."""
    if not len(ids) or (int(ids.min()) >= 0 and int(ids.max()) < total):
        return
    place = int(np.flatnonzero((ids < 0) | (ids >= total))[0])
    raise ForensicsError(
        "data",
        f"data.order_file: wanted ids from 0 to {total - 1}, found {int(ids[place])} at entry"
        f" {first + place:,}",
        "made for another corpus or length T?",
    )


def _read_through(array: np.ndarray, total: int) -> str:
    import xxhash

    digest = xxhash.xxh3_128(str(array.dtype).encode())
    for at in range(0, len(array), CHUNK):
        chunk = array[at : at + CHUNK]
        refuse_outside(chunk, total, at)
        digest.update(np.ascontiguousarray(chunk).data)
    return digest.hexdigest()


def write_pieces(folder: Path, pieces: Sequence[Piece]) -> str:
    """Write an order of pieces into a corpus's folder of orders, and return its value of
    data.order_file.

    Errors: storage.
    """
    from forensics.store.writer import write_atomic

    orders = folder / ORDERS
    orders.mkdir(exist_ok=True)
    document = {"format": FORMAT, "pieces": [_shortened(piece) for piece in pieces]}
    name = f"{_digest(pieces)}.json"
    write_atomic(orders / name, (json.dumps(document, indent=1) + "\n").encode())
    return OF_CORPUS + name


def _shortened(piece: Piece) -> dict[str, Any]:
    default = asdict(Piece(piece.count))
    return {key: entry for key, entry in asdict(piece).items() if entry != default.get(key)} | {
        "count": piece.count
    }


def _digest(pieces: Sequence[Piece]) -> str:
    """Hash what an order is: its ids, wherever they lie."""
    import xxhash

    told = [[p.count, p.first, p.hash, p.dtype, p.offset, bool(p.unknown)] for p in pieces]
    return xxhash.xxh3_128_hexdigest(json.dumps(["pieces", told]).encode())


def _read_pieces(file: Path) -> list[Piece]:
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
        assert document["format"] == FORMAT
        return [Piece(**entry) for entry in document["pieces"]]
    except (ValueError, KeyError, TypeError, AssertionError):
        raise ForensicsError(
            "integrity",
            f"{file} is damaged, or of another version",
            "import the run again",
        ) from None


def _of_pieces(file: Path, total: int) -> OrderIds:
    pieces = _read_pieces(file)
    intact.require(file.parent, {piece.file: piece.hash for piece in pieces if piece.file})
    opened: list[tuple[Piece, np.ndarray | None]] = []
    for piece in pieces:
        largest = piece.largest if piece.file else piece.first + piece.count - 1
        if not piece.unknown and largest >= total:
            raise ForensicsError(
                "data",
                f"data.order_file: wanted ids from 0 to {total - 1}, found {largest}",
                "made for another corpus or length T?",
            )
        opened.append((piece, _mapped(file.parent, piece)))
    return OrderIds(opened, _digest(pieces))


def verify(path: Path) -> list[str]:
    """List which files of an order of pieces are not what they were, every byte read."""
    problems = []
    digests = {piece.file: piece.hash for piece in _read_pieces(path) if piece.file}
    for file, digest in digests.items():
        try:
            actual = intact.hash_file(path.parent / file)
        except OSError as e:
            problems.append(f"{file}: cannot be read: {e.strerror}")
            continue
        if actual != digest:
            problems.append(f"{file}: wanted hash {digest}, found {actual}")
    return problems


def _mapped(folder: Path, piece: Piece) -> np.ndarray | None:
    if not piece.file or not piece.count:
        return None
    dtype = np.dtype(piece.dtype)
    at = piece.offset + piece.first * dtype.itemsize
    return np.memmap(folder / piece.file, dtype, "r", at, (piece.count,))
