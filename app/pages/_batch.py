"""Which text, which tokens? The batch's sequences by loss, one of them token by token, and what can
be done about it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import streamlit as st

from app import data, reading, show, tokens, words, work
from app.charts import batch as charts
from app.charts import theme
from app.pages import chosen_run, link
from app.reading import Reading
from app.selection import Selection, goto, picked
from app.show import Part, accent, code, strong
from app.step import chosen_step

BUILD: dict[str, Any] = {
    "part": "build",
    "fork": None,
    "first": None,
    "last": None,
}  # a new fork, not one of the URL
APART = 3  # σ above the sequences before, from which a sequence is named


def page() -> None:
    selection = chosen_run()
    selection = chosen_step(selection) if selection is not None else None
    if selection is None:
        return
    run, step = str(selection.run), int(selection.step or 0)
    rows = data.rows("batch_at", run=run, step=step, window=(max(0, step - 64), step + 1))
    if not rows:
        _unrecorded(run, step)
        return
    row = next((r for r in rows if r["slot"] == selection.slot), rows[0])
    if selection.slot is not None and row["slot"] != selection.slot:
        show.nothing(
            f"Batch {words.count(step)} has no slot {selection.slot}: it has {len(rows)} sequences."
        )
    left, right = st.columns([4, 1], vertical_alignment="top")
    with left:
        show.verdict(title_of(step, rows), *worst_of(rows), hedge=_hedge(run, selection, step))
    with right:
        _ways_on(selection, step, row)
    _overview(rows, row, data.header(run))
    read, beside = st.columns([1.9, 1])
    with read:
        found = _text(run, step, row, selection)
    if found is not None:
        with beside:
            _beside(run, step, row, selection, *found)


# ---- the sentence


def title_of(step: int, rows: Sequence[dict[str, Any]]) -> str:
    """`Batch 1,342: loss 5.380 nats/token, +3.110 over the steps before`."""
    weight = sum(r["weight"] or 0 for r in rows)
    finite = all(r["loss"] is not None and math.isfinite(r["loss"]) for r in rows if r["weight"])
    loss = (
        sum(r["loss"] * r["weight"] for r in rows if r["weight"]) / weight
        if weight and finite
        else None
    )
    past = rows[0]["baseline"]
    if loss is None:
        return f"Batch {words.count(step)}: " + (
            "no target counted" if not weight else "the loss is not finite"
        )
    gap = f", {words.gap(loss - past)} over the 64 steps before" if past is not None else ""
    return f"Batch {words.count(step)}: loss {words.loss(loss)} nats/token{gap}"


def worst_of(rows: Sequence[dict[str, Any]]) -> list[Part]:
    """How much of the excess its worst sequence holds, which document that is, and whether the
    others are odd too.
    """
    top = rows[0]
    apart = [r for r in rows if r["z"] is not None and r["z"] >= APART]
    where: list[Part] = (
        [code(_place(top))] if top["path"] is not None else ["a sequence that an intervention made"]
    )
    said: list[Part] = [
        f"Its worst of {len(rows)} sequences, ",
        accent(f"slot {top['slot']}"),
        f" (loss {words.loss(top['loss'])}), ",
    ]
    total = sum(r["excess"] for r in rows if r["excess"] is not None and math.isfinite(r["excess"]))
    if top["share"] is not None and total > 0 and top["share"] > 0:
        said += ["holds ", strong(words.share(top["share"])), " of the excess; it reads "]
    else:
        said += ["reads "]
    said += [*where, ". "]
    if apart:
        sources = sorted({r["source"] for r in apart if r["source"]})
        said += [
            strong(f"{len(apart)} of {len(rows)}"),
            f" stand {APART}σ or more above the sequences of the 64 steps before",
        ]
        if len(sources) == 1 and len({r["source"] for r in rows}) > 1:
            said += [", all of them of the source ", code(sources[0])]
        share = sum(r["share"] for r in apart if r["share"] is not None)
        said += (
            [" and hold ", strong(words.share(share)), " of the excess."]
            if len(apart) > 1 and share > 0 and total > 0
            else ["."]
        )
    elif top["baseline"] is not None:
        said += [f"None stands {APART}σ above the sequences of the 64 steps before."]
    return said


def _place(row: dict[str, Any]) -> str:
    return f"{row['source']}: {row['path']}"


def _hedge(run: str, selection: Selection, step: int) -> list[Part]:
    return [
        "A share of the loss, not proof of cause. Proof: replay without it (Forks), or ",
        code(f"replay blame {run} --spike {selection.spike or step} --tokens"),
        ".",
    ]


def _ways_on(selection: Selection, step: int, row: dict[str, Any]) -> None:
    run = selection.run
    if row["document"] is not None:
        link(
            "forks",
            "Fork without this document",
            **BUILD,
            kind="remove-documents",
            run=run,
            step=step,
            document=row["document"],
        )
    link(
        "forks",
        "Fork without this sequence",
        **BUILD,
        kind="remove-sequences",
        run=run,
        step=step,
        slot=row["slot"],
        document=None,
    )
    link("attention", "Attention on this sequence", run=run, step=step, slot=row["slot"])
    link("microscope", "Inside the step", run=run, step=step)


def _unrecorded(run: str, step: int) -> None:
    show.verdict(
        f"Batch {words.count(step)}",
        "Its sequences were not recorded, so their losses are not known here.",
    )
    show.nothing(
        "What it read can be printed from the data order:",
        f"forensics batch {run} {step}",
        'record.level = "light" records each sequence\'s loss at every step.',
    )


# ---- the sequences


def bars_of(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A bar for each sequence; without a past to stand apart from, as quiet as those within 3σ."""
    top = _top(rows)
    return [
        {
            **{k: r[k] for k in ("slot", "sequence", "share", "z", "source", "path")},
            "level": r["level"] or 0,
            "loss": words.loss(r["loss"]),
            "place": float(r["place"]),
            "place2": r["place"] + 0.88,
            "zero": 0.0,
            "shown": (
                r["loss"]
                if r["loss"] is not None and math.isfinite(r["loss"])
                else top * 1.1
                if r["loss"] is not None
                else 0.0
            ),
        }
        for r in rows
    ]


