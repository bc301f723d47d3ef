"""The sentences about what blame found."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from app import formatting
from app.safe_html import Part, strong


def without_tokens(d: Mapping[str, Any]) -> bool:
    """Whether its sequences have an influence, and their tokens none that was kept."""
    return any(c["influence"] is not None and not c.get("tokens") for c in d["candidates"])


def title_of(d: Mapping[str, Any]) -> str:
    """`Step 400: data. Excess 1.567 nats/token, 8σ above its past`."""
    spike, total = d["spike"], d["excess"]["total"]
    size = (
        f", {formatting.sigma(spike['sigma'])} above its past" if spike["sigma"] is not None else ""
    )
    return (
        f"Step {formatting.count(spike['step'])}: {d['verdict']} · excess {formatting.loss(total)}"
        f" nats/token{size}"
    )


def sentence_of(d: Mapping[str, Any]) -> list[Part]:
    """The verdict's own sentence, which carries its numbers; then what it rests on."""
    said: list[Part] = [d["sentence"]]
    if d["proof"] and "p =" not in d["sentence"]:
        said += [
            " p = ",
            strong(formatting.number(d["proof"]["p"])),
            f", N = {len(d['proof']['random'])} random removals.",
        ]
    return said


def method_of(d: Mapping[str, Any]) -> str:
    first = d["window"][0]
    return (
        f"By {d['method']} over batches {formatting.count(first)} to {formatting.count(d['spike']['step'])},"
        f" on {d['probes']}; control: {d['control']['sentence']}. {d['replays']} replays of"
        f" {formatting.count(d['steps_replayed'])} steps, {d['seconds']:.0f} s."
    )
