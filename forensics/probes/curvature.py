"""How curved the loss is where a run stands, as its optimizer sees it, against what a step bears.

The sharpness of θ under AdamW is the largest eigenvalue of the preconditioned Hessian

    Ĥ = (1 − β₁)/(1 + β₁) · D^-½ H D^-½,   D = √v̂ + ε

H that of the loss of the batch that the state is about to take, v̂ the bias-corrected second moment.
A gradient descent with rate η on a quadratic diverges along what is more curved than 2/η; momentum
bears (1 + β₁)/(1 − β₁) times as much, which the factor accounts for. docs/formulas.md, "Probes".
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from forensics.model.decoder import Decoder, unembedding
from forensics.probes.view import Value, View
from forensics.step import sums
from forensics.step.batch import Batch
from forensics.train.advance import documents

Params = dict[str, Tensor]

ITERATIONS = 40  # of Lanczos at most: each is one Hessian-vector product
TOLERANCE = 1e-3  # of the largest eigenvalue, by Lanczos' own bound: then it stops
ADAPTIVE = ("adamw", "nadamw")  # rules that divide every step by √v̂ + ε
SEED = 0  # of the first vector


def curvature(view: View, _: object) -> Value:
    """Largest eigenvalue of the preconditioned Hessian of the next batch's loss, the curvature
    along the gradient, and both over what the learning rate bears, 2/η: above 1 it diverges.
    """
    state = view.state
    if state is None or not state.counters.updates or not state.has_moments:
        return None  # no second moment yet
    if state.counters.step >= view.run.header.steps:
        return None  # there is no next batch
    policy = view.run.policy(state.counters)
    if policy.update_rule not in ADAPTIVE:
        return None  # no second moment that every step is divided by
    beta1, beta2 = policy.betas
    correction = 1 - beta2**state.counters.updates
    momentum = (1 - beta1) / (1 + beta1)
    root = {  # Ĥ = r H r with r = √(momentum / D)
        name: (momentum / ((v.double() / correction).sqrt() + policy.eps)).sqrt()
        for name, v in state.exp_avg_sq.items()
        if name not in policy.frozen
    }
    hessian = Hessian(view, view.run.batch_at(state.counters.step), policy.z_loss)

    def preconditioned(vector: Params) -> Params:
        product = hessian.times({name: root[name] * entry for name, entry in vector.items()})
        return {name: root[name] * product[name] for name in vector}

    top = largest_eigenvalue(preconditioned, {name: entry.shape for name, entry in root.items()})
    gradient = {name: hessian.gradient[name] for name in root}
    # as the source writes it: ⟨g, (1−β₁)/(1+β₁)·D⁻¹ H g⟩ / ‖g‖²
    product = hessian.times(gradient)
    along = _inner(gradient, {name: root[name].square() * entry for name, entry in product.items()})
    along /= _inner(gradient, gradient)
    bears = 2 / policy.learning_rate if policy.learning_rate > 0 else math.inf
    return {
        "largest": top.value,
        "along_gradient": along,
        "bears": bears,
        "largest_over_bears": top.value / bears,
        "along_gradient_over_bears": along / bears,
        "products": float(top.products),
    }


class Hessian:
    """The Hessian of a batch's loss at a state, by what it does to a vector; float64."""

    def __init__(self, view: View, batch: Batch, z_loss: float) -> None:
        model = view.model
        self._model, self._batch, self._z_loss = model, batch, z_loss
        # math attention, for the fused kernels have no second derivative
        self._decoder = Decoder(model.decoder.shape, model.device, plain=True)
        self._leaves = {
            name: param.detach().double().requires_grad_(True)
            for name, param in view.params.items()
        }
        self.gradient = self._sum(lambda grads, _names: grads)

    def times(self, vector: Params) -> Params:
        """Compute H·vector; tensors that `vector` leaves out stand still."""

        def product(grads: tuple[Tensor, ...], names: list[str]) -> tuple[Tensor, ...]:
            along = torch.stack(
                [(grad * vector[name]).sum() for name, grad in zip(names, grads) if name in vector]
            ).sum()
            leaves = list(self._leaves.values())
            return torch.autograd.grad(along, leaves, allow_unused=True, materialize_grads=True)

        return self._sum(product)

    def _sum(
        self, of: Callable[[tuple[Tensor, ...], list[str]], tuple[Tensor, ...]]
    ) -> dict[str, Tensor]:
        """Sum over micro-batches what `of` makes of their gradients."""
        names, leaves = list(self._leaves), list(self._leaves.values())
        sums_: dict[str, Tensor] = {
            name: torch.zeros_like(leaf) for name, leaf in self._leaves.items()
        }
        size, batch = self._model.micro_batch, self._batch
        for tokens, weight in zip(batch.tokens.split(size), batch.weight.split(size)):
            with torch.enable_grad():
                grads = torch.autograd.grad(
                    self._loss(tokens, weight), leaves, create_graph=True, materialize_grads=True
                )
                for name, entry in zip(names, of(grads, names)):
                    sums_[name] += entry.detach()
        return sums_

    def _loss(self, tokens: Tensor, weight: Tensor) -> Tensor:
        tokens = tokens.to(self._model.device)
        inputs, targets = tokens[:, :-1], tokens[:, 1:].reshape(-1)
        hidden = self._decoder.hidden(
            self._leaves, inputs, documents_BT=documents(inputs, self._model)
        )
        logits = hidden.reshape(len(targets), -1) @ unembedding(self._leaves).T
        logz = logits.logsumexp(1)
        ce = logz - logits.gather(1, targets[:, None])[:, 0]
        scale = weight.to(ce).reshape(-1) / self._batch.denominator
        return (scale * (ce + self._z_loss * logz.square())).sum()


