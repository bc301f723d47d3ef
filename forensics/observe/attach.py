"""Statistics of any Hugging Face model while it trains in somebody else's loop.

    with attach(model) as seen:
        loss = model(tokens, labels=tokens).loss
        loss.backward()
        rows = seen.take()          # {"heads": {...}, "layers": {...}}, columns as in records.py

The model's own attention function is called with the very arguments it would get, and its result is
handed on: the queries and keys are looked at, after RoPE and QK-norm, nothing is changed. Sequences
are taken to be unpadded.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from forensics.errors import ForensicsError
from forensics.observe.attention import HeadStatistics, attention_statistics
from forensics.step import sums


class Seen:
    """What has been seen since the last `take`."""

    def __init__(self) -> None:
        self.heads: dict[int, HeadStatistics] = {}
        self.squares: dict[tuple[str, int], tuple[float, int]] = {}

    @torch.no_grad()
    def attention(self, layer: int, q: Tensor, k: Tensor, window: int = 0) -> None:
        """Take in one forward's queries (B, H, T, K) and keys (B, G, T, K) of a layer."""
        statistics = attention_statistics(q.detach(), k.detach(), window=window)
        self.heads[layer] = (
            self.heads[layer].merge(statistics) if layer in self.heads else statistics
        )

    @torch.no_grad()
    def stream(self, column: str, layer: int, x: Tensor) -> None:
        """Add a tensor's squares to a column of `layers`."""
        total, n = self.squares.get((column, layer), (0.0, 0))
        self.squares[column, layer] = (
            total + float(sums.square_sum(x.detach().float())),
            n + x.numel(),
        )

    def take(self) -> dict[str, dict[str, list]]:
        """Return the columns of `heads` and `layers` since the last call, and start anew."""
        heads: dict[str, list] = {"layer": [], "head": []}
        for layer, statistics in sorted(self.heads.items()):
            columns_of_head = statistics.columns()
            for name, values in columns_of_head.items():
                heads.setdefault(name, []).extend(values.tolist())
            count = len(next(iter(columns_of_head.values())))
            heads["layer"] += [layer] * count
            heads["head"] += range(count)
        layers = sorted({layer for _, layer in self.squares})
        columns = sorted({column for column, _ in self.squares})
        rows = {column: [self._rms(column, layer) for layer in layers] for column in columns}
        self.heads, self.squares = {}, {}
        return {"heads": heads, "layers": {"layer": layers, **rows}}

    def _rms(self, column: str, layer: int) -> float | None:
        total, n = self.squares.get((column, layer), (0.0, 0))
        return math.sqrt(total / n) if n else None


@contextmanager
def attach(model: nn.Module) -> Iterator[Seen]:
    """Watch a transformers model's attention and residual stream. Errors: data."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    config = getattr(model, "config", None)
    blocks = [
        module
        for module in model.modules()
        if isinstance(module, nn.ModuleList)
        and len(module) == getattr(config, "num_hidden_layers", -1)
    ]
    if config is None or not blocks:
        raise ForensicsError(
            "data",
            f"wanted a transformers model with decoder blocks, found {type(model).__name__}",
            "attach takes what AutoModelForCausalLM returns",
        )
    name = config._attn_implementation
    watcher, handles = Seen(), []
    modules = set(model.modules())

    def watched(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *arguments: Any, **named: Any
    ) -> Any:
        if module in modules:
            window = named.get("sliding_window") or 0
            watcher.attention(int(module.layer_idx), query, key, window)  # type: ignore[arg-type]
        return before(module)(module, query, key, value, *arguments, **named)

    registered = dict(ALL_ATTENTION_FUNCTIONS).get(name)

    def before(module: nn.Module) -> Callable[..., Any]:
        # "eager" is not registered: each model's file has its own
        return registered or sys.modules[type(module).__module__].eager_attention_forward

    for layer, block in enumerate(blocks[0]):
        handles.append(block.register_forward_hook(_on_block(watcher, layer)))
    ALL_ATTENTION_FUNCTIONS[name] = watched
    try:
        yield watcher
    finally:
        del ALL_ATTENTION_FUNCTIONS[name]  # what was registered for everyone shows again
        for handle in handles:
            handle.remove()


def _on_block(seen: Seen, layer: int) -> Callable[..., None]:
    def hook(module: nn.Module, arguments: tuple[Any, ...], output: Any) -> None:
        out = output[0] if isinstance(output, tuple) else output
        if arguments and isinstance(arguments[0], Tensor):
            seen.stream("resid_rms_in", layer, arguments[0])
        seen.stream("resid_rms_out", layer, out)
        if out.requires_grad:
            out.register_hook(lambda g: seen.stream("resid_grad_rms", layer, g))

    return hook
