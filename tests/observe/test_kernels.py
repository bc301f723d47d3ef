"""The Triton kernel against the T×T computation in float64: in Triton's interpreter everywhere, and
on a GPU where one is.

The interpreter has to be asked for before Triton is imported, so all cases go through one process
of their own.
"""

import importlib.util
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from forensics.observe import attention
from forensics.observe.attention import Rows, attention_statistics

GPU = pytest.mark.skipif(
    not torch.cuda.is_available(),
    reason="no CUDA device; the interpreter runs these cases: tests/skips.md",
)

SCRIPT = """
import sys
import torch
from safetensors.torch import load_file, save_file
from forensics.observe import attention_kernels as kernels

inputs = load_file(sys.argv[1])
found = {}
for name in {key.split("/")[0] for key in inputs}:
    # strides of a decoder: (B, T, H, K) transposed
    q, k = (inputs[f"{name}/{x}"].transpose(1, 2) for x in "qk")
    window = int(inputs.get(f"{name}/window", 0))
    for field, x in kernels.rows(q, k, inputs.get(f"{name}/documents"), window)._asdict().items():
        found[f"{name}/{field}"] = x.contiguous()
save_file(found, sys.argv[2])
"""


def case(
    B=2, H=2, G=2, T=70, K=8, scale=1.0, dtype=torch.float32, documents=None, seed=0, change=None
):
    g = torch.Generator().manual_seed(seed)
    q, k = torch.randn(B, H, T, K, generator=g) * scale, torch.randn(B, G, T, K, generator=g)
    if change is not None:
        change(q, k, g)
    return q.to(dtype), k.to(dtype), documents


def documents(B, T, every, seed=0):
    return (
        (torch.rand(B, T, generator=torch.Generator().manual_seed(seed)) < 1 / every)
        .long()
        .cumsum(1)
    )


def extreme(q, k, g):
    """Whole numbers, so that logits are exact in fp32 (K = 16: √K = 4), and one pair at +4e4, one
    at −4e4.
    """
    q.copy_(torch.randint(-8, 9, q.shape, generator=g).float())
    k.copy_(torch.randint(-8, 9, k.shape, generator=g).float())
    q[:, :, 40::7] *= 40
    q[0, 0, 77], k[0, 0, 60] = 100.0, 100.0
    q[0, 1, 78], k[0, 1, 61] = -100.0, 100.0


def rising(q, k, g):
    """Logits that grow with the key: the maximum rises in every block, by more than e can hold in
    the end.
    """
    q.fill_(1.0)
    k.copy_((torch.arange(k.shape[2]).float() ** 2 / 100)[None, None, :, None].expand_as(k))


def falling(q, k, g):
    rising(q, k, g)
    k.neg_()


def alike(q, k, g):
    k.copy_(k[:, :, :1].expand_as(k).clone())


CASES = {
    "plain": case(),
    "one_position": case(T=1),
    "two_positions": case(T=2, K=2),
    "whole_blocks": case(B=1, H=1, G=1, T=128, K=16),
    "one_beyond_a_block": case(B=1, T=129, K=7, seed=1),
    "grouped": case(B=1, H=4, G=2, T=70, seed=2),
    "one_key_head": case(B=1, H=3, G=1, T=65, K=5, seed=3),
    "documents": case(H=1, G=1, T=150, documents=documents(2, 150, 20), seed=4),
    "documents_of_one": case(T=40, documents=torch.arange(40).expand(2, 40).contiguous()),
    "long_documents": case(B=1, T=200, documents=documents(1, 200, 90, 3), seed=5),
    "bf16": case(T=100, dtype=torch.bfloat16, scale=3.0, seed=6),
    "fp16": case(T=100, dtype=torch.float16, seed=7),
    "steep": case(B=1, scale=300.0, T=130, seed=8),
    "flat": case(scale=1e-6),
    "alike": case(T=90, scale=30.0, change=alike),
    "extreme": case(T=150, K=16, change=extreme),
    "extreme_documents": case(B=1, T=150, K=16, change=extreme, documents=documents(1, 150, 60)),
    "rising": case(B=1, H=1, G=1, T=200, K=4, change=rising),
    "falling": case(B=1, H=1, G=1, T=200, K=4, change=falling),
    "wide": case(B=1, H=1, G=1, T=70, K=100, seed=9),
    "widest": case(B=1, H=1, G=1, T=40, K=256, seed=10),
}
WINDOWS = {"window": 21, "window_of_one": 1, "window_in_documents": 40}
CASES |= {
    "window": case(B=1, H=4, G=2, T=150, seed=11),
    "window_of_one": case(B=1, H=1, G=1, T=40, seed=12),
    "window_in_documents": case(B=1, T=200, documents=documents(1, 200, 60, 5), seed=13),
}
BROKEN = {
    f"{name}_{which}": case(
        T=80,
        K=4,
        change=lambda q, k, g, bad=bad, which=which: (q if which == "q" else k)[
            1, 0, 70, 2:3
        ].fill_(bad),
    )
    for name, bad in (("nan", math.nan), ("inf", math.inf), ("minus_inf", -math.inf))
    for which in "qk"
}


