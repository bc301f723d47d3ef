"""How a stream of tokens is cut into sequences: how long each is, and where the next begins.

    window_of("separate", 2048)   →  SequenceWindow(length=2049, stride=2049), of 2048 targets

Position t of a sequence is an input and position t+1 its target, so a sequence of n tokens has
n − 1 targets.
"""

from __future__ import annotations

from typing import NamedTuple

# shared: T+1 tokens, and the last is the next one's first; separate: T+1 tokens of its own
# (datatrove, Pythia's rows, Amber); inside: T tokens of its own (OLMo, OLMo-core)
KINDS = ("shared", "separate", "inside")


class SequenceWindow(NamedTuple):
    """Sequence i of a source is tokens i·stride … i·stride + length − 1 of its stream."""

    length: int  # tokens
    stride: int  # tokens from one sequence's first to the next one's

    @property
    def targets(self) -> int:
        """Count the targets of a sequence: all of its tokens but the first."""
        return self.length - 1

    @property
    def shared(self) -> int:
        """Count the tokens that a sequence has in common with the next: 1 or 0."""
        return self.length - self.stride

    def count(self, tokens: int) -> int:
        """Return how many whole sequences a stream of so many tokens holds."""
        return max(0, (tokens - self.shared) // self.stride)


def window_of(kind: str, sequence_length: int) -> SequenceWindow:
    """Return the window that a recipe's `data.window` and `data.sequence_length` (T) name."""
    T = sequence_length
    return {
        "shared": SequenceWindow(T + 1, T),
        "separate": SequenceWindow(T + 1, T + 1),
        "inside": SequenceWindow(T, T),
    }[kind]
