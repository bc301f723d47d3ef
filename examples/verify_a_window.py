"""Replay a window of a run unaltered, and compare every bit and every recorded loss.

python examples/verify_a_window.py [RUNS]     after examples/train_a_run.py
"""

import sys
from pathlib import Path

from replay import verify

runs = Path(sys.argv[1] if len(sys.argv) > 1 else "runs")

report = verify(runs, "tiny", 10, 30)

print(
    f"steps 10 to {report.verified_to}: {report.compared} compared, bit for bit: {report.bitwise}"
)
