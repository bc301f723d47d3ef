"""What did the head do? All heads small, one of them over time, its weights before, at and after,
the logit lens.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import streamlit as st

from app import data, reading, show, tokens, words, work
from app.charts import attention as charts
from app.charts import theme
from app.pages import chosen_run, link
from app.reading import Reading
from app.selection import Selection, goto, picked
from app.show import Part, accent, code, strong
from app.step import chosen_step
from forensics.visible import visible

if TYPE_CHECKING:
    import numpy as np

BEFORE, AFTER = 64, 32  # steps shown around the step
POINTS = 20_000  # of all small curves together
Kept = tuple[dict[str, Any], Any]  # what `replay.step.artifacts.read` gives


def page() -> None:
    selection = chosen_run()
    selection = chosen_step(selection) if selection is not None else None
    if selection is None:
        return
    run, step = str(selection.run), int(selection.step or 0)
    heads = data.rows("heads_at", run=run, step=step, window=(max(0, step - 512), step + 1))
    if not heads:
        show.verdict(f"Step {words.count(step)}", "Its heads were not recorded.")
        first = max(0, step - BEFORE)
        show.nothing(
            "A fork that changes nothing records them:",
            f"replay fork {run} --from {first} --to {step + 1} --lr-scale 1@{first}:{step + 1}"
            " --record light",
            'record.level = "light" records every head at every step of a run.',
        )
        return
    alarms = data.rows("first_alarms", run=run, step=step, window=(max(0, step - 512), step + 1))
    head = chosen_head(heads, alarms, selection)
    slot = _slot(run, step, selection)
    kept = _kept(run, step, slot)
    left, right = st.columns([4, 1], vertical_alignment="top")
    with left:
        show.verdict(
            title_of(step, head),
            *_sentence(heads, head, alarms),
            *_moved(kept, head),
            hedge=[
                "Order in time, not proof of cause. Proof: replay (Forks), or ",
                code(f"replay blame {run} --spike {selection.spike or step}"),
                ".",
            ],
        )
    with right:
        link("batch", "Read the batch", run=run, step=step, slot=slot)
        link("microscope", "Inside the step", run=run, step=step)
        link("spikes", "Around the spike", run=run, spike=selection.spike)
    overview, beside = st.columns([1.35, 1])
    with overview:
        _thumbnails(run, step, heads, head)
    with beside:
        _over_time(run, step, head)
    _patterns(run, step, slot, head, kept, selection)


# ---- which head, in words


def name_of(head: dict[str, Any]) -> str:
    return f"L{head['layer']}.H{head['head']}"


def chosen_head(
    heads: Sequence[dict[str, Any]], alarms: Sequence[dict[str, Any]], selection: Selection
) -> dict[str, Any]:
    """The head of the URL; else the first to move; else the one farthest from its own past; else
    the largest logit.
    """

    def find(layer: int | None, head: int | None) -> dict[str, Any] | None:
        return next((h for h in heads if h["layer"] == layer and h["head"] == head), None)

    own = [h for h in heads if h["layer"] == selection.layer] or list(heads)
    if selection.head is not None and (found := find(selection.layer, selection.head)):
        return found
    for alarm in alarms:
        if (
            alarm["kind"] == "head"
            and not alarm["drifting"]
            and (found := find(alarm["layer"], alarm["head"])) in own
        ):
            return found  # type: ignore[return-value]
    return max(
        own, key=lambda h: (abs(h["z"]) if h["z"] is not None else -1.0, h["attn_logit_max"] or 0.0)
    )


def title_of(step: int, head: dict[str, Any]) -> str:
    """`Step 1,342: L5.H3's largest attention logit 12.4 → 88.1 (31σ)`."""
    value, past = head["attn_logit_max"], head["baseline"]
    gone = (
        f"{words.number(past)} → {words.number(value)}"
        if past is not None and head["z"] is not None
        else words.number(value)
    )
    size = (
        f" ({words.sigma(abs(head['z']))} {'above' if head['z'] >= 0 else 'below'} its own past)"
        if head["z"] is not None
        else ""
    )
    return f"Step {words.count(step)}: {name_of(head)}'s largest attention logit {gone}{size}"


def _sentence(
    heads: Sequence[dict[str, Any]], head: dict[str, Any], alarms: Sequence[dict[str, Any]]
) -> list[Part]:
    judged = [h for h in heads if h["z"] is not None]
    if not judged:
        return ["Robust z needs 16 recorded steps between 512 and 64 before it; there are fewer. "]
    out = sorted((h for h in judged if abs(h["z"]) >= 6), key=lambda h: -abs(h["z"]))
    said: list[Part] = []
    if out:
        said += [
            strong(f"{len(out)} of {len(heads)}"),
            (
                " heads stand beyond 6σ of their own past at this step: "
                f"{words.listed([name_of(h) for h in out])}. "
            ),
        ]
    else:
        said += [f"None of {len(heads)} heads stands beyond 6σ of its own past at this step. "]
    first = next((a for a in alarms if a["kind"] == "head" and not a["drifting"]), None)
    if first is not None and first["lead"] > 0:
        said += [
            "First head to move: ",
            accent(f"L{first['layer']}.H{first['head']}"),
            f", {words.steps(first['lead'], 'before')}. ",
        ]
    entropy, past = head["attn_entropy_norm"], head["baseline_entropy"]
    if entropy is not None and past is not None and past > 0:
        said += [
            f"{name_of(head)}'s entropy is {words.share(entropy)} of uniform, its own past"
            f" {words.share(past)}. "
        ]
    return said


def _moved(kept: Kept | None, head: dict[str, Any]) -> list[Part]:
    """How far the head's attention on the sequence went elsewhere, from the kept states."""
    if kept is None:
        return []
    about = kept[0]
    states, step = about["states"], about["step"]
    if len(states) < 2 or step not in states or states[0] == step:
        return []
    at = states.index(step)
    first, then = (_of_head(kept, "weights", i, head) for i in (0, at))
    gone = float(abs(then - first).sum(-1).mean() / 2) if about["block"] == 1 else math.nan
    if not math.isfinite(gone):
        return []
    return [
        "On slot ",
        strong(about["slot"]),
        ", ",
        strong(words.share(gone)),
        (
            f" of its attention goes elsewhere at state {words.count(step)} than at"
            f" {words.count(states[0])}."
        ),
    ]