@pytest.fixture(scope="module")
def interpreted(tmp_path_factory):
    """Rows of every case, from one process of Triton's interpreter."""
    if importlib.util.find_spec("triton") is None:
        pytest.skip("Triton is not installed: tests/skips.md")
    folder, root = tmp_path_factory.mktemp("kernels"), Path(attention.__file__).parents[2]
    inputs = {}
    for name, (q, k, ids) in (CASES | BROKEN).items():
        inputs |= {
            f"{name}/q": q.transpose(1, 2).contiguous(),
            f"{name}/k": k.transpose(1, 2).contiguous(),
        }
        if ids is not None:
            inputs[f"{name}/documents"] = ids
        inputs[f"{name}/window"] = torch.tensor(WINDOWS.get(name, 0))
    save_file(inputs, folder / "in")
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, folder / "in", folder / "out"],
        cwd=root,
        capture_output=True,
        text=True,
        env={**os.environ, "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = load_file(folder / "out")
    return {
        name: Rows(*(found[f"{name}/{field}"] for field in Rows._fields)) for name in CASES | BROKEN
    }


def on_gpu(name):
    from forensics.observe import attention_kernels

    q, k, ids = (CASES | BROKEN)[name]
    return Rows(
        *(
            x.cpu()
            for x in attention_kernels.rows(
                q.cuda(), k.cuda(), ids.cuda() if ids is not None else None, WINDOWS.get(name, 0)
            )
        )
    )


def naive(q, k, ids, window=0):
    """Rows by their definition in float64, and the size of the largest logit."""
    T, K = q.shape[2:]
    s = (
        q.double()
        @ k.double().repeat_interleave(q.shape[1] // k.shape[1], dim=1).transpose(-1, -2)
        / math.sqrt(K)
    )
    open_ = torch.ones(T, T, dtype=torch.bool).tril().expand(s.shape)
    if ids is not None:
        open_ = open_ & (ids[:, None, :, None] == ids[:, None, None, :])
    if window:
        open_ = open_ & torch.ones(T, T, dtype=torch.bool).triu(1 - window)
    m = s.masked_fill(~open_, -math.inf).amax(-1)
    below = s - m[..., None]
    e = below.exp().masked_fill(~open_, 0.0)
    first = open_.to(torch.int8).argmax(-1, keepdim=True)
    shown = s.masked_fill(~open_, 0.0)
    rows = Rows(
        m, shown.sum(-1), e.sum(-1), (e * below).sum(-1), e.gather(-1, first)[..., 0], open_.sum(-1)
    )
    return rows, float(shown.abs().amax())


def assert_rows(found, name):
    """m and Σ s to fp32's rounding of a dot product; the rest to what such an error of a logit
    moves them by.
    """
    wanted, size = naive(*CASES[name], WINDOWS.get(name, 0))
    exact = name in ("extreme", "extreme_documents", "rising", "falling")
    slack = 2e-6 if exact else 2e-6 + 2e-6 * size
    T = wanted.m.shape[-1]
    for field, x in found._asdict().items():
        want = getattr(wanted, field).double()
        rtol = {"m": 2e-6, "total": 2e-6, "counts": 0.0}.get(field, 1e-5 + slack)
        atol = {
            "m": 0.0 if exact else slack,
            "total": 2e-6 * T * size,
            "counts": 0.0,
            "weighted": slack * T**0.5,
        }.get(field, slack)
        torch.testing.assert_close(
            x.double().expand_as(want),
            want,
            rtol=rtol,
            atol=atol,
            msg=lambda text, f=field: f"{name}, {f}: {text}",
        )
    entropy = (found.z.log() - found.weighted / found.z).double()
    assert (entropy >= 0).all() and (found.z >= 1 - 1e-6).all()
    torch.testing.assert_close(
        entropy,
        wanted.z.log() - wanted.weighted / wanted.z,
        rtol=1e-5 + 4 * slack,
        atol=1e-6 + 10 * slack,
    )
    if name == "extreme":
        assert found.m[0, 0, 77] == 4e4 and torch.equal(found.m.double(), wanted.m)


def assert_shown(found, name):
    """What is broken shows up in its own head and sequence, and nowhere else."""
    q, k, _ = BROKEN[name]
    norms = [torch.linalg.vector_norm(x, dim=-1).amax((0, 2)) for x in (q, k)]
    columns = attention._reduce(found, *norms).columns()
    blocked = attention_statistics(q, k).columns()
    for column, values in columns.items():
        assert torch.isfinite(values[1]), column
        assert torch.equal(torch.isfinite(values), torch.isfinite(blocked[column])), (
            column,
            values,
            blocked[column],
        )
    assert not torch.isfinite(columns["attn_entropy_mean"][0])


@pytest.mark.parametrize("name", CASES)
def test_the_interpreter_finds_every_row(name, interpreted):
    assert_rows(interpreted[name], name)


@pytest.mark.parametrize("name", BROKEN)
def test_nan_and_inf_show_up_as_in_the_blocked_form(name, interpreted):
    assert_shown(interpreted[name], name)


@pytest.mark.parametrize("name", CASES)
def test_the_blocked_form_finds_the_same_rows(name):
    """Also with the strides that a decoder's queries and keys have."""
    q, k, ids = CASES[name]
    assert_rows(attention.blocked_rows(q, k, ids, WINDOWS.get(name, 0))[0], name)
    q, k = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k))
    assert_rows(attention.blocked_rows(q, k, ids, WINDOWS.get(name, 0))[0], name)


