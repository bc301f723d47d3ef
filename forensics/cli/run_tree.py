"""Runs and their forks as a tree: `forensics list`.

rows([header, …])      [["base", "0 to 300", …], ["  └ base-fork-1a2b3c4d", "200 to 220", …]]
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from forensics.train.header import Header, is_parent

COLUMNS = ["run, └ fork", "steps", "status", "parameters", "begun"]


def rows(headers: Sequence[Header]) -> list[list[str]]:
    """Return a row for each run, once, a fork below the run that it left where that is here."""
    named = {header.name: header for header in headers}
    left = sorted(headers, key=lambda header: (header.parent_step or 0, header.created))

    def lies_below(child: Header) -> str | None:
        above = named.get(child.parent or "")
        return above.name if above and is_parent(vars(above), vars(child)) else None

    def branch(top: Header, indent: str) -> Iterator[list[str]]:
        if top not in left:
            return
        left.remove(top)
        missing = bool(top.parent) and lies_below(top) is None
        yield [
            f"{indent}{top.name}" + f" (of {top.parent}, not here)" * missing,
            f"{top.first_step:,} to {top.steps:,}",
            _status(top),
            f"{top.parameters / 1e6:.1f} million" if top.shape else "a log alone",
            top.created,
        ]
        for child in [each for each in left if lies_below(each) == top.name]:
            yield from branch(child, f"{indent}  └ ")

    tops = [each for each in left if lies_below(each) is None]
    # what is left then are forks that name each other as parent
    return [row for top in [*tops, *left] for row in branch(top, "")]


def _status(header: Header) -> str:
    """Return a run's status; of one that another trainer made, that it was brought in."""
    if header.origin is None or header.parent is not None:
        return header.status
    return f"imported ({header.origin['format']})"
