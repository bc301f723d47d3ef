"""Sequences that nobody has consumed: what two arms are compared on beside the fixed probe set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from forensics.errors import ForensicsError
from forensics.model.decoder import unembedding
from forensics.model.loss import chunks
from forensics.step.batch import BatchStream
from forensics.train.advance import documents
from forensics.train.run import Run
from replay.lineage import ancestors

LOOK_AHEAD = 256  # batches of the run's own stream that are looked through


def unseen(
    run: Run, streams: Sequence[BatchStream], first: int, last: int, limit: int
) -> np.ndarray:
    """Ids of the sequences that the run's order draws next after `last` and that no arm has
    consumed: (n,), n ≤ limit.

    A source's draws repeat no sequence within an epoch, so what the order draws after `last` in a
    source's first epoch is new to the run; what arms and ancestors drew ahead of it in their
    windows is left out.
    """
    order = run.batches.order
    ahead = _consumed(streams, first, last)
    for fork in ancestors(run):
        if fork.parent is not None:
            ahead |= _consumed([fork.stream], fork.header.first_step, min(fork.header.steps, last))
    read = None if order.file is None else np.unique(order.file[: last * order.batch])
    chosen: dict[int, None] = {}
    for step in range(last, last + LOOK_AHEAD):
        try:
            ids = order.sequence_ids(step)
        except ForensicsError:
            break  # the end of an order file
        if read is None:
            first_epoch = [
                order.drawn(s, step + 1) <= order.drawable[s] for s in range(len(order.drawable))
            ]
            ids = ids[np.array(first_epoch)[order.source_of(ids)]]
        else:
            ids = ids[~np.isin(ids, read)]
        chosen |= {int(i): None for i in ids if int(i) not in ahead}
        if len(chosen) >= limit:
            break
    return np.array(list(chosen)[:limit], np.int64)


def _consumed(streams: Sequence[BatchStream], first: int, last: int) -> set[int]:
    return {
        int(i) for stream in streams for step in range(first, last) for i in stream(step).sequence
    }


@dataclass
class Reading:
    """An arm on the probe set."""

    loss: float
    by_sequence: np.ndarray  # (n,)
    logit_kl: float  # mean KL(control ‖ arm), nats; 0 for the control


class Probe:
    """A fixed set of sequences that no arm trains on: the run's held-out ones, or those of
    `ids`.
    """

    def __init__(self, run: Run, limit: int = 64, ids: np.ndarray | None = None) -> None:
        self.run = run
        ids = run.batches.order.held_out if ids is None else ids
        if len(ids) > limit:
            ids = ids[np.linspace(0, len(ids) - 1, limit).astype(np.int64)]
        self.batch = run.batches.make(ids) if len(ids) else None
        self.sequences = len(ids)

    @torch.no_grad()
    def read(
        self, control: dict[str, Tensor], arms: dict[str, dict[str, Tensor]]
    ) -> dict[str, Reading]:
        """Return the control (under the name "control") and each arm.

        One forward each, logits in chunks.
        """
        assert self.batch is not None, "callers ask `sequences` first"
        model = self.run.model
        everyone = {"control": control, **arms}
        losses: dict[str, list[Tensor]] = {name: [] for name in everyone}
        kl: dict[str, list[Tensor]] = {name: [] for name in everyone}
        for tokens in self.batch.tokens.split(max(1, model.micro_batch)):
            tokens = tokens.to(model.device)
            inputs, targets = tokens[:, :-1], tokens[:, 1:].reshape(-1)
            docs = documents(inputs, model)
            hidden = {
                n: model.decoder.hidden(p, inputs, documents_BT=docs).reshape(len(targets), -1)
                for n, p in everyone.items()
            }
            parts: dict[str, list[Tensor]] = {name: [] for name in everyone}
            for rows in chunks(len(targets)):
                base: Tensor | None = None
                for name, params in everyone.items():
                    log_p = (hidden[name][rows] @ unembedding(params).T).float().log_softmax(1)
                    parts[name].append(-log_p.gather(1, targets[rows, None])[:, 0])
                    if base is None:
                        base = log_p
                    else:
                        kl[name].append((base.exp() * (base - log_p)).sum(1))
            for name in everyone:
                losses[name].append(torch.cat(parts[name]).view(len(tokens), -1).double().mean(1))
        readings = {}
        for name in everyone:
            by_sequence = torch.cat(losses[name]).cpu().numpy()
            # rounding can leave a KL of equal distributions a hair below 0
            mean_kl = max(0.0, float(torch.cat(kl[name]).double().mean())) if kl[name] else 0.0
            readings[name] = Reading(float(by_sequence.mean()), by_sequence, mean_kl)
        return readings