def test_both_forms_make_the_same_statistics(interpreted):
    for name in ("plain", "grouped", "long_documents", "bf16"):
        q, k, ids = CASES[name]
        norms = [torch.linalg.vector_norm(x.float(), dim=-1).amax((0, 2)) for x in (q, k)]
        found = attention._reduce(
            interpreted[name], norms[0], norms[1].repeat_interleave(q.shape[1] // k.shape[1])
        ).columns()
        for column, values in (
            attention_statistics(q, k, ids, WINDOWS.get(name, 0)).columns().items()
        ):
            torch.testing.assert_close(
                found[column],
                values,
                rtol=2e-5,
                atol=2e-5,
                msg=lambda text, c=column: f"{c}: {text}",
            )


def test_exp_never_meets_what_underflows():
    """It is ten times slower there, which logits of a sharp head would make the usual case."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Lowest(TorchDispatchMode):
        seen = 0.0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if "exp" in function.__name__.split(".")[0].split("_"):
                self.seen = min(self.seen, float(args[0].amin()))
            return function(*args, **(kwargs or {}))

    with Lowest() as watch:
        attention_statistics(*CASES["steep"])
    assert watch.seen == attention.FLOOR


@pytest.mark.parametrize(
    ("dtype", "width", "products"), [("fp32", 16, "fma.rn.f32"), ("bf16", 64, "f32.bf16.bf16.f32")]
)
def test_the_kernel_compiles_for_a_gpu_without_tf32_and_without_atomics(
    dtype, width, products, tmp_path, monkeypatch
):
    """As far as machine code for an H100, which needs no GPU."""
    triton = pytest.importorskip("triton", reason="Triton is not installed: tests/skips.md")
    from triton.backends.compiler import GPUTarget

    from forensics.observe import attention_kernels

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    queries, keys = attention_kernels.TILES[64]
    constants = {
        "DOCUMENTS": dtype == "bf16",
        "WIDEN": False,
        "LOWEST": attention.FLOOR,
        "QUERIES": queries,
        "KEYS": keys,
        "WIDTH": width,
    }
    pointers = {
        "q_ptr": f"*{dtype}",
        "k_ptr": f"*{dtype}",
        "ids_ptr": "*i32",
        "found_ptr": "*fp32",
        "scale": "fp32",
    }
    signature = {
        n: "constexpr" if n in constants else pointers.get(n, "i32")
        for n in attention_kernels._rows.arg_names
    }
    source = triton.compiler.ASTSource(attention_kernels._rows, signature, constants)
    built = triton.compile(
        source, target=GPUTarget("cuda", 90, 32), options={"enable_fp_fusion": True}
    )
    code = built.asm["ptx"]
    assert products in code and not re.search(r"tf32|\batom\.|\bred\.", code)
    assert len(built.asm["cubin"]) > 1000


def test_autocast_does_not_reach_the_statistics():
    q, k, _ = CASES["plain"]
    plain = attention_statistics(q, k).columns()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = attention_statistics(q, k).columns()
    assert all(torch.equal(found[name], values) for name, values in plain.items())


@pytest.mark.gpu
@GPU
@pytest.mark.parametrize("name", CASES)
def test_the_gpu_finds_every_row(name):
    assert_rows(on_gpu(name), name)


@pytest.mark.gpu
@GPU
@pytest.mark.parametrize("name", BROKEN)
def test_nan_and_inf_show_up_on_the_gpu(name):
    assert_shown(on_gpu(name), name)


@pytest.mark.gpu
@GPU
def test_the_gpu_is_asked_by_attention_statistics_and_gives_the_same_bits_twice():
    q, k = (
        torch.randn(4, 12, 1000, 64, device="cuda", dtype=torch.bfloat16),
        torch.randn(4, 4, 1000, 64, device="cuda", dtype=torch.bfloat16),
    )
    once, twice = (attention_statistics(q, k).columns() for _ in range(2))
    host = attention_statistics(q.cpu(), k.cpu()).columns()
    for name, values in once.items():
        assert torch.equal(values, twice[name]), name
        torch.testing.assert_close(values.cpu(), host[name], rtol=1e-4, atol=1e-4)
