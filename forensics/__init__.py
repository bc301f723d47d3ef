"""The library: data order, model, trainer, recorder, detectors. Importing it loads no torch.

    from forensics import open_run, train

`train` is loaded with torch when it is called, `open_run` when it is named.
"""

import os
from typing import TYPE_CHECKING

from forensics.lazy import getter
from forensics.version import __version__

if TYPE_CHECKING:
    from forensics.train.loop import train
    from forensics.train.run import open_run

# Threads that wait for one another spin long by default; where another process holds a core, every
# parallel stretch then stalls for milliseconds. A short spin is as fast on an idle machine (0.175 s
# a step against 0.181), where none at all is not (0.256 s). It changes no bit, and counts only if
# it is set before torch is loaded.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

__all__ = ["__version__", "open_run", "train"]
__getattr__ = getter(__name__, {"open_run": "forensics.train.run", "train": "forensics.train"})
