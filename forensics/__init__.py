"""The library: data order, model, trainer, recorder, detectors. Importing it loads no torch."""

import os

# Threads that wait for one another spin by default; where another process holds a core, every parallel stretch then
# stalls for milliseconds (measured: 570 ms against 16 to 32 for one call). It changes no bit, and counts only if it
# is set before torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

__version__ = "0.1.0"