def _slot(run: str, step: int, selection: Selection) -> int:
    """The sequence to look at: the URL's, else one that is kept already, else the batch's worst."""
    rows = data.rows("batch_at", run=run, step=step, window=(max(0, step - 64), step + 1))
    slots = [r["slot"] for r in rows]
    if selection.slot is not None and (selection.slot in slots or not slots):
        return selection.slot
    looked = _looked(run, step)
    return looked[0] if looked else slots[0] if slots else 0


def _looked(run: str, step: int) -> list[int]:
    """Slots of the batch whose attention is kept."""
    folder = data.runs_folder() / data.require(run) / "looks"
    found = [
        path.stem.rpartition("-")[2] for path in folder.glob(f"attention-{step}-*.safetensors")
    ]
    return sorted(int(slot) for slot in found if slot.isdecimal())


def _kept(run: str, step: int, slot: int) -> Kept | None:
    from replay.step import artifacts as kept

    path = kept.attention_of(data.runs_folder() / data.require(run), step, slot)
    return _read(path, path.stat().st_mtime_ns) if path.is_file() else None


@functools.lru_cache(16)
def _read(path: Path, stamp: int) -> Kept:
    from replay.step import artifacts as kept

    return kept.read(path)


def _of_head(kept: Kept, name: str, state: int, head: dict[str, Any]) -> np.ndarray:
    return kept[1](name, state, head["layer"], head["head"])  # type: ignore[no-any-return]


# ---- all heads


