"""`forensics probe`: one metric over the checkpoints of a run, one checkpoint in memory at a time,
resumable.

probe(runs, "demo", "loss")
probe(runs, "demo", "my_metric.py:sharpness")     called with (params, model, run)
"""

from __future__ import annotations

import hashlib
import importlib.util
import numbers
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from forensics.config import window
from forensics.data.text_file import read_text_file
from forensics.errors import ForensicsError, nearest
from forensics.probes.metrics import METRICS, Metric
from forensics.probes.view import Value, View
from forensics.progress import ProgressCallback, silent
from forensics.step.batch import MADE, Batch
from forensics.store.resumable import Kept
from forensics.train.checkpoint import name_of
from forensics.train.imported_checkpoint import linked, open_params
from forensics.train.run import Run, open_run

UNREAD = 64  # sequences, of a run that holds nothing out


def probe(
    runs: Path,
    name: str,
    what: str,
    steps: str | None = None,
    text: Path | None = None,
    progress: ProgressCallback = silent,
) -> dict[str, Any]:
    """`points` [{step, value}], value a number or a dictionary of numbers; finished checkpoints are
    kept beside the run.

    `what` is a built-in's name or `file.py:function`; `steps` is "A:B", "S,T,…" or all checkpoints;
    `text` a UTF-8 file to read instead of the held-out set. Errors: usage, missing, data,
    integrity.
    """
    run = open_run(runs, name)
    metric, source = _metric(what)
    chosen = checkpoints(run, steps)
    if text is not None and not metric.reads_text:
        raise ForensicsError("usage", f"{what} reads no text, found --text", "leave it out")
    batch = _text(run, text, what) if metric.reads_text else None
    reads = hashlib.sha256(batch.tokens.numpy().tobytes()).hexdigest() if batch is not None else ""
    finished = Kept(
        run.folder / "probes", f"{run.name} {run.header.created} {what} {source} {reads}"
    )
    points: list[dict[str, Any]] = []
    carried: Any = None
    for i, step in enumerate(chosen):
        before = chosen[i - 1] if i and metric.carry else None
        key = str(step) if metric.carry is None else f"{before} {step}"
        if key in finished:
            carried = None
        else:
            if metric.carry is not None and before is not None and carried is None:
                carried = metric.carry(_view(before, run, batch, metric))
            view = _view(step, run, batch, metric)
            finished.put(key, metric.measure(view, carried))
            # what it carries belongs to the checkpoint just read; the next needs nothing more of it
            carried = metric.carry(view) if metric.carry is not None else None
            del view
        points.append({"step": step, "value": finished.get(key)})
        progress(i + 1, len(chosen), f"checkpoint {step}")
    return {
        "run": name,
        "probe": what,
        "text": str(text) if text else "held-out" if batch is not None else None,
        "points": points,
    }


def _view(step: int, run: Run, text: Batch | None, metric: Metric) -> View:
    """Open a checkpoint; weights that lie elsewhere are read as the metric asks for them."""
    folder = run.folder / "checkpoints" / name_of(step)
    if not metric.needs_state and linked(folder):
        return View(step, open_params(folder, run.header.device), run, text)
    state = run.load(step)
    return View(step, state.params, run, text, state)


def checkpoints(run: Run, steps: str | None) -> list[int]:
    """Those of the saved states that "A:B" or "S,T,…" chooses; all of them where it is None.
    Errors: usage, missing.
    """
    saved = run.saved_steps() or [run.last_step()]
    shown = ", ".join(map(str, saved[:12])) + (", …" if len(saved) > 12 else "")
    if steps is None:
        return saved
    if ":" in steps:
        first, last = window(steps, "--steps")
        chosen = [s for s in saved if first <= s < last]
        if not chosen:
            raise ForensicsError(
                "missing",
                f"wanted checkpoints of {run.name} in {steps}, found none",
                f"saved: {shown}",
            )
        return chosen
    numbers_ = [step_text.strip() for step_text in steps.split(",")]
    if not all(step_text.isdecimal() for step_text in numbers_):
        raise ForensicsError(
            "usage", f"wanted --steps A:B or S,T,…, found {steps!r}", "e.g. --steps 0,100,200"
        )
    for step in map(int, numbers_):
        if step not in saved:
            raise ForensicsError(
                "missing",
                f"wanted a checkpoint of {run.name} at {step}, found none",
                f"saved: {shown}",
            )
    return sorted(set(map(int, numbers_)))


