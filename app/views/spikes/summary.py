"""The sentences about one spike: its size, what moved first, and where the rise sits."""

from __future__ import annotations

from typing import Any

from app import data, formatting, safe_html
from app.navigation import link
from app.safe_html import Part, accent, code, strong
from app.views.spikes.proof import replayed

STATISTICS = {
    "attn_logit_max": "largest attention logit",
    "rms_t": "size of the update (rms_t)",
    "staleness": "staleness of the second moment",
    "resid_grad_rms": "gradient into the block",
    "grad_norm": "gradient norm",
    "loss": "loss",
}
SHORT = {
    "attn_logit_max": "attention logit",
    "resid_grad_rms": "gradient",
    "grad_norm": "gradient norm",
}
KINDS = {
    "batch": "gone with the next batch",
    "fast": "a fast spike",
    "slow": "a slow spike",
}
NEARLY_ALL = 0.85  # of the sequences, from which the batch is high as a whole


def draw_verdict(run: str, spike: dict[str, Any], alarms: list[dict[str, Any]]) -> None:
    """Draw what happened and what moved first; then what replays showed."""
    step = spike["step"]
    replays = replayed(run, spike)
    hedge: list[Part] = [
        "What moved first is not thereby the cause. To prove a cause, train the steps again without"
        " the sequences (Forks)"
    ]
    if data.is_log_alone(run):
        hedge = ["What moved first is not thereby the cause, and a log alone cannot prove one"]
    elif spike["metric"] in ("loss", "grad_norm"):
        of = "" if spike["metric"] == "loss" else " --of grad_norm"
        hedge += [", or run ", code(f"replay blame {run} --spike {step}{of}")]
    hedge.append(".")
    safe_html.verdict(
        title_of(spike),
        *moved_first(spike, alarms),
        *_excess(run, step),
        hedge=[] if any(replay.proves for replay in replays) else hedge,
    )
    for replay in replays:
        safe_html.note(*replay.sentence)


def title_of(spike: dict[str, Any]) -> str:
    """Say from where to where it rose, how far that is, when it was over and its kind."""
    step = formatting.count(spike["step"])
    if spike["kind"] == "nonfinite":
        where = f", first in {spike['tensor']}" if spike["tensor"] else ""
        return f"Step {step}: {spike['metric'] or 'a value'} is not finite{where}"
    if spike["metric"] == "loss":
        rise = f"loss {formatting.loss(spike['baseline'])} → {formatting.loss(spike['value'])}"
        rise += " nats/token"
    else:
        rise = f"gradient norm {formatting.number(spike['baseline'])}"
        rise += f" → {formatting.number(spike['value'])}"
    back = spike["recovered_at"]
    over = (
        f"back in {formatting.steps(back - spike['step'])}"
        if back is not None
        else "not back since"
    )
    return f"Step {step}: {rise}, {formatting.sigma(spike['sigma'])} above its past, {over}" + (
        f" ({KINDS[spike['spike_kind']]})" if spike["spike_kind"] else ""
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
    """Return a tensor's name without `.weight`, which most have."""
    return tensor.removesuffix(".weight")


def name_of(alarm: dict[str, Any]) -> str:
    """`largest attention logit of L5.H3`."""
    statistic = STATISTICS[alarm["statistic"]]
    return statistic if alarm["kind"] == "step" else f"{statistic} of {place_of(alarm)}"


def label_of(alarm: dict[str, Any]) -> str:
    """`L5.H3 attention logit`: as short as the axis of a chart has room for."""
    return f"{place_of(alarm)} {SHORT.get(alarm['statistic'], alarm['statistic'])}"


def moved_first(spike: dict[str, Any], alarms: list[dict[str, Any]]) -> list[Part]:
    """Say which statistic left its normal range first, else which did at the step."""
    step = formatting.count(spike["step"])
    clear = [alarm for alarm in alarms if not alarm["drifting"]]
    before = [alarm for alarm in clear if alarm["lead"] > 0]
    if not clear:
        return [f"No recorded statistic left its normal range (6σ) up to step {step}. "]
    if not before:
        largest = next((alarm for alarm in clear if alarm["kind"] != "step"), clear[0])
        return [
            f"No recorded statistic left its normal range before step {step}. At step {step}, ",
            strong(f"{len(clear):,}"),
            " did; the largest is the " if len(clear) > 1 else " did: the ",
            accent(name_of(largest)),
            f", {formatting.sigma(abs(largest['z']))} from its past. ",
        ]
    first = before[0]
    sentence: list[Part] = [
        "First to leave its normal range: the ",
        accent(name_of(first)),
        f", {formatting.steps(first['lead'], 'before')}. ",
    ]
    stale = next((alarm for alarm in before if alarm["kind"] == "tensor"), None)
    if stale is not None and stale is not first:
        sentence += [
            "The first tensor whose update or second moment did: ",
            strong(brief(stale["tensor"])),
            f", {formatting.steps(stale['lead'], 'before')}. ",
        ]
    return sentence


def _excess(run: str, step: int) -> list[Part]:
    """Say how much of the rise is in the worst eighth of the batch, and what that points to."""
    rows = data.rows(
        "excess_by_sequence", run=run, step=step, window=(max(0, step - 256), step + 1)
    )
    if len(rows) < 4 or not (rows[0]["batch_excess"] or 0) > 0:
        return []
    worst = rows[: max(1, round(len(rows) / 8))]
    share = sum(row["share"] for row in worst)
    slots = ", ".join(str(row["slot"]) for row in worst[:4])
    high = sum(bool(row["apart"]) for row in rows)
    reading = (
        "That points to the state of the model, or to a batch that is unusual throughout."
        if high / len(rows) >= NEARLY_ALL
        else "The others do not, which points to the data."
    )
    return [
        strong(formatting.share(share)),
        f" of the rise of the batch's loss is in {len(worst)} of its {len(rows)} sequences (slots"
        f" {slots}{', …' if len(worst) > 4 else ''}). ",
        strong(f"{high} of the {len(rows)}"),
        f" sequences stand apart: 3σ or more above those of the 64 steps before. {reading}",
    ]


def draw_next_steps(run: str, spike: dict[str, Any], alarms: list[dict[str, Any]]) -> None:
    """Draw links to what can be looked at and done next; a log alone has none of it."""
    if data.is_log_alone(run):
        return
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
    head = next(
        (alarm for alarm in alarms if alarm["kind"] == "head" and not alarm["drifting"]), None
    )
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
