"""Statistics of each parameter tensor around one update, in cache-sized stretches.

g is the gradient before clipping, g̃ after it, v̂ the bias-corrected second moment; FORMULAS.md and records.TENSORS
define the columns.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from forensics.observe import sums

if TYPE_CHECKING:
    from forensics.train.schedule import StepPolicy
    from forensics.train.state import TrainState

GSS = 5000.0  # g̃² over v̂ that counts as a spike (SPAM, arXiv 2501.06842)


class TensorProbe:
    """Built between gradient and update; `columns` completes it after the update."""

    @torch.no_grad()
    def __init__(
        self,
        state: TrainState,
        grads: dict[str, Tensor],
        grad_norms: dict[str, float],
        clip_scale: float,
        policy: StepPolicy,
    ) -> None:
        self.grads = grads  # the very tensors: clipping scales them in place
        self.grad_norms = grad_norms
        self.clip_scale = clip_scale
        self.policy = policy
        self.updates = state.counters.updates
        self.theta = {name: state.params[name].detach().clone() for name in grads}
        self.before = {name: self._before(name, grads[name], state.exp_avg_sq[name]) for name in grads}

    def _before(self, name: str, grad: Tensor, v: Tensor) -> dict[str, float | None]:
        low, high = torch.aminmax(grad)
        found: dict[str, float | None] = {
            "grad_max": max(-float(low), float(high)),
            "staleness": None,
            "gss_share": None,
        }
        bias = 1 - self.policy.betas[1] ** self.updates
        if bias > 0:
            threshold = GSS / bias
            second, bursts = [], []
            for g, old in sums.blocks(grad, v):
                second.append(old.sum(1))
                clipped = g * self.clip_scale  # before squaring: the square of a large g is inf in fp32
                bursts.append(torch.count_nonzero((clipped.square_() > old * threshold).logical_and_(old > 0)))
            total = float(sums.total(torch.cat(second).double())) / bias
            # A second moment of exactly 0 has seen no gradient yet: there is nothing to be out of date
            found["staleness"] = self.grad_norms[name] * self.clip_scale / math.sqrt(total) if total != 0 else None
            found["gss_share"] = int(torch.stack(bursts).sum()) / grad.numel()
        return found

    @torch.no_grad()
    def columns(self, state: TrainState, decayed: frozenset[str], applied: bool) -> dict[str, list]:
        """Columns of table `tensors`, one row a tensor; the update's own are NULL where none was applied."""
        rows = [self._row(name, state, name in decayed, applied) for name in self.grads]
        return {"tensor": list(self.grads), **{c: [row[c] for row in rows] for c in rows[0]}}

    def _row(self, name: str, state: TrainState, decays: bool, applied: bool) -> dict[str, float | None]:
        grad, n = self.grads[name], self.grads[name].numel()
        bias = 1 - self.policy.betas[1] ** (self.updates + 1)
        decay = min(self.policy.learning_rate * self.policy.weight_decay, 3e38) if decays else 0.0
        # within what fp32 can hold, so that an extreme ε gives an extreme ratio and no error
        floor = min(max(self.policy.eps * self.policy.eps * bias, 1e-45), 3e38)
        norms: dict[str, list[Tensor]] = {key: [] for key in ("theta", "delta", "free", "m", "v")}
        ratio, seen = [], []
        for g, old, new, m, v in sums.blocks(
            grad, self.theta[name], state.params[name].detach(), state.exp_avg[name], state.exp_avg_sq[name]
        ):
            norms["theta"].append(torch.linalg.vector_norm(old, dim=1))
            norms["m"].append(torch.linalg.vector_norm(m, dim=1))
            norms["v"].append(torch.linalg.vector_norm(v, dim=1))
            seen.append(torch.count_nonzero(v))
            if applied:
                delta = new - old
                norms["delta"].append(torch.linalg.vector_norm(delta, dim=1))
                if decay:
                    norms["free"].append(torch.linalg.vector_norm(delta.add_(old, alpha=decay), dim=1))
                # where v is 0, g̃ is too: such elements add nothing, and the mean is over the others
                ratio.append(g.square().div_(v.clamp_min(floor)).sum(1))  # v̂ = v/bias: bias is taken out of the sum
        norm = {
            key: math.sqrt(float(sums.total(torch.cat(parts).double().square())))
            for key, parts in norms.items()
            if parts
        }
        seen_count = int(torch.stack(seen).sum())
        found: dict[str, float | None] = {
            "grad_norm": self.grad_norms[name],
            "grad_rms": self.grad_norms[name] / math.sqrt(n),
            "param_norm": norm["theta"],
            "unseen_share": 1 - seen_count / n,
            "exp_avg_norm": norm["m"],
            "exp_avg_sq_norm": norm["v"],
            **self.before[name],
        }
        if applied:
            found["update_norm"] = norm["delta"]
            # a bias that is still 0 has no ratio
            found["update_ratio"] = norm["delta"] / norm["theta"] if norm["theta"] else None
            found["update_ratio_no_decay"] = norm.get("free", norm["delta"]) / norm["theta"] if norm["theta"] else None
            total = float(sums.total(torch.cat(ratio).double())) * bias
            found["rms_t"] = math.sqrt(total / seen_count) if seen_count else None
        else:
            found |= dict.fromkeys(("update_norm", "update_ratio", "update_ratio_no_decay", "rms_t"))
        return found
