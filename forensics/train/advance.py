"""`advance`: one batch takes one state to the next; trainer and every replay fold it.

Micro-batches have a fixed size, and their gradients are summed in one fixed binary tree:
sum(lo, hi) = sum(lo, mid) + sum(mid, hi) with mid = (lo + hi)//2, every leaf over the whole batch's
denominator.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from forensics.model.decoder import unembedding
from forensics.model.loss import loss_and_gradient
from forensics.model.step_model import StepModel
from forensics.step import sums
from forensics.step.batch import Batch, BatchStream
from forensics.step.observer import SILENT, Observer, Site
from forensics.step.policy import Policy, StepPolicy
from forensics.step.precision import autocast, product_dtype
from forensics.step.result import LogitRows, StepResult
from forensics.step.state import TrainState
from forensics.train.optimizer import update
from forensics.train.step_errors import no_moments, translate_torch_errors


def advance(
    state: TrainState,
    batch: Batch | None,
    policy: StepPolicy,
    model: StepModel,
    watch: Observer = SILENT,
) -> StepResult:
    """Take `state` one step further, in place. `batch` is None only where policy.update is none.

    Errors: mismatch, where an update needs moments that are not known.
    """
    with translate_torch_errors(
        model.micro_batch, 0 if batch is None else len(batch.tokens), model.decoder.recompute
    ):
        return _advance(state, batch, policy, model, watch)


def _advance(
    state: TrainState, batch: Batch | None, policy: StepPolicy, model: StepModel, watch: Observer
) -> StepResult:
    if policy.update in ("apply", "hold") and not state.has_moments:
        raise no_moments(state.counters.step)
    started = time.perf_counter()
    before = state.counters
    result = StepResult(before.step, policy, before, policy.update, batch)
    watch.begin(state, policy)
    if policy.update != "none":
        assert batch is not None, "only a step that computes nothing has no batch"
        grads = _forward_backward(state, batch, policy, model, watch, result)
        # `gradients` sees them before clipping, while the state is still the one they were taken at
        watch.gradients(state, grads, result)
        if policy.skip_step or policy.watch_skip:
            assert result.loss is not None and result.grad_norm is not None
            judged = policy.skip_step and policy.update == "apply"
            if judged and state.window.judge(result.loss, result.grad_norm):
                result.action = "skipped"
            state.window = state.window.push(result.loss, result.grad_norm)
        if result.action in ("apply", "hold"):
            if result.clip_scale != 1.0:
                torch._foreach_mul_(list(grads.values()), result.clip_scale)
            update(state, grads, policy, model.decayed, model.optimizer)
    moved = result.action in ("apply", "hold")
    state.counters = replace(
        before,
        step=before.step + 1,
        schedule=before.schedule + policy.advance_schedule,
        updates=before.updates + moved,
    )
    result.seconds = time.perf_counter() - started
    watch.end(state, result)
    return result


def take_step(
    state: TrainState,
    stream: BatchStream,
    policy: Policy,
    model: StepModel,
    watch: Observer = SILENT,
) -> StepResult:
    """Take the state's next step: ask policy and stream for it, and `advance`.

    A step that computes nothing does not ask for its batch.
    """
    step_policy = policy(state.counters)
    batch = stream(state.counters.step) if step_policy.update != "none" else None
    return advance(state, batch, step_policy, model, watch)


def fold(
    state: TrainState,
    stream: BatchStream,
    policy: Policy,
    stop: int,
    model: StepModel,
    watch: Observer = SILENT,
    after: Callable[[TrainState, StepResult], None] | None = None,
) -> TrainState:
    """`advance` from the state's step to `stop`; `after` sees the state that each step led to."""
    while state.counters.step < stop:
        result = take_step(state, stream, policy, model, watch)
        if after is not None:
            after(state, result)
    return state