def _thumbnails(run: str, step: int, heads: Sequence[dict[str, Any]], head: dict[str, Any]) -> None:
    import pyarrow as pa

    every = max(1, math.ceil(len(heads) * (BEFORE + AFTER + 1) / POINTS))
    window = (max(0, step - BEFORE), step + AFTER + 1)
    curves = data.table(
        "head_thumbnails",
        run=run,
        step=step,
        before=BEFORE,
        after=AFTER,
        every=every,
        window=window,
    )
    keys = [f"{a}.{b}" for a, b in zip(curves["layer"].to_pylist(), curves["head"].to_pylist())]
    rows = [
        {
            **h,
            "head2": h["head"] + 1,
            "layer2": h["layer"] + 1,
            "name": name_of(h),
            "label": words.number(h["attn_logit_max"]),
            "level": h["level"] or 0,
        }
        for h in heads
    ]
    layers, width = (1 + max(h[k] for h in heads) for k in ("layer", "head"))
    show.caption(
        f"All heads · number: largest attention logit at the step; curve: {BEFORE} steps before to"
        f" {AFTER} after · colour: σ from the head's own past, blank under 3 · click one (now"
        f" {name_of(head)})"
    )
    theme.draw(
        charts.heads(show.dark(), layers, width),
        {
            "heads": pa.Table.from_pylist(rows),
            "curves": curves.append_column("key", pa.array(keys, pa.string())),
            "chosen": pa.Table.from_pylist([r for r in rows if r["name"] == name_of(head)]),
        },
        key="heads",
        on_select=_clicked_head,
    )


def head_of(event: Any) -> dict[str, int] | None:
    """What a click on a head changes in the URL."""
    mark = picked(event, "cell", "layer", "head")
    return {"layer": int(mark["layer"]), "head": int(mark["head"])} if mark else None


def _clicked_head() -> None:
    change = head_of(st.session_state["heads"])
    if change:
        goto(**change)


def _over_time(run: str, step: int, head: dict[str, Any]) -> None:
    import pyarrow as pa
    import pyarrow.compute as pc

    window = (max(0, step - 512), step + AFTER + 1)
    rows = data.table(
        "head_heat",
        run=run,
        step=step,
        layer=head["layer"],
        before=BEFORE,
        after=AFTER,
        window=window,
    )
    own = rows.filter(pc.equal(rows["head"], head["head"]))
    if not own.num_rows:
        show.nothing(
            f"{name_of(head)} over time: there are too few steps before {words.count(step)} to"
            " judge it by."
        )
        return
    here = {"here": pa.table({"offset": [0]})}
    show.caption(
        f"{name_of(head)}: largest attention logit · dashed: median of its own past · steps from"
        f" {words.count(step)}"
    )
    theme.draw(
        charts.over_time(show.dark(), "largest logit"), {"line": own, **here}, key="head-logit"
    )
    entropy = own.drop_columns(["value", "baseline", "z"]).append_column("value", own["entropy"])
    blank = pa.nulls(own.num_rows, pa.float64())
    entropy = entropy.append_column("baseline", blank).append_column("z", blank)
    show.caption("… and its mean attention entropy (nats)")
    theme.draw(
        charts.over_time(show.dark(), "entropy"), {"line": entropy, **here}, key="head-entropy"
    )


# ---- one head on one sequence


def _start(run: str, arguments: list[str]) -> None:
    work.start(run, "replay", arguments)


def _patterns(
    run: str, step: int, slot: int, head: dict[str, Any], kept: Kept | None, selection: Selection
) -> None:
    show.heading(
        f"{name_of(head)} on slot {slot} of batch {words.count(step)}, before, at and after"
    )
    arguments = ["attention", run, str(step), "--slot", str(slot)]
    mine = [
        w for w in work.listed(run) if w.program == "replay" and list(w.arguments[:5]) == arguments
    ]
    if kept is None:
        if not any(w.status == "running" for w in mine):
            others = [s for s in _looked(run, step) if s != slot]
            also = f"Kept already: slot {words.listed(others)}." if others else ""
            show.nothing(
                "Its weights are not kept yet. They come from the exact states 16 steps before, at"
                " and after, by replay:",
                f"replay {' '.join(arguments)}",
                also,
            )
            st.button(
                "Replay to the three states", type="primary", on_click=_start, args=(run, arguments)
            )
        if mine:
            work.panel(run, most=3, key="attention-work")
        return
    about = kept[0]
    if False in about["exact"]:
        show.amber(
            strong("Tolerance only: "),
            "a replayed state is not the recorded one bit for bit on this machine.",
        )
    for state in broken_states(about, kept, head):
        show.amber(
            strong(f"The weights of state {words.count(state)} are not finite"),
            f" in {name_of(head)}: such pairs are left blank.",
        )
    read = _reading(run, data.header(run).get("corpus"), tuple(about["tokens"]))
    _triptych(about, kept, head, read, selection.position)
    _query(about, kept, head, read, selection.position)
    _lens(about, kept, read, selection.position)


