"""Checkpoints written behind the run: the state is copied, then hashed and written in a thread.

A GPU's state is copied on the GPU, which takes a millisecond, and from there to host memory by the
thread, beside the run.

    saver = Saver(folder, shape, tokenizer, eot)
    saver.save(state, "every", after=writer.handed_over())  # goes on once it is copied
    saver.saved()                                           # those in place by now

One write at a time: the next save waits for it, so that host memory holds one copy. A checkpoint
gets its name only when the rows up to its step are on disk (`after`), because a run resumes from
any complete checkpoint.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from forensics.model.shape import Shape
from forensics.step.state import TrainState
from forensics.train import checkpoint


class Saved(NamedTuple):
    """A checkpoint that is in place."""

    path: Path
    digest: str
    bytes: int
    reason: str


class Saver:
    """Write checkpoints of one run behind it.

    A write that fails is raised by the next `save` or `saved`, once.
    """

    def __init__(self, folder: Path, shape: Shape, tokenizer: Path | None, eot: int) -> None:
        self.folder, self.shape, self.tokenizer, self.eot = folder, shape, tokenizer, eot
        self._thread: ThreadPoolExecutor | None = None
        self._writing: Future[Saved] | None = None
        self._done: list[Saved] = []
        # held from one save to the next: fresh memory costs more than the copy
        self._host: dict[str, Tensor] = {}

    def save(self, state: TrainState, reason: str, after: Sequence[Future[None]] = ()) -> None:
        """Copy the state and write it behind the run, which may change it at once.

        Errors: storage, of the write before.
        """
        self._settle()
        copy = state.clone() if _on_gpu(state) else self._to_host(state)
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, "checkpoint")
        copied = torch.cuda.current_stream().record_event() if _on_gpu(state) else None
        self._writing = self._thread.submit(self._write, copy, copied, reason, after)

    def saved(self, wait: bool = False) -> list[Saved]:
        """Return what came into place since the last call.

        `wait` for the one that is being written. Errors: storage.
        """
        if wait or (self._writing is not None and self._writing.done()):
            self._settle()
        completed, self._done = self._done, []
        return completed

    def close(self) -> None:
        """Wait for the write under way, whatever comes of it, and end the thread."""
        if self._thread is not None:
            self._thread.shutdown()
            self._thread = None

    def _settle(self) -> None:
        writing, self._writing = self._writing, None
        if writing is not None:
            self._done.append(writing.result())

    def _write(
        self,
        copy: TrainState,
        copied: torch.cuda.Event | None,
        reason: str,
        after: Sequence[Future[None]],
    ) -> Saved:
        if copied is not None:
            beside = torch.cuda.Stream()
            with torch.cuda.stream(beside):
                beside.wait_event(copied)
                copy = self._to_host(copy)
                beside.synchronize()

        def rows() -> None:
            for future in after:
                future.result()

        written = checkpoint.save(self.folder, copy, self.shape, self.tokenizer, self.eot, rows)
        return Saved(*written, reason)

    @torch.no_grad()
    def _to_host(self, state: TrainState) -> TrainState:
        groups: dict[str, dict[str, Tensor]] = {}
        for name, tensor in state.tensors():
            kind, _, tensor_name = name.partition("/")
            if name not in self._host:
                self._host[name] = torch.empty(
                    tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda
                )
            groups.setdefault(kind, {})[tensor_name] = self._host[name].copy_(
                tensor, non_blocking=True
            )
        order = list(state.params)
        params, exp_avg, exp_avg_sq = (
            {parameter: groups[group][parameter] for parameter in order}
            for group in ("params", "exp_avg", "exp_avg_sq")
        )
        return TrainState(params, exp_avg, exp_avg_sq, state.counters, state.window)


def _on_gpu(state: TrainState) -> bool:
    return any(param.is_cuda for param in state.params.values())
