"""What `forensics import` is told beside the source; what is left out, the source must say."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from forensics.errors import ForensicsError

# what only concerns checkpoints, and what only concerns data: flag → the option's name
OF_CHECKPOINTS = {"--steps": "steps", "--stage": "stage", "--link": "link"}
OF_DATA = {"--data": "data", "--order": "order", "--dtype": "dtype"}


@dataclass(frozen=True)
class ImportOptions:
    """Flags override what the run's own configuration says."""

    format: str | None = None  # None: recognised by content
    # where its token files lie: the files, or folders of them; of a model alone, a text source too
    data: tuple[str, ...] = ()
    order: Path | None = None  # sequence ids in the order they were read
    dtype: str | None = None  # of bare token files
    sequence_length: int | None = None  # T
    batch: int | None = None  # sequences a step
    logs: tuple[Path, ...] = ()
    log_run: str | None = None  # which of several runs in the log
    log_step_base: int | None = None  # the log's number of the first step; None: by its trainer
    steps: tuple[int, ...] = ()  # checkpoints to bring in; empty: all
    stage: str | None = None
    link: bool = False  # leave the weights where they are
    tokenizer: str | None = None  # bytes, or the path of a tokenizer.json
    settings: tuple[str, ...] = ()  # section.key=value, over the recipe that was read

    def refuse_for_log(self) -> None:
        """Refuse what a log alone cannot have. Errors: usage."""
        flags = OF_CHECKPOINTS | OF_DATA | {"--tokenizer": "tokenizer"}
        given = [flag for flag, option in flags.items() if getattr(self, option)]
        if given:
            raise ForensicsError(
                "usage",
                f"wanted a log alone, found {given[0]} beside it",
                "a log has neither checkpoints nor data: give the run's folder as SOURCE and the"
                " log with --log",
            )