@dataclass(frozen=True)
class Eigenvalue:
    """What Lanczos found."""

    value: float
    products: int  # matrix-vector products that it took


def largest_eigenvalue(
    times: Callable[[Params], Params], shapes: dict[str, torch.Size]
) -> Eigenvalue:
    """Find the largest eigenvalue of a symmetric map by Lanczos, from a fixed random vector.

    Three vectors are held. Without orthogonalising anew an eigenvalue may be found twice, which the
    largest does not mind.
    """
    draw = torch.Generator().manual_seed(SEED)
    vector = {
        name: torch.randn(shape, generator=draw, dtype=torch.float64)
        for name, shape in shapes.items()
    }
    vector = _scaled(vector, 1 / math.sqrt(_inner(vector, vector)))
    before: Params | None = None
    diagonal: list[float] = []
    beside: list[float] = []
    value = 0.0
    for count in range(1, ITERATIONS + 1):
        product = times(vector)
        diagonal.append(_inner(vector, product))
        for name in product:
            product[name] = product[name] - diagonal[-1] * vector[name]
            if before is not None:
                product[name] -= beside[-1] * before[name]
        left = math.sqrt(_inner(product, product))
        values, vectors = torch.linalg.eigh(_tridiagonal(diagonal, beside))
        value = float(values[-1])
        if left * abs(float(vectors[-1, -1])) <= TOLERANCE * abs(value):  # bounds the error
            return Eigenvalue(value, count)
        beside.append(left)
        before, vector = vector, _scaled(product, 1 / left)
    return Eigenvalue(value, ITERATIONS)


def _tridiagonal(diagonal: list[float], beside: list[float]) -> Tensor:
    matrix = torch.diag(torch.tensor(diagonal, dtype=torch.float64))
    off = torch.tensor(beside, dtype=torch.float64)
    return matrix + torch.diag(off, 1) + torch.diag(off, -1) if beside else matrix


def _inner(a: Params, b: Params) -> float:
    return sum(float(sums.total(a[name] * b[name])) for name in a)


def _scaled(vector: Params, factor: float) -> Params:
    return {name: entry * factor for name, entry in vector.items()}
