"""The recorder: an observer of `advance` that writes every table of a step.

It sees detached tensors only, computes beside the step and hands rows to the store. It never raises on NaN or inf:
they are recorded as such, and the first place that showed one becomes an event.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from forensics.config import Record, window
from forensics.data.repeats import repeat_share_rows
from forensics.model.decoder import Site
from forensics.observe import sums
from forensics.observe.attention import HeadStatistics, attention_statistics
from forensics.observe.lens import logit_lens
from forensics.observe.tensors import TensorProbe
from forensics.store.writer import Writer

if TYPE_CHECKING:
    from forensics.train.advance import Model, StepResult
    from forensics.train.schedule import StepPolicy
    from forensics.train.state import TrainState

RMS_SITES = {"resid_in": "resid_rms_in", "resid_out": "resid_rms_out", "attn_out": "attn_out_rms", "mlp_out": "mlp_out_rms",
             "resid_grad": "resid_grad_rms"}  # fmt: skip
# what a block computes, in that order; the taps come in another one, once the block is done
FORWARD = ("resid_in", "attention logits", "attn_out", "mlp_out", "resid_out")


@dataclass
class _Mean:
    """Σ x² and the number of elements, over micro-batches."""

    squares: float = 0.0
    elements: int = 0

    def add(self, x: Tensor) -> None:
        self.squares += float(sums.square_sum(x.float()))
        self.elements += x.numel()

    @property
    def rms(self) -> float:
        return math.sqrt(self.squares / self.elements)


@dataclass
class _Step:
    """What has been seen of the step that runs."""

    tables: frozenset[str]
    dense: bool
    q: dict[int, Tensor] = field(default_factory=dict)
    documents: Tensor | None = None
    heads: dict[int, HeadStatistics] = field(default_factory=dict)
    squares: dict[tuple[str, int], _Mean] = field(default_factory=dict)
    zeros: dict[int, tuple[int, int]] = field(default_factory=dict)
    extremes: dict[tuple[str, int], float] = field(default_factory=dict)
    resid: dict[int, list[Tensor]] = field(default_factory=dict)
    lens: list[dict[str, float]] | None = None
    probe: TensorProbe | None = None
    nonfinite: str | None = None  # first site or tensor that held a NaN or inf
    nonfinite_forward: tuple[int, int] | None = None  # first (layer, place in FORWARD) of the forward
    nonfinite_back: str | None = None  # first site of the backward, which comes after the loss


class Recorder:
    """Writes `steps` at every step, and the other tables as `[record]` asks for them."""

    def __init__(self, writer: Writer, record: Record, model: Model, digests: bool = True) -> None:
        self.writer = writer
        self.model = model
        self.level = record.level
        self.every = {table: record.every.get(table, 1) for table in ("layers", "heads", "tensors", "sequences")}
        self.windows = [window(text) for text in record.dense]
        self.digests = digests
        self.digest: str | None = None  # of the state after the last step
        self.row: dict[str, float | int | str | None] | None = None  # of the last step; `commit` writes it
        self.wants: frozenset[str] = frozenset()
        self._now = _Step(frozenset(), False)

    def begin(self, state: TrainState, policy: StepPolicy) -> None:
        self.commit()
        step = state.counters.step
        dense = self.level != "off" and (self.level == "dense" or any(a <= step < b for a, b in self.windows))
        tables = frozenset(t for t, n in self.every.items() if step % n == 0) if self.level != "off" else frozenset()
        wants: set[str] = set()
        if tables or dense:
            wants.add("rows")
        if "heads" in tables:
            wants |= {"q", "k", "documents"}
        if "layers" in tables:
            wants |= {*RMS_SITES, "mlp_act"}
        self.wants = frozenset(wants)
        self._now = _Step(tables, dense)

    def commit(self) -> None:
        """Hand the last step's row to the store; until then the loop may add what it measures after the step."""
        if self.row is not None:
            self.writer.append("steps", **self.row)
            self.row = None

    @torch.no_grad()
    def tap(self, site: Site, x: Tensor) -> None:
        now, (kind, layer) = self._now, site
        if kind == "q":
            now.q[layer] = x
        elif kind == "k":
            found = attention_statistics(now.q.pop(layer), x, now.documents)
            now.heads[layer] = now.heads[layer].merge(found) if layer in now.heads else found
            self._check_forward(bool(torch.isfinite(found.logit_max).all()), layer, "attention logits")
        elif kind == "documents":
            now.documents = x
        elif kind == "mlp_act":
            zeros, elements = now.zeros.get(layer, (0, 0))
            now.zeros[layer] = (zeros + x.numel() - int(torch.count_nonzero(x)), elements + x.numel())
            if now.dense:
                self._extreme("act_max", layer, x)
        if kind in RMS_SITES:
            self._mean(kind, layer, x)

    def _mean(self, kind: str, layer: int, x: Tensor) -> None:
        now = self._now
        mean = now.squares.setdefault((kind, layer), _Mean())
        if kind == "resid_in" and layer > 0:
            # the stream into a block is the one out of the block before, whose squares are summed already
            before = now.squares[("resid_out", layer - 1)]
            mean.squares, mean.elements = before.squares, before.elements
            return
        mean.add(x)
        if kind == "resid_grad":
            if not math.isfinite(mean.squares) and now.nonfinite_back is None:
                now.nonfinite_back = f"layers.{layer}.{kind}"
        else:
            self._check_forward(math.isfinite(mean.squares), layer, kind)
        if kind == "resid_out" and now.dense:
            self._extreme("resid_max", layer, x)
            now.resid.setdefault(layer, []).append(x)

    def _extreme(self, name: str, layer: int, x: Tensor) -> None:
        key = (name, layer)
        self._now.extremes[key] = max(self._now.extremes.get(key, 0.0), float(x.abs().amax()))

    def _check_forward(self, finite: bool, layer: int, kind: str) -> None:
        place = (layer, FORWARD.index(kind))
        if not finite and (self._now.nonfinite_forward is None or place < self._now.nonfinite_forward):
            self._now.nonfinite_forward = place

    def _check(self, finite: bool, where: str) -> None:
        if not finite and self._now.nonfinite is None:
            self._now.nonfinite = where

    @torch.no_grad()
    def gradients(self, state: TrainState, grads: dict[str, Tensor], result: StepResult) -> None:
        now = self._now
        assert result.grad_norms is not None and result.loss is not None and result.batch is not None
        if now.nonfinite_forward is not None:
            layer, place = now.nonfinite_forward
            self._check(False, f"layers.{layer}.{FORWARD[place]}")
        self._check(math.isfinite(result.loss), "loss")
        self._check(now.nonfinite_back is None, now.nonfinite_back or "")
        if not math.isfinite(result.grad_norm or 0.0):
            # the backward runs from the last tensor to the first: the last in order of the forward came first
            self._check(
                False, next(n for n in reversed(grads) if not math.isfinite(result.grad_norms[n])) + " gradient"
            )
        if "tensors" in now.tables and grads:  # every tensor may be frozen
            now.probe = TensorProbe(state, grads, result.grad_norms, result.clip_scale, result.policy)
        if now.dense and now.resid:
            device = self.model.device
            resid = [torch.cat(now.resid[layer]) for layer in sorted(now.resid)]
            now.lens = logit_lens(
                self.model.decoder,
                state.params,
                resid,
                result.batch.tokens[:, 1:].to(device),
                result.batch.weight.to(device),
            )

    @torch.no_grad()
    def end(self, state: TrainState, result: StepResult) -> None:
        now, step = self._now, result.step
        tensors: dict[str, list] = {}
        if now.probe is not None:
            tensors = now.probe.columns(state, self.model.decayed, result.action == "apply")
            if result.action == "apply" and not all(math.isfinite(x) for x in tensors["update_norm"]):
                self._check(
                    False,
                    next(n for n, x in zip(tensors["tensor"], tensors["update_norm"]) if not math.isfinite(x))
                    + " update",
                )
            self.writer.append("tensors", step=step, **tensors)
        self.digest = state.digest() if self.digests else None
        self._step_row(result, tensors)
        if result.ce is None:
            return
        if now.heads:
            self._head_rows(step)
        if "layers" in now.tables:
            self._layer_rows(step)
        if "sequences" in now.tables:
            self._sequence_rows(result)
        if now.dense:
            self._token_rows(result)
        if now.nonfinite is not None:
            self.writer.append("events", step=step, kind="nonfinite", metric="loss", value=result.loss, tensor=now.nonfinite,
                               text=f"first seen in {now.nonfinite}")  # fmt: skip

    def _step_row(self, result: StepResult, tensors: dict[str, list]) -> None:
        row: dict[str, float | int | str | None] = {
            "step": result.step, "lr": result.policy.learning_rate, "schedule": result.counters.schedule,
            "updates": result.counters.updates, "update": result.action, "seconds": result.seconds, "state_digest": self.digest,
        }  # fmt: skip
        if result.batch is not None and result.ce is not None:
            row |= {
                "loss": result.loss, "grad_norm": result.grad_norm, "clip_scale": result.clip_scale,
                "tokens": int(torch.count_nonzero(result.batch.weight)),
            }  # fmt: skip
        if tensors:
            row["param_norm"] = math.sqrt(math.fsum(x * x for x in tensors["param_norm"]))
            if result.action == "apply":
                row["update_norm"] = math.sqrt(math.fsum(x * x for x in tensors["update_norm"]))
        if result.rows is not None:
            r = result.rows
            row |= {
                "logit_max": float(r.largest.amax()),
                "logit_rms": math.sqrt(sums.mean(r.mean_square)),
                "logz_mean": sums.mean(r.logz),
                "logz_max": float(r.logz.amax()),
                "output_entropy": sums.mean(r.entropy),
            }
        self.row = row

    def _head_rows(self, step: int) -> None:
        layers = sorted(self._now.heads)
        columns = [self._now.heads[i].columns() for i in layers]
        H = len(columns[0]["attn_logit_max"])
        self.writer.append(
            "heads", step=step, layer=np.repeat(np.array(layers, np.int32), H), head=np.tile(np.arange(H, dtype=np.int32), len(layers)),
            **{c: torch.cat([x[c].float() for x in columns]).cpu().numpy() for c in columns[0]},
        )  # fmt: skip

    def _layer_rows(self, step: int) -> None:
        now, layers = self._now, sorted(self._now.zeros)
        rows: dict[str, list] = {column: [now.squares[kind, i].rms if (kind, i) in now.squares else None for i in layers]
                                 for kind, column in RMS_SITES.items()}  # fmt: skip
        rows["act_zero_share"] = [now.zeros[i][0] / now.zeros[i][1] for i in layers]
        if now.dense:
            for name in ("resid_max", "act_max"):
                rows[name] = [now.extremes[name, i] for i in layers]
            if now.lens is not None:
                rows |= {name: [one[name] for one in now.lens] for name in now.lens[0]}
        self.writer.append("layers", step=step, layer=layers, **rows)

    def _sequence_rows(self, result: StepResult) -> None:
        assert result.batch is not None and result.ce is not None
        weight = result.batch.weight.to(result.ce.device)
        counted = weight.sum(1)
        loss = ((result.ce * weight).sum(1) / counted).cpu().numpy()
        if not counted.all():  # a sequence that is masked has no loss; NaN would say it diverged
            loss = np.where(counted.cpu().numpy() == 0, np.array(None), loss)
        self.writer.append(
            "sequences", step=result.step, slot=np.arange(len(loss), dtype=np.int32), sequence=result.batch.sequence.numpy(),
            loss=loss, weight=counted.cpu().numpy(), repeat_share=repeat_share_rows(result.batch.tokens.numpy()),
        )  # fmt: skip

    def _token_rows(self, result: StepResult) -> None:
        assert result.batch is not None and result.ce is not None
        B, T = result.ce.shape
        self.writer.append(
            "tokens", step=result.step, slot=np.repeat(np.arange(B, dtype=np.int32), T),
            position=np.tile(np.arange(T, dtype=np.int32), B), token=result.batch.tokens[:, 1:].reshape(-1).numpy().astype(np.int32),
            loss=result.ce.reshape(-1).cpu().numpy(), weight=result.batch.weight.reshape(-1).numpy(),
        )  # fmt: skip
