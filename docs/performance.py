"""docs/performance.md from benchmarks/results/*.json: what was measured, on which device, on which
day.

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
}
ON_A_GPU = ("step", "replay", "saving", "attention")
HEAD = ("benchmark", "device", "date", "python", "torch")


def performance() -> str:
    """The whole page."""
    found: dict[str, list[dict[str, Any]]] = {}
    for path in sorted(RESULTS.glob("*.json")):
        document = json.loads(path.read_text(encoding="utf-8"))
        found.setdefault(document.get("benchmark", path.stem), []).append(document)
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
    for name in [*COMMANDS, *sorted(found.keys() - COMMANDS.keys())]:
        heading, what = COMMANDS.get(name, (name, ""))
        for document in found.get(name, []):
            lines += ["", f"## {heading}", ""]
            lines += [f"`python -m benchmarks.{name}`: {what}.", ""] if what else []
            versions = f"Python {document['python']}" if "python" in document else ""
            versions += f", PyTorch {document['torch']}" if "torch" in document else ""
            lines += [
                " · ".join(
                    x for x in (document.get("device", ""), document.get("date", ""), versions) if x
                ),
                "",
            ]
            lines += _body({k: v for k, v in document.items() if k not in HEAD})
    missing = [n for n in ON_A_GPU if not any(_gpu(d) for d in found.get(n, []))]
    if missing:
        lines += [
            "",
            "## Still to be taken",
            "",
            "On a GPU, by `bash benchmarks/gpu.sh`: "
            + ", ".join(COMMANDS[n][0].lower() for n in missing)
            + ".",
        ]
    return "\n".join(lines) + "\n"


def _gpu(document: dict[str, Any]) -> bool:
    return "NVIDIA" in document.get("device", "")


def _body(document: dict[str, Any]) -> list[str]:
    """Numbers as one list, tables of the same keys side by side, lists of records as tables."""
    lines: list[str] = []
    plain = {k: v for k, v in document.items() if not isinstance(v, (dict, list))}
    flat = {k: v for k, v in document.items() if isinstance(v, dict) and not _tables(v)}
    columns: dict[tuple[str, ...], list[str]] = {}
    for name, values in flat.items():
        keys = tuple(values)
        group = next((known for known in columns if set(keys) <= set(known)), keys)
        columns.setdefault(group, []).append(name)
    for keys, names in columns.items():
        if (
            len(names) == 1
            and len(keys) <= 8
            and all(len(str(flat[names[0]][k])) < 24 for k in keys)
        ):
            plain[names[0]] = ", ".join(f"{k} {_shown(flat[names[0]][k])}" for k in keys)
            continue
        if len(names) > max(4, len(keys)):  # many of few numbers each: one a line
            lines += [
                "| |" + "|".join(_words(k) for k in keys) + "|",
                "|---|" + "---:|" * len(keys),
            ]
            lines += [
                f"| {_words(n)} |" + "|".join(_shown(flat[n].get(k, "")) for k in keys) + "|"
                for n in names
            ]
        else:
            lines += [
                "| |" + "|".join(_words(n) for n in names) + "|",
                "|---|" + "---:|" * len(names),
            ]
            lines += [
                f"| {_words(k)} |" + "|".join(_shown(flat[n].get(k, "")) for n in names) + "|"
                for k in keys
            ]
        lines.append("")
    for name, value in document.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            keys = tuple(value[0])
            lines += ["|" + "|".join(_words(k) for k in keys) + "|", "|" + "---|" * len(keys)]
            lines += [
                "|" + "|".join(_shown(row.get(k, "")) for k in keys) + "|" for row in value
            ] + [""]
        elif isinstance(value, list):
            plain[name] = ", ".join(map(_shown, value))
        elif isinstance(value, dict) and _tables(value):
            lines += [f"**{_words(name)}**", "", *_body(value), ""]
    listed = [f"* {_words(k)}: {_shown(v)}" for k, v in plain.items()]
    while lines and not lines[-1]:
        lines.pop()
    return listed + ([""] if listed and lines else []) + lines


def _tables(value: dict[str, Any]) -> bool:
    return any(isinstance(v, (dict, list)) for v in value.values())


def _words(name: str) -> str:
    return str(name).replace("_", " ").replace("|", "\\|")


def _shown(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "–"}[value]
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    return str(value).replace("|", "\\|")
