"""The stream that GPT-NeoX and Megatron-LM read: documents in a shuffled order, cut into samples.

Sample j is tokens jT … jT+T of the documents laid end to end in the order of the document index;
the shuffle index says which sample is read when. One generator, RandomState(seed), shuffles first
the one and then the other. Sources: EleutherAI/gpt-neox megatron/data/gpt2_dataset.py,
NVIDIA/Megatron-LM megatron/core/datasets/gpt_dataset.py.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np

from forensics.data.made_elsewhere import ForeignOrder
from forensics.errors import ForensicsError

RULES = ("neox", "megatron")
# endings of the three index maps: documents, samples, shuffle
ENDINGS = (
    ("_doc_idx.npy", "_sample_idx.npy", "_shuffle_idx.npy"),
    ("-document_index.npy", "-sample_index.npy", "-shuffle_index.npy"),
)
# Megatron-LM: of a last epoch that fewer samples are read of, documents are shuffled apart
SEPARATE_BELOW = 0.80


class IndexMaps(NamedTuple):
    """Which documents make the stream (P,), and which sample is read when (N,)."""

    documents: np.ndarray
    shuffle: np.ndarray


def index_maps(order: ForeignOrder, lengths: np.ndarray, sequence_length: int) -> IndexMaps:
    """Return the maps of a run, read from their files, made again from the seed, or both.

    `lengths` are the documents' (S,), in tokens. Errors: data (the first difference), missing.
    """
    read = None if order.file is None else _read(order.file, lengths, sequence_length)
    if order.seed is None or order.samples is None or order.documents is None:
        if read is None:
            raise ForensicsError(
                "missing",
                "its order depends on the seed, on how many samples it asked for and on which"
                " documents its split holds, which are not all known",
                "--order FILE: one of the three index maps that its trainer wrote (…doc_idx.npy)",
            )
        return read
    made = make(order, lengths, sequence_length)
    if read is not None:
        for what, found, again in zip(("documents", "samples"), read, made):
            _refuse_difference(what, found, again, order)
    return made if read is None else read


def make(order: ForeignOrder, lengths: np.ndarray, sequence_length: int) -> IndexMaps:
    """Make the maps again from the seed, the split's documents and the samples asked for."""
    assert order.seed is not None and order.samples is not None and order.documents is not None
    documents = np.arange(*order.documents, dtype=np.int32)
    tokens, T = int(lengths[documents].sum(dtype=np.int64)), sequence_length
    if tokens < 1:
        raise ForensicsError("data", "wanted documents with tokens, found none in the split", "")
    epochs = max(1, -(-(order.samples * T + 1) // tokens))
    before = ((epochs - 1) * tokens - 1) // T  # samples without the last epoch
    separate = (
        order.rule == "megatron"
        and epochs > 1
        and order.samples - before < int(SEPARATE_BELOW * ((tokens - 1) // T))
    )
    generator = np.random.RandomState(order.seed)
    stretches = (epochs - 1, 1) if separate else (epochs,)
    laid = [np.tile(documents, count) for count in stretches]
    for stretch in laid:
        generator.shuffle(stretch)
    total = (epochs * tokens - 1) // T
    kind = np.uint32 if total < np.iinfo(np.uint32).max - 1 else np.int64
    limits = (0, before, total) if separate else (0, total)
    samples = [np.arange(a, b, dtype=kind) for a, b in pairwise(limits)]
    for places in samples:
        generator.shuffle(places)
    return IndexMaps(np.concatenate(laid), np.concatenate(samples))


def _read(path: Path, lengths: np.ndarray, sequence_length: int) -> IndexMaps:
    """Read the three maps beside one another, and hold the samples to the documents."""
    ending, endings = next(
        ((end, ends) for ends in ENDINGS for end in ends if path.name.endswith(end)), ("", ())
    )
    if not endings:
        raise ForensicsError(
            "data",
            f"{path.name}: wanted one of the three index maps, found another name",
            "they end in " + ", ".join(end for ends in ENDINGS for end in ends),
        )
    prefix = str(path).removesuffix(ending)
    documents, samples, shuffle = (_map(Path(prefix + end)) for end in endings)
    if documents.ndim != 1 or shuffle.ndim != 1 or samples.shape != (len(shuffle) + 1, 2):
        raise ForensicsError(
            "data",
            f"{prefix}: wanted maps of n samples (n + 1 places), found {samples.shape} and"
            f" {shuffle.shape}",
            "are they of one run?",
        )
    if len(documents) and not 0 <= int(documents.min()) <= int(documents.max()) < len(lengths):
        raise ForensicsError(
            "data",
            f"{prefix}{endings[0]}: wanted documents 0 to {len(lengths) - 1}, found"
            f" {int(documents.max())}",
            "an index of other data? --data",
        )
    starts = np.cumsum(np.concatenate(([0], lengths[documents])), dtype=np.int64)
    places = starts[samples[:, 0]] + samples[:, 1]
    wrong = np.flatnonzero(places != np.arange(len(samples)) * sequence_length)
    if len(wrong):
        raise ForensicsError(
            "data",
            f"{prefix}{endings[1]}: sample {int(wrong[0])} begins at token {int(places[wrong[0]])},"
            f" not at {int(wrong[0]) * sequence_length}",
            "another --sequence-length, or samples packed otherwise than end to end",
        )
    return IndexMaps(documents, shuffle)


def _map(path: Path) -> np.ndarray:
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise ForensicsError(
            "missing", f"wanted the index map {path}, found none", "the three lie side by side"
        ) from None
    except (ValueError, OSError, EOFError) as e:
        raise ForensicsError("data", f"{path} is no .npy of an index map: {e}", "") from None


def _refuse_difference(
    what: str, found: np.ndarray, again: np.ndarray, order: ForeignOrder
) -> None:
    shared = min(len(found), len(again))
    differs = np.flatnonzero(found[:shared] != again[:shared])
    if not len(differs) and len(found) == len(again):
        return
    at = int(differs[0]) if len(differs) else shared
    pair = f"{int(found[at])} and {int(again[at])}" if len(differs) else "one of them ends there"
    raise ForensicsError(
        "data",
        f"the index map of {what} and the one made again from seed {order.seed} differ first at"
        f" entry {at:,}: {pair}",
        "is it another run's, or are these other token files?",
    )
