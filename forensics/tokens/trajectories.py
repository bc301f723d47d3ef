"""Each indicator over all checkpoints, beside exact exposure: when was each token trained, and
which stay behind?

    trajectories(run)["behind"]      [{id, text, exposure, rate, expected_at, …}]

At a checkpoint the *band* is what the indicator is for tokens that nothing has reached by then; a
token is trained at the first checkpoint from which on it lies above the band for good. Ids that are
never met before the last checkpoint are split in two: one half is the reference of the indicators
that need one, the other half is judged like every token.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from forensics.errors import ForensicsError
from forensics.model.vocabulary_matrices import Weights
from forensics.progress import ProgressCallback, silent
from forensics.store import result_cache
from forensics.store.resumable import Kept
from forensics.tokens import ranking, reference
from forensics.tokens.categories import Categories, categorise
from forensics.tokens.exposure import Exposure, ledgers
from forensics.tokens.indicators import measure
from forensics.tokens.vocabulary import texts, write_vocabulary
from forensics.train.run import Run

LEAST = 8  # never-seen tokens that make a band
QUARTILES = (0.25, 0.5, 0.75)
Band = tuple[float, float]


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """One checkpoint: every indicator (V,) float32, and what each token was exposed to by then."""

    step: int
    indicators: dict[str, np.ndarray]
    exposure: Exposure

    def met(self, indicator: str, tied: bool) -> np.ndarray:
        """Return the exposures (V,) that move what an indicator reads.

        Inputs, targets, or of a tied matrix whichever is more.
        """
        exposure = self.exposure
        if tied:
            return np.maximum(exposure.exposure_grad, exposure.exposure_out)
        return exposure.exposure_grad if indicator == "input-norm" else exposure.exposure_out


def trajectories(
    run: Run,
    steps: list[int] | None = None,
    seed: int = 0,
    resamples: int = ranking.RESAMPLES,
    progress: ProgressCallback = silent,
) -> dict[str, Any]:
    """Return the document of `--over-time`: `over_time`, `trained_at`, `needed`, `behind`,
    `hindsight`; `steps` are checkpoints.

    Writes each checkpoint's rows of `vocabulary`. One checkpoint is in memory at a time. Errors:
    missing, integrity.
    """
    chosen = _saved(run, steps)
    categories = categorise(run.corpus.tokenizer)
    reference = reference_ids(run, chosen[-1], progress)
    name = "cosine" if run.shape.tied else "input-norm"
    other_ids = np.setdiff1d(np.arange(run.shape.vocabulary), reference.ids if reference else [])
    judged_n = np.isin(
        other_ids, categories.ids[categories.reachable]
    )  # partial and unreachable ones only make the band
    ids = reference.ids.tolist() if reference else None
    depends = f"{run.name} {run.header.created} {ids} {seed} {resamples}"
    finished = Kept(run.folder / "trajectories", depends)
    over_time, history = [], []
    for i, point in enumerate(checkpoints(run, chosen, reference, categories, progress)):
        if name not in point.indicators:
            raise ForensicsError(
                "data",
                f"{run.name} is tied, and {name} needs ids that are known to be unused",
                "it met every token; --reference IDS names them",
            )
        if str(point.step) not in finished:
            finished.put(
                str(point.step), _at(point, other_ids[judged_n], run.shape.tied, seed, resamples)
            )
        over_time.append(finished.get(str(point.step)))
        history.append(
            (
                point.step,
                point.indicators[name][other_ids],
                point.met(name, run.shape.tied)[other_ids],
            )
        )
        progress(i + 1, len(chosen), f"checkpoint {point.step}")
    return {
        "run": run.name,
        "steps": chosen,
        "indicator": name,
        "tokens": int(judged_n.sum()),
        "seed": seed,
        "resamples": resamples,
        "reference": (
            None
            if reference is None
            else {"kind": reference.kind, "ids": reference.ids.tolist(), "why": reference.why}
        ),
        "over_time": over_time,
        **story_of(history, other_ids, judged_n, texts(run), run.header.steps),
    }


def _saved(run: Run, steps: list[int] | None) -> list[int]:
    """Return the checkpoints asked for, all where none is named. Errors: missing."""
    chosen = run.saved_steps() if steps is None else sorted(set(steps))
    for step in chosen:
        if step not in run.saved_steps():
            raise ForensicsError(
                "missing",
                f"wanted a checkpoint of {run.name} at {step}, found none",
                f"saved: {', '.join(map(str, run.saved_steps()))}",
            )
    return chosen


def reference_ids(
    run: Run, step: int, progress: ProgressCallback = silent
) -> reference.Reference | None:
    """Every second of the ids that the run never meets up to `step`; None where it meets all but
    one.
    """
    never = ledgers(run, [step], progress)[0].never_met
    return reference.never_met(never[::2], run.name, step) if len(never) >= 2 else None


def checkpoints(
    run: Run,
    steps: list[int],
    own: reference.Reference | None,
    categories: Categories,
    progress: ProgressCallback = silent,
) -> Iterator[Checkpoint]:
    """Each with its indicators and exposure; measured once, then kept beside the run. Errors:
    missing, integrity.
    """
    name = "cosine" if run.shape.tied else "input-norm"
    category = dict(zip(categories.ids.tolist(), categories.category))
    for step, exposure in zip(steps, ledgers(run, steps, progress)):
        path = _indicators_of(run, step, own)
        cached = result_cache.read_arrays(path)
        if cached is None:
            cached = measure(weights_of(run, step), own.ids if own else None)
            write_vocabulary(
                run, step, indicator=cached.get(name), category=category, exposure=exposure
            )
            result_cache.write_arrays(path, cached)
        yield Checkpoint(step, cached, exposure)


def weights_of(run: Run, step: int) -> Weights:
    """Return the vocabulary matrices of a checkpoint, on the CPU in float32."""
    from forensics.model.decoder import unembedding

    params = run.load(step).params
    embedding, out = params["embed.weight"].float().cpu(), unembedding(params).float().cpu()
    return Weights(embedding, embedding if run.shape.tied else out, None, run.shape.tied)


def _at(
    point: Checkpoint, judged: np.ndarray, tied: bool, seed: int, resamples: int
) -> dict[str, Any]:
    rows = []
    for name, values in point.indicators.items():
        met, value = point.met(name, tied)[judged], values[judged]
        scores = ranking.scores(value, met, seed, resamples)
        rows.append(
            {
                "indicator": name,
                "spearman": ranking.spearman(value, np.log1p(met)),
                "scores": [score.document() for score in scores],
            }
        )
    never = int((point.exposure.exposure_grad[judged] == 0).sum())
    return {"step": point.step, "never": never, "indicators": rows}


# ---- when each token was trained


History = list[tuple[int, np.ndarray, np.ndarray]]  # step, indicator (n,), exposure (n,)


def story_of(
    history: History, ids: np.ndarray, judged_n: np.ndarray, text: list[str | None], end: int
) -> dict[str, Any]:
    """`bands`, `trained_at`, `needed`, `behind`, `hindsight`, `sentence` of the judged among these
    tokens (n,).

    The others only help to make the band; `end` is the step at which the run ends.
    """
    bands = [
        band_at_step for _, value, met in history if (band_at_step := band(value, met)) is not None
    ]
    if len(bands) < len(history):
        return {
            "bands": None,
            "trained_at": None,
            "token_trained_at": {},
            "needed": None,
            "behind": [],
            "hindsight": None,
            "sentence": (
                f"Which tokens are trained cannot be told: fewer than {LEAST} tokens are never"
                " seen, so nothing shows what an untrained one looks like."
            ),
        }
    trained = trained_at(history, bands)[judged_n]
    history = [(step, value[judged_n], met[judged_n]) for step, value, met in history]
    ids, steps, (last, indicator, met) = (
        ids[judged_n],
        [step for step, _, _ in history],
        history[-1],
    )
    needed = exposure_needed(history, trained)
    behind = [
        {
            "id": int(ids[i]),
            "text": text[ids[i]],
            "exposure": int(met[i]),
            "indicator": float(indicator[i]),
            **_forecast(int(met[i]), met[i] / last, last, needed),
        }
        for i in np.flatnonzero((trained < 0) & (met > 0))
    ]
    return {
        "bands": [
            {"step": step, "low": band_at_step[0], "high": band_at_step[1]}
            for step, band_at_step in zip(steps, bands)
        ],
        "trained_at": [{"step": step, "tokens": int((trained == step).sum())} for step in steps],
        "token_trained_at": {int(id): int(step) for id, step in zip(ids, trained) if step >= 0},
        "needed": needed,
        "behind": sorted(behind, key=lambda row: -row["exposure"]),
        "hindsight": hindsight(history, bands, trained),
        "sentence": _sentence(trained, met, needed, behind, end),
    }


def band(indicator: np.ndarray, met: np.ndarray) -> Band | None:
    """Smallest and largest value among tokens that nothing reached; None where there are fewer than
    LEAST.
    """
    never = indicator[met == 0]
    return (float(never.min()), float(never.max())) if len(never) >= LEAST else None


def trained_at(history: History, bands: Sequence[Band]) -> np.ndarray:
    """Return the first checkpoint from which on each token lies above the band.

    (n,) steps, −1 where it does not at the last.
    """
    above = np.array([value > high for (_, value, _), (_, high) in zip(history, bands)])  # (S, n)
    settled = np.logical_and.accumulate(above[::-1])[::-1]
    steps = np.array([step for step, _, _ in history])
    return np.where(settled[-1], steps[settled.argmax(0)], -1)


def exposure_needed(history: History, trained: np.ndarray) -> dict[str, float | None] | None:
    """Exposures after which a quarter, half and three quarters of the tokens were trained (Kaplan
    and Meier 1958).

    A token that left the band between two checkpoints did so at the geometric mean of its exposures
    there; one that has not left it needs more than it had. None where none has left it.
    """
    steps = [step for step, _, _ in history]
    at, left = [], []
    for i in np.flatnonzero(history[-1][2] > 0):
        if trained[i] < 0:
            at.append(float(history[-1][2][i]))
            left.append(False)
        elif (k := steps.index(int(trained[i]))) > 0 and history[k][2][i] > 0:
            before, after = max(float(history[k - 1][2][i]), 0.5), float(history[k][2][i])
            at.append((before * after) ** 0.5)
            left.append(True)
    if not any(left):
        return None
    n, gone = np.array(at), np.array(left)
    order = np.lexsort((~gone, n))  # at a tie, those that left come first
    n, gone = n[order], gone[order]
    staying = np.cumprod(np.where(gone, 1 - 1 / np.arange(len(n), 0, -1), 1.0))
    needed: dict[str, float | None] = {"tokens": len(n)}
    for share, name in zip(QUARTILES, ("quarter", "half", "three_quarters")):
        below = np.flatnonzero(staying <= 1 - share + 1e-12)
        needed[name] = float(n[below[0]]) if len(below) else None
    return needed


def _forecast(
    exposure: int, rate: float, step: int, needed: dict[str, float | None] | None
) -> dict[str, Any]:
    """When it will have been seen often enough, if it goes on coming at the rate so far."""

    def when(n: float | None) -> int | None:
        return None if n is None else int(np.ceil(step + max(0.0, n - exposure) / rate))

    thresholds = needed or {}
    return {
        "rate": rate,
        "expected_at": when(thresholds.get("half")),
        "expected_early": when(thresholds.get("quarter")),
        "expected_late": when(thresholds.get("three_quarters")),
    }


def hindsight(
    history: History, bands: Sequence[Band], trained: np.ndarray
) -> dict[str, Any] | None:
    """Return the forecast made at the middle checkpoint, held against what came.

    None where none could be made there.
    """
    middle = len(history) // 2
    if middle < 2:
        return None
    past, (step, _, met), last = history[: middle + 1], history[middle], history[-1][0]
    then = trained_at(past, bands)
    needed = exposure_needed(past, then)
    if needed is None or needed["half"] is None:
        return None
    waiting = np.flatnonzero((then < 0) & (met > 0))
    foretold = np.array(
        [
            _forecast(int(met[i]), met[i] / step, step, needed)["expected_at"] <= last
            for i in waiting
        ],
        bool,
    )
    came = trained[waiting] >= 0
    return {
        "made_at": step,
        "until": last,
        "tokens": len(waiting),
        "said_trained": int(foretold.sum()),
        "said_and_came": int((foretold & came).sum()),
        "said_not": int((~foretold).sum()),
        "said_not_and_came": int((~foretold & came).sum()),
    }


def _sentence(
    trained: np.ndarray,
    met: np.ndarray,
    needed: dict[str, float | None] | None,
    behind: list[dict[str, Any]],
    end: int,
) -> str:
    n, half = int((trained >= 0).sum()), (needed or {}).get("half")
    sentences = [
        f"{n:,} of {len(trained):,} tokens are trained: their indicator lies above the range that"
        " never-seen tokens have.",
        f"{int((met == 0).sum()):,} were never seen.",
    ]
    if half is not None:
        sentences.append(f"Half of the tokens needed {half:.3g} exposures or fewer.")
    if behind:
        late = sum(row["expected_at"] is None or row["expected_at"] > end for row in behind)
        sentences.append(
            f"{len(behind):,} were seen and are not trained; {late:,} of them are not expected to"
            f" be before the run ends at step {end:,}."
        )
    return " ".join(sentences)


def _indicators_of(run: Run, step: int, reference: reference.Reference | None) -> Path:
    """Return where the indicators of a checkpoint are kept."""
    ids = reference.ids.tolist() if reference else None
    identity = f"1 {run.name} {run.header.created} {ids}"
    return result_cache.path_of(run.folder / "indicators", f"{step:06d}-", identity, ".npz")
