"""Cross-entropy with z-loss and its gradient, in one pass over chunks of rows.

B·T·V logits are never held. N rows (B·T positions), D width, V vocabulary. The chunk size is fixed,
because the bits of the unembedding's gradient depend on it. The statistics of the logits come out
of the same pass; whether they are asked for changes no bit.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from forensics.step.gpu_kernels import load_kernels
from forensics.step.precision import wide_dtype, widened
from forensics.step.result import LogitRows

KERNELS = "forensics.model.loss_kernels"

CHUNK = 512  # rows
# rows: large enough that the products fill a GPU, and few enough that their sum is added up in few
# roundings; 800 MB of logits at 50,000 tokens in bf16
GPU_CHUNK = 8192
# A rest shorter than this joins the chunk before it: MKL computes products of few rows (seen: 5 to
# 7, at 2 and 8 threads) by another kernel than the same rows among many, so their bits would change
# with the number of threads.
SHORT = 64


def chunks(rows: int, size: int = CHUNK) -> Iterator[slice]:
    """Yield stretches of `size` rows, a function of the number of rows alone."""
    first = 0
    while first < rows:
        last = first + size if rows - first >= size + SHORT else rows
        yield slice(first, last)
        first = last


class LossOut(NamedTuple):
    """Hold the loss of N rows and its gradients."""

    ce: Tensor  # (N,) cross-entropy of each target, nats
    logz: Tensor  # (N,) logsumexp over V
    grad_hidden: Tensor  # (N, D)
    grad_unembedding: Tensor  # (V, D)
    rows: LogitRows | None


@torch.no_grad()
def loss_and_gradient(
    hidden: Tensor,
    unembedding: Tensor,
    targets: Tensor,
    weight: Tensor,
    denominator: float,
    z_loss: float,
    *,
    statistics: bool = False,
    dtype: torch.dtype = torch.float32,
) -> LossOut:
    """Compute each row's ce and the gradients of hidden and unembedding.

    The loss is Σ weight·(ce + z_loss·logz²) / denominator. hidden (N, D), unembedding (V, D),
    targets (N,) int64, weight (N,). `dtype` is that of the two matrix products; where hidden is
    float64 (blame's second precision), everything is.
    """
    N, wide = hidden.shape[0], wide_dtype(hidden)
    dtype = wide if wide == torch.float64 else dtype
    hidden_cast, unembedding_cast = hidden.to(dtype), unembedding.to(dtype)
    kernels = load_kernels(KERNELS) if hidden_cast.is_cuda and dtype != torch.float64 else None
    if kernels is not None:
        return on_gpu(
            kernels,
            hidden_cast,
            unembedding_cast,
            targets,
            weight / denominator,
            z_loss,
            hidden.dtype,
            statistics,
        )
    ce, logz = (torch.empty(N, device=hidden_cast.device, dtype=wide) for _ in range(2))
    row_statistics = (
        [torch.empty(N, device=hidden_cast.device, dtype=wide) for _ in range(3)]
        if statistics
        else None
    )
    grad_hidden = torch.empty_like(hidden_cast)
    grad_unembedding = torch.zeros(unembedding_cast.shape, device=hidden_cast.device, dtype=wide)
    scale = weight.to(wide) / denominator
    # one buffer for all chunks: fresh pages for each would cost as much as the arithmetic on them
    size = (max(rows.stop - rows.start for rows in chunks(N)), unembedding_cast.shape[0])
    buffer = torch.empty(size, device=hidden_cast.device, dtype=wide)
    spare = torch.empty(size, device=hidden_cast.device, dtype=wide) if statistics else None
    for rows in chunks(N):
        length = rows.stop - rows.start
        if dtype == wide:
            logits = torch.mm(hidden_cast[rows], unembedding_cast.T, out=buffer[:length])
        else:
            logits = buffer[:length].copy_(hidden_cast[rows] @ unembedding_cast.T)
        target = targets[rows, None]
        largest = logits.amax(1, keepdim=True)
        if row_statistics is not None:
            row_statistics[0][rows] = largest[:, 0]
            row_statistics[1][rows] = (
                torch.linalg.vector_norm(logits, dim=1).square_() / logits.shape[1]
            )
        logits.sub_(largest)
        at_target = logits.gather(1, target)
        if row_statistics is None or spare is None:
            exponentials = logits.exp_()  # in place: the same bits as out of place
            total = exponentials.sum(1, keepdim=True)
        else:
            exponentials = torch.exp(logits, out=spare[:length])
            total = exponentials.sum(1, keepdim=True)
            # H = log Σe − Σ e·l / Σe with l shifted by its maximum: every term is finite, nothing
            # cancels
            row_statistics[2][rows] = (
                total[:, 0].log() - logits.mul_(exponentials).sum(1) / total[:, 0]
            )
        log_total = total.log()
        ce[rows] = (log_total - at_target)[:, 0]
        row_logz = log_total + largest
        logz[rows] = row_logz[:, 0]
        row_scale = scale[rows, None]
        factor = row_scale if z_loss == 0.0 else row_scale * (1 + 2 * z_loss * row_logz)
        grad_logits = (
            exponentials.mul_(factor / total).scatter_add_(1, target, -row_scale).to(dtype)
        )
        torch.mm(grad_logits, unembedding_cast, out=grad_hidden[rows])
        if dtype == wide:
            grad_unembedding.addmm_(grad_logits.T, hidden_cast[rows])
        else:
            grad_unembedding += grad_logits.T @ hidden_cast[rows]
    stats = (
        LogitRows(row_statistics[0], row_statistics[1], logz, row_statistics[2])
        if row_statistics is not None
        else None
    )
    return LossOut(ce, logz, grad_hidden.to(hidden.dtype), grad_unembedding, stats)


def on_gpu(
    kernels: ModuleType,
    h: Tensor,
    W: Tensor,
    targets: Tensor,
    scale: Tensor,
    z_loss: float,
    out: torch.dtype,
    statistics: bool,
) -> LossOut:
    """Compute the same with the rows in one kernel, whose type is that of the products.

    h (N, D) is hidden and W (V, D) the unembedding in that type; `out` is the type of grad_hidden.
    """
    N, (V, D) = h.shape[0], W.shape
    grad_hidden = torch.empty(N, D, dtype=h.dtype, device=h.device)
    grad_unembedding = torch.zeros(V, D, device=h.device)
    buffer = torch.empty(
        max(stretch.stop - stretch.start for stretch in chunks(N, GPU_CHUNK)),
        V,
        dtype=h.dtype,
        device=h.device,
    )
    results = []
    for rows in chunks(N, GPU_CHUNK):
        logits = torch.mm(h[rows], W.T, out=buffer[: rows.stop - rows.start])
        results.append(
            kernels.rows(logits, targets[rows].contiguous(), scale[rows].contiguous(), z_loss)
        )
        torch.mm(logits, W, out=grad_hidden[rows])  # the logits have become their gradient
        if h.dtype == torch.float32:
            grad_unembedding.addmm_(logits.T, h[rows])
        else:
            grad_unembedding += logits.T @ h[rows]
    ce, logz, largest, mean_square, entropy = (torch.cat(column) for column in zip(*results))
    rows_ = (
        LogitRows(largest, mean_square, logz, entropy) if statistics else None
    )  # computed in any case: the same bits
    return LossOut(ce, logz, grad_hidden.to(out), grad_unembedding, rows_)


def plain_cross_entropy(
    hidden: Tensor, unembedding: Tensor, targets: Tensor
) -> tuple[Tensor, Tensor]:
    """Compute (ce, logz), each (N,), by autograd's own operations.

    Differentiable twice; holds N·V logits.
    """
    logits = F.linear(hidden, unembedding)
    logits = widened(logits)
    logz = logits.logsumexp(1)
    return logz - logits.gather(1, targets[:, None])[:, 0], logz


@torch.no_grad()
def evaluate(hidden: Tensor, unembedding: Tensor, targets: Tensor) -> Tensor:
    """Compute ce (N,) in chunks, no gradient: held-out loss and probes."""
    out = torch.empty(hidden.shape[0], device=hidden.device, dtype=wide_dtype(hidden))
    for rows in chunks(hidden.shape[0]):
        out[rows] = plain_cross_entropy(hidden[rows], unembedding, targets[rows])[0]
    return out
