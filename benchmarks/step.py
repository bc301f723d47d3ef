"""One training step: ours against a plain PyTorch GPT, and the price of recording, interleaved in one process.

    python -m benchmarks.step [--rounds 9] [--json benchmarks/results/step.json]

Shapes of the first issue: d=256, L=6, H=8, T=256, B=8, V=8192. The plain GPT is what one would write after nanoGPT:
modules, LayerNorm, GELU, fused attention, tied embeddings, one cross-entropy over all logits, fused AdamW.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.rounds import interleaved, medians, ratios, report
from forensics import config, identity
from forensics.data.batches import Batch
from forensics.model.families import parameter_shapes, shape_of
from forensics.model.initialize import initialize
from forensics.observe.recorder import Recorder
from forensics.train.advance import SILENT, Observer, advance
from forensics.train.run import build_model
from forensics.train.schedule import own_policy
from forensics.train.state import TrainState

D, L, H, T, B, V = 256, 6, 8, 256, 8, 8192


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.ln1, self.ln2 = nn.LayerNorm(D), nn.LayerNorm(D)
        self.qkv, self.proj = nn.Linear(D, 3 * D), nn.Linear(D, D)
        self.up, self.down = nn.Linear(D, 4 * D), nn.Linear(4 * D, D)

    def forward(self, x: Tensor) -> Tensor:
        b, t, _ = x.shape
        q, k, v = (y.view(b, t, H, D // H).transpose(1, 2) for y in self.qkv(self.ln1(x)).split(D, dim=2))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.proj(y.transpose(1, 2).reshape(b, t, D))
        return x + self.down(F.gelu(self.up(self.ln2(x)), approximate="tanh"))


class PlainGPT(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.wte, self.wpe = nn.Embedding(V, D), nn.Embedding(T, D)
        self.blocks = nn.ModuleList(Block() for _ in range(L))
        self.ln = nn.LayerNorm(D)
        self.head = nn.Linear(D, V, bias=False)
        self.head.weight = self.wte.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.wte(tokens) + self.wpe(torch.arange(tokens.shape[1]))
        for block in self.blocks:
            x = block(x)
        return self.head(self.ln(x))


class Plain:
    """The loop one would write around it."""

    def __init__(self) -> None:
        self.model = PlainGPT()
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=3e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True
        )
        self.step = 0

    def __call__(self) -> None:
        tokens = batch(self.step).tokens
        self.step += 1
        loss = F.cross_entropy(self.model(tokens[:, :-1]).view(-1, V), tokens[:, 1:].reshape(-1))
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        loss.item()


class Nowhere:
    """Takes rows and keeps none: what recording computes, without the disk."""

    def append(self, table: str, **columns: Any) -> None:
        pass


class Ours:
    """`advance` with an observer."""

    def __init__(self, family: str, level: str | None) -> None:
        recipe = config.from_dict({"model": {"family": family, "layers": L, "width": D, "heads": H},
                                   "train": {"batch": B, "learning_rate": 3e-4}, "data": {"sequence_length": T}})  # fmt: skip
        shape = shape_of(recipe.model, V, T)
        self.parameters = sum(math.prod(s) for s in parameter_shapes(shape).values())
        self.model = build_model(recipe, shape, "cpu", 0)
        self.state = TrainState.start(initialize(shape, "normal", 0))
        self.policy = own_policy(recipe.train, "fp32")
        # the digest of every state is part of the run, recorded or not
        self.watch: Observer = Recorder(Nowhere(), config.Record(level=level), self.model) if level else SILENT  # type: ignore[arg-type]

    def __call__(self) -> None:
        counters = self.state.counters
        advance(self.state, batch(counters.step), self.policy(counters), self.model, self.watch)


def batch(step: int) -> Batch:
    tokens = torch.randint(0, V, (B, T + 1), generator=torch.Generator().manual_seed(step))
    return Batch(tokens, torch.ones(B, T), float(B * T), torch.arange(B), step)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    plain = Plain()  # before the determinism switches: a plain loop has none
    threads = identity.thread_count(0)
    torch.set_num_threads(threads)
    contestants: dict[str, Any] = {"plain GPT": plain}
    identity.settle(threads)
    contestants |= {
        "gpt2, unobserved": Ours("gpt2", None), "llama, unobserved": Ours("llama", None),
        "llama, off": Ours("llama", "off"), "llama, light": Ours("llama", "light"),
    }  # fmt: skip
    seconds = interleaved(contestants, options.rounds)
    against_plain, against_off = ratios(seconds, "plain GPT"), ratios(seconds, "llama, unobserved")
    report("step", {
        "shapes": {"d": D, "L": L, "H": H, "T": T, "B": B, "V": V}, "threads": threads, "rounds": options.rounds,
        "parameters": {"plain GPT": sum(p.numel() for p in plain.model.parameters()), "gpt2": contestants["gpt2, unobserved"].parameters,
                       "llama": contestants["llama, unobserved"].parameters},
        "seconds": {n: round(s, 4) for n, s in medians(seconds).items()},
        "tokens_per_second": {n: round(B * T / s) for n, s in medians(seconds).items()},
        "speed_over_plain": {n: round(1 / r, 3) for n, r in against_plain.items()},
        "price_of_digest": round(against_off["llama, off"] - 1, 4),
        "price_of_light": round(against_off["llama, light"] - 1, 4),
    }, options.json)  # fmt: skip


if __name__ == "__main__":
    main()
