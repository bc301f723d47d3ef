"""The names in OLMo's safetensors files: each is a pickle of a path, in base64.

    decode_key("gASVJAAAAAAAAACM…")   # EncodedKey(("transformer.wte.weight",), pickled=False)

Source: allenai/OLMo olmo/safetensors_util.py.
"""

from __future__ import annotations

import base64
import binascii
from pathlib import Path
from typing import Any, NamedTuple

from forensics.errors import ForensicsError
from forensics.formats.containers.closed_pickle import ClosedList, read_pickle
from forensics.formats.containers.safetensors_file import read_safetensors
from forensics.formats.containers.stored import Stored

ALLOWED = ClosedList("names and plain values as OLMo writes them")
KeyPath = tuple[str | int, ...]
LONGEST = 4096  # characters of an encoded name


class EncodedKey(NamedTuple):
    """A tensor's path in OLMo's nested dictionaries, and whether its bytes are a pickle."""

    path: KeyPath
    pickled: bool


def decode_key(text: str) -> EncodedKey | None:
    """Decode one name; None where it is plain text and none of OLMo's. Errors: data."""
    if len(text) > LONGEST:
        return None
    try:
        data = base64.b64decode(text.encode("ascii"), altchars=b"-_", validate=True)
    except (binascii.Error, UnicodeEncodeError):
        return None
    if data[:1] != b"\x80":
        return None
    decoded = read_pickle(data, ALLOWED, f"tensor {text[:24]}…")
    whole = isinstance(decoded, tuple) and len(decoded) == 2 and isinstance(decoded[1], bool)
    path = decoded[0] if whole else None
    if isinstance(path, str):
        path = (path,)
    if not isinstance(path, tuple) or not all(type(part) in (str, int) for part in path):
        raise ForensicsError(
            "data",
            f"tensor {text[:24]}…: wanted a path of names, found another pickle",
            "is it OLMo's?",
        )
    return EncodedKey(path, decoded[1])


class EncodedFile(NamedTuple):
    """The tensors of one of OLMo's safetensors files by their paths, and what it pickled."""

    tensors: dict[KeyPath, Stored]
    pickled: dict[KeyPath, Stored]

    def value(self, name: str) -> Any:
        """Return one pickled value where it is made of plain ones alone. Errors: data."""
        stored = self.pickled.get((name,))
        if stored is None:
            return None
        return read_pickle(stored.read().numpy().tobytes(), ALLOWED, f"{stored.file.name}: {name}")


def read_encoded(path: Path) -> EncodedFile:
    """Read the names of one of OLMo's safetensors files. Errors: missing, data."""
    tensors: dict[KeyPath, Stored] = {}
    pickled: dict[KeyPath, Stored] = {}
    for name, stored in read_safetensors(path).tensors.items():
        key = decode_key(name)
        if key is None:
            raise ForensicsError(
                "data",
                f"{path.name}: wanted names as OLMo encodes them, found {name[:80]!r}",
                "is it a Hugging Face folder?",
            )
        (pickled if key.pickled else tensors)[key.path] = stored
    return EncodedFile(tensors, pickled)