def _top(rows: Sequence[dict[str, Any]]) -> float:
    """The largest finite loss."""
    return max(
        [r["loss"] for r in rows if r["loss"] is not None and math.isfinite(r["loss"])], default=1.0
    )


def _overview(
    rows: Sequence[dict[str, Any]], chosen: dict[str, Any], header: dict[str, Any]
) -> None:
    import pyarrow as pa

    vocabulary = (header.get("shape") or {}).get("vocabulary")
    bars, top = bars_of(rows), _top(rows)
    past = rows[0]["baseline"]
    lines = (
        [{"value": past, "what": f"the 64 steps before: {words.loss(past)}"}]
        if past is not None
        else []
    )
    if vocabulary and top > 0.6 * math.log(vocabulary):
        lines.append(
            {"value": math.log(vocabulary), "what": f"ln V, guessing: {math.log(vocabulary):.3f}"}
        )
    show.caption(
        "Loss by sequence (nats/token), highest first · colour: σ from the sequences of the 64"
        f" steps before, grey under 3 · click one (now slot {chosen['slot']})"
    )
    schema = pa.schema([("value", pa.float64()), ("what", pa.string())])
    one = [b for b in bars if b["slot"] == chosen["slot"]]
    theme.draw(
        theme.filled(charts.sequences(show.dark()), last=float(len(rows))),
        {
            "bars": pa.Table.from_pylist(bars),
            "lines": pa.Table.from_pylist(lines, schema=schema),
            "chosen": pa.Table.from_pylist(one),
        },
        key="sequences",
        on_select=_clicked_bar,
    )


def slot_of(event: Any) -> dict[str, int] | None:
    """What a click on a bar changes in the URL."""
    mark = picked(event, "bar", "slot")
    return {"slot": int(mark["slot"])} if mark else None


def _clicked_bar() -> None:
    change = slot_of(st.session_state["sequences"])
    if change:
        goto(**change)


