"""Make docs/spikes.md and docs/nulls.md from benchmarks/results/studies/*.json: how often what
is there is found, and how often something is found that is not there.

A file there is what `python -m benchmarks.<name>_study --json FILE` wrote.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

STUDIES = Path(__file__).resolve().parent.parent / "benchmarks" / "results" / "studies"
Document = dict[str, Any]  # as JSON has it


def spikes_page() -> str:
    """Return docs/spikes.md."""
    lines = [
        "# Spikes: what is found, and how often nothing is there",
        "",
        "Made from `benchmarks/results/studies/*.json` by `python -m docs.generate`; `make"
        " spike-study` measures anew. [formulas.md](formulas.md) defines the band, σ and kinds.",
    ]
    lines += spike_tables(_read("spikes"))
    for name, table in (("detectors", detector_table), ("faults", fault_table)):
        if (STUDIES / f"{name}.json").is_file():
            lines += table(_read(name))
    return "\n".join(lines) + "\n"


def nulls_page() -> str:
    """Return docs/nulls.md."""
    document = _read("nulls")
    rows = document["rows"]
    columns = list(rows[0])
    lines = [
        "# Nulls: what forks of ordinary data say",
        "",
        "Made from `benchmarks/results/studies/nulls.json` by `python -m docs.generate`; `make"
        " null-study` measures anew. [formulas.md](formulas.md) defines p and the rule for causal"
        " words.",
        "",
        f"{rows[-1]['number']} forks of {document['window']} steps with {document['placebos']}"
        " placebos each, of data that is as any other: every causal word is a false alarm, and p"
        " should be at most x in a share x of the forks.",
        "",
        *_table(columns, [[_cell(row[column]) for column in columns] for row in rows]),
        "",
        "## Causal words with fewer placebos",
        "",
        "Every arm of every fork is taken for the fork in turn, with others drawn at random for its"
        " placebos: all are draws of one kind.",
        "",
        *_table(
            ["placebos", "causal words, share of ordinary forks"],
            [[str(N), f"{rate:.2%}"] for N, rate in document["alarms"].items()],
        ),
    ]
    return "\n".join(lines) + "\n"


def _cell(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _read(name: str) -> Document:
    document: Document = json.loads((STUDIES / f"{name}.json").read_text(encoding="utf-8"))
    return document


def spike_tables(document: Document) -> list[str]:
    """Return the tables of the spike study as lines of Markdown."""
    seen = document["seen"]
    planted = document["planted"]
    real = [row for row in planted if row["part"] == "real"]
    held = [row for row in planted if row["part"] == "held"]
    lines = [
        "",
        "## Planted spikes that are found",
        "",
        f"{document['runs']} small runs, {len(real)} of them with shuffled text in a share of some"
        " batches. A height is in σ of the loss of the clean run with the same seed, about its"
        " level there, both of which look ahead. *Before*: the rule that measured from the median"
        " of the window, in which a falling loss widened the band.",
        "",
        *_table(
            ["planted", "runs", "heights, σ", f"at least {seen:g} σ", "found", "found before"],
            [_real_row(plant, rows, seen) for plant, rows in _by(real, "plant").items()],
        ),
        "",
        f"The same on the losses of the clean runs with a rise added"
        f" ({len(held)} series): share found, and in brackets before.",
        "",
        *_held_table(held),
        "",
        "## Clean runs",
        "",
        *_clean_table(document["clean"]),
    ]
    return lines


def _real_row(plant: str, rows: Sequence[Document], seen: float) -> list[str]:
    heights = [row["height"] for row in rows]
    high = [row for row in rows if row["height"] >= seen]
    return [
        plant,
        str(len(rows)),
        f"{min(heights):.1f} to {max(heights):.1f}",
        str(len(high)),
        f"{_count(rows, 'found')} ({_count(high, 'found')} of those)",
        f"{_count(rows, 'found_before')} ({_count(high, 'found_before')} of those)",
    ]


def _held_table(rows: Sequence[Document]) -> list[str]:
    heights = sorted({row["height"] for row in rows})
    body = []
    for plant, alike in _by(rows, "plant").items():
        cells = []
        for height in heights:
            at = [row for row in alike if row["height"] == height]
            shares = [100 * _count(at, key) / len(at) for key in ("found", "found_before")]
            cells.append(f"{shares[0]:.0f} % ({shares[1]:.0f} %)")
        body.append([plant, *cells])
    return _table(["where, how long", *(f"{height:g} σ" for height in heights)], body)


def _clean_table(rows: Sequence[Document]) -> list[str]:
    body = []
    for metric, words in (("loss", "loss"), ("grad_norm", "gradient norm")):
        steps = sum(row["judged"] for row in rows)
        cells = [words, str(len(rows)), f"{steps:,}"]
        for key in (metric, f"{metric}_before"):
            count = sum(row[key] for row in rows)
            rate, most = 1000 * count / steps, 1000 * _most(count) / steps
            cells.append(f"{count}: {rate:.2f} per 1,000 steps (95 %: at most {most:.2f})")
        body.append(cells)
    return _table(["metric", "runs", "steps judged", "spikes", "spikes before"], body)


def _most(count: int) -> float:
    """Return the largest Poisson mean under which `count` or fewer come in 1 of 20 trials."""
    low, high = float(count), count + 10.0 + 6 * math.sqrt(count + 1)
    for _ in range(60):
        middle = (low + high) / 2
        at_most = sum(
            math.exp(k * math.log(middle) - middle - math.lgamma(k + 1)) for k in range(count + 1)
        )
        low, high = (middle, high) if at_most > 0.05 else (low, middle)
    return high


def _count(rows: Iterable[Document], key: str) -> int:
    return sum(bool(row[key]) for row in rows)


def _by(rows: Iterable[Document], key: str) -> dict[str, list[Document]]:
    """Group rows by a field, in order of appearance."""
    groups: dict[str, list[Document]] = {}
    for row in rows:
        groups.setdefault(row[key], []).append(row)
    return groups


def _table(head: Sequence[str], body: Iterable[Sequence[str]]) -> list[str]:
    return [
        f"| {' | '.join(head)} |",
        f"|{'---|' * len(head)}",
        *(f"| {' | '.join(row)} |" for row in body),
    ]


def detector_table(document: Document) -> list[str]:
    """Return the table of the detector study as lines of Markdown."""
    runs, spikes = document["runs"], document["spikes"]
    kinds = ", ".join(f"{count} {kind} ({spikes[kind]} spikes)" for kind, count in runs.items())
    body = []
    for row in sorted(
        document["scores"],
        key=lambda row: ((row["random_hits"] or 0) - row["hits"], row["detector"]),
    ):
        lead = "–" if row["median_lead"] is None else f"{row['median_lead']:g}"
        body.append(
            [
                f"`{row['detector']}`" if ":" not in row["detector"] else row["detector"],
                f"{row['read']:,}",
                f"{row['hits']} of {row['spikes']}",
                f"{row['random_hits']:.1f}",
                lead,
                f"{row['false_alarms']:,}",
                f"{row['false_per_1000']:.1f}",
            ]
        )
    return [
        "",
        "## What foretells a spike",
        "",
        f"{sum(runs.values())} small runs of {document['steps']} steps with everything recorded:"
        f" {kinds}. A hit is an alarm within {document['horizon']} steps before the onset of a"
        " spike of the loss; *at random*: hits expected of as many alarms on random steps. The"
        f" probes are read at every {document['every']}th state, and a hit is an alarm at the last"
        " state before the onset. No rule was fitted to these runs. Of so few spikes a hit more or"
        " less says little; the false alarms are the firm part.",
        "",
        *_table(
            [
                "detector",
                "steps read",
                "hits",
                "at random",
                "median lead, steps",
                "false alarms",
                "per 1,000 read",
            ],
            body,
        ),
    ]


def fault_table(document: Document) -> list[str]:
    """Return the table of the fault study as lines of Markdown."""
    body = []
    for fault, rows in _by(document["rows"], "fault").items():
        if rows[0]["true"] is None:
            continue
        off = [
            "not found" if row["found"] is None else str(abs(row["found"] - row["true"]))
            for row in rows
        ]
        body.append(
            [
                fault,
                *off,
                ", ".join(dict.fromkeys(row["first"] for row in rows if row["first"])) or "–",
            ]
        )
    healthy = [row for row in document["rows"] if row["true"] is None]
    wrong = sum(row["found"] is not None for row in healthy)
    steps = sum(row["steps"] for row in healthy)
    seeds = max(len(row) for row in body) - 2
    return [
        "",
        "## The first bad step",
        "",
        f"Faults planted at step {document['at']} of small runs; by how many steps the step that"
        " `forensics first-bad-step` finds is off, for each of three seeds, and the series that was"
        f" farthest out. Without a fault a bad step is found in {wrong} of {len(healthy)} runs"
        f" ({steps:,} steps). The rule wants many series out at once: what is not found moved fewer"
        " than one in 25 of them by 6 scales. Looked at for more, and not taken: 2.5, 3 and 4"
        " scales (weights damaged by 5 % noise and shuffled text then move no larger share of the"
        " series than some healthy step does: at 2.5 scales 2 to 6 % and 7 to 14 %, healthy up to"
        " 14 %); and a share that stays, over 7 steps (of the series 3 scales off β₂ = 0.5 keeps 4"
        " to 6 % out, healthy runs up to 3.5 %: a limit between them would be fitted to these"
        " runs).",
        "",
        *_table(["fault", *(f"seed {n + 1}" for n in range(seeds)), "farthest out"], body),
    ]
