"""Sequences that nobody has consumed: what two arms are compared on beside the fixed probe set."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from forensics.errors import ForensicsError
from forensics.train.advance import BatchStream
from forensics.train.run import Run

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
    above: Run | None = run
    while above is not None and above.parent is not None:
        ahead |= _consumed([above.stream], above.header.first_step, min(above.header.steps, last))
        above = above.parent
    read = None if order.file is None else np.unique(order.file[: last * order.batch])
    found: dict[int, None] = {}
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
        found |= {int(i): None for i in ids if int(i) not in ahead}
        if len(found) >= limit:
            break
    return np.array(list(found)[:limit], np.int64)


def _consumed(streams: Sequence[BatchStream], first: int, last: int) -> set[int]:
    return {
        int(i) for stream in streams for step in range(first, last) for i in stream(step).sequence
    }
