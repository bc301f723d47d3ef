"""Ctrl-C and SIGTERM: the first ends work at its next boundary, with its state saved.

    with Interruptible() as interrupt:
        while not interrupt.stop: …

The second interrupts at once.
"""

from __future__ import annotations

import signal
from types import FrameType


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