# ---- its text


Found = tuple[Reading, list[float | None] | None]


def _text(run: str, step: int, row: dict[str, Any], selection: Selection) -> Found | None:
    """The sequence token by token; returns it with the loss of each token (None: not known),
    position 0 first.

    None, with what reads it offered, where an intervention made it and nobody has read it yet.
    """
    slot = row["slot"]
    repeats = f" · {words.share(row['repeat_share'])} in repeats" if row["repeat_share"] else ""
    number = words.count(row["sequence"]) if row["sequence"] >= 0 else "made by an intervention"
    show.heading(f"Slot {slot} · sequence {number} · loss {words.loss(row['loss'])}{repeats}")
    if row["sequence"] < 0 and slot not in reading.made(run, step):
        _offer(
            run,
            ["batch", run, str(step)],
            "Read it from the fork's stream",
            "It stands in no document: what the fork read here is known to its own stream alone.",
        )
        return None
    found = reading.sequence(run, step, slot, row["sequence"])
    known = reading.token_losses(run, step, slot)
    influence = reading.influences(run, step, slot)
    losses: list[float | None] | None = [None, *known[0]] if known is not None else None
    by_influence = influence is not None and (selection.metric == "influence" or known is None)
    if influence is not None and known is not None:
        _measures(by_influence)
    if known is not None and known[1] == "tolerance only" and not by_influence:
        show.amber(
            strong("Tolerance only: "),
            "the replayed state is not the recorded one bit for bit on this machine.",
        )
    if by_influence and influence is not None:
        levels, under = influence_levels(influence[0]), set[int]()
        show.caption(
            f"Colour: influence on the spike at {words.count(influence[1])} by metagradient ·"
            " orange raises it, blue lowers it · largest"
            f" {words.number(max((abs(x) for x in influence[0] if x is not None), default=0.0))}"
            " nats · click a token"
        )
    else:
        levels, under = loss_levels(losses or [None] * len(found.tokens), found.vocabulary)
        if known is not None:
            how = {"recorded": "recorded", "replayed": "from the exact state, replayed"}.get(
                known[1], known[1]
            )
            show.caption(
                f"Colour: loss of the token, 0 … ln V = {math.log(found.vocabulary):.3f} nats ·"
                f" underlined: above ln V, worse than guessing · {how} · click a token"
            )
        else:
            show.caption(
                "No colour: the losses of single tokens are not known at this step · click a token"
            )
    titles = [
        _title(i, found.tokens[i], losses, influence[0] if influence else None)
        for i in range(len(found.tokens))
    ]
    tokens.tokens(
        found.texts,
        levels,
        underlined=under,
        titles=titles,
        key="text",
        chosen=selection.position,
        on_click=_clicked_token,
    )
    if known is None:
        _offer(
            run,
            ["batch", run, str(step), "--token-losses"],
            "Compute the token losses",
            "The loss of each token was not recorded here (only dense windows record it). From the"
            " exact state, by replay:",
        )
    else:
        _by_token(found, losses or [], selection.position)
    _documents(found, losses)
    if influence is None and selection.spike is not None and step <= selection.spike:
        _offer_influence(run, selection.spike)
    return found, losses


def _offer_influence(run: str, spike: int) -> None:
    """Colour by influence: what computes it, or why this sequence has none."""
    if reading.blamed_by_token(run, spike):
        show.caption(
            f"No colour by influence: blame of the spike at {words.count(spike)} does not count"
            " this sequence among its strongest."
        )
        return
    _offer(
        run,
        ["blame", run, "--spike", str(spike), "--tokens"],
        "Compute the influence of each token",
        "By influence instead: what each token of the strongest sequences does to the spike at"
        f" {words.count(spike)}, by metagradient; some minutes on a small run:",
        program="replay",
    )


