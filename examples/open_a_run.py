"""Open a run: what it read at a step, what was recorded there, and its exact state at any step.

python examples/open_a_run.py [RUNS]          after examples/train_a_run.py
"""

import sys
from pathlib import Path

from forensics import open_run

runs = Path(sys.argv[1] if len(sys.argv) > 1 else "runs")
run = open_run(runs, "tiny")

batch = run.batch_at(30)  # a pure function of the step: tokens (B, T+1), and where they came from
first_document = run.batches.provenance(batch)[0][0].document
steps = run.table("steps", ["step", "loss", "state_digest"]).to_pylist()
state = run.state_at(31)  # no checkpoint holds it: the one before is replayed

print(f"batch 30: {tuple(batch.tokens.shape)} tokens, the first from document {first_document}")
print(f"loss {steps[30]['loss']:.3f} nats per token")
print("state 31 bit for bit as recorded:", state.digest() == steps[30]["state_digest"])
