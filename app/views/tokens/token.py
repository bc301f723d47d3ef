"""One token: its indicator over the checkpoints, how often it was shown, the documents that hold
it, what can be tried.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app import data, formatting, safe_html, theme
from app.navigation import link
from app.safe_html import Part, code, strong
from app.tokens import shown
from app.views.tokens import charts
from forensics.tokens import verification_cache as prompted

if TYPE_CHECKING:
    import pyarrow

SCANNED = 1 << 26  # tokens of the corpus that are looked through: about a tenth of a second
CHUNK = 1 << 22
LISTED = 50  # documents


def verified_of(run: str, step: int) -> tuple[dict[int, bool], str | None]:
    """(token → whether prompts verified it, the verdict on the model; None: nothing was prompted)
    of a checkpoint.
    """
    path = prompted.path_of(data.runs_folder() / data.require(run), step)
    return _verified(path.parent, step, path.stat().st_mtime_ns) if path.is_file() else ({}, None)


@functools.lru_cache(16)
def _verified(folder: Path, step: int, stamp: int) -> tuple[dict[int, bool], str | None]:
    return prompted.verified(folder, step) or ({}, None)


def draw(
    run: str, step: int, token: int, points: pyarrow.Table, verified: Mapping[int, bool]
) -> None:
    """Draw a token of the run's vocabulary at a checkpoint."""
    import pyarrow.compute as pc

    rows = points.filter(pc.equal(points["token"], token)).to_pylist()
    if not rows:
        safe_html.nothing(
            f"No token has the id {token:,}.",
            hint=f"This vocabulary has the ids 0 to {points.num_rows - 1:,}.",
        )
        return
    row = rows[0]
    safe_html.heading("Token ", code(shown(row["text"] or "")), f" · id {token:,}")
    safe_html.note(*sentence_of(row, step, verified.get(token)))
    _over_time(run, token)
    _documents(run, token)
    safe_html.heading("Next steps")
    link(
        "forks",
        "Fork: show it more often",
        part="build",
        kind="boost-token",
        fork=None,
        token=token,
        step=None,
    )
    link(
        "forks",
        "Fork: leave it out of the loss",
        part="build",
        kind="mask-tokens",
        fork=None,
        token=token,
        step=None,
    )


def sentence_of(t: Mapping[str, Any], step: int, verified: bool | None) -> list[Part]:
    """Say how often the model has seen it, when, and what is known of it."""
    sentence: list[Part] = [
        "By state ",
        strong(formatting.count(step)),
        " the model has seen it as an input ",
        strong(formatting.count(t["exposure_in"])),
        " times and as the token to predict ",
        strong(formatting.count(t["exposure_out"])),
        f" times, in {formatting.count(t['documents'])} documents",
    ]
    if t["first_seen"] is not None:
        sentence += [
            f"; first at step {formatting.count(t['first_seen'])}, last at"
            f" {formatting.count(t['last_seen'])}"
        ]
    sentence += [". "]
    if t["indicator"] is not None:
        sentence += ["Indicator ", strong(formatting.number(t["indicator"])), ". "]
    if t["kind"] != "ok":
        sentence += ["Why it is hardly trained: ", strong(t["kind"]), ". "]
    if verified is not None:
        sentence += [
            "Asked to repeat it, the model cannot."
            if verified
            else "Asked to repeat it, the model can."
        ]
    return sentence


