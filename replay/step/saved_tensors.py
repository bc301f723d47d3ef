"""The raw gradients and activations of one step, as files that any tool reads.

    DEST/gradients.safetensors      by our tensor names, before clipping
    DEST/activations.safetensors    layers.0.resid_in (B, T, D) and the other sites of the forward;
                                    layers.0.resid_grad: the loss's gradient at the block's output
    DEST/index.json                 run, step, and of every tensor its file, shape, dtype and norm

The folder appears whole or not at all, and none that is there is written over.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from forensics.errors import ForensicsError
from forensics.json_documents import dumps
from forensics.step import sums
from forensics.step.observer import Site

GRADIENTS, ACTIVATIONS, INDEX = "gradients.safetensors", "activations.safetensors", "index.json"
VERSION = 1


def require_absent(destination: Path) -> None:
    """Refuse a destination that is there. Errors: usage."""
    if destination.exists() or destination.is_symlink():
        raise ForensicsError(
            "usage",
            f"wanted a folder for the gradients that is not there yet, found {destination}",
            "choose another name, or delete it",
        )


class SavedTensors:
    """What a step hands out, copied to the host as it comes."""

    def __init__(self) -> None:
        self.norms: dict[str, float] = {}  # as the step itself took them, by tensor
        self._gradients: dict[str, Tensor] = {}
        self._parts: dict[str, list[Tensor]] = {}  # micro-batches

    def take(self, site: Site, x: Tensor) -> None:
        """Copy the tensor of a site."""
        name = f"layers.{site.layer}.{site.kind}" if site.layer >= 0 else site.kind
        self._parts.setdefault(name, []).append(x.detach().to("cpu", copy=True).contiguous())

    def take_gradients(self, grads: dict[str, Tensor], norms: dict[str, float]) -> None:
        """Copy the gradients before clipping."""
        self.norms = dict(norms)
        self._gradients = {
            name: grad.detach().to("cpu", copy=True).contiguous() for name, grad in grads.items()
        }

    def write(self, destination: Path, about: dict[str, Any]) -> None:
        """Write the folder, at once or not at all. Errors: usage, storage."""
        from safetensors.torch import save_file

        require_absent(destination)
        activations = {name: torch.cat(parts) for name, parts in sorted(self._parts.items())}
        index = {
            "version": VERSION,
            **about,
            "gradients": {n: _entry(x, self.norms[n]) for n, x in self._gradients.items()},
            "activations": {n: _entry(x, _norm(x)) for n, x in activations.items()},
        }
        staging: Path | None = None
        try:
            destination.parent.mkdir(parents=True, exist_ok=True)
            staging = Path(tempfile.mkdtemp(prefix=f".{destination.name}-", dir=destination.parent))
            save_file(self._gradients, staging / GRADIENTS)
            save_file(activations, staging / ACTIVATIONS)
            (staging / INDEX).write_text(dumps(index) + "\n")
            staging.chmod(0o755)  # mkdtemp's own is for its maker alone
            staging.rename(destination)
        except OSError as e:
            raise ForensicsError(
                "storage",
                f"could not write {destination}: {e.strerror or e}",
                "is there space, and may this user write there?",
            ) from None
        finally:
            if staging is not None and staging.exists():
                shutil.rmtree(staging)


def _norm(x: Tensor) -> float:
    return float(sums.square_sum(x.float()).sqrt())


def _entry(x: Tensor, norm: float) -> dict[str, Any]:
    return {"shape": list(x.shape), "dtype": str(x.dtype).removeprefix("torch."), "norm": norm}
