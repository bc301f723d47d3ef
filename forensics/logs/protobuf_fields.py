"""Fields of a protobuf message, without its schema: all that readers of trackers' files need.

https://protobuf.dev/programming-guides/encoding
"""

from __future__ import annotations

from collections.abc import Iterator


def fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yield the fields of a protobuf message: numbers as int, all else as its bytes."""
    place, end = 0, len(data)
    while place < end:
        key, place = varint(data, place)
        number, wire = key >> 3, key & 7
        if wire == 0:
            whole, place = varint(data, place)
            yield number, whole
            continue
        if wire == 2:
            length, place = varint(data, place)
        elif wire in (1, 5):
            length = 8 if wire == 1 else 4
        else:
            return  # groups are not written by anybody
        yield number, data[place : place + length]
        place += length


def varint(data: bytes, place: int) -> tuple[int, int]:
    """Read a number of 7 bits a byte; also return the place behind it."""
    shift = number = 0
    while place < len(data):
        byte = data[place]
        place += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            break
        shift += 7
    return number, place


def signed(number: int) -> int:
    """Return an int64 as it is meant: a number below 0 is written as 64 bits."""
    return number - (1 << 64) if number >> 63 else number
