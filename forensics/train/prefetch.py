"""Batches prepared ahead: while one step computes, a thread makes the next one's batch.

A stream is a pure function of the step, so what is asked out of turn is made then, and nothing else
changes.
"""

from __future__ import annotations

import dataclasses
from concurrent.futures import Future, ThreadPoolExecutor

from forensics.step.batch import Batch, BatchStream


class Prefetch:
    """Have the batch after the last one ready, in pinned memory where it goes to a GPU."""

    def __init__(self, stream: BatchStream, stop: int, device: str = "cpu") -> None:
        self.stream, self.stop, self.device = stream, stop, device
        self._thread = ThreadPoolExecutor(1, "batches")
        self._next: tuple[int, Future[Batch]] | None = None

    def __call__(self, step: int) -> Batch:
        """Return the stream's batch at `step`; its errors come here, not when it is made.

        Steps from `stop` on are not made ahead.
        """
        due, self._next = self._next, None
        if due is None or due[0] != step:
            due = (step, self._thread.submit(self._make, step))
        if step + 1 < self.stop:
            self._next = (step + 1, self._thread.submit(self._make, step + 1))
        return due[1].result()

    def close(self) -> None:
        """End the thread that makes batches."""
        self._thread.shutdown(cancel_futures=True)

    def __enter__(self) -> Prefetch:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _make(self, step: int) -> Batch:
        batch = self.stream(step)
        if self.device != "cuda":
            return batch
        return dataclasses.replace(
            batch, tokens=batch.tokens.pin_memory(), weight=batch.weight.pin_memory()
        )
