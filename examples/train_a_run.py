"""Train a run, record every step, and save states it can be replayed from.

python examples/train_a_run.py [RUNS]
"""

import sys
from pathlib import Path

from forensics import config, train

runs = Path(sys.argv[1] if len(sys.argv) > 1 else "runs")

# A recipe is a file or a packaged name; settings change single keys, as `--set` does.
recipe = config.load(Path(__file__).with_name("tiny.toml"), ["train.weight_decay=0.05"])
outcome = train(recipe, name="tiny", recipe_name="tiny", runs=runs)

print(f"{outcome.run}: {outcome.steps} steps, last loss {outcome.final_loss:.3f} nats per token")
