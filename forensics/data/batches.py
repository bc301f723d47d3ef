"""Step → Batch: the order's ids, the corpus's tokens, and where every token came from.

batches = Batches(corpus, order, sequence_length=128)
batches.batch_at(200).tokens  →  (B, 129) int64
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from forensics.data.order import Order, make_order
from forensics.data.repeats import repeat_share_rows
from forensics.data.shards import Corpus, Span
from forensics.errors import ForensicsError
from forensics.step.batch import Batch

if TYPE_CHECKING:
    from forensics import config


class Batches:
    """A run's own stream: `batch_at` is a BatchStream, a pure function of the step.

    `mask_repeats`: the targets of a sequence weigh 0 where any of its T + 1 tokens lies inside a
    repeated n-gram, as `sequences.repeat_share` has it (OLMo 2, arXiv 2501.00656). The denominator
    is kept, as everywhere where something is masked: the other sequences weigh what they would have
    weighed, and a batch of repeats alone has loss 0.
    """

    def __init__(
        self, corpus: Corpus, order: Order, sequence_length: int, mask_repeats: bool = False
    ) -> None:
        self.corpus, self.order, self.sequence_length = corpus, order, sequence_length
        self.mask_repeats = mask_repeats
        layout = corpus.layout(sequence_length)
        if tuple(order.n_sequences.tolist()) != layout.n_sequences:
            raise ForensicsError(
                "data",
                f"wanted an order over {list(layout.n_sequences)} sequences, found"
                f" {order.n_sequences.tolist()}",
                "the corpus or data.sequence_length is not the one the order was made for",
            )

    def batch_at(self, step: int) -> Batch:
        """Return batch `step`: weights 1 (masked repeats 0), denominator B·T.

        Errors: missing, past the end of an order file.
        """
        return self.make(self.order.sequence_ids(step), origin=step)

    def make(self, ids: np.ndarray, origin: int | None = None) -> Batch:
        """Return a batch of these sequences: (B,) ids of the corpus.

        Errors: missing, for an id out of range.
        """
        batch = self._whole(ids, origin)
        if self.mask_repeats:
            batch.weight[torch.from_numpy(repeat_share_rows(batch.tokens.numpy()) > 0)] = 0.0
        return batch

    def held_out(self) -> Batch:
        """Return all held-out sequences in one batch, none masked.

        Where there are none it has no rows, and denominator 0.
        """
        return self._whole(self.order.held_out)

    def _whole(self, ids: np.ndarray, origin: int | None = None) -> Batch:
        ids = np.asarray(ids, np.int64)
        tokens = torch.from_numpy(self.corpus.sequences(ids, self.sequence_length))
        B, T = len(ids), self.sequence_length
        return Batch(tokens, torch.ones(B, T), float(B * T), torch.from_numpy(ids.copy()), origin)

    def provenance(self, batch: Batch) -> list[list[Span]]:
        """Return, for each slot, the spans of documents that its T + 1 tokens came from.

        A sequence that an intervention made has none.
        """
        return self.corpus.spans(batch.sequence.numpy(), self.sequence_length)


def own_stream(corpus: Corpus, data: config.Data, batch: int, seed: int) -> Batches:
    """Build the stream of a run from its recipe's `data`, `train.batch` and `train.seed`.

    Errors: config, data, missing.
    """
    layout = corpus.layout(data.sequence_length)
    names = [source.name for source in corpus.sources]
    order = make_order(data, names, layout.n_sequences, layout.first_sequence, batch, seed)
    return Batches(corpus, order, data.sequence_length, data.mask_repeats)