def _forward_backward(
    state: TrainState,
    batch: Batch,
    policy: StepPolicy,
    model: StepModel,
    watch: Observer,
    result: StepResult,
) -> dict[str, Tensor]:
    """Gradients by name; fills in loss, norms and rows of `result`."""
    names = [name for name in state.params if name not in policy.frozen]
    leaves = len(batch.tokens) // model.micro_batch
    assert leaves * model.micro_batch == len(batch.tokens), (
        "micro_batch divides batch: config holds it"
    )
    for name in names:
        state.params[name].requires_grad_(True)
    ce: list[Tensor] = []
    rows: list[LogitRows] = []

    def tree(low: int, high: int) -> list[Tensor]:
        if high - low == 1:
            cut = slice(low * model.micro_batch, high * model.micro_batch)
            return _leaf(
                state,
                batch.tokens[cut],
                batch.weight[cut],
                batch.denominator,
                policy,
                model,
                watch,
                names,
                ce,
                rows,
            )
        middle = (low + high) // 2
        left = tree(low, middle)
        right = tree(middle, high)
        if left:  # none where every tensor is frozen
            torch._foreach_add_(left, right)
        return left

    grads = dict(zip(names, tree(0, leaves)))
    for name in names:
        state.params[name].requires_grad_(False)
    result.ce = torch.cat(ce)
    if rows:
        result.rows = LogitRows(*(torch.cat(column) for column in zip(*rows)))
    if "launched" in watch.wants:
        watch.tap(Site("launched"), result.ce)
    # one look at the device for all of them: it waits there, with nothing to do until the update
    # comes
    total = sums.total(result.ce * batch.weight.to(result.ce.device, non_blocking=True))
    *norms, loss = torch.cat(
        (sums.norms(list(grads.values())).to(total.device), total[None])
    ).tolist()
    result.grad_norms = dict(zip(names, norms))
    result.grad_norm = math.sqrt(math.fsum(norm * norm for norm in norms))
    result.loss = loss / batch.denominator
    # A gradient norm of inf or NaN clips nothing away: the update shows it, and the recorder flags
    # it.
    if 0 < policy.clip < result.grad_norm + policy.clip_eps < math.inf:
        result.clip_scale = policy.clip / (result.grad_norm + policy.clip_eps)
    return grads


def _leaf(
    state: TrainState,
    tokens: Tensor,
    weight: Tensor,
    denominator: float,
    policy: StepPolicy,
    model: StepModel,
    watch: Observer,
    names: list[str],
    ce: list[Tensor],
    rows: list[LogitRows],
) -> list[Tensor]:
    """One micro-batch: gradients in the order of `names`; appends its (B, T) cross-entropy."""
    tokens = tokens.to(model.device, non_blocking=True)
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    with torch.enable_grad(), autocast(model.device, policy.precision):
        hidden = model.decoder.hidden(state.params, inputs, watch, documents(inputs, model))
    unembed = unembedding(state.params)
    out = loss_and_gradient(
        hidden.detach().reshape(-1, hidden.shape[-1]),
        unembed.detach(),
        targets.reshape(-1),
        weight.to(model.device, non_blocking=True).reshape(-1),
        denominator,
        policy.z_loss,
        statistics="rows" in watch.wants,
        dtype=product_dtype(policy.precision),
    )
    ce.append(out.ce.view(targets.shape))
    if out.rows is not None:
        rows.append(out.rows)
    grads: tuple[Tensor | None, ...] = (None,) * len(names)
    if hidden.requires_grad:  # not where all but the unembedding is frozen
        leaves = [state.params[name] for name in names]
        grads = torch.autograd.grad(
            hidden, leaves, out.grad_hidden.view(hidden.shape), allow_unused=True
        )
    gradients = []
    for name, grad in zip(names, grads):
        if (
            state.params[name] is unembed
        ):  # where it is tied, the embedding's own gradient comes first
            grad = out.grad_unembedding if grad is None else grad + out.grad_unembedding
        assert grad is not None, f"{name} takes no part in the forward"
        gradients.append(grad)
    return gradients


def documents(inputs: Tensor, model: StepModel) -> Tensor | None:
    """(B, T) number of the document within its sequence, where attention stays inside documents."""
    if not model.decoder.shape.document_mask:
        return None
    ends = (inputs == model.eot).long()
    return ends.cumsum(1) - ends  # an end-of-text token belongs to the document it ends


@torch.no_grad()
def token_losses(
    params: Mapping[str, Tensor],
    batch: Batch,
    model: StepModel,
    precision: str,
    micro_batch: int | None = None,
) -> Tensor:
    """Cross-entropy (B, T) of a batch at these parameters, no gradient."""
    from forensics.model.loss import evaluate

    size, losses = micro_batch or model.micro_batch, []
    for tokens in batch.tokens.split(size):
        tokens = tokens.to(model.device)
        with autocast(model.device, precision):
            hidden = model.decoder.hidden(
                params, tokens[:, :-1], documents_BT=documents(tokens[:, :-1], model)
            )
        losses.append(
            evaluate(
                hidden.reshape(-1, hidden.shape[-1]), unembedding(params), tokens[:, 1:].reshape(-1)
            ).view(len(tokens), -1)
        )
    return torch.cat(losses)
