"""What a machine with a GPU and few packages needs: its tests import nothing more, and the stand-in
for xxhash is exact.
"""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import xxhash

ROOT = Path(__file__).parents[2]
PLACE = ROOT / "benchmarks" / "bare" / "xxhash.py"


def test_what_gpu_sh_runs_imports_only_what_a_bare_machine_has():
    """The GPU's tests are collected, and the benchmarks imported, with every other package
    hidden.
    """
    hidden = os.pathsep.join(map(str, (ROOT, PLACE.parent, PLACE.parent / "absent")))
    environment = os.environ | {"PYTHONPATH": hidden, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    collect = [
        "-m",
        "pytest",
        "-q",
        "--collect-only",
        "-m",
        "gpu",
        "tests/gpu",
        "tests/observe/test_kernels.py",
    ]
    benchmarks = [
        "-c",
        "import benchmarks.step, benchmarks.replay, benchmarks.saving, benchmarks.attention",
    ]
    for what in (collect, benchmarks):
        done = subprocess.run(
            [sys.executable, *what], cwd=ROOT, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


@pytest.fixture(scope="module")
def bare():
    if not any(map(shutil.which, ("cc", "gcc", "clang"))):
        pytest.skip("no C compiler")
    spec = importlib.util.spec_from_file_location("bare_xxhash", PLACE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("size", [0, 1, 3, 8, 16, 17, 128, 129, 240, 241, 1024, 1025, 100_003])
def test_every_length_of_input_has_the_digest_of_the_package(size, bare):
    data = np.random.default_rng(size).integers(0, 256, size, np.uint8).tobytes()
    assert bare.xxh3_128_hexdigest(data) == xxhash.xxh3_128_hexdigest(data)
    assert bare.xxh3_64_hexdigest(data) == xxhash.xxh3_64_hexdigest(data)
    assert bare.xxh3_64_intdigest(data) == xxhash.xxh3_64_intdigest(data)


def test_stretches_of_any_buffer_add_up_to_the_whole(bare):
    data = np.random.default_rng(0).standard_normal(5000).astype(np.float32)
    ours, theirs = bare.xxh3_128(b"head\n"), xxhash.xxh3_128(b"head\n")
    for part in (data[:7], data[7:3000], data[3000:3000], data[3000:]):
        ours.update(part.data)
        theirs.update(part.data)
    assert ours.hexdigest() == theirs.hexdigest()
