"""The switches that make bits repeat, and the fingerprint that says on what they depend."""

import os

import pytest
import torch

from forensics import identity
from forensics.errors import ForensicsError


def test_settle_is_strict_and_never_only_warns():
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.benchmark = torch.backends.cuda.matmul.allow_tf32 = (
        torch.backends.cudnn.allow_tf32
    ) = True
    identity.enable_determinism(3)
    assert torch.are_deterministic_algorithms_enabled()
    assert not torch.is_deterministic_algorithms_warn_only_enabled()
    assert not torch.backends.cudnn.benchmark and torch.backends.cudnn.deterministic
    assert not torch.backends.cuda.matmul.allow_tf32 and not torch.backends.cudnn.allow_tf32
    assert not torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction
    assert not torch.backends.cuda.cudnn_sdp_enabled()
    assert not torch.utils.deterministic.fill_uninitialized_memory
    assert torch.get_num_threads() == 3
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"


def test_an_operation_without_a_deterministic_form_raises():
    identity.enable_determinism(1)
    with pytest.raises(RuntimeError, match="deterministic"):
        torch.empty(2, 2).put_(torch.tensor([0, 0]), torch.tensor([1.0, 2.0]), accumulate=False)


def test_settle_leaves_a_workspace_that_was_chosen(monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    identity.enable_determinism(1)
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"


def fingerprint(**changed):
    known = {
        "device": "cpu",
        "threads": 1,
        "compiled": False,
        "optimizer": "fused",
        "precision": "fp32",
    }
    return identity.fingerprint(**(known | changed))


def test_the_fingerprint_names_what_bits_depend_on():
    identity.enable_determinism(1)
    here = fingerprint()
    assert here["deterministic"] and here["packages"]["torch"] == torch.__version__ and here["cpu"]
    assert identity.fingerprint_difference(here, fingerprint()) == []
    assert identity.fingerprint_difference(here, fingerprint(optimizer="loop", compiled=True)) == [
        "compile",
        "compiler",
        "optimizer",
    ]
    assert identity.fingerprint_difference(here, fingerprint(threads=4)) == [], (
        "bits do not change with threads"
    )
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert identity.fingerprint_difference(here, fingerprint()) == ["deterministic"]


def test_dispatch_variables_are_part_of_the_fingerprint(monkeypatch):
    here = fingerprint()
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", "default")
    assert identity.fingerprint_difference(here, fingerprint()) == ["dispatch"]


def test_a_device_or_precision_that_is_not_here_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert identity.device_for("auto") == "cpu" and identity.device_for("cpu") == "cpu"
    for has, precision in ((True, "bf16"), (False, "fp32")):
        monkeypatch.setattr(
            torch.cuda, "is_bf16_supported", lambda including_emulation, has=has: has
        )
        assert (
            identity.precision_for("auto", "cpu") == "fp32"
            and identity.precision_for("auto", "cuda") == precision
        )
    refused = (
        lambda: identity.device_for("cuda"),
        lambda: identity.precision_for("bf16", "cpu"),
        lambda: identity.precision_for("bf16", "cuda"),  # on a GPU that has none
    )
    for wrong in refused:
        with pytest.raises(ForensicsError) as e:
            wrong()
        assert e.value.kind == "device"
    with pytest.raises(ForensicsError) as e:
        identity.device_for("tpu")
    assert e.value.kind == "config"
    assert identity.thread_count(5) == 5 and identity.thread_count(0) >= 1
