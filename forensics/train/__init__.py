"""The one training loop: state, advance, schedule, checkpoints, runs.

The package is also the function `forensics.train.loop.train`: `from forensics import train` gives
something to call.
"""

from forensics.lazy import make_callable

make_callable(__name__, "forensics.train.loop", "train")
