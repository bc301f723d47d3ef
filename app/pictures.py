"""A picture of every page, each of a view that finds it full; and the commands that make there
something to see.

python -m app.pictures prepare runs demo           # traces, attention, a sweep, a matrix, blame …
python -m app.pictures runs docs/pictures demo     # then the pictures that docs/app.md shows

The pictures themselves compute nothing: they show what is kept in the run's folder.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from app.browser import Watched, chromium, serving

STATES = 6  # checkpoints whose tokens are measured
SWEPT = 24  # steps of each fork of the sweep


View = tuple[str, dict[str, Any]]  # a page's name and the selection of its URL


def views(run: str) -> dict[str, View]:
    """Return a picture's name → what it shows: of each page a selection that finds it full.

    Nothing is computed: they show what the run's folder holds. A page without it shows what it says
    then; a part of the Forks page is left out.
    """
    from app import data
    from app.navigation import views as pages

    data.require(run)
    spike = _spike(run)
    at = {"run": run, "spike": spike, "step": spike}
    query = {"query": "spike_neighbourhood", "values": f"run={run};step={spike}"}
    shown: dict[str, View] = {
        "runs": ("runs", {"run": run}),
        "spikes": ("spikes", {"run": run, "spike": spike}),
        **_step_views(run, spike, at),
        **_fork_views(run, spike),
        "tokens": ("tokens", _token_view(run)),
        "sql": ("sql", {"run": run, "spike": spike} | query),
    }
    return {name: (name, at) for name in pages()} | shown


def _step_views(run: str, spike: int, at: dict[str, Any]) -> dict[str, View]:
    """Return the pictures of what happened in the spike's step: batch, attention, trace."""
    from app import data, reading
    from replay.step import artifacts

    folder = data.runs_folder() / run
    worst = next((row["slot"] for row in data.rows("batch_at", run=run, step=spike)), None)
    recorded = reading.token_losses(run, spike, worst) if worst is not None else None
    # position 0 is read, not predicted
    costly = 1 + _largest(recorded.losses) if recorded is not None else None
    looked = sorted((folder / artifacts.FOLDER).glob(f"attention-{spike}-*.safetensors"))
    slot = int(looked[0].stem.rpartition("-")[2]) if looked else worst
    position = _lens_position(looked[0]) if looked else None
    trace = artifacts.trace_of(folder, spike)
    events = json.loads(trace.read_bytes())["events"] if trace.is_file() else []
    place = next((i for i, event in enumerate(events) if event["phase"] == "loss"), None)
    return {
        "batch": ("batch", at | {"slot": worst, "position": costly}),
        "attention": ("attention", at | {"slot": slot, "position": position}),
        "trace": ("trace", at | {"position": place}),
    }


def _fork_views(run: str, spike: int) -> dict[str, View]:
    """Return the pictures of forks, and of sweep and matrix where there are any; and of blame."""

    at = {"run": run, "spike": spike}
    best = max(_finished_forks(run), key=lambda fork: fork["placebos"] or 0, default=None)
    fork = {"fork": best["fork"], "part": "fork"} if best else {}
    shown: dict[str, View] = {"forks": ("forks", at | fork)}
    for tab in ("sweep", "matrix"):
        if _measured(run, tab):
            shown[f"forks-{tab}"] = "forks", at | {"part": tab}
    blamed = _blamed(run)
    of_blame = spike if spike in blamed or not blamed else blamed[0]
    shown["blame"] = "blame", {"run": run, "spike": of_blame}
    return shown


def _finished_forks(run: str) -> list[dict[str, Any]]:
    from app import data

    forks = [header["name"] for header in data.forks_of(run)]
    return data.rows("forks_of", runs=",".join(forks)) if forks else []


def _measured(run: str, part: str) -> bool:
    """Return whether a sweep or a matrix of the run holds anything."""
    from app.documents import documents

    key = {"sweep": "summary", "matrix": "cells"}[part]
    return any(document.get(key) for _, document in documents(run, part))


def _blamed(run: str) -> list[int]:
    """Return the steps of the spikes that blame was asked about."""
    from app.documents import documents

    return [
        document["spike"]["step"]
        for _, document in documents(run, "blame")
        if isinstance(document.get("spike"), dict)
    ]


def _spike(run: str) -> int:
    """Return the step of the run's largest spike, of the loss before all; without one, its last."""
    from app import data
    from app.selection import Selection
    from app.step import step_of

    return max(1, step_of(Selection(run=run), data.rows("spikes", run=run), data.reached(run) or 2))


def _largest(values: Sequence[float | None]) -> int:
    return max(range(len(values)), key=lambda i: -math.inf if values[i] is None else values[i])  # type: ignore[return-value, arg-type]


def _lens_position(path: Path) -> int:
    """Where the model of the batch's own state was most wrong; the middle where no lens was
    kept.
    """
    from replay.step import artifacts

    about, array = artifacts.read(path)
    if not about["lens"] or about["step"] not in about["states"]:
        return len(about["tokens"]) // 2
    return _largest(
        [float(loss) for loss in array("lens_loss", about["states"].index(about["step"]))[-1]]
    )


def _token_view(run: str) -> dict[str, Any]:
    """Return the last checkpoint with measured tokens, and one that is verified or has a cause."""
    from app import data
    from app.views.tokens import token

    measured = [
        checkpoint["step"]
        for checkpoint in data.rows("token_checkpoints", run=run)
        if checkpoint["measured"]
    ]
    if not measured:
        return {"run": run}
    step = max(measured)
    rows = data.rows("token_points", run=run, step=step)
    verified = token.verified_of(run, step)[0]
    caused = sorted(
        (row for row in rows if row["kind"] != "ok"),
        key=lambda row: row["kind"] in ("partial-utf8", "unreachable"),
    )
    order = [
        row["token"] for row in [*(row for row in rows if verified.get(row["token"])), *caused]
    ]
    return {"run": run, "step": step, "token": order[0] if order else None}


