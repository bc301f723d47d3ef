"""Step → Batch: the order's ids, the corpus's tokens, and where every token came from.

batches = Batches(corpus, order, window_of("shared", 128))
batches.batch_at(200).tokens  →  (B, 129) int64

Every batch gets its weights and its loss's denominator here, and nowhere else.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from forensics.data.order import Order, make_order
from forensics.data.order_file import OF_CORPUS, ORDERS
from forensics.data.repeats import repeat_share_rows
from forensics.data.shards import Corpus, Span
from forensics.errors import ForensicsError
from forensics.sequence_window import SequenceWindow
from forensics.step.batch import Batch

if TYPE_CHECKING:
    from forensics import config


class Batches:
    """A run's own stream: `batch_at` is a BatchStream, a pure function of the step.

    `mask_repeats`: the targets of a sequence weigh 0 where any of its tokens lies inside a repeated
    n-gram, as `sequences.repeat_share` has it (OLMo 2, arXiv 2501.00656).

    `loss_over` is the denominator of a batch of B sequences, n tokens each, M of them masked so:

        targets   B·(n − 1)        every target of the batch, masked or not
        tokens    B·n              OLMo (allenai/OLMo olmo/train.py): n = T, and T − 1 targets
        unmasked  (B − M)·(n − 1) + M·n
                  OLMo-core: labels that count, and for each masked sequence its n tokens
                  (allenai/OLMo-core olmo_core/train/train_module/transformer/train_module.py)

    What an intervention masks leaves it alone: the other sequences weigh what they weighed.
    """

    def __init__(
        self,
        corpus: Corpus,
        order: Order,
        cut: SequenceWindow,
        mask_repeats: bool = False,
        loss_over: str = "targets",
    ) -> None:
        self.corpus, self.order, self.cut = corpus, order, cut
        self.mask_repeats, self.loss_over = mask_repeats, loss_over
        layout = corpus.layout(cut)
        if tuple(order.n_sequences.tolist()) != layout.n_sequences:
            raise ForensicsError(
                "data",
                f"wanted an order over {list(layout.n_sequences)} sequences, found"
                f" {order.n_sequences.tolist()}",
                "the corpus or its cut (data.sequence_length, data.window) is not the one the order"
                " was made for",
            )

    def batch_at(self, step: int) -> Batch:
        """Return batch `step`: weights 1, of masked repeats 0.

        Errors: missing, past the end of an order file.
        """
        return self.make(self.order.sequence_ids(step), origin=step)

    def make(self, ids: np.ndarray, origin: int | None = None) -> Batch:
        """Return a batch of these sequences: (B,) ids of the corpus.

        Errors: missing, for an id out of range.
        """
        batch = self.whole(ids, origin)
        masked = np.zeros(len(batch.tokens), bool)
        if self.mask_repeats:
            masked = repeat_share_rows(batch.tokens.numpy()) > 0
            batch.weight[torch.from_numpy(masked)] = 0.0
        more = {"targets": 0, "tokens": len(masked), "unmasked": int(masked.sum())}[self.loss_over]
        return replace(batch, denominator=batch.denominator + more) if more else batch

    def untrained(self, steps: int, limit: int) -> np.ndarray:
        """Return ids of sequences that a run of `steps` steps does not train on: (n,) ascending.

        Those held out; where none are, up to `limit` that its order file does not read by then.
        """
        held_out = self.order.held_out
        return held_out if len(held_out) else self.order.unread(steps, limit)

    def held_out(self) -> Batch:
        """Return all held-out sequences in one batch, none masked, over all of their targets.

        Where there are none it has no rows, and denominator 0.
        """
        return self.whole(self.order.held_out)

    def whole(self, ids: np.ndarray, origin: int | None = None) -> Batch:
        """Return a batch of these sequences of which nothing is masked: (B,) ids of the corpus.

        Errors: missing, for an id out of range.
        """
        ids = np.asarray(ids, np.int64)
        tokens = torch.from_numpy(self.corpus.sequences(ids, self.cut))
        weight = torch.ones(len(ids), self.cut.targets)
        return Batch(tokens, weight, float(weight.numel()), torch.from_numpy(ids.copy()), origin)

    def provenance(self, batch: Batch) -> list[list[Span]]:
        """Return, for each slot, the spans of documents that its tokens came from.

        A sequence that an intervention made has none.
        """
        return self.corpus.spans(batch.sequence.numpy(), self.cut)


def own_stream(corpus: Corpus, data: config.Data, train: config.Train) -> Batches:
    """Build the stream of a run from its recipe's [data], and from [train] its batch, seed and
    `loss_over`.

    Errors: config, data, missing.
    """
    layout = corpus.layout(data.cut)
    names = [source.name for source in corpus.sources]
    data = replace(data, order_file=order_path(corpus, data.order_file))
    order = make_order(
        data, names, layout.n_sequences, layout.first_sequence, train.batch, train.seed
    )
    return Batches(corpus, order, data.cut, data.mask_repeats, train.loss_over)


def order_path(corpus: Corpus, order_file: str) -> str:
    """Return the path of an order file; one that is kept with its corpus lies where that does."""
    if not order_file.startswith(OF_CORPUS):
        return order_file
    return str(corpus.folder / ORDERS / order_file.removeprefix(OF_CORPUS))
