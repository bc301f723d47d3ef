"""Replay: re-run a window of training exactly, or with a difference, and compare.

from replay import fork, verify
"""

from typing import TYPE_CHECKING

from forensics.lazy import getter

if TYPE_CHECKING:
    from replay.forks.run import fork
    from replay.verify import verify

__all__ = ["fork", "verify"]
__getattr__ = getter(__name__, {"fork": "replay.forks.run", "verify": "replay.verify"})