def _by_token(found: Reading, losses: Sequence[float | None], position: int | None) -> None:
    """The same losses as bars, in the order of the text."""
    import pyarrow as pa

    top = math.log(found.vocabulary)
    worst = max((x for x in losses if x is not None and math.isfinite(x)), default=top)
    texts = [tokens.shown(t) for t in found.texts]
    bars = [
        {
            "place": i,
            "position": i + 0.06,
            "position2": i + 0.94,
            "zero": 0.0,
            "loss": x if math.isfinite(x) else worst * 1.1,
            "level": tokens.level(x, found.vocabulary)[0],
            "reads": texts[i],
            "after": "".join(texts[max(0, i - 5) : i]),
        }
        for i, x in enumerate(losses)
        if x is not None
    ]
    show.caption("Loss by token, in the order of the text (nats) · dashed: ln V")
    theme.draw(
        theme.filled(charts.tokens(show.dark()), positions=[0, len(found.tokens)]),
        {
            "tokens": pa.Table.from_pylist(bars),
            "top": pa.table({"value": [top]}),
            "here": pa.Table.from_pylist(
                [b for b in bars if b["place"] == position],
                schema=pa.Table.from_pylist(bars).schema,
            ),
        },
        key="by-token",
        on_select=_clicked_bar_of_token,
    )


def position_of(event: Any) -> dict[str, int] | None:
    """What a click on a token's bar changes in the URL."""
    mark = picked(event, "token", "place")
    return {"position": int(mark["place"])} if mark else None


def _clicked_bar_of_token() -> None:
    change = position_of(st.session_state["by-token"])
    if change:
        goto(**change)


def loss_levels(losses: Sequence[float | None], vocabulary: int) -> tuple[list[int], set[int]]:
    """Strength of each token by its loss, and which are above ln V."""
    both = [tokens.level(x, vocabulary) for x in losses]
    return [strength for strength, _ in both], {i for i, (_, above) in enumerate(both) if above}


def influence_levels(values: Sequence[float | None]) -> list[int]:
    """−6 … 6 by the square root of |influence| over the largest: blue lowers the spike, orange
    raises it.
    """
    top = max((abs(x) for x in values if x is not None and math.isfinite(x)), default=0.0)
    found = []
    for x in values:
        size = (
            0
            if x is None or not top or not math.isfinite(x)
            else round((tokens.LEVELS - 1) * math.sqrt(abs(x) / top))
        )
        found.append(-size if x is not None and x < 0 else size)
    return found


def _title(
    i: int,
    token: int,
    losses: Sequence[float | None] | None,
    influence: Sequence[float | None] | None,
) -> str:
    said = f"position {i} · token {token}"
    if losses is not None and losses[i] is not None:
        said += f" · loss {words.loss(losses[i])}"
    if influence is not None and influence[i] is not None:
        said += f" · influence {words.number(influence[i])}"
    return said


def _measures(by_influence: bool) -> None:
    st.session_state["colour-by"] = "influence" if by_influence else "loss"
    st.segmented_control(
        "Colour by",
        ["loss", "influence"],
        key="colour-by",
        label_visibility="collapsed",
        on_change=lambda: goto(metric=st.session_state["colour-by"] or "loss"),
    )


def _clicked_token() -> None:
    at = tokens.clicked_token(st.session_state["text"])
    if at is not None:
        goto(position=at)


def _start(run: str, program: str, arguments: list[str]) -> None:
    work.start(run, program, arguments)


def _offer(
    run: str, arguments: list[str], label: str, why: str, *, program: str = "forensics"
) -> None:
    """What is not known is computed as work of its own: why, the command, a button; then how it
    goes.
    """
    mine = [w for w in work.listed(run) if w.program == program and list(w.arguments) == arguments]
    if not any(w.status == "running" for w in mine):
        show.nothing(why, f"{program} {' '.join(arguments)}")
        st.button(
            label,
            type="primary",
            key=f"offer-{arguments[0]}",
            on_click=_start,
            args=(run, program, arguments),
        )
    if mine and mine[0].status != "done":
        work.panel(run, most=3, key=f"{arguments[0]}-work")


# ---- beside it


def _beside(
    run: str,
    step: int,
    row: dict[str, Any],
    selection: Selection,
    found: Reading,
    losses: list[float | None] | None,
) -> None:
    at = selection.position
    if at is not None and at < len(found.tokens):
        _token(run, step, row["slot"], at, found, losses, selection)
    if losses is not None:
        _costly(found, losses)