def pictures(runs: Path, out: Path, run: str | None = None) -> list[Path]:
    """Write the pictures of `views` into `out`, pages light and dark.

    They are of the given run, else of the first with a spike.
    """
    os.environ["FORENSICS_RUNS"] = str(Path(runs).absolute())
    from app.navigation import path_of

    written = []
    with serving(runs) as url, chromium() as browser:
        for name, (page, selection) in views(run or _first_with_a_spike()).items():
            for shade in ("light", "dark") if name == page else ("light",):
                tab = Watched(browser, url, dark=shade == "dark")
                tab.open(path_of(page), **selection)
                tab.whole()
                written.append(out / f"{name}{'-dark' if shade == 'dark' else ''}.png")
                tab.picture(written[-1], full=False)
                tab.check()
                tab.close()
    return written


def _first_with_a_spike() -> str:
    from app import data

    names = [header["name"] for header in data.headers()]
    assert names, f"no run in {data.runs_folder()}: `forensics demo` makes one"
    return next((name for name in names if data.rows("spikes", run=name)), names[0])


# ---- what the pictures show


def missing(run: str, spec: Path) -> list[list[str]]:
    """Return the commands whose results the pictures show and the run's folder does not hold.

    Each is its program and arguments; `spec` is where the sweep's fork file will be.
    """
    from app import data
    from replay.step import artifacts

    folder, spike = data.runs_folder() / data.require(run), _spike(run)
    reached, at = data.reached(run) or 2, str(spike)
    todo: list[list[str]] = []
    if not artifacts.trace_of(folder, spike).is_file():
        todo.append(["replay", "trace", run, at])
    if not any((folder / artifacts.FOLDER).glob(f"attention-{spike}-*.safetensors")):
        todo.append(["replay", "attention", run, at])
    if not artifacts.token_losses_of(folder, spike).is_file():
        todo.append(["forensics", "batch", run, at, "--token-losses"])
    if not _measured(run, "matrix"):
        low, high = max(0, spike - 4), min(reached, spike + 4)
        todo.append(["replay", "matrix", run, "--batches", f"{low}:{high}"])
    if not _measured(run, "sweep"):
        todo.append(["replay", "sweep", str(spec), f"--at={','.join(map(str, _spread(reached)))}"])
    if spike not in _blamed(run):
        loss = any(step["step"] == spike for step in data.rows("spikes", run=run, metric="loss"))
        force = [] if loss else ["--force"]
        todo.append(["replay", "blame", run, "--spike", at, "--tokens", *force])
    if not _finished_forks(run):
        first, last = max(0, spike - 4), min(reached, spike + 16)
        window = ["--from", str(first), "--to", str(last)]
        skip = ["--skip", f"{spike}:{spike + 1}", "--placebos", "3"]
        todo.append(["replay", "fork", run, *window, *skip])
    return todo + _unmeasured(run, folder)


def _unmeasured(run: str, folder: Path) -> list[list[str]]:
    """Tokens at a handful of saved states, the last of them prompted too."""
    from app import data
    from forensics.tokens.verification_cache import verified

    saved = sorted(
        {
            checkpoint["step"]
            for checkpoint in data.recorded("checkpoints", run, ("step",))
            if checkpoint["step"]
        }
    )
    some = (
        sorted({saved[round(i * (len(saved) - 1) / (STATES - 1))] for i in range(STATES)})
        if saved
        else []
    )
    measured = {
        checkpoint["step"]
        for checkpoint in data.rows("token_checkpoints", run=run)
        if checkpoint["measured"]
    }
    todo = [["forensics", "tokens", f"{run}@{step}"] for step in some[:-1] if step not in measured]
    if some and (some[-1] not in measured or verified(folder, some[-1]) is None):
        todo.append(["forensics", "tokens", f"{run}@{some[-1]}", "--verify"])
    return todo


def _spread(reached: int) -> list[int]:
    """Four states, early to late, with the steps of a sweep after each."""
    return sorted({max(1, (reached - SWEPT) * tenth // 10) for tenth in (1, 3, 5, 9)})


def prepare(runs: Path, run: str) -> list[list[str]]:
    """Run what is `missing`, one command after the other, each told; returns those that failed.
    Minutes, on the demo.
    """
    os.environ["FORENSICS_RUNS"] = str(Path(runs).absolute())
    from app import data
    from replay.forks import toml_text

    failed = []
    with tempfile.TemporaryDirectory() as folder:
        spec, first = Path(folder) / "sweep.toml", _spread(data.reached(run) or 2)[0]
        spec.write_text(
            toml_text.written(
                {"parent": run, "from": first, "to": first + SWEPT, "placebos": 3},
                [{"kind": "skip", "window": f"{first}:{first + 2}"}],
            )
        )
        for program, *arguments in missing(run, spec):
            print("$", program, *arguments, flush=True)
            command = [sys.executable, "-m", f"{program}.cli.main", "--runs", str(runs), *arguments]
            if subprocess.run(command, stdin=subprocess.DEVNULL).returncode:
                failed.append([program, *arguments])
    return failed


if __name__ == "__main__":
    if sys.argv[1] == "prepare":
        failed = prepare(Path(sys.argv[2]), sys.argv[3])
        sys.exit("failed: " + "; ".join(" ".join(f) for f in failed) if failed else 0)
    for path in pictures(Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:4]):
        print(path, path.stat().st_size)
