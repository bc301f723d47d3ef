"""The GPU's statistics of tensors: in Triton's interpreter the same numbers as on the CPU; compiled
for an H100.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from forensics.observe import tensors as cpu

SCRIPT = """
import sys
import torch
from safetensors.torch import load_file, save_file
from forensics.observe import tensor_kernels as k

x = load_file(sys.argv[1])
kinds = ("g", "old", "new", "m", "v", "v0")
g, old, new, m, v, v0 = ([x[f"{kind}/{i}"] for i in range(3)] for kind in kinds)
after = k.after(g, old, new, m, v, [0.25, 0.0, 0.25], 1e-12)
save_file({"before": k.before(g, v0, 5000.0, 0.7), "after": after}, sys.argv[2])
"""
SIZES = ((300, 701), (5,), (70_001,))


def groups():
    g = torch.Generator().manual_seed(0)
    found = {
        kind: [torch.randn(s, generator=g) for s in SIZES]
        for kind in ("g", "old", "new", "m", "v", "v0")
    }
    for kind in ("v", "v0"):
        found[kind] = [(x * (x > -1)).square() * 1e-3 for x in found[kind]]  # some exactly 0
    return found


@pytest.fixture(scope="module")
def interpreted(tmp_path_factory):
    pytest.importorskip("triton", reason="Triton is not installed: tests/skips.md")
    folder = tmp_path_factory.mktemp("triton")
    save_file(
        {f"{k}/{i}": x for k, xs in groups().items() for i, x in enumerate(xs)},
        folder / "in.safetensors",
    )
    (folder / "script.py").write_text(SCRIPT)
    environment = os.environ | {
        "TRITON_INTERPRET": "1",
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    command = [
        sys.executable,
        str(folder / "script.py"),
        str(folder / "in.safetensors"),
        str(folder / "out.safetensors"),
    ]
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return load_file(folder / "out.safetensors")


def test_what_programs_find_adds_up_to_what_the_cpu_finds(interpreted):
    from forensics.observe import tensor_kernels as k

    x = groups()
    sizes = tuple(t.numel() for t in x["g"])
    before = k.by_tensor(interpreted["before"], sizes, "cpu", (0,))
    after = k.by_tensor(interpreted["after"], sizes, "cpu")
    after[:, :5] = np.sqrt(after[:, :5])
    for i, decay in enumerate((0.25, 0.0, 0.25)):
        g, old, new, m, v, v0 = (x[kind][i] for kind in ("g", "old", "new", "m", "v", "v0"))
        wanted = cpu._before(g, v0, 5000.0, 0.7)
        assert dict(zip(k.BEFORE, before[i])) == pytest.approx(wanted | {"nans": 0.0}, rel=1e-5)
        assert wanted["bursts"] > 0 or g.numel() < 100
        wanted = cpu._after(g, old, new, m, v, decay, 1e-12, True)
        assert dict(zip(k.AFTER, after[i])) == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("name", ["_before", "_after"])
def test_the_kernels_compile_for_a_gpu_without_atomics(name, tmp_path, monkeypatch):
    triton = pytest.importorskip("triton", reason="Triton is not installed: tests/skips.md")
    from triton.backends.compiler import GPUTarget

    from forensics.observe import tensor_kernels

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    kernel = getattr(tensor_kernels, name)
    constants = {"SPAN": tensor_kernels.SPAN, "BLOCK": tensor_kernels.BLOCK}
    types = {
        "table": "*i64",
        "which": "*i64",
        "decays": "*fp32",
        "found": "*fp32",
        "threshold": "fp32",
        "clip": "fp32",
        "floor": "fp32",
    }
    signature = {
        n: "constexpr" if n in constants else types.get(n, "i32") for n in kernel.arg_names
    }
    source = triton.compiler.ASTSource(kernel, signature, constants)
    built = triton.compile(
        source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 8, "enable_fp_fusion": True}
    )
    assert not re.search(r"\batom\.|\bred\.global", built.asm["ptx"])