def _token(
    run: str,
    step: int,
    slot: int,
    at: int,
    found: Reading,
    losses: list[float | None] | None,
    selection: Selection,
) -> None:
    """The chosen token: its loss, its document, how often the state had met it, and a fork without
    the document.
    """
    with st.container(border=True, key="token-card"):
        show.heading(
            "Token ",
            code(tokens.shown(found.texts[at]).strip("\n") or "␣"),
            f" · id {found.tokens[at]} · position {at}",
        )
        loss = losses[at] if losses is not None else None
        if at == 0:
            show.note("The first token is read, not predicted: it has no loss.")
        elif loss is not None:
            above = (
                ", above ln V: worse than guessing"
                if tokens.level(loss, found.vocabulary)[1]
                else ""
            )
            probability = (
                f", probability {words.number(math.exp(-loss))}" if math.isfinite(loss) else ""
            )
            show.note("Loss ", accent(words.loss(loss)), f" nats{probability}{above}.")
        span = found.span_of(at)
        if span is None:
            show.note("An intervention made this sequence: it comes from no document.")
        else:
            show.note(
                "Document ",
                strong(span.document),
                ": ",
                code(f"{span.source}: {span.path}"),
                f", token {words.count(span.offset + at - span.start)} of it.",
            )
            before = data.rows("document_exposure", run=run, document=span.document, last=step)
            if before:
                show.note(
                    f"Batches before this one held it in {words.count(len(before))} sequences,"
                    f" first at step {words.count(before[0]['step'])}, last at"
                    f" {words.count(before[-1]['step'])}."
                )
            else:
                show.note("No batch before this one held any of it.")
        _met(run, step, found.tokens[at])
        if span is not None:
            link(
                "forks",
                "Fork without this document",
                **BUILD,
                kind="remove-documents",
                run=run,
                step=step,
                slot=slot,
                document=span.document,
            )
        link("tokens", "This token over the run", run=run, token=found.tokens[at])


def _met(run: str, step: int, token: int) -> None:
    rows = data.rows("token_exposure", run=run, step=step, token=token)
    if not rows:
        show.caption(
            "How often the state had met this token is not recorded: ",
            code(f"forensics tokens {run}@{step}"),
        )
        return
    r = rows[0]
    first = f", first at step {words.count(r['first_seen'])}" if r["first_seen"] is not None else ""
    counts = (
        f"{words.count(r['exposure_out'])} times a target, {words.count(r['exposure_in'])} times an"
        " input"
    )
    show.note(f"By state {words.count(r['step'])}: {counts}{first}.")


def _documents(found: Reading, losses: list[float | None] | None) -> None:
    if not found.spans:
        return
    show.heading("What it reads")
    rows = []
    for s in found.spans:
        own = [x for x in (losses or [])[s.start : s.stop] if x is not None and math.isfinite(x)]
        rows.append(
            {
                "document": s.document,
                "source": s.source,
                "path": s.path,
                "from token": s.offset,
                "tokens": s.stop - s.start,
                "loss": sum(own) / len(own) if own else None,
            }
        )
    show.frame(
        rows if losses is not None else [{k: v for k, v in r.items() if k != "loss"} for r in rows],
        column_config={"loss": st.column_config.NumberColumn(format="%.3f")},
    )


def _costly(found: Reading, losses: list[float | None], most: int = 8) -> None:
    """The tokens that cost most, with what stands before them."""
    order = sorted(
        (i for i, x in enumerate(losses) if x is not None), key=lambda i: -(losses[i] or 0.0)
    )[:most]
    if not order:
        return
    show.heading("Its costliest tokens")
    show.frame(
        [
            {
                "position": i,
                "loss": losses[i],
                "token": tokens.shown(found.texts[i]).replace(" ", "␣"),
                "after": "".join(found.texts[max(0, i - 6) : i]),
            }
            for i in order
        ],
        column_config={"loss": st.column_config.NumberColumn(format="%.3f")},
    )