def _over_time(run: str, token: int) -> None:
    import pyarrow as pa
    import pyarrow.compute as pc

    rows = data.table("token_trajectory", run=run, token=token)
    measured = rows.filter(pc.is_valid(rows["indicator"]))
    if rows.num_rows < 2:
        safe_html.nothing(
            "Only one checkpoint was measured. These commands measure more:",
            " && ".join(f"forensics tokens {run}@{step}" for step in _unmeasured(run)[:3]),
        )
        return
    last = max(rows["step"].to_pylist())
    bounds = [0, 1.02 * last]
    if measured.num_rows:
        safe_html.caption(
            "Indicator at each checkpoint · grey: 10th to 90th percentile of the tokens not yet"
            " seen by then"
        )
        first_seen = [step for step in rows["first_seen"].to_pylist() if step is not None]
        tables = {
            "trajectory": measured,
            "seen": pa.table({"step": pa.array(first_seen[:1], pa.int64())}),
        }
        theme.draw(
            theme.filled(charts.trajectory(safe_html.dark()), bounds=bounds),
            tables,
            key="token-trajectory",
        )
    safe_html.caption(
        "How often it had been seen by then, log(1 + n) · ● blue: as an input · ■ grey: as the"
        " token to"
        " predict"
    )
    both = [
        (step, label, count)
        for column, label in (("exposure_in", "as input"), ("exposure_out", "as target"))
        for step, count in zip(rows["step"].to_pylist(), rows[column].to_pylist())
    ]
    table = pa.table(
        {
            "step": [step for step, _, _ in both],
            "what": [role for _, role, _ in both],
            "count": [count for _, _, count in both],
        }
    )
    most = max([1, *(count for _, _, count in both if count is not None)])
    theme.draw(
        theme.filled(charts.exposure(safe_html.dark()), bounds=bounds, counts=[0, 1.2 * most]),
        {"exposures": table},
        key="token-exposure",
    )


def _unmeasured(run: str) -> list[int]:
    measured = {checkpoint["step"] for checkpoint in data.rows("token_checkpoints", run=run)}
    return [
        checkpoint["step"]
        for checkpoint in data.recorded("checkpoints", run, ("step",))
        if checkpoint["step"] not in measured and checkpoint["step"]
    ][::-1] or [0]


def _documents(run: str, token: int) -> None:
    """Where it stands in the corpus, whether or not the run came to it."""
    name = data.header(run).get("corpus")
    folder = data.runs_folder() / "_data" / str(name)
    if not name or not (folder / "corpus.json").is_file():
        return
    rows, times, scanned, total = documents_of(folder, token)
    scope = (
        ""
        if scanned == total
        else f" in the first {formatting.count(scanned)} of {formatting.count(total)} tokens"
    )
    safe_html.heading(
        f"{formatting.count(len(rows))} documents contain it, {formatting.count(times)}"
        f" times{scope}"
    )
    if not rows:
        safe_html.note(
            "No document of the run's corpus contains it, so training on this corpus cannot"
            " reach it."
        )
        return
    shown_rows = [
        {
            "times": row["times"],
            "document": row["document"],
            "source": row["source"],
            "path": row["path"],
        }
        for row in rows[:LISTED]
    ]
    safe_html.frame(shown_rows, key="token-documents", tallest=250)


@functools.lru_cache(64)
def documents_of(
    folder: Path, token: int, most: int = SCANNED
) -> tuple[list[dict[str, Any]], int, int, int]:
    """(documents with how often each holds the token, most first; all its times; tokens looked
    through; tokens there are).
    """
    import numpy as np

    from app.reading import corpus_at

    corpus = corpus_at(folder)
    share = min(1.0, most / max(1, corpus.tokens_in_all))
    counts: dict[int, int] = {}
    scanned = 0
    for source_index, source in enumerate(corpus.sources):
        end = int(source.tokens * share)  # of each source its part, so that none is left out
        for start in range(0, end, CHUNK):
            stop = min(end, start + CHUNK)
            at = np.flatnonzero(corpus.tokens(source_index, start, stop) == token)
            scanned += stop - start
            if len(at):
                for document, number in zip(
                    *np.unique(corpus.document_at(source_index, at + start), return_counts=True)
                ):
                    counts[int(document)] = counts.get(int(document), 0) + int(number)
    order = sorted(counts, key=lambda document: (-counts[document], document))
    table = corpus.documents
    rows = [
        {
            "times": counts[document],
            "document": document,
            "source": table["source"][document].as_py(),
            "path": table["path"][document].as_py(),
        }
        for document in order[:1000]
    ]
    rows += [
        {"times": counts[document], "document": document, "source": None, "path": None}
        for document in order[1000:]
    ]
    return rows, sum(counts.values()), scanned, corpus.tokens_in_all
