"""TensorBoard's event files, read by their own rules: no TensorFlow, no protobuf.

A file is records [u64 length][u32 masked CRC32C of those 8 bytes][data][u32 masked CRC32C of data],
all little-endian; data is a protobuf `Event` (tensorflow/core/util/event.proto). A record that is
half written at the end is usual, and ends the reading.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from forensics.errors import ForensicsError
from forensics.logs.logged_rows import LoggedRows, RowCollector
from forensics.logs.protobuf_fields import fields, signed, varint

FILE_NAME = re.compile(r"tfevents\.(?P<seconds>\d+)")
LONGEST = 1 << 30  # bytes of a record; a longer length is no length
MASK = 0xA282EAD8  # added to the rotated CRC, as TFRecord says

# fields of Event, Summary.Value and TensorProto, by their numbers
EVENT_STEP, EVENT_SUMMARY, EVENT_SESSION = 2, 5, 7
SUMMARY_VALUE = 1
VALUE_TAG, VALUE_SIMPLE, VALUE_TENSOR = 1, 2, 8
SESSION_STATUS, SESSION_START = 1, 1
TENSOR_TYPE, TENSOR_SHAPE, TENSOR_CONTENT = 1, 2, 4
TENSOR_TYPES = {1: "<f4", 2: "<f8", 3: "<i4", 9: "<i8", 19: "<f2"}  # DataType → NumPy's name
TENSOR_LISTS = {5: "<f4", 6: "<f8"}  # float_val, double_val
TENSOR_WHOLE = (7, 10)  # int_val, int64_val


def _crc_table() -> list[int]:
    """Return the table of CRC-32C (Castagnoli, reflected polynomial 0x82F63B78)."""
    table = []
    for byte in range(256):
        crc = byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
        table.append(crc)
    return table


TABLE = _crc_table()


def masked_crc(data: bytes) -> int:
    """Return the masked CRC-32C of some bytes, as records carry it."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = TABLE[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    crc ^= 0xFFFFFFFF
    return (((crc >> 15) | (crc << 17)) + MASK) & 0xFFFFFFFF


def is_event_file(head: bytes) -> bool:
    """Whether a file begins as an event file does."""
    if len(head) < 12:
        return False
    length, crc = struct.unpack("<QI", head[:12])
    return length <= LONGEST and masked_crc(head[:8]) == crc


def event_files(folder: Path) -> list[Path]:
    """List the event files of a folder and of those below it, by the time in their names."""
    files = [path for path in folder.rglob("*tfevents*") if path.is_file()]
    return sorted(files, key=lambda path: (_seconds(path), path.name))


def _seconds(path: Path) -> int:
    match = FILE_NAME.search(path.name)
    return int(match["seconds"]) if match else int(path.stat().st_mtime)


def read_events(path: Path, run: str = "") -> list[LoggedRows]:
    """Read one file: a row for each event that holds numbers. Errors: data."""
    rows, notes, skipped = RowCollector("tensorboard", run), list[str](), set[str]()
    with path.open("rb") as file:
        for data in _records(file, path, notes):
            event = _event(data, skipped)
            if event.numbers:
                rows.add(event.numbers, step=event.step)
    if not rows.filled:
        held = f"; it holds {', '.join(sorted(skipped)[:5])}" if skipped else ""
        raise ForensicsError(
            "data", f"wanted scalars in {path.name}, found none{held}", "is it the right file?"
        )
    return [rows.collected(takes_over=True, notes=tuple(notes))]


class _Event(NamedTuple):
    """The numbers of one event, by tag."""

    step: int
    numbers: dict[str, float]


def _records(file: BinaryIO, path: Path, notes: list[str]) -> Iterator[bytes]:
    """Yield the data of each whole record. Errors: data, for one that is damaged in the middle."""
    while True:
        place = file.tell()
        head = file.read(12)
        if not head:
            return
        if len(head) == 12:
            length, crc = struct.unpack("<QI", head)
            sound = masked_crc(head[:8]) == crc and length <= LONGEST
            if sound:
                body = file.read(length + 4)
                data = body[:length]
                if len(body) == length + 4 and masked_crc(data) == _u32(body[length:]):
                    yield data
                    continue
                sound = len(body) == length + 4
            if file.read(1) or (sound and length):
                raise ForensicsError(
                    "data",
                    f"wanted whole records in {path.name}, found one at byte {place} whose checksum"
                    " does not hold",
                    "copy the file again",
                )
        notes.append(f"{path.name}: its last record is half written, and left out")
        return


def _u32(data: bytes) -> int:
    return int(struct.unpack("<I", data)[0])


def _event(data: bytes, skipped: set[str]) -> _Event:
    step, numbers = 0, dict[str, float]()
    for number, value in fields(data):
        if number == EVENT_STEP and isinstance(value, int):
            step = signed(value)
        elif number == EVENT_SUMMARY and isinstance(value, bytes):
            for inner, item in fields(value):
                if inner == SUMMARY_VALUE and isinstance(item, bytes):
                    _summary_value(item, numbers, skipped)
    return _Event(step, numbers)


def _summary_value(data: bytes, numbers: dict[str, float], skipped: set[str]) -> None:
    """Read one tag with its number; one that holds no single number is named in `skipped`."""
    tag, number = "", None
    for field, value in fields(data):
        if field == VALUE_TAG and isinstance(value, bytes):
            tag = value.decode("utf-8", "replace")
        elif field == VALUE_SIMPLE and isinstance(value, bytes):
            number = float(struct.unpack("<f", value)[0])
        elif field == VALUE_TENSOR and isinstance(value, bytes):
            number = _scalar(value)
    if number is None:
        skipped.add(tag)
    else:
        numbers[tag] = number


def _scalar(tensor: bytes) -> float | None:
    """Return the only number of a tensor; None where it has more, or none."""
    kind, numbers = "", list[float]()
    for field, value in fields(tensor):
        if field == TENSOR_TYPE and isinstance(value, int):
            kind = TENSOR_TYPES.get(value, "")
        elif field == TENSOR_CONTENT and isinstance(value, bytes) and value and kind:
            if len(value) == np.dtype(kind).itemsize:
                numbers.append(float(np.frombuffer(value, kind)[0]))
            else:
                return None
        elif field in TENSOR_LISTS and isinstance(value, bytes):
            numbers.extend(np.frombuffer(value, TENSOR_LISTS[field]).astype(float).tolist())
        elif field in TENSOR_WHOLE:
            numbers.extend(_whole_numbers(value))
    return numbers[0] if len(numbers) == 1 else None


def _whole_numbers(value: int | bytes) -> list[float]:
    """Return numbers that stand singly or packed."""
    if isinstance(value, int):
        return [float(signed(value))]
    numbers, place = [], 0
    while place < len(value):
        number, place = varint(value, place)
        numbers.append(float(signed(number)))
    return numbers
