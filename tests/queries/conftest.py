"""A base run of 200 steps with a spike at 150 that the damaged source causes, and a fork of it at
140.
"""

import json
import math

import pytest

from forensics.store.writer import Writer, replace_table

T = 8
SOURCES = [
    {"source": "clean", "first_sequence": 0, "sequences": 10, "tokens": 85},
    {"source": "damaged", "first_sequence": 10, "sequences": 4, "tokens": 40},
]
CONFIG = json.dumps({"data": {"sequence_length": T}})


def begin(runs, name, parent=None, parent_step=None):
    folder = runs / name
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({"corpus_sources": SOURCES}))
    replace_table(
        folder,
        "runs",
        {
            "name": [name],
            "parent": [parent],
            "parent_step": [parent_step],
            "status": ["finished"],
            "config": [CONFIG],
            "steps": [200],
            "created": [f"2026-01-0{1 if parent is None else 2}"],
        },
    )
    replace_table(
        folder,
        "documents",
        {
            "document": [0, 1, 2, 3],
            "source": ["clean", "clean", "damaged", "damaged"],
            "path": ["a.txt", "b.txt", "c.txt", "d.txt"],
            "first_token": [0, 30, 0, 12],
            "tokens": [30, 55, 12, 28],
            "tags": [None, None, None, "repeats"],
        },
    )
    return folder


@pytest.fixture(scope="session")
def runs(tmp_path_factory):
    runs = tmp_path_factory.mktemp("golden") / "runs"
    with Writer(begin(runs, "base")) as writer:
        for s in range(200):
            loss = {60: None, 150: 6.0, 151: 4.0}.get(s, 3 + 0.01 * (s % 2))
            grad_norm = {60: None, 150: 20.0, 180: math.nan}.get(s, 1 + 0.1 * (s % 3))
            writer.append(
                "steps",
                step=s,
                loss=loss,
                grad_norm=grad_norm,
                lr=1e-3,
                tokens=32,
                seconds=0.5,
                update="skipped" if s == 60 else "apply",
            )
            hot = 10.0 * (s - 144) if s >= 146 else 11.0 + s % 2
            writer.append(
                "heads",
                step=s,
                layer=[0, 0, 1, 1],
                head=[0, 1, 0, 1],
                attn_logit_max=[10.0 + s % 2, 10.0 + s % 2, hot, 5.0 + s % 2],
                attn_entropy_mean=2.0,
            )
            writer.append(
                "tensors",
                step=s,
                tensor=["b", "w"],
                rms_t=[0.9, 3.0 if s == 147 else 1 + 0.1 * (s % 2)],
                staleness=[1.0, 1.5 if s == 147 else 1.0],
                grad_norm=[0.5, 0.25],
            )
            sequence = [(4 * s + slot) % 14 for slot in range(4)]
            losses = [3.0, 3.1, 3.2, 3.3]
            if s == 150:
                sequence[2], losses[2] = 11, 9.0
            writer.append(
                "sequences", step=s, slot=[0, 1, 2, 3], sequence=sequence, loss=losses, weight=8.0
            )
            if s % 50 == 49:
                writer.append("checkpoints", step=s + 1, path=f"step-{s + 1:06d}")
                writer.flush()
        writer.append(
            "events",
            step=150,
            kind="spike",
            metric="loss",
            value=6.0,
            baseline=3.005,
            sigma=404.0,
            spike_kind="fast",
            onset=150,
            recovered_at=152,
        )
        writer.append("events", step=180, kind="nonfinite", metric="grad_norm", tensor="w")
        writer.append("events", step=10, kind="note", text="hello")
    with Writer(begin(runs, "fork", "base", 140)) as writer:
        writer.append("steps", step=list(range(140, 160)), loss=2.5, grad_norm=1.0, update="apply")
        writer.append(
            "sequences",
            step=[150, 150],
            slot=[0, 1],
            sequence=[0, -1],
            loss=[2.0, 4.0],
            weight=[8.0, 8.0],
        )
        for arm, l2 in (
            ("fork", 9.0),
            ("placebo-0", 1.0),
            ("placebo-1", 3.0),
            ("placebo-2", 2.0),
            ("chaos-0", 0.5),
        ):
            writer.append(
                "divergence",
                step=[141, 142],
                arm=arm,
                tensor="",
                l2=[l2, 2.0],
                loss_gap=[-0.1, None],
            )
        writer.append("divergence", step=141, arm="fork", tensor="w", l2=4.0)
    replace_table(
        runs / "fork",
        "forks",
        {"fork": ["fork"], "control_level": ["exact"], "control_bitwise": [True]},
    )
    return runs
