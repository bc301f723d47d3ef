"""One training step, backwards: from the adjoint of the state after it to that before it.

    steps = []
    fold(state, stream, policy, stop, model, Tape(steps))        forwards, by the one `advance`
    by_token = step_back(steps.pop(), adjoint, model, smooth)    backwards; `adjoint` moves in place

The update's own product comes first (`train/optimizer.py`), then clipping's, and then ⟨∇ℓ(θ, w), ḡ⟩
has to be differentiated by θ and by w. Both are one directional derivative along ḡ, taken by
forward mode over one forward and backward: the tangent of each token's loss is the derivative by
that token's weight, and the tangent of the gradient is the Hessian times ḡ. That is exact, costs
about two forward-backwards, and keeps no graph of a graph.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.autograd.forward_ad as fwAD
from torch import Tensor

from forensics.model.cpu_kernels import CUBE
from forensics.model.decoder import Decoder, Params, unembedding
from forensics.model.loss import chunks
from forensics.model.shape import Shape
from forensics.model.step_model import StepModel
from forensics.step import sums
from forensics.step.batch import Batch
from forensics.step.observer import Site
from forensics.step.policy import StepPolicy
from forensics.step.result import StepResult
from forensics.step.state import TrainState
from forensics.train.advance import documents
from forensics.train.optimizer import pull_back
from forensics.train.optimizers.rule import Adjoint

ACTIVATIONS = 1 << 30  # bytes that the graph of one piece of a batch may take


class Smooth(Decoder):
    """The decoder out of operations whose backwards have a forward derivative.

    Some of torch's fused ones lack it.
    """

    def __init__(self, shape: Shape, device: str) -> None:
        """Build it without fused kernels."""
        super().__init__(shape, device, plain=True)

    def _activation(self, gate: Tensor | None, up: Tensor) -> Tensor:
        if gate is not None:
            return gate * gate.sigmoid() * up
        if self.shape.activation == "gelu_tanh":
            return up * (0.5 + 0.5 * (math.sqrt(2 / math.pi) * (up + CUBE * up * up * up)).tanh())
        return up * (0.5 + 0.5 * (up * math.sqrt(0.5)).erf())

    def _norm(self, x: Tensor, w: Params, name: str, kind: str) -> Tensor:
        if kind == "rms":
            return super()._norm(x, w, name, kind)
        centred = x - x.mean(-1, keepdim=True)
        y = centred * torch.rsqrt(centred.square().mean(-1, keepdim=True) + self.shape.norm_eps)
        if kind == "layer_no_parameters":
            return y
        scaled = y * w[f"{name}.weight"]
        return scaled if kind == "layer_no_bias" else scaled + w[f"{name}.bias"]


@dataclass(frozen=True)
class TapedStep:
    """What going back over one step needs; a step that moved nothing has no `params`."""

    step: int
    batch: Batch | None
    policy: StepPolicy
    updates: int  # before the step
    clip_scale: float
    params: dict[str, Tensor] | None  # before the step
    grads: dict[str, Tensor]  # clipped
    moments: tuple[dict[str, Tensor], dict[str, Tensor]]  # after the step


class Tape:
    """An observer that appends each step to a list: four copies of the parameters a step."""

    wants: frozenset[str] = frozenset()

    def __init__(self, steps: list[TapedStep]) -> None:
        """Append to `steps`."""
        self.steps = steps
        self.params: dict[str, Tensor] | None = None
        self.grads: dict[str, Tensor] = {}

    def begin(self, state: TrainState, policy: StepPolicy) -> None:
        """Copy the parameters that the step moves."""
        moves = policy.update in ("apply", "hold")
        self.params = (
            {name: param.detach().clone() for name, param in state.params.items()}
            if moves
            else None
        )

    def tap(self, site: Site, x: Tensor) -> None:
        """Take nothing."""

    def gradients(self, state: TrainState, grads: dict[str, Tensor], result: StepResult) -> None:
        """Hold the gradients: the step's own tensors, which clipping then scales in place."""
        self.grads = grads

    def end(self, state: TrainState, result: StepResult) -> None:
        """Append the step, with the moments after it."""
        moved = result.action in ("apply", "hold")
        groups = (state.exp_avg, state.exp_avg_sq) if moved else ({}, {})
        exp_avg, exp_avg_sq = (
            {name: moment.clone() for name, moment in group.items() if name in self.grads}
            for group in groups
        )
        self.steps.append(
            TapedStep(
                result.step,
                result.batch,
                result.policy,
                result.counters.updates,
                result.clip_scale,
                self.params if moved else None,
                self.grads if moved else {},
                (exp_avg, exp_avg_sq),
            )
        )
        self.params, self.grads = None, {}


