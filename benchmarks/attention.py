"""The price of one layer's attention statistics: blocked PyTorch, compiled, and a GPU's kernel.

    python -m benchmarks.attention [--rounds 9] [--json benchmarks/results/attention.json]

Two shapes, interleaved in one process: that of the step benchmark, and a longer one. "sharp" has
logits thirty times as large, so that most weights underflow. The compiled contestant is the blocked
form written for the compiler, without buffers of its own; its first call, with an empty cache, is
timed too.
"""

from __future__ import annotations

import argparse
import math
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.rounds import interleaved, medians, ratios, report
from forensics import identity
from forensics.observe import attention
from forensics.observe.attention import FLOOR, MASKED, QUERIES, Rows, attention_statistics

SHAPES = {"B=8 H=8 T=256 K=32": (8, 8, 256, 32), "B=4 H=12 T=1024 K=64": (4, 12, 1024, 64)}


def traced_rows(q: Tensor, k: Tensor) -> list[Tensor]:
    """Compute m, Σ s, Z, A and the first key's weight, (B·H, T) each.

    There are no documents, and as many key heads as query heads.
    """
    B, H, T, K = q.shape
    q, k = (q / math.sqrt(K)).reshape(B * H, T, K), k.reshape(B * H, T, K)
    blocks = []
    for first in range(0, T, QUERIES):
        last = min(first + QUERIES, T)
        scores = torch.bmm(q[:, first:last], k[:, :last].transpose(1, 2))
        visible = torch.arange(last)[None, :] <= torch.arange(first, last)[:, None]
        total = torch.where(visible, scores, 0.0).sum(-1)
        scores = torch.where(visible, scores, MASKED)
        largest = scores.amax(-1)
        scores = (scores - largest[..., None]).clamp_min(FLOOR)
        exponentials = scores.exp()
        blocks.append(
            (
                largest,
                total,
                exponentials.sum(-1),
                (scores * exponentials).sum(-1),
                exponentials[..., 0],
            )
        )
    return [torch.cat(parts, 1) for parts in zip(*blocks)]


def compiled(q: Tensor, k: Tensor) -> attention.HeadStatistics:
    """Compute the statistics by the compiled rows."""
    B, H, T, _ = q.shape
    with torch.no_grad():
        norms = [torch.linalg.vector_norm(x.contiguous(), dim=-1).amax((0, 2)) for x in (q, k)]
        rows = [x.view(B, H, T) for x in _traced(q, k)]
        return attention._reduce(Rows(*rows, torch.arange(1.0, T + 1)), norms[0], norms[1])


_traced = torch.compile(traced_rows, dynamic=False, fullgraph=True)


def main(rounds: int, threads: int, path: Path | None, dry: bool = False) -> dict[str, Any]:
    """Measure seconds per call (least and median) and ratios to the blocked form, by shape."""
    identity.enable_determinism(identity.thread_count(threads))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    numbers: dict[str, Any] = {"threads": torch.get_num_threads()}
    half = torch.bfloat16 if device == "cuda" else torch.float32  # what training taps
    for shape, (B, H, T, K) in ({"dry": (2, 2, 64, 16)} if dry else SHAPES).items():
        # a decoder's strides: heads are the third axis in memory
        q, k = (
            torch.randn(B, T, H, K, device=device, dtype=half).transpose(1, 2) for _ in range(2)
        )
        contestants = {
            "blocked": lambda q=q, k=k: blocked(q, k),
            "blocked, sharp": lambda q=q * 30, k=k: blocked(q, k),
        }
        if device == "cuda":
            contestants["kernel"] = lambda q=q, k=k: synchronous(q, k)
        elif not dry:
            with tempfile.TemporaryDirectory() as cache:
                os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache
                started = time.perf_counter()
                compiled(q, k)
                numbers[f"{shape}: first compiled call, seconds"] = round(
                    time.perf_counter() - started, 1
                )
                os.environ.pop("TORCHINDUCTOR_CACHE_DIR")
            contestants["compiled"] = lambda q=q, k=k: compiled(q, k)
        seconds = interleaved(contestants, rounds)
        numbers[f"{shape}: least seconds"] = {
            name: round(min(times), 5) for name, times in seconds.items()
        }
        numbers[f"{shape}: median seconds"] = {
            name: round(times, 5) for name, times in medians(seconds).items()
        }
        numbers[f"{shape}: ratio to blocked"] = {
            name: round(ratio, 3) for name, ratio in ratios(seconds, "blocked").items()
        }
    report("attention", numbers, path)
    return numbers


def blocked(q: Tensor, k: Tensor) -> attention.HeadStatistics:
    """Compute the statistics as a machine without Triton does, on whichever device."""
    rows, *norms = attention.blocked_rows(q, k, None)
    return synchronised(attention._reduce(rows, norms[0], norms[1]))


def synchronous(q: Tensor, k: Tensor) -> attention.HeadStatistics:
    """Compute the statistics by the form of this machine."""
    return synchronised(attention_statistics(q, k))


def synchronised(x: attention.HeadStatistics) -> attention.HeadStatistics:
    """Wait for the device."""
    if x.merged["attn_logit_max"].is_cuda:
        torch.cuda.synchronize()
    return x


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--json", type=Path, default=None)
    parser.add_argument(
        "--dry",
        action="store_true",
        help="tiny shapes, nothing compiled: whether it runs, not how fast",
    )
    arguments = parser.parse_args()
    main(arguments.rounds, arguments.threads, arguments.json, arguments.dry)
