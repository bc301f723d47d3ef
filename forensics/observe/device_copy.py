"""Copy small results from a GPU to the host behind the work that makes them; wait only on reading.

fetch = Fetch({"loss": loss_B})      # queued on the GPU's stream; the host goes on
…                                    # more work is handed out
fetch.read()["loss"]                 # waits for the copy alone, not for what was handed out since
"""

from __future__ import annotations

import torch
from torch import Tensor


class Fetch:
    """Tensors by name; those of the host are handed through."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self._host = {name: _started(x) for name, x in tensors.items()}
        on_gpu = any(x.is_cuda for x in tensors.values())
        self._copied = torch.cuda.current_stream().record_event() if on_gpu else None

    def read(self) -> dict[str, Tensor]:
        """Wait for the copies and return all tensors, on the host."""
        if self._copied is not None:
            self._copied.synchronize()
        return self._host


def _started(x: Tensor) -> Tensor:
    if not x.is_cuda:
        return x
    return torch.empty(x.shape, dtype=x.dtype, pin_memory=True).copy_(x, non_blocking=True)
