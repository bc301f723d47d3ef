"""The app on a long run: 100,000 steps × 24 layers × 16 heads, 38.4 million head rows, and a fork
of 25 arms over 600 steps.

python -m benchmarks.app --json FILE         # makes the run in a temporary folder, measures
python -m benchmarks.app --runs DIR          # keeps it there, and takes one that is there
python -m benchmarks.app --demo runs         # and every page on a real run: `demo` in that folder
python -m benchmarks.app --no-browser        # queries and scripts only

Wanted on 2 cores, warm: queries under 300 ms; page script under 0.3 s, verdict text under 1 s,
first chart under 2.5 s, all under 4 s; a click inside a panel under 0.5 s.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.rounds import report

STEPS, LAYERS, HEADS, BATCH = 100_000, 24, 16, 16
SPIKES = {20_000: "batch", 61_342: "fast", 91_711: "slow"}
FLUSH = 2_000  # steps per part
RUN, FORK = "long", "long-fork"
ARMS = ["fork", *(f"placebo-{i}" for i in range(19)), *(f"chaos-{i}" for i in range(5))]
WINDOW = 600  # steps of the fork
PARTS = (
    "attn.q_proj",
    "attn.k_proj",
    "attn.v_proj",
    "attn.o_proj",
    "attn.norm",
    "mlp.gate",
    "mlp.up",
    "mlp.down",
    "mlp.norm",
)
TENSORS = [
    "embed.weight",
    *(f"layers.{i}.{part}.weight" for i in range(LAYERS) for part in PARTS),
    "norm.weight",
]
SPARSE, DENSE = 20, 700  # tensors: every 20th step, and each step that near a spike


def make(runs: Path, steps: int = STEPS) -> dict[str, Any]:
    """Write the run. Before the fast spike, head L5.H3 leaves its past 8 steps earlier; the batch
    spike is two sequences.
    """
    from forensics.config import Recipe, to_dict
    from forensics.store.writer import Writer, replace_table

    began = time.perf_counter()
    folder = runs / RUN
    folder.mkdir(parents=True)
    header = {
        "name": RUN,
        "recipe": "synthetic",
        "config": to_dict(Recipe()),
        "first_step": 0,
        "steps": steps,
        "corpus": "none",
        "corpus_sources": [
            {"source": "main", "first_sequence": 0, "sequences": 10**7, "tokens": 128 * 10**7 + 1}
        ],
        "order": "",
        "shape": {},
        "parameters": 1_400_000_000,
        "eot": 0,
        "device": "cpu",
        "precision": "fp32",
        "threads": 2,
        "fingerprint": {"device": "cpu"},
        "arguments": ["synthetic"],
        "created": "2026-01-01T00:00:00Z",
        "status": "finished",
    }
    (folder / "run.json").write_text(json.dumps(header))
    row = {
        "name": RUN,
        "status": "finished",
        "recipe": "synthetic",
        "config": json.dumps(header["config"]),
        "first_step": 0,
        "steps": steps,
        "created": header["created"],
    }
    replace_table(folder, "runs", {k: [v] for k, v in row.items()})
    documents = range(1000)
    replace_table(
        folder,
        "documents",
        {
            "document": list(documents),
            "source": ["main"] * 1000,
            "path": [f"text/{i}.txt" for i in documents],
            "hash": ["0"] * 1000,
            "tags": [""] * 1000,
            "first_token": [i * 1_280_000 for i in documents],
            "tokens": [1_280_000] * 1000,
            "repeat_share": [0.0] * 1000,
        },
    )
    rng = np.random.default_rng(0)
    with Writer(folder, background=True) as writer:
        for first in range(0, steps, FLUSH):
            _write(writer, rng, first, min(first + FLUSH, steps))
            writer.flush()
        for at, kind in SPIKES.items():
            if at < steps:
                back = {"batch": at + 1, "fast": at + 9, "slow": None}[kind]
                writer.append(
                    "events",
                    step=at,
                    kind="spike",
                    metric="loss",
                    value=5.4,
                    baseline=2.27,
                    sigma=31.0,
                    spike_kind=kind,
                    onset=at,
                    recovered_at=back,
                )
    rows = _fork(runs, header, next(s for s in (61_300, 19_900) if s < steps))
    size = sum(f.stat().st_size for f in folder.rglob("*.parquet"))
    return {
        "seconds": round(time.perf_counter() - began, 1),
        "bytes": size,
        "head_rows": steps * LAYERS * HEADS,
        "divergence_rows": rows,
    }


def _fork(runs: Path, parent: dict[str, Any], first: int) -> int:
    """Write a fork that moves layer 5 most; return how many rows of `divergence` it has."""
    from forensics.store.writer import Writer

    folder = runs / FORK
    folder.mkdir()
    header = {
        **parent,
        "name": FORK,
        "parent": RUN,
        "parent_step": first,
        "first_step": first,
        "steps": first + WINDOW,
        "interventions": [{"kind": "skip", "window": f"{first}:{first + 1}"}],
    }
    (folder / "run.json").write_text(json.dumps(header))
    layers = [int(n.split(".")[1]) if n.startswith("layers.") else None for n in TENSORS]
    names = ["", *TENSORS, *(f"layers.{i}.*" for i in range(LAYERS))]
    of = [None, *layers, *range(LAYERS)]
    rng, rows = np.random.default_rng(1), 0
    far = np.array([3.0 if layer == 5 else 1.0 for layer in of])
    with Writer(folder) as writer:
        for at in range(first + 1, first + WINDOW + 1, 50):
            s = np.arange(at, at + 50)
            n = (len(s), len(ARMS), len(names))
            l2 = (
                np.exp(0.2 * rng.standard_normal(n))
                * far
                * np.array([4.0 if a == "fork" else 1.0 for a in ARMS])[:, None]
            )
            whole = np.tile([name == "" for name in names], n[0] * n[1])
            writer.append(
                "divergence",
                step=np.repeat(s, n[1] * n[2]),
                arm=np.tile(np.repeat(ARMS, n[2]), n[0]).tolist(),
                tensor=names * (n[0] * n[1]),
                layer=of * (n[0] * n[1]),
                l2=l2.ravel(),
                logit_kl=np.where(whole, 1e-3 * l2.ravel(), None),
                loss_gap=np.where(whole, 1e-2 * l2.ravel(), None),
            )
            writer.flush()
            rows += l2.size
        writer.append(
            "steps",
            step=np.arange(first, first + WINDOW),
            loss=2.3,
            grad_norm=0.5,
            lr=1e-3,
            clip_scale=1.0,
            tokens=BATCH * 128,
            seconds=0.5,
            update="apply",
            schedule=0,
            updates=0,
        )
        control = {
            "level": "exact",
            "bitwise": True,
            "sentence": "equal bit for bit over 600 recorded steps",
        }
        final = {
            "placebos": 19,
            "chaos": 5,
            "effect": 4.0,
            "p": 0.05,
            "verdict": "beyond the placebos (N = 19)",
            "causal": True,
            "measure": "logit_kl",
            "logit_kl": 4e-3,
            "l2": 4.0,
            "loss_control": 2.3,
            "loss_fork": 2.34,
            "loss_error": 0.01,
            "probe_sequences": 64,
            "unseen": None,
        }
        kept = {
            "fork": FORK,
            "parent": RUN,
            "from": first,
            "to": first + WINDOW,
            "does": "skips a step",
            "control": control,
            "final": final,
            "placebos": 19,
            "chaos": 5,
            "time_to_reconverge": None,
            "first_difference": None,
            "barriers": [],
        }
    (folder / "fork.json").write_text(json.dumps(kept))
    return rows


def _rounded(x: np.ndarray) -> np.ndarray:
    """float32 with 10 bits of fraction, as measured values compress."""
    return (x.astype(np.float32).view(np.uint32) & np.uint32(0xFFFFE000)).view(np.float32)


def _write(writer: Any, rng: np.random.Generator, first: int, last: int) -> None:
    s = np.arange(first, last)
    n = len(s)
    hurt = np.zeros(n)
    for at, kind in SPIKES.items():
        after = s - at
        tail = {"batch": 0.6, "fast": 3.0, "slow": 60.0}[kind]
        hurt += np.where(after >= 0, np.exp(-np.maximum(after, 0) / tail), 0.0)
    loss = 2 + 6 * np.exp(-s / 8000) + 0.04 * rng.standard_normal(n) + 3 * hurt
    grad_norm = 0.5 * np.exp(0.15 * rng.standard_normal(n)) * (1 + 15 * hurt)
    writer.append(
        "steps",
        step=s,
        loss=loss,
        grad_norm=grad_norm,
        lr=1e-3,
        clip_scale=1.0,
        tokens=BATCH * 128,
        seconds=0.5,
        update="apply",
        schedule=s,
        updates=s,
    )
    early = np.zeros(n)  # the head that goes first
    for at, kind in SPIKES.items():
        if kind == "fast":
            early += np.where((s >= at - 8) & (s < at + 30), 30.0, 0.0)
    shape = (n, LAYERS, HEADS)
    logit = 12 + 0.4 * rng.standard_normal(shape, np.float32) + (6 * hurt)[:, None, None]
    logit[:, 5, 3] += early
    keys = {
        "step": np.repeat(s, LAYERS * HEADS),
        "layer": np.tile(np.repeat(np.arange(LAYERS, dtype=np.int32), HEADS), n),
        "head": np.tile(np.arange(HEADS, dtype=np.int32), n * LAYERS),
    }
    noise = rng.standard_normal((2, *shape), np.float32)
    writer.append(
        "heads",
        **keys,
        attn_logit_max=_rounded(logit).ravel(),
        attn_entropy_mean=_rounded(3 + 0.1 * noise[0]).ravel(),
        q_norm_max=_rounded(9 + 0.2 * noise[1]).ravel(),
    )
    grad = _rounded(np.exp(0.1 * rng.standard_normal((n, LAYERS))) * (1 + 8 * hurt)[:, None])
    writer.append(
        "layers",
        step=np.repeat(s, LAYERS),
        layer=np.tile(np.arange(LAYERS, dtype=np.int32), n),
        resid_rms_out=_rounded(1 + 0.02 * rng.standard_normal((n, LAYERS))).ravel(),
        resid_grad_rms=grad.ravel(),
    )
    near = np.zeros(n, bool)
    for at in SPIKES:
        near |= np.abs(s - at) <= DENSE
    t = s[near | (s % SPARSE == 0)]
    rms = 1 + 0.05 * rng.standard_normal((len(t), len(TENSORS)))
    for at in SPIKES:
        rms[(t >= at - 4) & (t < at + 8), 46:49] += 3.0
    writer.append(
        "tensors",
        step=np.repeat(t, len(TENSORS)),
        tensor=TENSORS * len(t),
        rms_t=_rounded(rms).ravel(),
        staleness=_rounded(rms * 1.1).ravel(),
        grad_norm=0.1,
    )
    by_sequence = loss[:, None] + 0.25 * rng.standard_normal((n, BATCH))
    for at, kind in SPIKES.items():
        if kind == "batch" and first <= at < last:
            by_sequence[at - first] -= 3
            by_sequence[at - first, [11, 4]] += 24
    ids = (s[:, None] * BATCH + np.arange(BATCH)) % 10**7
    writer.append(
        "sequences",
        step=np.repeat(s, BATCH),
        slot=np.tile(np.arange(BATCH, dtype=np.int32), n),
        sequence=ids.ravel(),
        loss=_rounded(by_sequence).ravel(),
        weight=128.0,
        repeat_share=0.0,
    )


def tell(part: str, found: Any) -> Any:
    """Print a part of the answer at once: on a busy machine the rest may never come."""
    print(part, json.dumps(found), file=sys.stderr, flush=True)
    return found


def best(work: Callable[[], Any], rounds: int = 5) -> dict[str, float]:
    """Time the first call and the best of the rest, milliseconds."""
    times = []
    for _ in range(rounds + 1):
        began = time.perf_counter()
        work()
        times.append(1000 * (time.perf_counter() - began))
    return {"first_ms": round(times[0], 1), "best_ms": round(min(times[1:]), 1)}


def time_queries(step: int) -> dict[str, Any]:
    """Milliseconds of each query of the pages, its kept result forgotten before each call."""
    window = (max(0, step - 512), step + 33)
    asked: dict[str, dict[str, Any]] = {
        "loss_band_by100": {"every": 100},
        "spikes": {},
        "run_health": {},
        "run_marks": {},
        "steps_around": {"step": step, "window": window},
        "sequences_around": {"step": step, "window": window},
        "excess_by_sequence": {"step": step, "window": window},
        "first_alarms": {"step": step, "window": window},
        "layer_heat": {"step": step, "window": window},
        "head_heat": {"step": step, "layer": 5, "window": window},
        "tensor_heat": {"step": step, "window": window},
        "worst_sequences": {"step": step, "window": (step, step + 1)},
        "heads_at": {"step": step, "window": window},
        "head_thumbnails": {"step": step, "window": window},
        "fork_arms": {},
        "fork_bands": {},
        "fork_layers": {},
    }
    measured = {}
    for name, parameters in asked.items():
        own = (
            {}
            if name in ("run_health", "run_marks")
            else {"run": FORK if name.startswith("fork_") else RUN}
        )
        measured[name] = best(functools.partial(_asked, name, {**own, **parameters}))
    return measured


def _asked(name: str, parameters: dict[str, Any]) -> None:
    from app import data

    data.forget()
    data.table(name, **parameters)


def visits(step: int) -> dict[str, dict[str, Any]]:
    """Page → what its URL selects."""
    return {
        "runs": {"run": RUN},
        "spikes": {"run": RUN, "spike": step},
        "attention": {"run": RUN, "spike": step, "step": step},
        "forks": {"run": RUN, "fork": FORK},
        "sql": {"run": RUN, "query": "loss_band_by100"},
    }


def visits_of_demo() -> dict[str, dict[str, Any]]:
    """Every page on the run `demo`: at its largest spike of the loss, and its newest fork."""
    from app import data, navigation

    found = [s for s in data.rows("spikes", run="demo", metric="loss") if s["kind"] == "spike"]
    step = max(found, key=lambda s: s["sigma"] or 0)["step"]
    asked: dict[str, dict[str, Any]] = {
        name: {"run": "demo", "spike": step} for name in navigation.registered()
    }
    for name in ("batch", "attention", "trace"):
        asked[name]["step"] = step
    asked["forks"] |= {"part": "fork"}
    return asked


def time_scripts(asked: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Time the pages' scripts under AppTest, results cached as for the second reader."""
    from app.browser import scripted

    measured = {}
    for name, selection in asked.items():
        test = scripted(name, seconds=120, **selection)
        measured[name] = best(test.run)
        assert not test.exception, test.exception
    return measured


