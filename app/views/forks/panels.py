"""The panels of one fork, all on one axis of states: losses, distance and gap beside the null
forks, layers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from app import data, formatting, safe_html, theme
from app.views.forks import charts
from app.views.forks.state import State
from replay.forks.result import ForkResult

if TYPE_CHECKING:
    import pyarrow


def spikes_of(state: State) -> list[dict[str, Any]]:
    """Return the parent's loss spikes in the window."""
    first, last = state.window
    return [
        spike
        for spike in data.rows("spikes", run=state.parent, metric="loss")
        if first <= spike["step"] < last and spike["kind"] == "spike" and spike["value"] is not None
    ]


def _bounds(state: State) -> list[int]:
    first, last = state.window
    return [max(0, first - min(32, max(4, (last - first) // 3))), last]


def losses_of(state: State) -> pyarrow.Table:
    """Return the losses of parent and fork over the window and a little before."""
    first, last = _bounds(state)
    return data.table(
        "fork_losses",
        run=state.fork,
        parent=state.parent,
        first=first,
        last=last,
        window=(first, last),
    )


def losses(state: State) -> None:
    """Draw the loss of parent and fork on the batches that each of them trained on."""
    import pyarrow as pa

    rows = losses_of(state)
    if not rows.num_rows:
        return
    safe_html.caption(
        "Loss of each step on its own batch (nats/token) · grey: the parent · blue: the fork · ▼"
        " spikes of the parent"
    )
    spikes_found = spikes_of(state)
    spikes = pa.table(
        {
            "step": pa.array([spike["step"] for spike in spikes_found], pa.int64()),
            "loss": pa.array([spike["value"] for spike in spikes_found], pa.float64()),
        }
    )
    begin = pa.table({"step": [state.window[0]]})
    theme.draw(
        theme.filled(charts.losses(safe_html.dark()), bounds=_bounds(state)),
        {"losses": rows, "spikes": spikes, "begin": begin},
        key="fork-losses",
    )


def distances(state: State, measure: str, live: bool = False) -> None:
    """KL (L2 where nothing was probed) of every arm on a log axis, over the bands of the null
    forks.
    """
    import pyarrow as pa

    arms = data.table("fork_arms", run=state.fork)
    if arms.num_rows and not positive(arms, measure).num_rows:
        measure = "l2"
    rows = positive(arms, measure)
    if not rows.num_rows:
        if not live:
            safe_html.nothing("Neither the fork nor a null fork differs from the control.")
        return
    bands = data.table("fork_bands", run=state.fork)
    drawn, band, ends, legend = parts_of(rows, bands, measure)
    axis = (
        "Distance from the control: KL divergence on the probe set (nats, log)"
        if measure == "logit_kl"
        else "Distance from the control: L2 of the parameters (log)"
    )
    safe_html.caption(f"{axis} · blue: the fork{legend}")
    back = state.result.time_to_reconverge if state.result else None
    at = pa.table(
        {"step": pa.array([state.window[0] + back] if back is not None else [], pa.int64())}
    )
    spec = charts.distance(safe_html.dark(), "KL" if measure == "logit_kl" else "L2", True, False)
    theme.draw(
        theme.filled(spec, bounds=_bounds(state)),
        {"arms": drawn, "bands": band, "ends": ends, "back": at},
        key="fork-distance",
    )


def positive(arms: pyarrow.Table, measure: str) -> pyarrow.Table:
    """Rows whose measure can stand on a log axis, as `value`."""
    import pyarrow.compute as pc

    rows = arms.select(["step", "arm", "kind"]).append_column("value", arms[measure])
    return rows.filter(pc.fill_null(pc.greater(rows["value"], 0), False))


def parts_of(rows: pyarrow.Table, bands: pyarrow.Table, measure: str) -> tuple[Any, Any, Any, str]:
    """(arms that are drawn one by one, bands, a word per kind where its line ends, what the caption
    says of it).

    Of `FEWEST` null forks or more of a kind the 10–90 % band is drawn; of fewer, each.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    number = {
        kind: len(set(rows.filter(pc.equal(rows["kind"], kind))["arm"].to_pylist()))
        for kind in ("placebo", "chaos")
    }
    banded = [kind for kind, count in number.items() if count >= charts.FEWEST]
    drawn = rows.filter(pc.invert(pc.is_in(rows["kind"], pa.array(banded, pa.string()))))
    shown_bands = bands.filter(
        pc.and_(
            pc.equal(bands["measure"], measure),
            pc.is_in(bands["kind"], pa.array(banded, pa.string())),
        )
    )
    if measure in ("logit_kl", "l2"):
        shown_bands = shown_bands.filter(pc.greater(shown_bands["low"], 0))
    ends, words_of_kinds = [], []
    for kind, mark in (("placebo", "grey"), ("chaos", "violet, dashed")):
        count = number[kind]
        if count:
            plural = kind if count == 1 else "placebos" if kind == "placebo" else "chaos forks"
            words_of_kinds.append(
                f"{mark}: {count} {plural}"
                + (", 10th to 90th percentile" if kind in banded else ", each" if count > 1 else "")
            )
    for kind in ("fork", *number):
        last = (
            shown_bands.filter(pc.equal(shown_bands["kind"], kind))
            if kind in banded
            else drawn.filter(pc.equal(drawn["kind"], kind))
        )
        if last.num_rows:
            step = pc.max(last["step"]).as_py()
            at = last.filter(pc.equal(last["step"], step))[
                "middle" if kind in banded else "value"
            ].to_pylist()
            word = (
                kind
                if kind == "fork" or number[kind] == 1
                else f"{number[kind]} {'placebos' if kind == 'placebo' else 'chaos'}"
            )
            ends.append(
                {"step": step, "value": max(at), "word": word, "kind": kind, "below": False}
            )
    return (
        drawn,
        shown_bands,
        pa.Table.from_pylist(theme.below(ends), ends_schema()),
        "".join(f" · {words}" for words in words_of_kinds),
    )


def gaps(state: State, result: ForkResult, arms: pyarrow.Table) -> None:
    """Loss of fork − control on the probe set and on sequences that no arm has consumed."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if result.final.loss_fork is None:
        safe_html.nothing(
            "This run has no held-out probe set, so the loss of the fork was not measured.",
            "forensics train … --set data.held_out=64  # a run with a probe set, then: replay fork"
            f" {state.parent} …",
        )
        return
    bands = data.table("fork_bands", run=state.fork)
    rows = []
    for measure, name in (("loss_gap", "probe set"), ("unseen_gap", "unseen")):
        measured = arms.select(["step", "arm", "kind"]).append_column("value", arms[measure])
        measured = measured.filter(pc.is_valid(measured["value"]))
        drawn, band, _, _ = parts_of(measured, bands, measure)
        if name == "probe set":
            bands_drawn = band
        else:  # the null forks are drawn on the probe set alone
            drawn = drawn.filter(pc.equal(drawn["kind"], "fork"))
        rows.append(drawn.append_column("set", pa.array([name] * drawn.num_rows, pa.string())))
    both = pa.concat_tables(rows)
    ends = _gap_ends(both)
    safe_html.caption(
        "Loss above the control's (nats/token) · ● on the probe set · ■ dashed: on sequences that"
        " neither has trained on · grey and violet: null forks, on the probe set"
    )
    theme.draw(
        theme.filled(charts.gap(safe_html.dark()), bounds=_bounds(state)),
        {"gaps": both, "bands": bands_drawn, "gap_ends": ends, "zero": pa.table({"value": [0.0]})},
        key="fork-gap",
    )


def _gap_ends(both: pyarrow.Table) -> pyarrow.Table:
    import pyarrow as pa

    ends = []
    for name in ("probe set", "unseen"):
        rows = [row for row in both.to_pylist() if row["kind"] == "fork" and row["set"] == name]
        if rows:
            last = max(rows, key=lambda row: row["step"])
            ends.append(
                {
                    "step": last["step"],
                    "value": last["value"],
                    "word": f"{name} {formatting.gap(last['value'])}",
                    "kind": "fork",
                }
            )
    return pa.Table.from_pylist(theme.below(ends), ends_schema())


def ends_schema() -> pyarrow.Schema:
    """Return the columns of the words at the ends of lines."""
    import pyarrow as pa

    return pa.schema(
        [
            ("step", pa.int64()),
            ("value", pa.float64()),
            ("word", pa.string()),
            ("kind", pa.string()),
            ("below", pa.bool_()),
        ]
    )


def layers(state: State, result: ForkResult) -> None:
    """Draw how far each layer is from the control, as multiples of the median placebo."""
    if not result.final.placebos:
        safe_html.nothing(
            "Each layer is compared with the median placebo, and this fork has no placebo.",
            hint="Run it again with placebos, on the right.",
        )
        return
    import pyarrow.compute as pc

    rows = data.table("fork_layers", run=state.fork)
    names = order_of_rows(
        rows.select(["row", "layer"]).group_by(["row", "layer"]).aggregate([]).to_pylist()
    )
    strong_ones = rows.filter(pc.greater(rows["level"], 0))
    safe_html.caption(
        "How far each layer is from the control (L2), as a multiple of the median placebo · blank"
        " below 2×, darker from 2, 5, 10 and 20×"
    )
    if not strong_ones.num_rows:
        safe_html.note(
            "No layer is twice as far from the control as the placebos' median at any step."
        )
        return
    theme.draw(
        theme.filled(
            charts.layers(safe_html.dark(), len(names)), bounds=_bounds(state), rows=names
        ),
        {"cells": strong_ones},
        key="fork-layers",
    )


def order_of_rows(found: Sequence[Mapping[str, Any]]) -> list[str]:
    """Embeddings on top, the layers in their order, what comes after them at the bottom."""

    def place(row: Mapping[str, Any]) -> tuple[int, int, str]:
        if row["layer"] is not None:
            return 1, row["layer"], ""
        return (0 if "embed" in row["row"] and "un" not in row["row"] else 2), 0, row["row"]

    return [row["row"] for row in sorted(found, key=place)]
