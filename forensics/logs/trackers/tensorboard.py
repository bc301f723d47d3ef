"""Event files for TensorBoard, written without it: one file a start, in WHERE/RUN.

A resumed run begins a file that tells TensorBoard to forget what came from its first step on.
"""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import Mapping
from pathlib import Path

from forensics.logs.tensorboard_events import (
    EVENT_SESSION,
    EVENT_STEP,
    EVENT_SUMMARY,
    SESSION_START,
    SESSION_STATUS,
    SUMMARY_VALUE,
    VALUE_SIMPLE,
    VALUE_TAG,
    masked_crc,
)
from forensics.logs.trackers.protocol import TrackedRun

EVENT_TIME, EVENT_VERSION = 1, 3
VERSION = b"brain.Event:2"  # from which on a start purges
FLUSH_SECONDS = 5.0  # between one look of TensorBoard's and the next


class EventFile:
    """Writes one event file."""

    def __init__(self, where: str, run: TrackedRun) -> None:
        folder = Path(where or run.folder / "tensorboard") / run.name
        folder.mkdir(parents=True, exist_ok=True)
        start = int(time.time())
        host = f"{socket.gethostname()}.{os.getpid()}"
        name = f"events.out.tfevents.{start:010d}.{host}"
        number = len(list(folder.glob("events.out.tfevents.*")))
        self._file = (folder / f"{name}.{number}").open("xb")
        self._flushed = time.monotonic()
        self._write(_bytes(EVENT_VERSION, VERSION))
        if run.first_step:
            session = _varint(SESSION_STATUS << 3) + _varint(SESSION_START)
            self._write(_step(run.first_step) + _bytes(EVENT_SESSION, session))

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        """Write an event with all numbers of a step."""
        values = b"".join(
            _bytes(
                SUMMARY_VALUE,
                _bytes(VALUE_TAG, name.encode())
                + _varint(VALUE_SIMPLE << 3 | 5)
                + struct.pack("<f", _single(number)),
            )
            for name, number in numbers.items()
        )
        self._write(_step(step) + _bytes(EVENT_SUMMARY, values))
        if time.monotonic() - self._flushed > FLUSH_SECONDS:
            self._file.flush()
            self._flushed = time.monotonic()

    def close(self) -> None:
        """Write the file whole."""
        self._file.close()

    def _write(self, event: bytes) -> None:
        data = _varint(EVENT_TIME << 3 | 1) + struct.pack("<d", time.time()) + event
        length = struct.pack("<Q", len(data))
        self._file.write(length + struct.pack("<I", masked_crc(length)))
        self._file.write(data + struct.pack("<I", masked_crc(data)))


def _single(number: float) -> float:
    """Return a number that float32 holds; one too large is infinite there."""
    return float(number) if abs(number) <= 3.4028234663852886e38 else number * float("inf")


def _step(step: int) -> bytes:
    return _varint(EVENT_STEP << 3) + _varint(step)


def _bytes(field: int, data: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(data)) + data


def _varint(number: int) -> bytes:
    """Write a number of 7 bits a byte."""
    written = bytearray()
    while number > 0x7F:
        written.append(number & 0x7F | 0x80)
        number >>= 7
    written.append(number)
    return bytes(written)