def step_back(
    taped: TapedStep, adjoint: Adjoint, model: StepModel, smooth: Smooth
) -> Tensor | None:
    """Take `adjoint` back over one step in place; return d/d weight of each token, (B, T).

    None where the step moved nothing.
    """
    if taped.params is None:
        return None
    assert taped.batch is not None
    grads_bar = pull_back(
        adjoint, taped.moments, taped.grads, taped.updates, taped.policy, model.decayed
    )
    _unclip(grads_bar, taped)
    return directional(
        taped.params, taped.batch, grads_bar, taped.policy.z_loss, adjoint.params, model, smooth
    )


def _unclip(grads_bar: dict[str, Tensor], taped: TapedStep) -> None:
    """From g̃ = s·g to g, in place, where s = c/(‖g‖ + ε).

    ḡ ← s·(ḡ − g̃⟨g̃, ḡ⟩/‖g̃‖² · ‖g‖/(‖g‖ + ε)), and ‖g‖/(‖g‖ + ε) = 1 − ε·s/c.
    """
    if taped.clip_scale == 1.0:
        return
    along = sum(float(sums.total(taped.grads[name] * bar)) for name, bar in grads_bar.items())
    along /= sum(float(sums.square_sum(grad)) for grad in taped.grads.values())
    along *= 1 - taped.policy.clip_eps * taped.clip_scale / taped.policy.clip
    for name, bar in grads_bar.items():
        bar.sub_(taped.grads[name], alpha=along).mul_(taped.clip_scale)


def directional(
    params: dict[str, Tensor],
    batch: Batch,
    direction: dict[str, Tensor],
    z_loss: float,
    theta_bar: dict[str, Tensor],
    model: StepModel,
    smooth: Smooth,
) -> Tensor:
    """Add the Hessian of the batch's loss times `direction` to `theta_bar`.

    Returns each token's loss along it, (B, T). Tensors that `direction` leaves out stand still: of
    them only the derivative is taken.
    """
    leaves = {name: param.detach().requires_grad_(True) for name, param in params.items()}
    size = piece_size(
        smooth.shape, batch.tokens.shape[1] - 1, next(iter(params.values())).element_size()
    )
    along = []
    for tokens, weight in zip(batch.tokens.split(size), batch.weight.split(size)):
        tokens = tokens.to(model.device)
        scale = (
            weight.to(model.device, next(iter(params.values())).dtype).reshape(-1)
            / batch.denominator
        )
        inputs, targets = tokens[:, :-1], tokens[:, 1:]
        with fwAD.dual_level(), torch.enable_grad():
            duals = {
                name: fwAD.make_dual(leaf, direction[name]) if name in direction else leaf
                for name, leaf in leaves.items()
            }
            hidden = smooth.hidden(duals, inputs, documents_BT=documents(inputs, model))
            primal, tangent = (
                part.detach() if part is not None else None for part in fwAD.unpack_dual(hidden)
            )
            assert primal is not None
            W, W_dot = fwAD.unpack_dual(unembedding(duals))
            head = head_tangents(
                primal.reshape(targets.numel(), -1),
                _flat(tangent, primal),
                W.detach(),
                W_dot,
                targets.reshape(-1),
                scale,
                z_loss,
            )
            aim = fwAD.make_dual(
                head.grad_hidden.view_as(hidden), head.grad_hidden_dot.view_as(hidden)
            )
            grads = torch.autograd.grad(hidden, list(leaves.values()), aim, allow_unused=True)
            for name, grad in zip(leaves, grads):
                dot = fwAD.unpack_dual(grad).tangent if grad is not None else None
                if dot is not None:
                    theta_bar[name] += dot.detach()
        theta_bar["unembed.weight" if "unembed.weight" in params else "embed.weight"] += (
            head.grad_unembedding_dot
        )
        along.append(head.along.view(targets.shape))
    return torch.cat(along)