def broken_states(about: dict[str, Any], kept: Kept, head: dict[str, Any]) -> list[int]:
    """The states at which some weight of the head is NaN or infinite."""
    import numpy as np

    return [
        s
        for i, s in enumerate(about["states"])
        if not np.isfinite(_of_head(kept, "weights", i, head)).all()
    ]


@functools.lru_cache(64)
def _reading(run: str, corpus: str | None, tokens: tuple[int, ...]) -> Reading:
    """The sequence by the tokens that were kept with its weights: nothing is asked of the data
    order.
    """
    return reading.of_tokens(run, tokens)


def whens(states: Sequence[int], step: int) -> list[str]:
    """`before`, `at` or `after` of each state."""
    return ["before" if s < step else "at" if s == step else "after" for s in states]


def _triptych(
    about: dict[str, Any], kept: Kept, head: dict[str, Any], read: Reading, position: int | None
) -> None:
    import pyarrow as pa

    states, block = about["states"], about["block"]
    T = len(about["tokens"]) - 1
    both = [
        (_of_head(kept, "weights", i, head), _of_head(kept, "scores", i, head))
        for i in range(len(states))
    ]
    at = states.index(about["step"]) if about["step"] in states else len(states) - 1
    # key, caption, weights, scores, whether it is a state and no difference
    panels: list[tuple[str, str, np.ndarray, np.ndarray, bool]] = []
    for (weight, score), state, when in zip(both, states, whens(states, about["step"])):
        caption = (
            f"{when.capitalize()}: state {words.count(state)} · largest logit"
            f" {words.number(float(score.max()))}"
        )
        panels.append((f"weights-{state}", caption, weight, score, True))
    if len(states) > 1:
        last = len(states) - 1
        pair = (last, 0) if states[0] < about["step"] else (last, at)
        (w1, s1), (w0, s0) = both[pair[0]], both[pair[1]]
        caption = (
            f"State {words.count(states[pair[0]])} − state {words.count(states[pair[1]])}: orange"
            " gained, blue lost"
        )
        panels.append(("weights-gap", caption, w1 - w0, _difference(s1, s0), False))
    pooled = f" · pairs in blocks of {block} positions, the largest counts" if block > 1 else ""
    show.caption(
        "Weight of each query (down) on each key (across), on one scale: from"
        f" {', '.join(f'{100 * w:g}' for w in charts.WEIGHTS)}%, blank below{pooled} · click a row"
    )
    texts = [visible(t).replace("\n", "↵") for t in read.texts]
    row = (
        []
        if position is None or position >= T
        else [
            {
                "query": position // block * block,
                "query2": position // block * block + block,
                "zero": 0,
                "all": T,
            }
        ]
    )
    schema = pa.schema([(k, pa.int64()) for k in ("query", "query2", "zero", "all")])
    half = pa.table({"key": [0, T], "query": [0, T], "below": [T, T]})
    for column, (key, caption, weight, score, plain) in zip(st.columns(len(panels)), panels):
        with column:
            show.caption(caption)
            shown = {
                "cells": cells_of(weight, score, block, texts),
                "half": half,
                "row": pa.Table.from_pylist(row, schema=schema),
            }
            theme.draw(
                charts.weights(show.dark(), T, plain),
                shown,
                key=key,
                on_select=partial(_clicked_row, key) if plain else None,
            )