def time_browser(runs: Path, asked: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Seconds to the verdict's text, the first chart, all of it: of a new browser, of the next
    loads in it, by a link; of clicks.

    A load is a whole one, as reload makes it; a link of the row on top keeps the page and its
    connection.
    """
    from app.browser import Watched, chromium, serving
    from app.navigation import path_of, views

    measured: dict[str, Any] = {"new browser": {}, "warm": {}, "by a link": {}}
    with serving(runs) as url, chromium() as browser:
        for name, selection in asked.items():
            tab = Watched(browser, url)
            page = path_of(name)
            rounds = [tab.timed(page, **selection) for _ in range(4)]
            measured["new browser"][name] = rounds[0]
            measured["warm"][name] = {k: min(r[k] for r in rounds[1:]) for k in rounds[0]}
            other = "runs" if name != "runs" else "sql"
            links = []
            for _ in range(2):
                tab.open(path_of(other), **selection)
                links.append(tab.followed(views()[name].title))
            measured["by a link"][name] = {k: min(r[k] for r in links) for k in links[0]}
            tab.check()
            tab.close()
            tell(name, {how: measured[how][name] for how in measured})
        if asked["spikes"]["run"] != RUN:  # whose heat may be blank: nothing to click
            return measured
        tab = Watched(browser, url)
        tab.open("spikes", **asked["spikes"])
        clicks = []
        for row in (3, 5, 9, 20):
            began = time.perf_counter()
            before = tab.page.url
            tab.click_cell(3, 1, row, LAYERS, wait=False)
            tab.page.wait_for_function("(u) => location.href !== u", arg=before)
            url_s = time.perf_counter() - began
            tab.page.wait_for_function(
                "() => document.querySelector('[data-testid=\"stApp\"]')"
                ".getAttribute('data-test-script-state') === 'notRunning'"
            )
            clicks.append(
                {"url_s": round(url_s, 3), "done_s": round(time.perf_counter() - began, 3)}
            )
            tab.settle()
        measured["clicks on a layer"] = {f"click {i + 1}": c for i, c in enumerate(clicks)}
        tab.check()
        tab.close()
    return measured


@contextlib.contextmanager
def looking_at(runs: Path) -> Iterator[Path]:
    """Let the app in this process read this folder."""
    before = os.environ.get("FORENSICS_RUNS")
    os.environ["FORENSICS_RUNS"] = str(runs.absolute())
    try:
        yield runs.absolute()
    finally:
        if before is not None:
            os.environ["FORENSICS_RUNS"] = before


def main() -> None:
    """Make the run, time queries, scripts and pages, and report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=Path, help="folder to keep the run in")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument(
        "--demo", type=Path, help="folder that holds the run `demo`, to open every page on it"
    )
    parser.add_argument("--json", type=Path)
    parser.add_argument("--no-browser", action="store_true")
    parser.add_argument("--only-make", action="store_true")
    options = parser.parse_args()
    runs = options.runs or Path(tempfile.mkdtemp(prefix="forensics-app-"))
    os.environ["FORENSICS_RUNS"] = str(runs.absolute())
    document: dict[str, Any] = {"cores": os.cpu_count()}
    try:
        if not (runs / RUN / "run.json").is_file():
            document["made"] = make(runs, options.steps)
        if not options.only_make:
            step = next(
                step_offered for step_offered in (61_342, 20_000) if step_offered < options.steps
            )
            document["queries"] = tell("queries", time_queries(step))
            document["scripts"] = tell("scripts", time_scripts(visits(step)))
            if not options.no_browser:
                document["browser"] = tell("browser", time_browser(runs, visits(step)))
            if options.demo:
                with looking_at(options.demo) as demo:
                    demo_visits = visits_of_demo()
                    document["demo_scripts"] = tell("demo_scripts", time_scripts(demo_visits))
                    if not options.no_browser:
                        document["demo_browser"] = time_browser(demo, demo_visits)
    finally:
        report("app", document, options.json)
        if options.runs is None:
            shutil.rmtree(runs)


if __name__ == "__main__":
    main()
