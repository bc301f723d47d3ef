"""What torch says when a step cannot be computed, as the one line that tells what to change."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

import torch

from forensics.errors import ForensicsError

# operation → the setting that does without it; any other has its form on the CPU, where all are
# deterministic
AVOIDED_BY = {
    "attention": "--set model.document_mask=false lets attention take its deterministic form",
    "cumsum": "--set model.document_mask=false does without it",
    "embedding": "--set train.device=cpu trains without it",
}
NO_DETERMINISTIC_FORM = re.compile(r"(\S+) does not have a deterministic implementation")
# of libraries that have no exception of their own for it: the CPU's allocator, cuBLAS, the CUDA
# runtime, Triton
NO_MEMORY = re.compile(
    r"can't allocate memory|_ALLOC_FAILED|CUDA[^\n]*out of memory|cudaErrorMemoryAllocation"
)
WANTED = re.compile(r"(?:Tried to allocate|you tried to allocate) ([\d.]+ ?\w+)")


@contextlib.contextmanager
def translate_torch_errors(micro_batch: int, batch: int, recompute: bool) -> Iterator[None]:
    """Translate PyTorch failures of a step into one ForensicsError.

    Errors: memory, device (an operation without a deterministic form).
    """
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as e:
        translated = _memory(e, micro_batch, batch, recompute) or _deterministic(str(e))
        if translated is None:
            raise
        raise translated from None


def no_moments(step: int) -> ForensicsError:
    """Say that a state has no moments to update with."""
    return ForensicsError(
        "mismatch",
        f"state {step} was saved without the optimizer's moments, so no update can go on from it",
        "start from a state that has them (`forensics show RUN`), or --warm-moments N makes some of"
        " the N batches before it",
    )


def _memory(
    error: Exception, micro_batch: int, batch: int, recompute: bool
) -> ForensicsError | None:
    text = str(error)
    if not isinstance(error, (torch.OutOfMemoryError, MemoryError)) and not NO_MEMORY.search(text):
        return None
    requested = WANTED.search(text)
    lower = (
        max((size for size in range(1, micro_batch) if batch % size == 0), default=0)
        if batch
        else 0
    )
    hints = [f"--set train.micro_batch={lower} (now {micro_batch})"] if lower else []
    hints += [] if recompute else ["--set train.checkpoint_activations=true"]
    hints += ["lower data.sequence_length or the model's width"] if len(hints) < 2 else []
    shortage = f"{requested[1]} more than there is" if requested else "more memory than there is"
    return ForensicsError("memory", f"a step wanted {shortage}", " or ".join(hints))


def _deterministic(text: str) -> ForensicsError | None:
    if "CUBLAS_WORKSPACE_CONFIG" in text:
        return ForensicsError(
            "device",
            "cuBLAS was started before it was told to be deterministic",
            "set CUBLAS_WORKSPACE_CONFIG=:4096:8 in the environment and start again",
        )
    match = NO_DETERMINISTIC_FORM.search(text)
    if match is None:
        return None
    hint = next(
        (hint for name, hint in AVOIDED_BY.items() if name in match[1].lower()),
        "--set train.device=cpu has one",
    )
    return ForensicsError(
        "device", f"the operation {match[1]} has no deterministic form on this device", hint
    )