def _difference(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a − b; masked pairs, −∞ in both, are 0."""
    import numpy as np

    with np.errstate(invalid="ignore"):
        return np.nan_to_num(a - b, nan=0.0, posinf=0.0, neginf=0.0)


def cells_of(weight: np.ndarray, score: np.ndarray, block: int, texts: Sequence[str]) -> Any:
    """The pairs whose |weight| passes the first threshold, as rectangles: key, key2, query, query2,
    level, …

    A weight that is not finite passes none.
    """
    import numpy as np
    import pyarrow as pa

    known = np.nan_to_num(weight, nan=0.0, posinf=0.0, neginf=0.0)
    level = (
        np.searchsorted(charts.WEIGHTS, np.abs(known) + 1e-9, side="right") * np.sign(known)
    ).astype(int)
    query, key = np.nonzero(level)
    names = np.array([*texts, ""], dtype=object)
    return pa.table(
        {
            "query": query * block,
            "query2": query * block + block,
            "key": key * block,
            "key2": key * block + block,
            "level": level[query, key],
            "weight": weight[query, key].astype(float),
            "score": score[query, key].astype(float),
            "reads": pa.array(names[query * block].tolist(), pa.string()),
            "looks": pa.array(names[key * block].tolist(), pa.string()),
        }
    )


def query_of(event: Any) -> dict[str, int] | None:
    """What a click on a pair changes in the URL: the query's position."""
    mark = picked(event, "pair", "query")
    return {"position": int(mark["query"])} if mark else None


def _clicked_row(key: str) -> None:
    change = query_of(st.session_state[key])
    if change:
        goto(**change)


def _query(
    about: dict[str, Any], kept: Kept, head: dict[str, Any], read: Reading, position: int | None
) -> None:
    """The text, coloured by what the chosen query looks at; without one, by what all queries look
    at.
    """
    states, block = about["states"], about["block"]
    T = len(about["tokens"]) - 1
    at = states.index(about["step"]) if about["step"] in states else 0
    weight = _of_head(kept, "weights", at, head)
    if position is not None and position < T:
        by_key = weight[position // block]
        show.caption(
            f"What position {position}, ",
            code(tokens.shown(read.texts[position]).strip("\n") or "␣"),
            f", looks at: weight on each token at state {words.count(states[at])} · click another",
        )
    else:
        by_key = weight.mean(0)
        show.caption(
            f"Mean weight on each token over all queries, at state {words.count(states[at])} ·"
            " click one to see what it looks at"
        )
    levels = attention_levels([float(by_key[i // block]) for i in range(T)])
    titles = [f"position {i} · weight {by_key[i // block]:.3f}" for i in range(T)]
    tokens.tokens(
        read.texts[:T],
        levels,
        titles=titles,
        key="attended",
        chosen=position,
        on_click=_clicked_token,
    )


def attention_levels(weights: Sequence[float]) -> list[int]:
    """Strength 0 … 6 by the square root of the weight over the largest, so that small ones can be
    seen.
    """
    top = max((w for w in weights if math.isfinite(w)), default=0.0)
    return [
        round((tokens.LEVELS - 1) * math.sqrt(w / top)) if top > 0 and math.isfinite(w) else 0
        for w in weights
    ]


def _clicked_token() -> None:
    at = tokens.clicked_token(st.session_state["attended"])
    if at is not None:
        goto(position=at)


# ---- the logit lens


def _lens(about: dict[str, Any], kept: Kept, read: Reading, position: int | None) -> None:
    import pyarrow as pa

    show.heading("Logit lens: what each layer would have predicted")
    if not about["lens"]:
        show.nothing(
            "There is no logit lens here: " + (about["why"] or "it was left out (--no-lens)") + "."
        )
        return
    loss = kept[1]("lens_loss")  # (states, L+1, T)
    states, step = about["states"], about["step"]
    layers = loss.shape[1] - 1
    lines = [
        {"state": s, "when": when, "layer": i, "loss": float(loss[k, i].mean())}
        for k, (s, when) in enumerate(zip(states, whens(states, step)))
        for i in range(layers + 1)
    ]
    left, right = st.columns([1, 2.1])
    with left:
        signs = {"before": "● before", "at": "▼ at", "after": "■ after"}
        show.caption(
            "Mean loss read out after each layer (nats/token) · "
            + " · ".join(
                f"{signs[w]} {words.count(s)}" for s, w in zip(states, whens(states, step))
            )
        )
        theme.draw(
            charts.lens(show.dark(), layers), {"lens": pa.Table.from_pylist(lines)}, key="lens"
        )
    with right:
        at = states.index(step) if step in states else 0
        show.caption(
            "Loss of the token that follows, by layer (down) and position (across), at state"
            f" {words.count(states[at])} · as the tokens: 0 … ln V on seven strengths,"
            f" {'yellow' if show.dark() else 'dark red'}: above ln V · click a column"
        )
        cells = lens_cells(
            loss[at], kept[1]("lens_top", at), kept[1]("lens_top_p", at), read, _names(about["run"])
        )
        T = loss.shape[2]
        column = (
            []
            if position is None or position >= T
            else [{"position": position, "position2": position + 1, "zero": 0, "all": layers + 1}]
        )
        schema = pa.schema([(k, pa.int64()) for k in ("position", "position2", "zero", "all")])
        theme.draw(
            charts.reads(show.dark(), layers, T),
            {"reads": cells, "column": pa.Table.from_pylist(column, schema=schema)},
            key="reads",
            on_select=_clicked_column,
        )
    if position is not None and position < loss.shape[2]:
        _by_layer(about, kept, read, position)


def _names(run: str) -> Any:
    """id → text of a token of the run."""
    header = data.header(run)
    return reading.token_name(data.runs_folder() / "_data" / header["corpus"])


def lens_cells(
    loss: np.ndarray, top: np.ndarray, top_p: np.ndarray, read: Reading, name: Any
) -> Any:
    """Layers by positions as rectangles; more than 20,000 are put together by the largest loss of
    neighbours.
    """
    import numpy as np
    import pyarrow as pa

    L, T = loss.shape
    width = math.ceil(L * T / theme.STEPS_MOST)
    starts = np.arange(0, T, width)
    worst = np.stack(
        [
            starts
            + np.argmax(
                np.nan_to_num(
                    loss[i][np.minimum(starts[:, None] + np.arange(width), T - 1)], nan=np.inf
                ),
                1,
            )
            for i in range(L)
        ]
    ).clip(max=T - 1)
    layer, k = (x.ravel() for x in np.meshgrid(np.arange(L), np.arange(len(starts)), indexing="ij"))
    at = worst[layer, k]
    levels = [tokens.level(float(x), read.vocabulary) for x in loss[layer, at]]
    texts = [visible(t).replace("\n", "↵") for t in read.texts]
    said = {int(i): visible(name(int(i))).replace("\n", "↵") for i in np.unique(top)}
    return pa.table(
        {
            "layer": layer,
            "layer2": layer + 1,
            "position": starts[k],
            "position2": np.minimum(starts[k] + width, T),
            "level": [tokens.LEVELS if above else strength for strength, above in levels],
            "loss": loss[layer, at].astype(float),
            "top_p": top_p[layer, at].astype(float),
            "predicts": [said[int(i)] for i in top[layer, at]],
            "reads": [texts[i] for i in at],
            "follows": [texts[i + 1] for i in at],
        }
    )


def column_of(event: Any) -> dict[str, int] | None:
    """What a click on the lens changes in the URL."""
    mark = picked(event, "read", "position")
    return {"position": int(mark["position"])} if mark else None


def _clicked_column() -> None:
    change = column_of(st.session_state["reads"])
    if change:
        goto(**change)


def _by_layer(about: dict[str, Any], kept: Kept, read: Reading, position: int) -> None:
    """At one position: what each layer would have said, at each state."""
    name = _names(about["run"])
    loss, top, top_p = (kept[1](f"lens_{k}") for k in ("loss", "top", "top_p"))
    show.caption(
        f"After position {position}, ",
        code(tokens.shown(read.texts[position]).strip("\n") or "␣"),
        ", comes ",
        code(tokens.shown(read.texts[position + 1]).strip("\n") or "␣"),
        ": loss and likeliest token, layer by layer",
    )
    rows = []
    for i in range(loss.shape[1]):
        row: dict[str, Any] = {"after": "embedding" if i == 0 else f"layer {i - 1}"}
        for k, state in enumerate(about["states"]):
            row[f"loss at {state:,}"] = float(loss[k, i, position])
            row[f"likeliest at {state:,}"] = (
                f"{name(int(top[k, i, position]))!r} {100 * float(top_p[k, i, position]):.0f}%"
            )
        rows.append(row)
    numbers = {
        f"loss at {s:,}": st.column_config.NumberColumn(format="%.3f") for s in about["states"]
    }
    show.frame(rows, column_config=numbers)
