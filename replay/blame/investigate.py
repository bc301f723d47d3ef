"""`replay blame`: from a spike to the step, sequence, document, token and tensor that caused it.

    result = blame(runs, "demo", 400)

Control → excess → influence → deletion curve → trials that tell data, state and policy apart →
windows without a spike → verdict. The result is kept as `blame-<step>.json` in the run's folder,
its candidates as rows of the table `blame`.
"""

from __future__ import annotations

import typing
from pathlib import Path

from forensics.errors import ForensicsError
from forensics.progress import ProgressCallback, silent
from replay.blame.answer import SHOWN, answer, keep, look_closer
from replay.blame.blamed_step import the_spike
from replay.blame.case import DEFAULTS, BlameOptions, Case
from replay.blame.influence_text import CandidateText, text_pieces
from replay.blame.result import BlameResult, Candidate, Method
from replay.blame.rules import WINDOW
from replay.blame.search import search
from replay.blame.window_choice import choose_window
from replay.blame.window_memory import require_memory
from replay.lineage import open_trajectory, require_intact

__all__ = ["SHOWN", "BlameOptions", "Investigation", "blame", "investigate", "the_spike"]

METHODS: tuple[Method, ...] = typing.get_args(Method)


def blame(
    runs: Path,
    name: str,
    spike: int | None = None,
    options: BlameOptions = DEFAULTS,
    progress: ProgressCallback = silent,
) -> BlameResult:
    """Explain the spike at `spike` (the largest, where left out); return and keep the result.

    Ctrl-C during the search returns what is known so far, with `interrupted`. Errors: usage (no
    spike there, unless forced), missing (no state before it), memory (a window too long),
    integrity.
    """
    return investigate(runs, name, spike, options, progress).result


def investigate(
    runs: Path,
    name: str,
    spike: int | None = None,
    options: BlameOptions = DEFAULTS,
    progress: ProgressCallback = silent,
) -> Investigation:
    """Do as `blame` does; return what is known of the text of the candidates too."""
    if options.method not in METHODS:
        raise ForensicsError(
            "usage",
            f"wanted a method of {', '.join(METHODS)}, found {options.method!r}",
            "metagradient is the default",
        )
    if options.window is not None and options.window < 1:
        raise ForensicsError(
            "usage",
            f"wanted a window of at least 1 step, found {options.window}",
            f"the default is {WINDOW}, or back to where the run was calm",
        )
    run = open_trajectory(runs, name)
    blamed = the_spike(run, spike, options.force)
    window = choose_window(run, blamed, options.window)
    require_intact(run)
    if options.method == "metagradient":
        require_memory(run, blamed.step - window.first, options.precision)
    investigation = Investigation(Case(run, blamed, window, options, progress))
    investigation.run_search()
    return investigation


class Investigation:
    """One spike being explained: its case, and then its `result`."""

    result: BlameResult

    def __init__(self, case: Case) -> None:
        """Go into a case."""
        self.case = case

    def run_search(self) -> None:
        """Search, judge, and keep the result. Errors: storage."""
        case = self.case
        try:
            if not case.facts.absent:
                search(case)
                look_closer(case)
        except KeyboardInterrupt:
            case.facts.interrupted = True
            if case.evidence.bisection is None and case.options.method != "bisect":
                case.evidence.ranked = case.influences.ranked(case.replays)
        self.result = answer(case)
        keep(case, self.result)

    def candidate_text(self, candidate: Candidate) -> CandidateText:
        """Return the whole text of a candidate with the influence of each piece."""
        replays = self.case.replays
        row = replays.row(candidate.step, candidate.slot)
        return CandidateText(candidate, text_pieces(replays, self.case.influences, row))
