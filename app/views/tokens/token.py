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
    """A token of the run's vocabulary at a checkpoint."""
    import pyarrow.compute as pc

    found = points.filter(pc.equal(points["token"], token)).to_pylist()
    if not found:
        safe_html.nothing(
            f"No token has the id {token:,}.",
            hint=f"This vocabulary has ids 0 to {points.num_rows - 1:,}.",
        )
        return
    t = found[0]
    safe_html.heading("Token ", code(shown(t["text"] or "")), f" · id {token:,}")
    safe_html.note(*sentence_of(t, step, verified.get(token)))
    _over_time(run, token)
    _documents(run, token)
    safe_html.heading("What can be tried")
    link(
        "forks",
        "Show it more often, from here on",
        part="build",
        kind="boost-token",
        fork=None,
        token=token,
        step=None,
    )
    link(
        "forks",
        "Mask it in the loss",
        part="build",
        kind="mask-tokens",
        fork=None,
        token=token,
        step=None,
    )


def sentence_of(t: Mapping[str, Any], step: int, verified: bool | None) -> list[Part]:
    """How often it was met, when, and what is known of it."""
    said: list[Part] = [
        "By state ",
        strong(formatting.count(step)),
        ": an input ",
        strong(formatting.count(t["exposure_in"])),
        " times, a target ",
        strong(formatting.count(t["exposure_out"])),
        f" times, in {formatting.count(t['documents'])} documents",
    ]
    if t["first_seen"] is not None:
        said += [
            f"; first at step {formatting.count(t['first_seen'])}, last at {formatting.count(t['last_seen'])}"
        ]
    said += [". "]
    if t["indicator"] is not None:
        said += ["Indicator ", strong(formatting.number(t["indicator"])), ". "]
    if t["kind"] != "ok":
        said += ["Cause: ", strong(t["kind"]), ". "]
    if verified is not None:
        said += [
            "Verified: the model does not repeat it."
            if verified
            else "Not verified: the model repeats it."
        ]
    return said


def _over_time(run: str, token: int) -> None:
    import pyarrow as pa
    import pyarrow.compute as pc

    rows = data.table("token_trajectory", run=run, token=token)
    known = rows.filter(pc.is_valid(rows["indicator"]))
    if rows.num_rows < 2:
        safe_html.nothing(
            "One checkpoint was measured, so there is no course to draw.",
            " && ".join(f"forensics tokens {run}@{s}" for s in _unmeasured(run)[:3]),
        )
        return
    last = max(rows["step"].to_pylist())
    bounds = [0, 1.02 * last]
    if known.num_rows:
        safe_html.caption(
            "Indicator by checkpoint · grey: 10–90 % of the tokens that nothing had reached by then"
        )
        seen = [s for s in rows["first_seen"].to_pylist() if s is not None]
        tables = {"trajectory": known, "seen": pa.table({"step": pa.array(seen[:1], pa.int64())})}
        theme.draw(
            theme.filled(charts.trajectory(safe_html.dark()), bounds=bounds),
            tables,
            key="token-trajectory",
        )
    safe_html.caption(
        "How often it had been met by then, log(1 + n) · ● blue: as an input, ■ grey: as a target"
    )
    both = [
        (s, what, n)
        for column, what in (("exposure_in", "as input"), ("exposure_out", "as target"))
        for s, n in zip(rows["step"].to_pylist(), rows[column].to_pylist())
    ]
    table = pa.table(
        {
            "step": [s for s, _, _ in both],
            "what": [w for _, w, _ in both],
            "count": [n for _, _, n in both],
        }
    )
    most = max([1, *(n for _, _, n in both if n is not None)])
    theme.draw(
        theme.filled(charts.exposure(safe_html.dark()), bounds=bounds, counts=[0, 1.2 * most]),
        {"exposures": table},
        key="token-exposure",
    )


def _unmeasured(run: str) -> list[int]:
    measured = {c["step"] for c in data.rows("token_checkpoints", run=run)}
    return [
        c["step"]
        for c in data.recorded("checkpoints", run, ("step",))
        if c["step"] not in measured and c["step"]
    ][::-1] or [0]


def _documents(run: str, token: int) -> None:
    """Where it stands in the corpus, whether or not the run came to it."""
    name = data.header(run).get("corpus")
    folder = data.runs_folder() / "_data" / str(name)
    if not name or not (folder / "corpus.json").is_file():
        return
    rows, times, scanned, total = documents_of(folder, token)
    part = (
        ""
        if scanned == total
        else f" in the first {formatting.count(scanned)} of {formatting.count(total)} tokens"
    )
    safe_html.heading(
        f"Documents that hold it: {formatting.count(len(rows))}, {formatting.count(times)} times{part}"
    )
    if not rows:
        safe_html.note(
            "It stands nowhere in the run's corpus: no training on it could ever reach this token."
        )
        return
    shown_rows = [
        {"times": r["times"], "document": r["document"], "source": r["source"], "path": r["path"]}
        for r in rows[:LISTED]
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
    for s, source in enumerate(corpus.sources):
        end = int(source.tokens * share)  # of each source its part, so that none is left out
        for start in range(0, end, CHUNK):
            stop = min(end, start + CHUNK)
            at = np.flatnonzero(corpus.tokens(s, start, stop) == token)
            scanned += stop - start
            if len(at):
                for document, n in zip(
                    *np.unique(corpus.document_at(s, at + start), return_counts=True)
                ):
                    counts[int(document)] = counts.get(int(document), 0) + int(n)
    order = sorted(counts, key=lambda d: (-counts[d], d))
    table = corpus.documents
    rows = [
        {
            "times": counts[d],
            "document": d,
            "source": table["source"][d].as_py(),
            "path": table["path"][d].as_py(),
        }
        for d in order[:1000]
    ]
    rows += [
        {"times": counts[d], "document": d, "source": None, "path": None} for d in order[1000:]
    ]
    return rows, sum(counts.values()), scanned, corpus.tokens_in_all
