"""What the bits depend on: the switches of determinism, and the fingerprint of the machine.

`enable_determinism` must run before CUDA starts and before the model exists. It is strict: an
operation without a deterministic form raises, it never warns.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

from forensics.errors import ForensicsError
from forensics.version import __version__

PACKAGES = ("torch", "numpy", "tokenizers", "safetensors")
DISPATCH = (
    "ATEN_CPU_CAPABILITY",
    "ONEDNN_MAX_CPU_ISA",
    "MKL_CBWR",
    "MKL_ENABLE_INSTRUCTIONS",
    "CUBLAS_WORKSPACE_CONFIG",
)


def device_for(wanted: str) -> str:
    """`auto`, `cpu` or `cuda` as the device that this machine has. Errors: device."""
    import torch

    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if wanted not in ("cpu", "cuda"):
        raise ForensicsError(
            "config",
            f"train.device: wanted auto, cpu or cuda, found {wanted!r}",
            "set train.device",
        )
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ForensicsError(
            "device", "the recipe asks for CUDA, this machine has none", "--set train.device=cpu"
        )
    return wanted


def precision_for(wanted: str, device: str) -> str:
    """`auto` as bf16 on CUDA and fp32 on CPU. Errors: device."""
    if wanted == "auto":
        return "bf16" if device == "cuda" and _has_bf16() else "fp32"
    if wanted == "bf16" and device == "cpu":
        raise ForensicsError(
            "device",
            "the recipe asks for bf16, which is trained on CUDA only; this run is on the CPU",
            "--set train.precision=fp32",
        )
    if wanted == "bf16" and not _has_bf16():
        raise ForensicsError(
            "device",
            "the recipe asks for bf16, which this GPU does not compute in",
            "--set train.precision=fp32",
        )
    return wanted


def _has_bf16() -> bool:
    """Return whether the GPU multiplies bf16 itself.

    torch calls it supported where it is emulated, too.
    """
    import torch

    return torch.cuda.is_bf16_supported(including_emulation=False)


def thread_count(wanted: int) -> int:
    """0 as the number of cores this process may use."""
    return wanted or len(os.sched_getaffinity(0))


def enable_determinism(threads: int) -> None:
    """Make every later computation in this process deterministic, on CPU and CUDA.

    `threads` is the number of CPU threads.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    import torch

    torch.use_deterministic_algorithms(True, warn_only=False)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # costs time, changes nothing that is read
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    torch.backends.cuda.enable_cudnn_sdp(
        False
    )  # its backward has no deterministic form in strict mode
    torch.set_num_threads(threads)
    _keep_memory()


M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3  # of glibc's malloc.h


@functools.cache
def _keep_memory() -> None:
    """Keep what a step frees in the process for the next step, as CUDA's allocator does.

    It changes no bit. glibc gives large blocks back to the system at once, and fresh pages are
    zeroed one fault at a time: of a step at the benchmark's shapes 6,300 to 12,700 faults were left
    0 to 800, and 2 to 5 % of its time went with them.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    mallopt = ctypes.CDLL(None).mallopt
    if not mallopt(M_MMAP_THRESHOLD, 1 << 30):  # older ones take no more than this
        mallopt(M_MMAP_THRESHOLD, 32 << 20)
    mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
    mallopt(M_TOP_PAD, 64 << 20)


def fingerprint(
    *, device: str, threads: int, compiled: bool, optimizer: str, precision: str
) -> dict[str, Any]:
    """Everything outside the state on which a step's bits may depend, as plain JSON."""
    import torch

    gpu = torch.cuda.get_device_properties(0) if device == "cuda" else None
    return {
        # of this software by its source, which a clone has before it is installed
        "packages": {name: _version(name) for name in PACKAGES}
        | {"forensics-workbench": __version__},
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": cpu_model(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "dispatch": {name: os.environ[name] for name in DISPATCH if name in os.environ},
        "device": gpu.name if gpu else "cpu",
        "driver": _driver() if gpu else None,
        "cuda": torch.version.cuda if gpu else None,
        "cudnn": torch.backends.cudnn.version() if gpu else None,
        "triton": _version("triton") if gpu else None,  # the loss's rows are its kernel there
        "threads": threads,
        "deterministic": (
            torch.are_deterministic_algorithms_enabled()
            and not torch.is_deterministic_algorithms_warn_only_enabled()
        ),
        "compile": compiled,
        "compiler": (
            compiler() if compiled and device == "cpu" else None
        ),  # on CUDA it is Triton, told above
        "optimizer": optimizer,
        "precision": precision,
        "git_commit": git_commit(),
    }


# Not part of the arithmetic: a difference here is a note, never a reason to doubt the bits.
INNOCENT = ("git_commit", "threads", "system")


def fingerprint_difference(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
    """Names of what differs between two fingerprints and may change bits."""
    return sorted(
        name for name in a.keys() | b.keys() if name not in INNOCENT and a.get(name) != b.get(name)
    )


@functools.cache
def git_commit() -> str | None:
    """Return the commit of this software, with + when the tree was dirty.

    None where it is not a checkout.
    """
    folder = Path(__file__).parent
    try:
        run = functools.partial(
            subprocess.run, cwd=folder, capture_output=True, text=True, timeout=10, check=True
        )
        top = run(["git", "rev-parse", "--show-toplevel"]).stdout.strip()
        if Path(top) != folder.parent:
            return None
        commit = run(["git", "rev-parse", "HEAD"]).stdout.strip()
        dirty = run(["git", "status", "--porcelain", "--untracked-files=no"]).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
    return commit + ("+" if dirty else "")


@functools.cache
def compiler() -> str | None:
    """Return the first line of `--version` of the C++ compiler torch.compile calls on a CPU.

    None where it cannot be asked.
    """
    try:
        answer = subprocess.run(
            [os.environ.get("CXX", "g++"), "--version"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.partition("\n")[0].strip()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def cpu_model() -> str:
    """Return the processor's name, family and model."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    fields = dict(line.split(":", 1) for line in lines[:30] if ":" in line)
    names = {key.strip(): value.strip() for key, value in fields.items()}
    return (
        f"{names.get('model name', platform.processor())} family {names.get('cpu family')} model"
        f" {names.get('model')}"
    )


def _driver() -> str | None:
    try:
        line = Path("/proc/driver/nvidia/version").read_text().splitlines()[0]
    except OSError:
        return None
    return line.split("Kernel Module")[-1].split()[0]
