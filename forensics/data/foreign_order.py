"""Orders of other trainers: made again from the seed, read from their files, one held to the other.

made = order_of(order, corpus, recipe.data.cut, batch=4, steps=8, read=[ReadSoFar(4, 16)])
made.order_file                →  "corpus:4f1c….json", for the recipe's data.order_file
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from forensics.data.made_elsewhere import ForeignOrder, ReadSoFar
from forensics.data.shards import Corpus
from forensics.progress import ProgressCallback, silent


@dataclass(frozen=True)
class OrderMade:
    """A foreign order, kept beside its corpus."""

    order_file: str  # value of data.order_file
    known: bool  # False: no batch can be shown; `notes` say why, and what is known all the same
    notes: tuple[str, ...] = ()  # how it is known, a sentence each


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
    raise NotImplementedError
