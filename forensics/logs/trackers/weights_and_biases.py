"""Weights & Biases, by its own package: a run of the project WHERE, or an offline one."""

from __future__ import annotations

from collections.abc import Mapping

import xxhash

from forensics.logs.trackers.protocol import TrackedRun
from forensics.logs.trackers.sent import Sent

PROJECT = "forensics"  # where none is named
PATIENCE = 30  # seconds for its server to answer, or for a person to log in


class WandbRun:
    """Logs to one run of wandb; a resumed run goes on with it."""

    def __init__(self, where: str, run: TrackedRun) -> None:
        import wandb

        folder = run.folder / "trackers"
        folder.mkdir(exist_ok=True)
        self._module = wandb
        self._sent = Sent(run.folder, "wandb", where)
        self._run = wandb.init(
            project=where or PROJECT,
            name=run.name,
            id=xxhash.xxh3_64_hexdigest(f"{run.name} {run.created}".encode()),
            resume="allow",
            config=dict(run.config),
            dir=str(folder),
            settings=wandb.Settings(
                silent=True, console="off", init_timeout=PATIENCE, login_timeout=PATIENCE
            ),
        )

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        """Send the numbers of a step, once."""
        if self._sent.begin(step):
            self._run.log(dict(numbers), step=step)

    def close(self) -> None:
        """Wait until all is sent."""
        self._sent.close()
        self._run.finish()
        self._module.teardown()  # an offline run's file is whole only then