def _text(run: Run, path: Path | None, what: str) -> Batch:
    """Return the held-out set, or a file's tokens cut into sequences as long as the run's that
    share one token with their neighbour.
    """
    if path is None:
        ids = run.batches.untrained(run.header.steps, UNREAD)
        if not len(ids):
            raise ForensicsError(
                "usage",
                f"{what} needs a text: {run.name} holds nothing out, and no sequence is known that"
                " it does not read",
                "--text FILE",
            )
        return run.batches.whole(ids)
    content = read_text_file(path, "--text FILE")
    ids = np.array(run.corpus.tokenizer.encode(content, add_special_tokens=False).ids, np.int64)
    if len(ids) < 2:
        raise ForensicsError(
            "data",
            f"wanted a text of at least 2 tokens, found {len(ids)} in {path.name}",
            "a longer one",
        )
    T = min(run.recipe.data.cut.targets, len(ids) - 1)
    count = (len(ids) - 1) // T
    rows = np.stack([ids[i * T : i * T + T + 1] for i in range(count)])
    tokens = torch.from_numpy(rows)
    return Batch(tokens, torch.ones(count, T), float(count * T), torch.full((count,), MADE), None)


def _metric(what: str) -> tuple[Metric, str]:
    """Return the built-in, or a metric around the user's function, and what names its source's
    content.
    """
    if what in METRICS:
        return METRICS[what], ""
    file, colon, function = what.rpartition(":")
    if not colon:
        raise ForensicsError(
            "usage",
            f"wanted a probe, found {what!r}",
            nearest(what, METRICS) + " (or file.py:function)",
        )
    path = Path(file)
    if path.suffix != ".py" or not path.is_file():
        raise ForensicsError(
            "missing",
            f"wanted a Python file at {file!r}, found none",
            "e.g. my_metric.py:sharpness",
        )
    call = _function(path, function)

    def measure(view: View, _: Any) -> Value:
        try:
            value = call(view.params, view.model, view.run)
        except ForensicsError:
            raise
        except Exception as e:
            raise ForensicsError(
                "usage",
                f"{path.name}:{function} failed at checkpoint {view.step}: {type(e).__name__}: {e}",
                "it is called with (params, model, run)",
            ) from e
        return _number_or_numbers(value, f"{path.name}:{function}", view.step)

    return Metric(what, measure), hashlib.sha256(path.read_bytes()).hexdigest()


def _function(path: Path, name: str) -> Callable[..., Any]:
    module_spec = importlib.util.spec_from_file_location(f"forensics_probe_{path.stem}", path)
    assert module_spec is not None and module_spec.loader is not None, "a .py file has a loader"
    module = importlib.util.module_from_spec(module_spec)
    try:
        module_spec.loader.exec_module(module)
    except (Exception, SystemExit) as e:
        raise ForensicsError(
            "usage",
            f"{path.name} cannot be imported: {type(e).__name__}: {e}",
            "does it run by itself?",
        ) from e
    function = getattr(module, name, None)
    if not callable(function):
        candidates = [
            n
            for n, v in vars(module).items()
            if callable(v) and getattr(v, "__module__", "") == module.__name__
        ]
        raise ForensicsError(
            "usage", f"{path.name} has no function {name!r}", nearest(name, candidates)
        )
    return function


def _number_or_numbers(value: Any, who: str, step: int) -> Value:
    if hasattr(value, "item") and getattr(value, "ndim", 0) == 0:
        value = value.item()
    if value is None:
        return None
    if isinstance(value, numbers.Real):
        return float(value)
    if isinstance(value, dict):
        named_values = {str(k): _number_or_numbers(v, who, step) for k, v in value.items()}
        if all(v is None or isinstance(v, float) for v in named_values.values()):
            return named_values  # type: ignore[return-value]
    raise ForensicsError(
        "usage",
        f"{who}: wanted a number or a dictionary of numbers, found {type(value).__name__} at"
        f" checkpoint {step}",
        "return float(x)",
    )
