"""trackio, by its own package: a run of the project WHERE on this machine."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping

from forensics.logs.trackers.protocol import TrackedRun
from forensics.logs.trackers.sent import Sent

PROJECT = "forensics"  # where none is named


class TrackioRun:
    """Logs to one run of trackio; a resumed run goes on with it."""

    def __init__(self, where: str, run: TrackedRun) -> None:
        import trackio

        self._module = trackio
        self._sent = Sent(run.folder, "trackio", where)
        with contextlib.redirect_stdout(io.StringIO()):  # stdout is the command's own
            self._run = trackio.init(
                project=where or PROJECT,
                name=run.name,
                resume="allow",
                config=dict(run.config),
                auto_log_gpu=False,
                auto_log_cpu=False,
            )

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        """Send the numbers of a step, once."""
        if self._sent.begin(step):
            self._run.log(dict(numbers), step=step)

    def close(self) -> None:
        """Wait until all is written."""
        self._sent.close()
        with contextlib.redirect_stdout(io.StringIO()):
            self._module.finish()  # and not by the run itself, which would end again at exit
