"""What trainers print: lines that hold a step and named numbers, and tables by blanks.

iter 10: loss 4.2321, time 23.11ms                     nanoGPT
step:  1  loss:  8.0153  grad_norm:  1.2               torchtitan
 iteration  1/ 500 | lm loss: 1.1E+01 | grad norm: 1.0 Megatron
[step=1/739328]                                        OLMo: the names follow, a line each
    train/CrossEntropyLoss=11.42
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from forensics.errors import ForensicsError
from forensics.logs.json_log import _text
from forensics.logs.logged_rows import LoggedRows, RowCollector, as_number

STEP = re.compile(
    r"(?:^|[\s\[|{,:>])(?P<name>global_step|step|iteration|iter)\b\s*[:=#]?\s*(?P<step>[\d,]*\d)",
    re.IGNORECASE,
)
NUMBER = r"[-+]?(?:\d[\d,]*\.?\d*(?:[eE][-+]?\d+)?|\.\d+|nan|inf(?:inity)?)"
PAIR = re.compile(
    rf"(?P<name>[A-Za-z_][\w ./()#%-]*?)\s*[:= ]\s*(?P<number>{NUMBER})(?P<unit>[a-zA-Z%/]*)$",
    re.IGNORECASE,
)
COLOUR = re.compile(r"\x1b\[[0-9;]*m")
PARTS = re.compile(r"[,|;]\s|\s{2,}|\t|\||,(?=\D)")
LEAST_LINES = 2  # with a step, before printed lines are taken for a log
LOOKED_AT = 400  # lines


def looks_printed(head: str) -> bool:
    """Whether some lines hold a step and a named number each."""
    lines = [COLOUR.sub("", line) for line in head.splitlines()[:LOOKED_AT]]
    return sum(bool(STEP.search(line)) for line in lines) >= LEAST_LINES


def looks_blank_separated(head: str) -> bool:
    """Whether the first line is names and the second as many numbers, by blanks."""
    lines = [line.split() for line in head.splitlines()[:2]]
    return (
        len(lines) == 2
        and 1 < len(lines[0]) == len(lines[1])
        and all(as_number(word) is None for word in lines[0])
        and all(as_number(word) is not None for word in lines[1])
    )


def read_printed(path: Path) -> list[LoggedRows]:
    """Read the printed lines; a line without a step belongs to the step above it. Errors: data."""
    rows = RowCollector("console")
    for step, numbers in _steps(path):
        if numbers:
            rows.add(numbers, step=step)
    if not rows.filled:
        raise ForensicsError(
            "data", f"wanted steps with numbers in {path.name}, found none", "is this a log?"
        )
    return [rows.collected()]


def read_blank_separated(path: Path) -> list[LoggedRows]:
    """Read a table by blanks. Errors: data."""
    rows, names, notes = RowCollector("table"), list[str](), list[str]()
    cut: int | None = None
    with _text(path) as file:
        for number, line in enumerate(file, 1):
            words = line.split()
            if not names:
                names = words
                continue
            if not words:
                continue
            if cut is not None:
                raise ForensicsError(
                    "data",
                    f"{path.name}:{cut}: wanted {len(names)} values, found another number of them",
                    "are two logs in one file?",
                )
            if len(words) != len(names):
                cut = number
                continue
            rows.add(dict(zip(names, words)))
    if cut is not None:
        notes.append(f"{path.name}: its last line is cut short, and left out")
    return [rows.collected(notes=tuple(notes))]


def _steps(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield each step with the numbers that were printed of it."""
    step, numbers, open_ = 0, dict[str, Any](), False
    with _text(path) as file:
        for line in file:
            line = COLOUR.sub("", line).rstrip()
            found = STEP.search(line)
            if found is not None:
                if open_:
                    yield step, numbers
                step, numbers, open_ = int(found["step"].replace(",", "")), {}, True
                line = line[found.end() :].lstrip(":/ ")
                line = re.sub(r"^[\d,]+", "", line)  # of how many
            if open_:
                numbers |= _numbers(line, indented=found is None)
    if open_:
        yield step, numbers


def _numbers(line: str, indented: bool) -> dict[str, Any]:
    """Read the named numbers of a line; of one below a step's line, only NAME=NUMBER."""
    if indented and not re.fullmatch(rf"\s+\S[^=]*=\s*{NUMBER}", line, re.IGNORECASE):
        return {}
    numbers = {}
    for part in PARTS.split(re.sub(r"([:=])\s+", r"\1", line).strip(" ]:")):
        match = PAIR.fullmatch(part.strip(" :[]"))
        if match is not None:
            numbers[match["name"].strip()] = as_number(match["number"].replace(",", ""))
    return numbers
