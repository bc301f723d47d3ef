"""Looking at a run or fork: a batch's text, its spikes, its integrity, an export of any state."""

from __future__ import annotations
