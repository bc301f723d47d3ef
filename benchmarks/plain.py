"""What the trainer is measured against: a plain PyTorch GPT and transformers' Llama.

The GPT is what one writes after nanoGPT: modules, LayerNorm, GELU, fused attention, tied
embeddings, one cross-entropy over all logits, fused AdamW, a norm clipped, autocast on a GPU.
Nothing in it is deterministic on purpose.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Sizes:
    """Shapes of a benchmark."""

    D: int  # width
    L: int  # layers
    H: int  # heads
    T: int  # positions
    B: int  # sequences
    V: int  # tokens of the vocabulary


CPU = Sizes(D=256, L=6, H=8, T=256, B=8, V=8192)  # of the first issue
GPU = Sizes(D=768, L=12, H=12, T=1024, B=32, V=50304)  # GPT-2 small
DRY = Sizes(D=32, L=2, H=2, T=32, B=4, V=128)


class Block(nn.Module):
    """One layer as in GPT-2."""

    def __init__(self, z: Sizes) -> None:
        super().__init__()
        self.H = z.H
        self.ln1, self.ln2 = nn.LayerNorm(z.D), nn.LayerNorm(z.D)
        self.qkv, self.proj = nn.Linear(z.D, 3 * z.D), nn.Linear(z.D, z.D)
        self.up, self.down = nn.Linear(z.D, 4 * z.D), nn.Linear(4 * z.D, z.D)

    def forward(self, x: Tensor) -> Tensor:
        """Apply attention, then the MLP."""
        b, t, d = x.shape
        q, k, v = (
            y.view(b, t, self.H, d // self.H).transpose(1, 2)
            for y in self.qkv(self.ln1(x)).split(d, dim=2)
        )
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.proj(y.transpose(1, 2).reshape(b, t, d))
        return x + self.down(F.gelu(self.up(self.ln2(x)), approximate="tanh"))


class PlainGPT(nn.Module):
    """Tokens to logits."""

    def __init__(self, z: Sizes) -> None:
        super().__init__()
        self.wte, self.wpe = nn.Embedding(z.V, z.D), nn.Embedding(z.T, z.D)
        self.blocks = nn.ModuleList(Block(z) for _ in range(z.L))
        self.ln = nn.LayerNorm(z.D)
        self.head = nn.Linear(z.D, z.V, bias=False)
        self.head.weight = self.wte.weight
        for p in self.parameters():
            if p.dim() > 1:
                nn.init.normal_(p, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        """Compute logits (B, T, V)."""
        x = self.wte(tokens) + self.wpe(torch.arange(tokens.shape[1], device=tokens.device))
        for block in self.blocks:
            x = block(x)
        return self.head(self.ln(x))


def llama(z: Sizes) -> Callable[[Tensor], Tensor]:
    """Build transformers' Llama of these sizes, as a function of tokens."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=z.V,
        hidden_size=z.D,
        num_hidden_layers=z.L,
        num_attention_heads=z.H,
        max_position_embeddings=z.T,
        intermediate_size=-(-8 * z.D // 3 // 8) * 8,
        tie_word_embeddings=False,
        attn_implementation="sdpa",
        use_cache=False,
    )

    class Logits(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = LlamaForCausalLM(config)

        def forward(self, tokens: Tensor) -> Tensor:
            return self.model(tokens, use_cache=False).logits

    return Logits()


def tokens(z: Sizes, step: int) -> Tensor:
    """Draw the batch of a step, the same for every contestant: (B, T+1)."""
    return torch.randint(0, z.V, (z.B, z.T + 1), generator=torch.Generator().manual_seed(step))


def contestants(z: Sizes, device: str = "cpu") -> dict[str, Callable[[], Plain]]:
    """Return what makes each contestant, by name; it then takes a step at each call."""

    def batch(step: int) -> Tensor:
        return tokens(z, step)

    return {
        "plain GPT": lambda: Plain(PlainGPT(z), device, batch),
        "plain GPT, compiled": lambda: Plain(PlainGPT(z), device, batch, compiled=True),
        "transformers Llama": lambda: Plain(llama(z), device, batch),
    }


class Plain:
    """The loop around a module of tokens → logits."""

    def __init__(
        self, module: Any, device: str, batch: Callable[[int], Tensor], compiled: bool = False
    ) -> None:
        self.module = module.to(device)
        self.forward = torch.compile(self.module) if compiled else self.module
        self.device, self.batch, self.step = device, batch, 0
        self.optimizer = torch.optim.AdamW(
            self.module.parameters(), lr=3e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True
        )

    @property
    def parameters(self) -> int:
        """Count the weights."""
        return sum(p.numel() for p in self.module.parameters())

    def __call__(self) -> None:
        """Take one step."""
        tokens = self.batch(self.step).to(self.device, non_blocking=True)
        self.step += 1
        half = (
            torch.autocast("cuda", torch.bfloat16)
            if self.device == "cuda"
            else contextlib.nullcontext()
        )
        with half:
            logits = self.forward(tokens[:, :-1])
            loss = F.cross_entropy(logits.reshape(-1, logits.shape[-1]), tokens[:, 1:].reshape(-1))
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.module.parameters(), 1.0)
        self.optimizer.step()
        loss.item()