def _flat(tangent: Tensor | None, primal: Tensor) -> Tensor:
    return (torch.zeros_like(primal) if tangent is None else tangent).reshape(-1, primal.shape[-1])


@dataclass(frozen=True)
class HeadTangents:
    """Derivatives along (ḣ, Ẇ), but for `grad_hidden`, which is the gradient itself."""

    along: Tensor  # (N,) of scale·(ce + z_loss·logz²)
    grad_hidden: Tensor  # (N, D)
    grad_hidden_dot: Tensor  # (N, D)
    grad_unembedding_dot: Tensor  # (V, D)


@torch.no_grad()
def head_tangents(
    hidden: Tensor,
    hidden_dot: Tensor,
    W: Tensor,
    W_dot: Tensor | None,
    targets: Tensor,
    scale: Tensor,
    z_loss: float,
) -> HeadTangents:
    """Differentiate Σ scale·(ce + z_loss·logz²) by chunks of rows: N·V logits are never held.

    With l = hWᵀ, p = softmax(l), z = logsumexp(l), ż = ⟨p, l̇⟩ and f = 1 + 2·z_loss·z:
    ∂/∂l = scale·(p·f − 1_target), and its tangent is scale·p·((l̇ − ż)f + 2·z_loss·ż).
    """
    along = torch.empty_like(scale)
    grad_hidden, grad_hidden_dot = torch.empty_like(hidden), torch.empty_like(hidden)
    grad_W_dot = torch.zeros_like(W)
    for rows in chunks(len(hidden)):
        h, h_dot, target, s = hidden[rows], hidden_dot[rows], targets[rows, None], scale[rows, None]
        dot = h_dot @ W.T
        if W_dot is not None:
            dot.addmm_(h, W_dot.T)
        p = h @ W.T
        z = p.logsumexp(1, keepdim=True)
        p.sub_(z).exp_()
        z_dot = (p * dot).sum(1, keepdim=True)
        f = 1 + 2 * z_loss * z
        along[rows] = (s * (z_dot * f - dot.gather(1, target)))[:, 0]
        dot.sub_(z_dot).mul_(f).add_(2 * z_loss * z_dot).mul_(p).mul_(s)
        grad_logits = p.mul_(f * s).scatter_add_(1, target, -s)
        torch.mm(grad_logits, W, out=grad_hidden[rows])
        torch.mm(dot, W, out=grad_hidden_dot[rows])
        if W_dot is not None:
            grad_hidden_dot[rows].addmm_(grad_logits, W_dot)
        grad_W_dot.addmm_(dot.T, h).addmm_(grad_logits.T, h_dot)
    return HeadTangents(along, grad_hidden, grad_hidden_dot, grad_W_dot)


def piece_size(shape: Shape, T: int, itemsize: int) -> int:
    """Return how many sequences' graph, tangents included, stays within ACTIVATIONS; at least 1."""
    return max(1, ACTIVATIONS // activation_bytes(shape, T, itemsize))


def activation_bytes(shape: Shape, T: int, itemsize: int) -> int:
    """Estimate the bytes of one sequence's graph with its tangents."""
    per_token = 26 * shape.width + 6 * shape.mlp_width + 4 * shape.heads * T
    return 2 * itemsize * T * shape.layers * per_token
