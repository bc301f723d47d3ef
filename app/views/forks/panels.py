"""The panels of one fork, all on one axis of states: losses, distance and gap beside the null
forks, layers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from app import data, formatting, safe_html, theme
from app.views.forks import charts
from app.views.forks.state import State

if TYPE_CHECKING:
    import pyarrow


def spikes_of(state: State) -> list[tuple[int, float, bool | None]]:
    """(step, loss, whether it still happens) of the parent's loss spikes in the window: at half its
    excess or more, ±2 steps.

    None: the fork has no loss there, its batches were left out.
    """
    first, last = state.window
    found = []
    for s in data.rows("spikes", run=state.parent, metric="loss"):
        if (
            not first <= s["step"] < last
            or s["kind"] != "spike"
            or s["baseline"] is None
            or s["value"] is None
        ):
            continue
        near = (
            max(first, s["step"] - 2),
            min(last, s["step"] + 3),
        )  # few steps, so each of them, however long the fork
        rows = data.rows(
            "fork_losses",
            run=state.fork,
            parent=state.parent,
            first=near[0],
            last=near[1],
            window=near,
        )
        own = [r["loss"] for r in rows if r["arm"] == "fork"]
        happens = any(
            not math.isfinite(x) or x - s["baseline"] >= 0.5 * (s["value"] - s["baseline"])
            for x in own
        )
        found.append((s["step"], s["value"], happens if own else None))
    return found


def _bounds(state: State) -> list[int]:
    first, last = state.window
    return [max(0, first - min(32, max(4, (last - first) // 3))), last]


def losses_of(state: State) -> pyarrow.Table:
    first, last = _bounds(state)
    return data.table(
        "fork_losses",
        run=state.fork,
        parent=state.parent,
        first=first,
        last=last,
        window=(first, last),
    )


def losses(state: State) -> pyarrow.Table:
    import pyarrow as pa

    rows = losses_of(state)
    if not rows.num_rows:
        return rows
    safe_html.caption(
        "Loss on the batches that each saw (nats/token) · grey parent, blue fork · ▼ spikes of the"
        " parent"
    )
    spikes = pa.table(
        {
            "step": pa.array([s for s, _, _ in spikes_of(state)], pa.int64()),
            "loss": pa.array([x for _, x, _ in spikes_of(state)], pa.float64()),
        }
    )
    begin = pa.table({"step": [state.window[0]]})
    theme.draw(
        theme.filled(charts.losses(safe_html.dark()), bounds=_bounds(state)),
        {"losses": rows, "spikes": spikes, "begin": begin},
        key="fork-losses",
    )
    return rows


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
            safe_html.nothing("No arm of this fork differs from the control.")
        return
    bands = data.table("fork_bands", run=state.fork)
    drawn, band, ends, said = parts_of(rows, bands, measure)
    what = (
        "KL(control ‖ arm) on the probe set, nats, log"
        if measure == "logit_kl"
        else "‖θ_arm − θ_control‖₂, log"
    )
    safe_html.caption(f"{what} · blue fork{said}")
    back = (state.result or {}).get("time_to_reconverge")
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

    found = arms.select(["step", "arm", "kind"]).append_column("value", arms[measure])
    return found.filter(pc.fill_null(pc.greater(found["value"], 0), False))


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
    banded = [kind for kind, n in number.items() if n >= charts.FEWEST]
    drawn = rows.filter(pc.invert(pc.is_in(rows["kind"], pa.array(banded, pa.string()))))
    own = bands.filter(
        pc.and_(
            pc.equal(bands["measure"], measure),
            pc.is_in(bands["kind"], pa.array(banded, pa.string())),
        )
    )
    if measure in ("logit_kl", "l2"):
        own = own.filter(pc.greater(own["low"], 0))
    ends, said = [], []
    for kind, mark in (("placebo", "grey"), ("chaos", "violet, dashed")):
        n = number[kind]
        if n:
            plural = kind if n == 1 else "placebos" if kind == "placebo" else "chaos forks"
            said.append(
                f"{mark}: {n}"
                f" {plural}{', 10–90 %' if kind in banded else ', each' if n > 1 else ''}"
            )
    for kind in ("fork", *number):
        last = (
            own.filter(pc.equal(own["kind"], kind))
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
        own,
        pa.Table.from_pylist(theme.below(ends), ends_schema()),
        "".join(f" · {s}" for s in said),
    )


def gaps(state: State, result: dict[str, Any], arms: pyarrow.Table) -> None:
    """Loss of fork − control on the probe set and on sequences that no arm has consumed."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if result["final"]["loss_fork"] is None:
        safe_html.nothing(
            "This run holds nothing out, so no loss gap was measured.",
            "forensics train … --set data.held_out=64  # a run with a probe set, then: replay fork"
            f" {state.parent} …",
        )
        return
    bands = data.table("fork_bands", run=state.fork)
    rows = []
    for measure, name in (("loss_gap", "probe set"), ("unseen_gap", "unseen")):
        found = arms.select(["step", "arm", "kind"]).append_column("value", arms[measure])
        found = found.filter(pc.is_valid(found["value"]))
        drawn, band, _, _ = parts_of(found, bands, measure)
        if name == "probe set":
            bands_drawn = band
        else:  # the null forks are drawn on the probe set alone
            drawn = drawn.filter(pc.equal(drawn["kind"], "fork"))
        rows.append(drawn.append_column("set", pa.array([name] * drawn.num_rows, pa.string())))
    both = pa.concat_tables(rows)
    ends = _gap_ends(both)
    safe_html.caption(
        "Loss of arm − control (nats/token) · ● probe set, ■ unseen, dashed · grey and violet: null"
        " forks on the probe set · 0: the control"
    )
    theme.draw(
        theme.filled(charts.gap(safe_html.dark()), bounds=_bounds(state)),
        {"gaps": both, "bands": bands_drawn, "gap_ends": ends, "zero": pa.table({"value": [0.0]})},
        key="fork-gap",
    )


def _gap_ends(both: pyarrow.Table) -> pyarrow.Table:
    import pyarrow as pa

    found = []
    for name in ("probe set", "unseen"):
        own = [r for r in both.to_pylist() if r["kind"] == "fork" and r["set"] == name]
        if own:
            last = max(own, key=lambda r: r["step"])
            found.append(
                {
                    "step": last["step"],
                    "value": last["value"],
                    "word": f"{name} {formatting.gap(last['value'])}",
                    "kind": "fork",
                }
            )
    return pa.Table.from_pylist(theme.below(found), ends_schema())


def ends_schema() -> pyarrow.Schema:
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


def layers(state: State, result: dict[str, Any]) -> None:
    if not result["final"]["placebos"]:
        safe_html.nothing(
            "Layers are shown over the placebos' median, and this fork has no placebo.",
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
        "L2 from the control by layer, over the placebos' median · blank below 2×, then 2, 5,"
        " 10, 20×"
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

    def place(r: Mapping[str, Any]) -> tuple[int, int, str]:
        if r["layer"] is not None:
            return 1, r["layer"], ""
        return (0 if "embed" in r["row"] and "un" not in r["row"] else 2), 0, r["row"]

    return [r["row"] for r in sorted(found, key=place)]
