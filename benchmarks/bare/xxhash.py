"""Stands in for the package `xxhash` on a machine that lacks it: the same digests, from the C
source that pyarrow ships.

`benchmarks/gpu.sh` puts this folder on PYTHONPATH where the package is missing. It needs a C
compiler, which Triton needs too. Only what this project calls is here; `tests/train/test_bare.py`
holds it against the package.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

SOURCE = """
#define XXH_INLINE_ALL
#include "arrow/vendored/xxhash/xxhash.h"
void *start(void) { XXH3_state_t *s = XXH3_createState(); XXH3_128bits_reset(s); return s; }
void update(void *s, const void *data, size_t n) {
    XXH3_128bits_update((XXH3_state_t *)s, data, n);
}
void digest(void *s, unsigned char *out) {
    XXH128_canonicalFromHash((XXH128_canonical_t *)out, XXH3_128bits_digest((XXH3_state_t *)s));
}
void end(void *s) { XXH3_freeState((XXH3_state_t *)s); }
unsigned long long short_digest(const void *data, size_t n) { return XXH3_64bits(data, n); }
"""


def _built() -> Any:
    compiler = next(
        (c for c in (os.environ.get("CC"), "cc", "gcc", "clang") if c and shutil.which(c)), None
    )
    if compiler is None:
        raise ImportError("no package xxhash here, and no C compiler to build its stand-in with")
    import pyarrow

    with tempfile.TemporaryDirectory(prefix="xxhash-") as place:
        source, library = Path(place) / "xxhash.c", Path(place) / "xxhash.so"
        source.write_text(SOURCE)
        command = [
            compiler,
            "-O3",
            "-shared",
            "-fPIC",
            f"-I{pyarrow.get_include()}",
            "-o",
            str(library),
            str(source),
        ]
        subprocess.run(command, check=True, capture_output=True)
        built = ctypes.CDLL(str(library))  # stays mapped when the file is gone
    built.start.restype = ctypes.c_void_p
    built.update.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]
    built.digest.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
    built.end.argtypes = [ctypes.c_void_p]
    built.short_digest.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    built.short_digest.restype = ctypes.c_ulonglong
    return built


_C = _built()


def _at(data: Any) -> tuple[Any, int, Any]:
    """Address and length of a buffer's bytes, and what must live as long as they are read."""
    import numpy

    flat = (
        numpy.frombuffer(data, numpy.uint8)
        if memoryview(data).nbytes
        else numpy.empty(0, numpy.uint8)
    )
    return flat.ctypes.data, flat.size, flat


class xxh3_128:
    """Bytes in stretches; `hexdigest` at any time."""

    def __init__(self, data: Any = b"") -> None:
        self._state = _C.start()
        self.update(data)

    def update(self, data: Any) -> None:
        """Take a stretch of bytes."""
        address, n, alive = _at(data)
        _C.update(self._state, address, n)
        del alive

    def digest(self) -> bytes:
        """Return the digest so far."""
        out = ctypes.create_string_buffer(16)
        _C.digest(self._state, out)
        return out.raw

    def hexdigest(self) -> str:
        """Return the digest so far, in hex."""
        return self.digest().hex()

    def __del__(self) -> None:
        _C.end(self._state)


def xxh3_128_hexdigest(data: Any) -> str:
    """Return the 128-bit digest, in hex."""
    return xxh3_128(data).hexdigest()


def xxh3_64_intdigest(data: Any) -> int:
    """Return the 64-bit digest as a number."""
    address, n, alive = _at(data)
    digest = int(_C.short_digest(address, n))
    del alive
    return digest


def xxh3_64_hexdigest(data: Any) -> str:
    """Return the 64-bit digest, in hex."""
    return f"{xxh3_64_intdigest(data):016x}"
