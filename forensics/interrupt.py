"""Ctrl-C and SIGTERM: the first ends work at its next boundary, with its state saved.

    with Interruptible() as interrupt:
        while not interrupt.stop: …

The second interrupts at once.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from concurrent.futures import Future
from types import FrameType
from typing import TypeVar

T = TypeVar("T")


class Interruptible:
    """Set `stop` at the first Ctrl-C or SIGTERM.

    Outside the main thread whoever runs us handles signals.
    """

    def __init__(self) -> None:
        self.stop = False
        self._before: dict[int, object] = {}

    def __enter__(self) -> Interruptible:
        try:
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._on)
        except ValueError:
            pass  # not the main thread
        return self

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _on(self, number: int, frame: FrameType | None) -> None:
        if self.stop:
            raise KeyboardInterrupt
        self.stop = True


def waiting(work: Callable[[], T]) -> T:
    """Return what `work` returns, which computes outside Python for long: Ctrl-C ends the wait.

    It runs in a thread that the process does not wait for; outside the main thread it is called as
    it is.
    """
    if threading.current_thread() is not threading.main_thread():
        return work()
    outcome: Future[T] = Future()

    def run() -> None:
        try:
            outcome.set_result(work())
        except BaseException as e:
            outcome.set_exception(e)

    threading.Thread(target=run, daemon=True).start()
    return outcome.result()
