"""The metrics that `forensics probe` has built in, each a function of one checkpoint and a text.

A value is a number or a flat dictionary of numbers. `cka` needs two checkpoints: what it carries
from one to the next is the final stream, so that one checkpoint is in memory at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from forensics.model.shape import Shape
from forensics.observe.attention import HeadStatistics, attention_statistics
from forensics.probes.curvature import curvature
from forensics.probes.view import Value, View
from forensics.step import sums
from forensics.step.observer import UNTAPPED, Site, Taps
from forensics.step.precision import autocast
from forensics.train.advance import documents, token_losses

ROWS = 8192  # positions that CKA compares, evenly spaced where a text has more


@dataclass(frozen=True)
class Metric:
    """`measure(view, carried)`; `carry` says what the next checkpoint's needs of this one."""

    name: str
    measure: Callable[[View, Any], Value]
    reads_text: bool = False
    carry: Callable[[View], Any] | None = None
    needs_state: bool = False  # moments and counters too, not the weights alone


def _forward(view: View, watch: Taps = UNTAPPED) -> Iterator[Tensor]:
    """Yield the final streams (b, T, D), a micro-batch at a time."""
    assert view.text is not None
    model = view.model
    for tokens in view.text.tokens.split(model.micro_batch):
        inputs = tokens.to(model.device)[:, :-1]
        with autocast(model.device, view.run.header.precision):
            yield model.decoder.hidden(view.params, inputs, watch, documents(inputs, model))


def loss(view: View, _: Any) -> Value:
    """Mean cross-entropy, nats per token."""
    assert view.text is not None
    return sums.mean(token_losses(view.params, view.text, view.model, view.run.header.precision))


def _norms(view: View) -> dict[str, float]:
    """‖W‖₂ of every tensor, one by one: weights that lie elsewhere are not all in memory."""
    return {name: sums.norms([tensor]).item() for name, tensor in view.params.items()}


def norms(view: View, _: Any) -> Value:
    """‖W‖₂ of every tensor, and of all of them together (`all`)."""
    by_tensor = _norms(view)
    return {"all": _together(by_tensor.values()), **by_tensor}


GROUPS = {"attn": "attention", "mlp": "mlp"}


def group_norms(view: View, _: Any) -> Value:
    """‖W‖₂ of the groups: embeddings, attention, mlp (by layer too), norms, unembed."""
    by_group: dict[str, list[float]] = {}
    for name, norm in _norms(view).items():
        parts = name.split(".")
        if "norm" in name:
            groups = ["norms"]
        elif parts[0] == "layers":
            kind = GROUPS.get(parts[2], parts[2])
            groups = [kind, f"layers.{parts[1]}.{kind}"]
        else:
            groups = ["embeddings" if parts[0] in ("embed", "positions") else parts[0]]
        for group in groups:
            by_group.setdefault(group, []).append(norm)
    return {group: _together(squares) for group, squares in by_group.items()}


def _together(values: Any) -> float:
    return sum(v * v for v in values) ** 0.5


class _Heads:
    """Collects each layer's attention statistics over micro-batches."""

    def __init__(self, shape: Shape) -> None:
        self.wants = frozenset({"q", "k", "documents"})
        self.shape = shape
        self.q: Tensor | None = None
        self.documents: Tensor | None = None
        self.found: dict[int, HeadStatistics] = {}

    def tap(self, site: Site, x: Tensor) -> None:
        if site.kind == "documents":
            self.documents = x
        elif site.kind == "q":
            self.q = x
        else:
            assert self.q is not None, "q is tapped before k"
            window = self.shape.window_of(site.layer)
            statistics = attention_statistics(self.q, x, self.documents, window)
            before = self.found.get(site.layer)
            self.found[site.layer] = statistics if before is None else before.merge(statistics)


