"""Make docs/performance.md from benchmarks/results/*.json: what was measured, on which device, on
which day.

A file there is what `python -m benchmarks.<name> --json FILE` wrote; `python -m docs.generate`
makes the page.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent.parent / "benchmarks" / "results"
COMMANDS = {  # benchmark → (heading, what it measures)
    "step": (
        "A training step",
        "ours against a plain PyTorch GPT and transformers' Llama, and the price of what ours adds",
    ),
    "replay": ("Replay", "verifying a run bit for bit, against training it with light recording"),
    "saving": (
        "Checkpoints",
        "one written and read alone, and what the loop waits for when it is written behind the run",
    ),
    "attention": (
        "Attention statistics of one layer",
        "the blocked form, the same compiled, and on a GPU the kernel",
    ),
    "order": (
        "The order of the data",
        "a batch of 512 ids, beside an index that is shuffled up front",
    ),
    "store": ("Recording to disk", "bytes, rates and reading of a long run"),
    "queries": ("Named queries", "on a synthetic run of 10,000 steps, 12 layers, 12 heads"),
    "app": ("The app", "on a run of 100,000 steps, 24 layers, 16 heads"),
    "blame": ("Blame", "the cause of a spike, found by gradients and by replay"),
    "exposure": ("Exposure of tokens", "counts over what a run was trained on"),
    "where": ("Finding a text", "the index of a corpus's text, made once, and searches with it"),
}
ON_A_GPU = ("step", "replay", "saving", "attention")
Document = dict[str, Any]  # as JSON has it
HEAD = ("benchmark", "device", "date", "python", "torch")


def performance() -> str:
    """Return docs/performance.md."""
    results: dict[str, list[Document]] = {}
    for path in sorted(RESULTS.glob("*.json")):
        document = json.loads(path.read_text(encoding="utf-8"))
        results.setdefault(document.get("benchmark", path.stem), []).append(document)
    lines = [
        "# Performance",
        "",
        (
            "Made from `benchmarks/results/*.json` by `python -m docs.generate`; each section names"
            " the command that measures it."
        ),
        (
            "Contestants take turns in one process, and ratios are medians over rounds: a busy"
            " moment falls on all of them."
        ),
    ]
    for name in [*COMMANDS, *sorted(results.keys() - COMMANDS.keys())]:
        heading, measures = COMMANDS.get(name, (name, ""))
        for document in results.get(name, []):
            lines += ["", f"## {heading}", ""]
            lines += [f"`python -m benchmarks.{name}`: {measures}.", ""] if measures else []
            lines += [_origin(document), ""]
            lines += _body({key: x for key, x in document.items() if key not in HEAD})
    missing = [name for name in ON_A_GPU if not any(map(_on_a_gpu, results.get(name, [])))]
    if missing:
        listed = ", ".join(COMMANDS[name][0].lower() for name in missing)
        lines += ["", "## Still to be taken", ""]
        lines += [f"On a GPU, by `bash benchmarks/gpu.sh`: {listed}."]
    return "\n".join(lines) + "\n"


def _origin(document: Document) -> str:
    """Return device, day and versions of a measurement."""
    versions = f"Python {document['python']}" if "python" in document else ""
    versions += f", PyTorch {document['torch']}" if "torch" in document else ""
    return " · ".join(filter(None, (document.get("device"), document.get("date"), versions)))


def _on_a_gpu(document: Document) -> bool:
    return "NVIDIA" in document.get("device", "")


def _body(document: Document) -> list[str]:
    """Return numbers as a list, records of the same keys side by side, lists of them as tables."""
    numbers = {name: x for name, x in document.items() if not isinstance(x, (dict, list))}
    records = {name: x for name, x in document.items() if isinstance(x, dict) and not _nested(x)}
    tables: list[str] = []
    for keys, names in _groups(records).items():
        if len(names) == 1 and _fits_a_line(records[names[0]]):
            record = records[names[0]]
            numbers[names[0]] = ", ".join(f"{key} {_number(record[key])}" for key in keys)
        else:
            tables += [*_side_by_side(records, keys, names), ""]
    for name, value in document.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            keys = tuple(value[0])
            rows = [[_number(row.get(key, "")) for key in keys] for row in value]
            tables += ["|" + "|".join(map(_words, keys)) + "|", "|" + "---|" * len(keys)]
            tables += ["|" + "|".join(row) + "|" for row in rows] + [""]
        elif isinstance(value, list):
            numbers[name] = ", ".join(map(_number, value))
        elif isinstance(value, dict) and _nested(value):
            tables += [f"**{_words(name)}**", "", *_body(value), ""]
    while tables and not tables[-1]:
        tables.pop()
    listed = [f"* {_words(name)}: {_number(x)}" for name, x in numbers.items()]
    return listed + ([""] if listed and tables else []) + tables


def _groups(records: Document) -> dict[tuple[str, ...], list[str]]:
    """Return names of records by their keys; those with fewer keys join those that have them."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for name, record in records.items():
        keys = tuple(record)
        group = next((wider for wider in groups if set(keys) <= set(wider)), keys)
        groups.setdefault(group, []).append(name)
    return groups


def _fits_a_line(record: Document) -> bool:
    return len(record) <= 8 and all(len(str(value)) < 24 for value in record.values())


def _side_by_side(records: Document, keys: tuple[str, ...], names: list[str]) -> list[str]:
    """Return a table with a column for each record; a row for each, where they are many."""
    as_rows = len(names) > max(4, len(keys))
    down, across = (names, keys) if as_rows else (keys, names)
    lines = ["| |" + "|".join(map(_words, across)) + "|", "|---|" + "---:|" * len(across)]
    for left in down:
        pairs = [(left, top) if as_rows else (top, left) for top in across]
        cells = [_number(records[name].get(key, "")) for name, key in pairs]
        lines.append(f"| {_words(left)} |" + "|".join(cells) + "|")
    return lines


def _nested(value: Document) -> bool:
    return any(isinstance(inner, (dict, list)) for inner in value.values())


def _words(name: str) -> str:
    return str(name).replace("_", " ").replace("|", "\\|")


def _number(value: Any) -> str:
    """Return a value as it stands in a table."""
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "–"}[value]
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    return str(value).replace("|", "\\|")
