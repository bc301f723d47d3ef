"""Sequences that nobody has consumed: what two arms are compared on beside the fixed probe set."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from forensics.errors import ForensicsError
from forensics.model.decoder import Decoder, unembedding
from forensics.model.loss import chunks
from forensics.step.batch import BatchStream
from forensics.train.advance import documents
from forensics.train.run import Run
from replay.interventions.rows import consumed_by
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
    ahead = consumed_by(streams, first, last)
    for fork in ancestors(run):
        if fork.parent is not None:
            ahead |= consumed_by(
                [fork.stream], fork.header.first_step, min(fork.header.steps, last)
            )
    new = np.empty(0, np.int64)  # of an order file: what it reads soon and did not read before
    if order.file is not None:
        end = last * order.batch
        soon = [*order.file.chunks(end, end + LOOK_AHEAD * order.batch)]
        new = order.file.without(np.unique(np.concatenate([new, *soon])), 0, end)
    chosen: dict[int, None] = {}
    for step in range(last, last + LOOK_AHEAD):
        try:
            ids = order.sequence_ids(step)
        except ForensicsError:
            break  # the end of an order file
        if order.file is None:
            first_epoch = [
                order.drawn(s, step + 1) <= order.drawable[s] for s in range(len(order.drawable))
            ]
            ids = ids[np.array(first_epoch)[order.source_of(ids)]]
        else:
            ids = ids[np.isin(ids, new)]
        chosen |= {int(i): None for i in ids if int(i) not in ahead}
        if len(chosen) >= limit:
            break
    return np.array(list(chosen)[:limit], np.int64)


@dataclass
class Reading:
    """An arm on the probe set, beside its control."""

    loss: float
    by_sequence: np.ndarray  # (n,)
    logit_kl: float  # mean KL(control ‖ arm), nats; 0 for the control
    loss_gap: float = 0.0  # loss − its control's


class Probe:
    """A fixed set of sequences that no arm trains on: the run's held-out ones, or those of
    `ids`; under an order file that held nothing out, sequences that the run does not read.
    """

    def __init__(self, run: Run, limit: int = 64, ids: np.ndarray | None = None) -> None:
        self.run = run
        if ids is None:
            ids = run.batches.untrained(run.header.steps, limit)
        if len(ids) > limit:
            ids = ids[np.linspace(0, len(ids) - 1, limit).astype(np.int64)]
        self.batch = run.batches.make(ids) if len(ids) else None
        self.sequences = len(ids)

    def read(
        self, control: dict[str, Tensor], arms: dict[str, dict[str, Tensor]]
    ) -> dict[str, Reading]:
        """Return the control (under the name "control") and each arm beside it."""
        pairs = {name: (name, "control") for name in ("control", *arms)}
        return self.read_pairs({"control": control, **arms}, pairs)

    @torch.no_grad()
    def read_pairs(
        self,
        arms: Mapping[str, dict[str, Tensor]],
        pairs: Mapping[str, tuple[str, str]],
        decoders: Mapping[str, Decoder] | None = None,
    ) -> dict[str, Reading]:
        """Return a reading for each pair (arm, its control); `decoders` are the arms' own, left out
        where all have the run's.

        One forward of each arm; logits in chunks, an arm's held until its last pair.
        """
        assert self.batch is not None, "callers ask `sequences` first"
        model = self.run.model
        uses = Counter(arm for pair in pairs.values() for arm in set(pair))
        losses: dict[str, list[Tensor]] = {arm: [] for arm in uses}
        kl: dict[str, list[Tensor]] = {name: [] for name in pairs}
        for tokens in self.batch.tokens.split(max(1, model.micro_batch)):
            tokens = tokens.to(model.device)
            inputs, targets = tokens[:, :-1], tokens[:, 1:].reshape(-1)
            docs = documents(inputs, model)
            hidden = {
                arm: (decoders[arm] if decoders else model.decoder)
                .hidden(arms[arm], inputs, documents_BT=docs)
                .reshape(len(targets), -1)
                for arm in uses
            }
            parts: dict[str, list[Tensor]] = {arm: [] for arm in uses}
            for rows in chunks(len(targets)):
                log_p: dict[str, Tensor] = {}
                left = uses.copy()
                for name, (arm, control) in pairs.items():
                    for member in {control, arm} - log_p.keys():
                        logits = hidden[member][rows] @ unembedding(arms[member]).T
                        log_p[member] = logits.float().log_softmax(1)
                        parts[member].append(-log_p[member].gather(1, targets[rows, None])[:, 0])
                    if arm != control:
                        base = log_p[control]
                        kl[name].append((base.exp() * (base - log_p[arm])).sum(1))
                    for member in {control, arm}:
                        left[member] -= 1
                        if not left[member]:
                            del log_p[member]
            for arm in uses:
                losses[arm].append(torch.cat(parts[arm]).view(len(tokens), -1).double().mean(1))
        by_sequence = {arm: torch.cat(losses[arm]).cpu().numpy() for arm in uses}
        readings = {}
        for name, (arm, control) in pairs.items():
            loss = float(by_sequence[arm].mean())
            # rounding can leave a KL of equal distributions a hair below 0
            mean_kl = max(0.0, float(torch.cat(kl[name]).double().mean())) if kl[name] else 0.0
            gap = loss - float(by_sequence[control].mean())
            readings[name] = Reading(loss, by_sequence[arm], mean_kl, gap)
        return readings
