"""The recorder: an observer of `advance` that writes every table of a step.

It sees detached tensors only, computes beside the step and hands rows to the store. It never raises
on NaN or inf: they are recorded as such, and the first place that showed one becomes an event.

Nothing is read from the device before the step is done. On a GPU its results are then copied behind
the update, and rows are made of them when the next step's work has been handed out (the site
"launched"): while the GPU computes, which never waits for them.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from forensics.config import Record, window
from forensics.data.repeats import repeat_share_rows
from forensics.observe.attention import HeadStatistics, attention_statistics
from forensics.observe.device_copy import Fetch
from forensics.observe.logit_lens import logit_lens
from forensics.observe.tensors import TensorProbe
from forensics.statistics import heads as head_statistics
from forensics.statistics import layers as layer_statistics
from forensics.statistics.layers import LayerStatistic
from forensics.step import sums
from forensics.step.observer import Site
from forensics.step.precision import widened
from forensics.store.writer import Writer

if TYPE_CHECKING:
    from forensics.model.step_model import StepModel
    from forensics.step.policy import StepPolicy
    from forensics.step.result import StepResult
    from forensics.step.state import TrainState

HEADS = tuple(statistic.column for statistic in head_statistics.STATISTICS)
# what a block computes, in that order; the taps come in another one, once the block is done
FORWARD = ("resid_in", "attention logits", "attn_out", "mlp_out", "resid_out")


SITES = {statistic.column: statistic.site for statistic in layer_statistics.STATISTICS}
BY_SITE: dict[str, list[LayerStatistic]] = {}
for _statistic in layer_statistics.STATISTICS:
    if _statistic.measure is not None:
        BY_SITE.setdefault(_statistic.site, []).append(_statistic)


@dataclass
class _Tap:
    """A tapped tensor of one micro-batch, as the statistics of layers see it."""

    tensor: Tensor

    def square_sum(self) -> Tensor:
        """Return Σ x² as a float64 scalar."""
        return sums.square_sum(self.tensor)

    def fourth_sum(self) -> Tensor:
        """Return Σ x⁴ as a float64 scalar."""
        return sums.square_sum(widened(self.tensor).square())


@dataclass
class _LayerNumbers:
    """What one statistic measured of one layer: scalars on the device until they are read."""

    parts: list[Tensor] = field(default_factory=list)  # of each micro-batch, or what they merged to
    elements: int = 0
    read: list[float] = field(default_factory=list)

    def add(self, part: Tensor, elements: int, merge: str) -> None:
        """Take in one micro-batch."""
        if merge == "largest" and self.parts:
            part = torch.maximum(self.parts.pop(), part)
        self.parts.append(part)
        self.elements += elements


@dataclass
class _Step:
    """What the taps handed out of the step that runs."""

    tables: frozenset[str]
    dense: bool
    q: dict[int, Tensor] = field(default_factory=dict)
    documents: Tensor | None = None
    heads: dict[int, HeadStatistics] = field(default_factory=dict)
    layers: dict[tuple[str, int], _LayerNumbers] = field(default_factory=dict)  # column, layer
    finite: dict[int, list[Tensor]] = field(default_factory=dict)  # attention logits, by layer
    # (layer, Σ x²) of resid_grad in the order in which they came
    backward: list[tuple[int, Tensor]] = field(default_factory=list)
    resid: dict[int, list[Tensor]] = field(default_factory=dict)
    lens: list[dict[str, float]] | None = None
    probe: TensorProbe | None = None
    grads: tuple[str, ...] = ()  # names, in order of the forward

    def numbers(self) -> Tensor:
        """Join what the taps left on the device, float64, in the order in which `read` takes it."""
        groups = [numbers.parts for numbers in self.layers.values()]
        groups += [*self.finite.values(), [squares for _, squares in self.backward]]
        flat = [x.double() for group in groups for x in group]
        return torch.stack(flat) if flat else torch.empty(0, dtype=torch.float64)

    def read(self, fetched: Tensor) -> None:
        """Take what `numbers` gave, on the host."""
        numbers = iter(fetched.tolist())
        for layer_numbers in self.layers.values():
            layer_numbers.read = [next(numbers) for _ in layer_numbers.parts]
        self.finite_read = {
            layer: sum(next(numbers) for _ in flags) == len(flags)
            for layer, flags in self.finite.items()
        }
        self.backward_read = [(layer, next(numbers)) for layer, _ in self.backward]

    def first_nonfinite(self, result: StepResult, tensors: dict[str, list]) -> str | None:
        """Find the first place of the step, in the order of its computation, with a NaN or inf."""
        places = [
            (layer, FORWARD.index("attention logits"))
            for layer, finite in self.finite_read.items()
            if not finite
        ]
        places += [
            (layer, FORWARD.index(SITES[column]))
            for (column, layer), numbers in self.layers.items()
            if SITES[column] in FORWARD and not all(map(math.isfinite, numbers.read))
        ]
        if places:
            layer, place = min(places)
            return f"layers.{layer}.{FORWARD[place]}"
        assert result.loss is not None and result.grad_norms is not None
        if not math.isfinite(result.loss):
            return "loss"
        for layer, squares in self.backward_read:
            if not math.isfinite(squares):
                return f"layers.{layer}.resid_grad"
        if not math.isfinite(result.grad_norm or 0.0):
            # the backward runs from the last tensor to the first: the last in order of the forward
            # came first
            return (
                next(
                    name
                    for name in reversed(self.grads)
                    if not math.isfinite(result.grad_norms[name])
                )
                + " gradient"
            )
        if result.action == "apply" and tensors:
            wrong = (
                name
                for name, x in zip(tensors["tensor"], tensors["update_norm"])
                if not math.isfinite(x)
            )
            return next((name + " update" for name in wrong), None)
        return None


class Recorder:
    """Writes `steps` at every step, and the other tables as `[record]` asks for them."""

    def __init__(
        self,
        writer: Writer,
        record: Record,
        model: StepModel,
        digests: bool = True,
        told: Callable[[Mapping[str, Any]], None] | None = None,
    ) -> None:
        self.writer = writer
        self.model = model
        self.told = told  # is handed each row of `steps`, complete
        self.level = record.level
        self.every = {
            table: record.every.get(table, 1)
            for table in ("layers", "heads", "tensors", "sequences")
        }
        self.windows = [window(text) for text in record.dense]
        self.digests = digests
        self.digest: str | None = None  # of the state after the last step
        self.row: dict[str, float | int | str | None] | None = (
            None  # of the last step; `commit` writes it
        )
        self.wants: frozenset[str] = frozenset()
        self.later = model.device == "cuda"  # rows of a step are made beside the next one
        self._rest: Callable[[], None] | None = None  # of the last step: makes its rows
        self._now = _Step(frozenset(), False)

    def begin(self, state: TrainState, policy: StepPolicy) -> None:
        """Decide which tables this step writes, and tell the decoder which sites to tap."""
        if not self.later:
            self.commit()
        step = state.counters.step
        dense = self.level != "off" and (
            self.level == "dense" or any(low <= step < high for low, high in self.windows)
        )
        tables = (
            frozenset(table for table, every in self.every.items() if step % every == 0)
            if self.level != "off"
            else frozenset()
        )
        wants: set[str] = set()
        if tables or dense:
            wants.add("rows")
        if "heads" in tables:
            wants |= {"q", "k", "documents"}
        if "layers" in tables:
            wants |= {
                statistic.site for statistic in layer_statistics.STATISTICS if statistic.measure
            }
        if self.later:
            wants.add("launched")
        self.wants = frozenset(wants)
        self._now = _Step(tables, dense)

    def commit(self) -> None:
        """Hand the last step's row to the store.

        Until then the loop may add what it measures after the step.
        """
        if self._rest is not None:
            make_rows, self._rest = self._rest, None
            make_rows()
        if self.row is not None:
            self.writer.append("steps", **self.row)
            if self.told is not None:
                self.told(self.row)
            self.row = None

    @torch.no_grad()
    def tap(self, site: Site, x: Tensor) -> None:
        """Measure one tensor of the forward or backward, detached, where it lies."""
        now, (kind, layer) = self._now, site
        if kind == "launched":
            self.commit()
        elif kind == "q":
            now.q[layer] = x
        elif kind == "k":
            window = self.model.decoder.shape.window_of(layer)
            statistics = attention_statistics(now.q.pop(layer), x, now.documents, window)
            now.heads[layer] = (
                now.heads[layer].merge(statistics) if layer in now.heads else statistics
            )
            now.finite.setdefault(layer, []).append(
                torch.isfinite(statistics.merged["attn_logit_max"]).all()
            )
        elif kind == "documents":
            now.documents = x
        if kind == "resid_out" and now.dense:
            now.resid.setdefault(layer, []).append(x)
        tapped = _Tap(x)
        for statistic in BY_SITE.get(kind, ()):
            if now.dense or not statistic.dense:
                self._measure(statistic, layer, tapped)

    def _measure(self, statistic: LayerStatistic, layer: int, tapped: _Tap) -> None:
        now = self._now
        numbers = now.layers.setdefault((statistic.column, layer), _LayerNumbers())
        if statistic.same_as_before and layer > 0:
            # the stream into a block is the one out of the block before, which is measured already
            before = now.layers[statistic.same_as_before, layer - 1]
            numbers.parts, numbers.elements = list(before.parts), before.elements
            return
        assert statistic.measure is not None
        numbers.add(statistic.measure(tapped), tapped.tensor.numel(), statistic.merge)
        if statistic.column == "resid_grad_rms":
            now.backward.append((layer, numbers.parts[-1]))

    @torch.no_grad()
    def gradients(self, state: TrainState, grads: dict[str, Tensor], result: StepResult) -> None:
        """Look at gradients and moments before the update, and read the logit lens."""
        now = self._now
        assert (
            result.grad_norms is not None and result.loss is not None and result.batch is not None
        )
        now.grads = tuple(grads)
        if "tensors" in now.tables and grads:  # every tensor may be frozen
            now.probe = TensorProbe(
                state, grads, result.grad_norms, result.clip_scale, result.policy
            )
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
        """Look at the state after the update, and make the step's rows or leave them for later."""
        self.commit()  # a step that computed nothing launched nothing either
        now = self._now
        if now.probe is not None:
            now.probe.measure(state, self.model.decayed, result.action == "apply")
        self.digest = state.digest() if self.digests else None
        row: dict[str, float | int | str | None] = {
            "step": result.step,
            "lr": result.policy.learning_rate,
            "schedule": result.counters.schedule,
            "updates": result.counters.updates,
            "update": result.action,
            "seconds": result.seconds,
            "state_digest": self.digest,
        }
        self.row = row
        if result.batch is not None and result.ce is not None:
            row |= {
                "loss": result.loss,
                "grad_norm": result.grad_norm,
                "clip_scale": result.clip_scale,
                "tokens": int(torch.count_nonzero(result.batch.weight)),
            }
            self._rest = functools.partial(
                self._rows, now, result, row, Fetch(self._found(now, result))
            )
            if not self.later:
                make_rows, self._rest = self._rest, None
                make_rows()

    def _found(self, now: _Step, result: StepResult) -> dict[str, Tensor]:
        """All that the rows of a step are made of, still on the device: nothing here waits for
        it.
        """
        assert result.batch is not None and result.ce is not None
        numbers = {"taps": now.numbers()}
        if now.probe is not None:
            numbers |= now.probe.found()
        if (logit_rows := result.rows) is not None:
            totals = [
                sums.total(x) for x in (logit_rows.mean_square, logit_rows.logz, logit_rows.entropy)
            ]
            numbers["logits"] = torch.stack(
                [*totals, logit_rows.largest.amax().double(), logit_rows.logz.amax().double()]
            )
        if now.heads:
            columns = [now.heads[layer].columns() for layer in sorted(now.heads)]
            numbers["heads"] = torch.stack(
                [torch.cat([x[column].float() for x in columns]) for column in HEADS]
            )
        if "sequences" in now.tables:
            weight = result.batch.weight.to(result.ce.device, non_blocking=True)
            counted = weight.sum(1)
            numbers |= {"counted": counted, "losses": (result.ce * weight).sum(1) / counted}
        if now.dense:
            numbers["ce"] = result.ce
        return numbers

    @torch.no_grad()
    def _rows(
        self, now: _Step, result: StepResult, row: dict[str, float | int | str | None], fetch: Fetch
    ) -> None:
        """Every row of a step but its own, which is completed."""
        step, numbers = result.step, fetch.read()
        tensors = now.probe.columns(numbers) if now.probe is not None else {}
        now.read(numbers["taps"])
        if tensors:
            self.writer.append("tensors", step=step, **tensors)
        self._complete(row, result, tensors, numbers.get("logits"))
        if now.heads:
            self._head_rows(now, step, numbers["heads"].numpy())
        if "layers" in now.tables:
            self._layer_rows(now, step)
        if "sequences" in now.tables:
            self._sequence_rows(result, numbers["losses"].numpy(), numbers["counted"].numpy())
        if now.dense:
            self._token_rows(result, numbers["ce"].numpy())
        where = now.first_nonfinite(result, tensors)
        if where is not None:
            self.writer.append(
                "events",
                step=step,
                kind="nonfinite",
                metric="loss",
                value=result.loss,
                tensor=where,
                text=f"first seen in {where}",
            )

    @staticmethod
    def _complete(
        row: dict[str, float | int | str | None],
        result: StepResult,
        tensors: dict[str, list],
        logits: Tensor | None,
    ) -> None:
        if tensors:
            row["param_norm"] = math.sqrt(math.fsum(x * x for x in tensors["param_norm"]))
            if result.action == "apply":
                row["update_norm"] = math.sqrt(math.fsum(x * x for x in tensors["update_norm"]))
        if result.rows is not None and logits is not None:
            rows, numbers = result.rows.logz.numel(), logits.tolist()
            row |= {
                "logit_max": numbers[3],
                "logit_rms": math.sqrt(numbers[0] / rows),
                "logz_mean": numbers[1] / rows,
                "logz_max": numbers[4],
                "output_entropy": numbers[2] / rows,
            }

    def _head_rows(self, now: _Step, step: int, table: np.ndarray) -> None:
        layers = sorted(now.heads)
        H = table.shape[1] // len(layers)
        self.writer.append(
            "heads",
            step=step,
            layer=np.repeat(np.array(layers, np.int32), H),
            head=np.tile(np.arange(H, dtype=np.int32), len(layers)),
            **dict(zip(HEADS, table)),
        )

    def _layer_rows(self, now: _Step, step: int) -> None:
        layers = sorted({layer for _, layer in now.layers})
        rows: dict[str, list] = {}
        for statistic in layer_statistics.STATISTICS:
            if statistic.measure is not None and (now.dense or not statistic.dense):
                rows[statistic.column] = [
                    _finished(statistic, now.layers.get((statistic.column, layer)))
                    for layer in layers
                ]
                if statistic.over is not None:
                    rows[statistic.column] = [
                        number / base**statistic.over.power if number and base else number
                        for number, base in zip(rows[statistic.column], rows[statistic.over.column])
                    ]
        if now.lens is not None:
            rows |= {name: [of_layer[name] for of_layer in now.lens] for name in now.lens[0]}
        self.writer.append("layers", step=step, layer=layers, **rows)

    def _sequence_rows(self, result: StepResult, loss: np.ndarray, counted: np.ndarray) -> None:
        assert result.batch is not None
        if not counted.all():  # a sequence that is masked has no loss; NaN would say it diverged
            loss = np.where(counted == 0, np.array(None), loss)
        self.writer.append(
            "sequences",
            step=result.step,
            slot=np.arange(len(loss), dtype=np.int32),
            sequence=result.batch.sequence.numpy(),
            loss=loss,
            weight=counted,
            repeat_share=repeat_share_rows(result.batch.tokens.numpy()),
        )

    def _token_rows(self, result: StepResult, ce: np.ndarray) -> None:
        assert result.batch is not None
        B, T = ce.shape
        self.writer.append(
            "tokens",
            step=result.step,
            slot=np.repeat(np.arange(B, dtype=np.int32), T),
            position=np.tile(np.arange(T, dtype=np.int32), B),
            token=result.batch.tokens[:, 1:].reshape(-1).numpy().astype(np.int32),
            loss=ce.reshape(-1),
            weight=result.batch.weight.reshape(-1).numpy(),
        )


def _finished(statistic: LayerStatistic, numbers: _LayerNumbers | None) -> float | None:
    """Return the recorded number; None where the site was never tapped."""
    if numbers is None:
        return None
    return statistic.finish(sum(numbers.read), numbers.elements)
