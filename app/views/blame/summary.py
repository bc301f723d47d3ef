"""The sentences about what blame found."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from app import formatting
from app.safe_html import Part, spoken, strong

VERDICTS = {
    "data": "the cause is the data",
    "data and state": "the cause is data and state together",
    "data and policy": "the cause is data and policy together, both are needed",
    "data or policy": "the cause is data or policy, either is enough",
    "policy": "the cause is the policy",
    "state or policy": "the cause is the state or the policy",
    "before the window": "the cause lies before the window",
    "numerics": "the cause is numerics",
    "cannot tell": "the cause cannot be told",
}
BLAMES_DATA = ("data", "data and state", "data and policy")


def lacks_tokens(blame: Mapping[str, Any]) -> bool:
    """Return whether its sequences have an influence, and their tokens none that was saved."""
    return any(
        candidate["influence"] is not None and not candidate.get("tokens")
        for candidate in blame["candidates"]
    )


def title_of(blame: Mapping[str, Any]) -> str:
    """Say the verdict, and how far the loss stood above its past."""
    spike, excess = blame["spike"], blame["excess"]["total"]
    size = f" ({formatting.sigma(spike['sigma'])})" if spike["sigma"] is not None else ""
    return (
        f"Step {formatting.count(spike['step'])}:"
        f" {VERDICTS.get(blame['verdict'], blame['verdict'])}. Its loss was"
        f" {formatting.loss(excess)} nats/token above its past{size}"
    )


def sentence_of(blame: Mapping[str, Any]) -> list[Part]:
    """Give the verdict's own sentence, then how it stands to windows without a spike."""
    return [*spoken(blame["sentence"]), *held_against(blame.get("proof") or {})]


def held_against(proof: Mapping[str, Any]) -> list[Part]:
    """Say p, and of how many windows without a spike; nothing where none was searched."""
    if proof.get("p") is None:
        return []
    N = len(proof["null"]["windows"])
    windows = f"{N} window{'s' * (N != 1)} without a spike"
    p = formatting.number(proof["p"])
    return [f" Held against the same search in {windows}: p = ", strong(p), "."]


def method_of(blame: Mapping[str, Any]) -> str:
    """Say how it was found, and what that took."""
    return (
        f"Method: {blame['method']} over batches {formatting.count(blame['window'][0])} to"
        f" {formatting.count(blame['spike']['step'])}, probed on {blame['probes']}. Control:"
        f" {blame['control']['sentence']}. It took {blame['replays']} replays of"
        f" {formatting.count(blame['steps_replayed'])} steps in all, {blame['seconds']:.0f} s."
    )
