"""Fork a run: the same steps without two of its batches, beside an exact control and placebos.

python examples/fork_a_run.py [RUNS]          after examples/train_a_run.py
"""

import sys
from pathlib import Path

from replay import fork
from replay.forks.spec import Spec
from replay.interventions.order import Drop

runs = Path(sys.argv[1] if len(sys.argv) > 1 else "runs")

# From state 20 to 30, batches 22 and 23 are left out; the placebos leave out two others each.
spec = Spec(parent="tiny", first=20, last=30, interventions=(Drop(22, 24),), placebos=3)
result = fork(spec, runs)
final = result.final

print(f"{result.fork}, control: {result.control.level}")
print(f"loss {final.loss_control:.3f} → {final.loss_fork:.3f} nats per token, held out")
print(f"KL {final.logit_kl:.4f} nats, {final.effect:.1f} times the placebos' median:", end=" ")
print(final.verdict)
