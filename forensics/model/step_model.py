"""What stays the same from step to step and is no part of the state."""

from __future__ import annotations

from dataclasses import dataclass

from forensics.model.decoder import Decoder


@dataclass(frozen=True)
class StepModel:
    """What stays the same from step to step and is no part of the state."""

    decoder: Decoder
    micro_batch: int  # sequences
    optimizer: str  # fused | foreach | loop
    decayed: frozenset[str]
    device: str
    eot: int  # id of the end-of-text token, which ends a document
