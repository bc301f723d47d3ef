"""A computed result is kept whole under a key, or not at all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import xxhash

from forensics.errors import ForensicsError
from forensics.store import result_cache
from forensics.store.resumable import Kept

COUNTS = np.arange(12, dtype=np.int64).reshape(3, 4)


def test_the_name_is_the_hash_of_all_that_a_result_depends_on(tmp_path: Path) -> None:
    digits = xxhash.xxh3_64_hexdigest(b"demo 300")
    path = result_cache.path_of(tmp_path, "000300-", "demo 300", ".npy")
    assert path == tmp_path / f"000300-{digits}.npy"
    assert Kept(tmp_path / "scans", "demo 300").path == tmp_path / "scans" / f"{digits}.jsonl"


def test_arrays_come_back_as_they_were_written(tmp_path: Path) -> None:
    result_cache.write_array(tmp_path / "new" / "counts.npy", COUNTS)
    read = result_cache.read_array(tmp_path / "new" / "counts.npy")
    assert read is not None and read.dtype == np.int64 and np.array_equal(read, COUNTS)
    result_cache.write_arrays(tmp_path / "two.npz", {"a": COUNTS, "b": COUNTS[0]})
    both = result_cache.read_arrays(tmp_path / "two.npz")
    assert both is not None and list(both) == ["a", "b"] and np.array_equal(both["b"], COUNTS[0])


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
def test_a_torn_file_is_as_if_it_were_not_there(tmp_path: Path, share: float) -> None:
    array, arrays, document = (tmp_path / name for name in ("a.npy", "a.npz", "a.json"))
    result_cache.write_array(array, COUNTS)
    result_cache.write_arrays(arrays, {"a": COUNTS})
    result_cache.write(document, b'{"tokens": [1, 2, 3]}')
    for path, read in (
        (array, result_cache.read_array),
        (arrays, result_cache.read_arrays),
        (document, result_cache.read_document),
    ):
        assert read(path) is not None
        content = path.read_bytes()
        path.write_bytes(content[: int(share * len(content))])
        assert read(path) is None
        path.unlink()
        assert read(path) is None


def test_a_folder_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(ForensicsError, match="could not write"):
        result_cache.write(tmp_path / "file" / "a.json", b"{}")
