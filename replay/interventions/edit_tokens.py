"""Edit the text of a window's sequences."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from forensics.step.batch import Batch, BatchStream
from replay.interventions import text_edit
from replay.interventions.flags import Flag, split, windowed
from replay.interventions.order import BatchesOfWindow
from replay.interventions.requirements import require
from replay.interventions.rows import Place, Slot, whole_rows

if TYPE_CHECKING:
    from forensics.train.run import Run


@dataclass(frozen=True)
class EditTokens(BatchesOfWindow):
    """Replace `find` by `replace` in the text of the window's sequences, each of which keeps its
    length.

    Weights stay with their positions. An edited row has no id any more; a row that an edit turns
    back has it again.
    """

    kind = "edit-tokens"
    flags = (
        Flag(
            "OLD=>NEW@A:B",
            "Find and replace over the sequences' text.",
            "'old=>new@200:204'",
            windowed(split("=>", find=str, replace=str)),
            "--edit",
        ),
    )
    find: str
    replace: str

    def stream(self, stream: BatchStream, run: Run) -> BatchStream:
        """Edit the batches of the window as they are asked for."""

        def altered(s: int) -> Batch:
            batch = stream(s)
            return (
                text_edit.edit(batch, run, self.find, self.replace)
                if self.first <= s < self.last
                else batch
            )

        return altered

    def check(self, run: Run, first: int, last: int) -> None:
        """Refuse an edit that changes nothing, and text that the tokenizer cannot encode. Errors:
        usage, data.
        """
        super().check(run, first, last)
        require(
            bool(self.find), self.kind, "text to find", "none", "e.g. --edit 'old=>new@200:210'"
        )
        require(
            self.find != self.replace,
            self.kind,
            "another text",
            repr(self.replace),
            "an edit changes something",
        )
        text_edit.encode(run, self.replace)

    def sentence(self) -> str:
        """Say which text gives way to which."""
        return f"writes {self.replace!r} for {self.find!r} in the sequences of {self.window}"

    def touches(self, run: Run, stream: BatchStream) -> list[Slot]:
        """List the rows whose tokens the edit changes."""
        places: list[Place] = []
        altered = self.stream(stream, run)
        for step in range(self.first, self.last):
            differ = (altered(step).tokens != stream(step).tokens).any(1)
            places += [(step, int(row)) for row in differ.nonzero()[:, 0]]
        return whole_rows(stream, places)
