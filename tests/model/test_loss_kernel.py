"""The GPU's rows of logits: in Triton's interpreter against autograd in float64, and compiled for
an H100 without one.
"""

import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

SCRIPT = """
import sys
import torch
from safetensors.torch import load_file, save_file
from forensics.model import loss, loss_kernels as kernels

loss.GPU_CHUNK = 128  # several chunks
inputs, found = load_file(sys.argv[1]), {}
for name in {key.split("/")[0] for key in inputs}:
    x = {key.split("/")[1]: value for key, value in inputs.items() if key.startswith(name + "/")}
    if "logits" in x:
        rows = kernels.rows(x["logits"], x["targets"], x["scale"], 0.0)
        found |= {f"{name}/{field}": value.contiguous() for field, value in rows._asdict().items()}
        continue
    out = loss.on_gpu(kernels, x["h"], x["W"], x["targets"], x["scale"], 1e-2, torch.float32, True)
    found |= {f"{name}/{k}": v.contiguous() for k, v in out._asdict().items() if k != "rows"}
    found |= {f"{name}/{k}": v.contiguous().clone() for k, v in out.rows._asdict().items()}
save_file({k: v.clone() for k, v in found.items()}, sys.argv[2])
"""
CASES = {
    "small": (97, torch.float32, 1.0),
    "wide": (9000, torch.float32, 5.0),
    "bf16": (5000, torch.bfloat16, 1.0),
}
BAD = {"nan": math.nan, "inf": math.inf, "below": -math.inf}


def case(name):
    V, dtype, scale = CASES[name]
    g = torch.Generator().manual_seed(V)
    h, W = (
        (torch.randn(300, 16, generator=g) * scale).to(dtype),
        torch.randn(V, 16, generator=g).to(dtype),
    )
    targets = torch.randint(0, V, (300,), generator=g)
    targets[:2] = torch.tensor([0, V - 1])
    return {"h": h, "W": W, "targets": targets, "scale": torch.rand(300, generator=g) / 7}


def odd(name):
    logits = torch.randn(3, 97, generator=torch.Generator().manual_seed(0))
    logits[1, 5] = BAD[name]
    return {"logits": logits, "targets": torch.tensor([0, 1, 96]), "scale": torch.ones(3)}


@pytest.fixture(scope="module")
def interpreted(tmp_path_factory):
    pytest.importorskip("triton", reason="Triton is not installed: tests/skips.md")
    folder = tmp_path_factory.mktemp("triton")
    inputs = {f"{n}/{k}": v for n in CASES for k, v in case(n).items()}
    inputs |= {f"{n}/{k}": v for n in BAD for k, v in odd(n).items()}
    save_file(inputs, folder / "in.safetensors")
    script = folder / "script.py"
    script.write_text(SCRIPT)
    environment = os.environ | {
        "TRITON_INTERPRET": "1",
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    command = [
        sys.executable,
        str(script),
        str(folder / "in.safetensors"),
        str(folder / "out.safetensors"),
    ]
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    found = load_file(folder / "out.safetensors")
    return lambda name: {k.split("/")[1]: v for k, v in found.items() if k.startswith(name + "/")}


@pytest.mark.parametrize("name", CASES)
def test_loss_gradients_and_statistics_are_those_of_float64(name, interpreted):
    x, found, dtype = case(name), interpreted(name), CASES[name][1]
    H, U = (x[k].double().requires_grad_() for k in "hW")
    exact = H @ U.T
    # a product in bf16 is rounded before anything reads it: that is the products' precision, not
    # the kernel's
    logits = exact + ((x["h"] @ x["W"].T).double() - exact).detach()
    logz = logits.logsumexp(1)
    ce = logz - logits.gather(1, x["targets"][:, None])[:, 0]
    grads = torch.autograd.grad((x["scale"].double() * (ce + 1e-2 * logz.square())).sum(), (H, U))
    logits, p = logits.detach(), logits.detach().softmax(1)
    wanted = {
        "ce": ce.detach(),
        "logz": logz.detach(),
        "largest": logits.amax(1),
        "mean_square": logits.square().mean(1),
        "entropy": torch.special.entr(p).sum(1),
        "grad_hidden": grads[0],
        "grad_unembedding": grads[1],
    }
    for key, value in wanted.items():
        close = 2e-2 if dtype == torch.bfloat16 and key.startswith("grad") else 5e-6
        assert float((found[key] - value).abs().max()) <= close * float(value.abs().max()), key


@pytest.mark.parametrize("name", BAD)
def test_a_logit_that_is_not_finite_shows_in_its_own_row_alone(name, interpreted):
    found = interpreted(name)
    assert all(math.isfinite(float(v[row])) for v in found.values() for row in (0, 2))
    if name == "below":
        assert math.isfinite(float(found["ce"][1])) and math.isinf(float(found["mean_square"][1]))
    else:
        assert math.isnan(float(found["ce"][1])) and not math.isfinite(float(found["largest"][1]))


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_the_kernel_compiles_for_a_gpu_without_atomics(dtype, tmp_path, monkeypatch):
    triton = pytest.importorskip("triton", reason="Triton is not installed: tests/skips.md")
    from triton.backends.compiler import GPUTarget

    from forensics.model import loss_kernels

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    constants = {"LOWEST": loss_kernels.FLOOR, "COLUMNS": loss_kernels.COLUMNS}
    types = {
        "logits_ptr": f"*{dtype}",
        "targets_ptr": "*i64",
        "scale_ptr": "*fp32",
        "found_ptr": "*fp32",
        "z_loss": "fp32",
    }
    signature = {
        n: "constexpr" if n in constants else types.get(n, "i32")
        for n in loss_kernels._rows.arg_names
    }
    source = triton.compiler.ASTSource(loss_kernels._rows, signature, constants)
    built = triton.compile(
        source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 8, "enable_fp_fusion": True}
    )
    assert (
        not re.search(r"\batom\.|\bred\.global", built.asm["ptx"])
        and len(built.asm["cubin"]) > 1000
    )
