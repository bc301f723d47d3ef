"""The sentences about one spike: its size, what moved first, where the excess sits, and the next steps."""

from __future__ import annotations

from typing import Any

from app import data, formatting, safe_html
from app.navigation import link
from app.safe_html import Part, accent, code, strong
from app.views.spikes.proof import replayed

STATISTICS = {
    "attn_logit_max": "attention logit",
    "rms_t": "rms_t",
    "staleness": "staleness",
    "resid_grad_rms": "gradient into the block",
    "grad_norm": "gradient norm",
    "loss": "loss",
}


def draw_verdict(run: str, spike: dict[str, Any], alarms: list[dict[str, Any]]) -> None:
    said, proved = replayed(run, spike)
    step = spike["step"]
    hedge: list[Part] = [
        "Order in time, not proof of cause. Proof: replay without the sequences (Forks), or ",
        code(f"replay blame {run} --spike {step}"),
    ]
    safe_html.verdict(
        title_of(spike), *_moved(alarms), *_excess(run, step), hedge=[] if proved else hedge
    )
    for sentence in said:
        safe_html.note(*sentence)


def title_of(spike: dict[str, Any]) -> str:
    """`Step 1,342: loss 2.270 → 5.380 nats/token · fast (31σ, back in 9 steps)`."""
    step = formatting.count(spike["step"])
    if spike["kind"] == "nonfinite":
        where = f", first in {spike['tensor']}" if spike["tensor"] else ""
        return f"Step {step}: {spike['metric'] or 'a value'} is not finite{where}"
    is_loss = spike["metric"] == "loss"
    shown = formatting.loss if is_loss else formatting.number
    what = "loss" if is_loss else "gradient norm"
    unit = " nats/token" if is_loss else ""
    back = spike["recovered_at"]
    ended = f"back in {formatting.steps(back - spike['step'])}" if back is not None else "not back"
    return (
        f"Step {step}: {what} {shown(spike['baseline'])} → {shown(spike['value'])}{unit} ·"
        f" {spike['spike_kind']} ({formatting.sigma(spike['sigma'])}, {ended})"
    )


def place_of(alarm: dict[str, Any]) -> str:
    """`L5.H3`, `L2`, a tensor's name or `whole model`."""
    if alarm["kind"] == "head":
        return f"L{alarm['layer']}.H{alarm['head']}"
    return (
        f"L{alarm['layer']}"
        if alarm["kind"] == "layer"
        else brief(alarm["tensor"] or "whole model")
    )


def brief(tensor: str) -> str:
    """A tensor's name without `.weight`, which most have."""
    return tensor.removesuffix(".weight")


def _moved(alarms: list[dict[str, Any]]) -> list[Part]:
    """First to move, and the first second moment to be out of date, each with its lead."""
    clear = [a for a in alarms if not a["drifting"]]
    before = [a for a in clear if a["lead"] > 0]
    if not clear:
        return ["Nothing that is recorded left its own past by 6σ before or at this step. "]
    if not before:
        far = next((a for a in clear if a["kind"] != "step"), None)
        name: list[Part] = (
            [", the farthest ", accent(f"{place_of(far)} {STATISTICS[far['statistic']]}")]
            if far
            else []
        )
        return [
            "Nothing moved before it; ",
            strong(_counted(len(clear), "row")),
            " moved at the step itself",
            *name,
            ". ",
        ]
    first = before[0]
    said: list[Part] = [
        "First to move: ",
        accent(f"{place_of(first)} {STATISTICS[first['statistic']]}"),
        f", {formatting.steps(first['lead'], 'before')}. ",
    ]
    stale = next((a for a in before if a["kind"] == "tensor"), None)
    if stale is not None and stale is not first:
        said += [
            "Second moment out of date: ",
            strong(brief(stale["tensor"])),
            f", {formatting.steps(stale['lead'], 'before')}. ",
        ]
    return said


def _counted(n: int, noun: str) -> str:
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def _excess(run: str, step: int) -> list[Part]:
    """How much of the batch's excess sits in its worst eighth, and what that points to."""
    rows = data.rows("excess_by_sequence", run=run, step=step, window=(max(0, step - 64), step + 1))
    if len(rows) < 4 or not (rows[0]["batch_excess"] or 0) > 0:
        return []
    worst = rows[: max(1, round(len(rows) / 8))]
    share = sum(r["share"] for r in worst)
    slots = ", ".join(str(r["slot"]) for r in worst[:4])
    above = sum(r["above"] for r in rows) / len(rows)
    reading = (
        f"nearly all of the {len(rows)} stand above nine in ten of the sequences before, which"
        " points to the state, or to a batch that is odd throughout"
        if above >= 0.85
        else (
            f"{formatting.share(above)} of the {len(rows)} stand above nine in ten of the sequences"
            " before, the rest do not, which points to the data"
        )
    )
    return [
        "Of the batch's excess loss, ",
        strong(formatting.share(share)),
        (
            f" sits in {len(worst)} of {len(rows)} sequences (slots"
            f" {slots}{', …' if len(worst) > 4 else ''}); {reading}."
        ),
    ]


def draw_next_steps(run: str, spike: dict[str, Any], alarms: list[dict[str, Any]]) -> None:
    step = spike["step"]
    link("batch", "Read the batch", run=run, spike=step, step=step)
    link(
        "forks",
        "Fork without its worst sequences",
        part="build",
        fork=None,
        kind="remove-sequences",
        run=run,
        spike=step,
        step=step,
        slot=None,
        document=None,
    )
    head = next((a for a in alarms if a["kind"] == "head" and not a["drifting"]), None)
    if head is not None:
        link(
            "attention",
            f"Attention at L{head['layer']}.H{head['head']}",
            run=run,
            spike=step,
            step=step,
            layer=head["layer"],
            head=head["head"],
        )
    link("trace", "Inside the step", run=run, spike=step, step=step)
