"""wandb's own file of an offline run (`run-ID.wandb`), read by its rules: no wandb, no protobuf.

wandb/wandb wandb/sdk/internal/datastore.py: after a header of 7 bytes, LevelDB's log: blocks of
32 KiB with records [u32 CRC-32 of kind and data][u16 length][u8 kind: whole, first, middle, last].
A whole record is a protobuf `Record` (wandb/proto/wandb_internal.proto).
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

from forensics.errors import ForensicsError
from forensics.logs.logged_rows import LoggedRows, RowCollector
from forensics.logs.protobuf_fields import fields, signed

MAGIC = b":W&B"
HEADER = 7  # bytes of the file's header
BLOCK = 32 * 1024
WHOLE, FIRST, MIDDLE, LAST = 1, 2, 3, 4

# fields of Record, HistoryRecord, HistoryItem and RunRecord, by their numbers
RECORD_HISTORY, RECORD_RUN = 2, 17
HISTORY_ITEM, HISTORY_STEP = 1, 2
ITEM_KEY, ITEM_NESTED, ITEM_BOOL, ITEM_NUMBER, ITEM_TEXT = 1, 2, 4, 6, 7
ITEM_JSON, ITEM_VALUE = 8, 16
STEP_NUMBER = 1
RUN_ID, RUN_NAME = 1, 8


def read_wandb(path: Path) -> list[LoggedRows]:
    """Read the history of an offline run. Errors: data."""
    notes = list[str]()
    rows, name = RowCollector("wandb"), ""
    for record in _records(path, notes):
        for number, value in fields(record):
            if number == RECORD_HISTORY and isinstance(value, bytes):
                rows.add(_history(value))
            elif number == RECORD_RUN and isinstance(value, bytes):
                name = _run_name(value) or name
    if not rows.filled:
        raise ForensicsError(
            "data", f"wanted a logged history in {path.name}, found none", "is it the right run?"
        )
    return [rows.collected(notes=tuple(notes)).named(name)]


def _records(path: Path, notes: list[str]) -> Iterator[bytes]:
    """Yield whole records; one that is half written at the end is noted. Errors: data."""
    data = path.read_bytes()
    place, pieces = HEADER, list[bytes]()
    while place + 7 <= len(data):
        left = BLOCK - place % BLOCK
        if left < 7:  # too little for a header: zeros up to the next block
            place += left
            continue
        crc, length, kind = struct.unpack_from("<IHB", data, place)
        piece = data[place + 7 : place + 7 + length]
        if len(piece) < length or kind == 0:
            break
        if zlib.crc32(bytes([kind]) + piece) != crc:
            raise ForensicsError(
                "data",
                f"wanted whole records in {path.name}, found one at byte {place} whose checksum"
                " does not hold",
                "copy the file again",
            )
        place += 7 + length
        pieces = [piece] if kind in (WHOLE, FIRST) else [*pieces, piece]
        if kind in (WHOLE, LAST):
            yield b"".join(pieces)
            pieces = []
    if place < len(data) or pieces:
        notes.append(f"{path.name}: its last record is half written, and left out")


def _history(data: bytes) -> dict[str, Any]:
    """Read a row: its values by name, and its step as wandb counts."""
    row: dict[str, Any] = {}
    for number, value in fields(data):
        if number == HISTORY_ITEM and isinstance(value, bytes):
            name, item = _item(value)
            row[name] = item
        elif number == HISTORY_STEP and isinstance(value, bytes):
            numbers = [v for n, v in fields(value) if n == STEP_NUMBER and isinstance(v, int)]
            row["_step"] = signed(numbers[0]) if numbers else 0
    return row


def _item(data: bytes) -> tuple[str, Any]:
    names, item = list[str](), cast(Any, None)
    for number, value in fields(data):
        if isinstance(value, int):
            item = bool(value) if number == ITEM_BOOL else signed(value)
        elif number in (ITEM_KEY, ITEM_NESTED):
            names.append(value.decode("utf-8", "replace"))
        elif number == ITEM_NUMBER:
            item = struct.unpack("<d", value)[0]
        elif number == ITEM_TEXT:
            item = value.decode("utf-8", "replace")
        elif number in (ITEM_JSON, ITEM_VALUE):
            item = _json(value)
    return "/".join(names), item


def _json(data: bytes) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return None


def _run_name(data: bytes) -> str:
    texts = {number: value for number, value in fields(data) if isinstance(value, bytes)}
    return (texts.get(RUN_NAME) or texts.get(RUN_ID) or b"").decode("utf-8", "replace")