def attention(view: View, _: Any) -> Value:
    """Entropy (nats, mean over queries) and largest logit of every head, as docs/formulas.md
    defines them; and of all.
    """
    heads = _Heads(view.model.decoder.shape)
    for _stream in _forward(view, heads):
        pass
    values: dict[str, float] = {}
    for layer, statistics in sorted(heads.found.items()):
        columns = statistics.columns()
        for short, name in (("entropy", "attn_entropy_mean"), ("logit_max", "attn_logit_max")):
            for head, value in enumerate(columns[name].tolist()):
                values[f"layers.{layer}.heads.{head}.{short}"] = value
    entropies = [v for k, v in values.items() if k.endswith("entropy")]
    largest = [v for k, v in values.items() if k.endswith("logit_max")]
    return {"entropy_mean": sum(entropies) / len(entropies), "logit_max": max(largest), **values}


def effective_rank(view: View, _: Any) -> Value:
    """exp of the entropy of the singular values' shares, of every weight matrix (Roy & Vetterli
    2007); and their mean.
    """
    ranks = {}
    for name, weight in view.params.items():
        if weight.ndim != 2:
            continue
        values = torch.linalg.svdvals(weight.double())
        share = values / values.sum()
        ranks[name] = float(torch.special.entr(share).sum().exp())  # entr(0) is 0
    return {"mean": sum(ranks.values()) / len(ranks), **ranks}


def qk_entropy(view: View, _: Any) -> Value:
    """Spectral entropy of every head's query-key map W_qᵀW_k, 1 where all its singular values are
    equal, 0 where one holds all; and their smallest and mean. Reads weights alone.

    p_i = σ_i² / Σσ²; −Σ p ln p / ln K, K the head's width. Norms on queries and keys, biases and
    positions are left out.
    """
    shape = view.model.decoder.shape
    K, group = shape.head_width, shape.heads // shape.kv_heads
    values: dict[str, float] = {}
    for layer in range(shape.layers):
        q, k = (
            view.params[f"layers.{layer}.attn.{name}_proj.weight"].double().view(-1, K, shape.width)
            for name in "qk"
        )
        for head in range(shape.heads):
            # W_qᵀ = Q_q R_q with orthonormal Q_q: the map has the singular values of R_q R_kᵀ
            r_q, r_k = (torch.linalg.qr(w.T)[1] for w in (q[head], k[head // group]))
            squares = torch.linalg.svdvals(r_q @ r_k.T).square()
            entropy = torch.special.entr(squares / squares.sum()).sum()
            values[f"layers.{layer}.heads.{head}"] = float(entropy) / math.log(K)
    return {"least": min(values.values()), "mean": sum(values.values()) / len(values), **values}


def final_stream(view: View) -> Tensor:
    """(rows, D) float32 of at most ROWS positions, each column's mean taken off; computed once."""
    if view.stream is not None:
        return view.stream
    rows = torch.cat([stream.reshape(-1, stream.shape[-1]).float() for stream in _forward(view)])
    if len(rows) > ROWS:
        rows = rows[
            torch.linspace(0, len(rows) - 1, ROWS, dtype=torch.float64, device=rows.device).long()
        ]
    view.stream = rows - rows.mean(0)
    return view.stream


def cka(view: View, before: Tensor | None) -> Value:
    """Linear CKA of this checkpoint's final stream with the one before it: 1 is equal up to
    rotation and scale.

    ‖YᵀX‖²_F / (‖XᵀX‖_F ‖YᵀY‖_F) over centred positions (arXiv 1905.00414, eq. 5); None at the first
    checkpoint.
    """
    return None if before is None else linear_cka(before, final_stream(view))


def linear_cka(x: Tensor, y: Tensor) -> float:
    """Of two centred (rows, D) matrices."""
    x, y = x.double(), y.double()
    size = torch.linalg.matrix_norm(x.T @ x) * torch.linalg.matrix_norm(y.T @ y)
    return float(torch.linalg.matrix_norm(y.T @ x).square() / size)


METRICS = {
    m.name: m
    for m in (
        Metric("loss", loss, reads_text=True),
        Metric("norms", norms),
        Metric("group-norms", group_norms),
        Metric("attention", attention, reads_text=True),
        Metric("effective-rank", effective_rank),
        Metric("qk-entropy", qk_entropy),
        Metric("curvature", curvature, needs_state=True),
        Metric("cka", cka, reads_text=True, carry=final_stream),
    )
}
