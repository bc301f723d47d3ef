"""Which runs are healthy, what forked where? The tree on the axis of steps; below it the chosen
run.
"""

from __future__ import annotations

import functools
import json
import time
from functools import partial
from typing import Any

import streamlit as st

from app import data, show, words, work
from app.charts import runs as charts
from app.charts import theme
from app.pages import chosen_run, guarded, link
from app.selection import goto, picked, picked_row, shown
from app.show import code, strong
from forensics.records import TABLES
from forensics.store import manifest
from forensics.store.reader import runs_in

# seconds since the last write after which a run that says it is running is believed to be dead,
ALIVE_S = 180
FIRST_S = 1800  # or before its first; a fork's, whose steps are those of all its arms
SLOW = 3  # or that many times what the steps between two writes take
BUSY_S, IDLE_S = 2.0, 10.0  # seconds between looks at whether anything was written
SILENT = "stopped without saying so"
MOST = 60  # rows of the tree


def page() -> None:
    selection = chosen_run()
    if selection is None:
        return
    run = str(selection.run)
    seen = state_of(run)
    _overview(run)
    left, right = st.columns([1, 1.15], gap="medium")
    with left:
        _header(run)
        _configuration(run)
    with right:
        _events(run)
        _certificates(run)
        if work.listed(run):
            show.heading("Work on this run")
            work.panel(run)
    busy = any(_alive(h) for h in data.headers())
    st.fragment(_look_again, run_every=BUSY_S if busy else IDLE_S)(run, seen)


def state_of(run: str) -> tuple[Any, ...]:
    """Changes when anything was written that the page shows, and when a run falls silent."""
    names = runs_in(data.runs_folder())
    alive = [h["name"] for h in data.headers() if _alive(h)]
    return data.stamp(names, {"steps", "events", "forks"}), data.stamp([run], TABLES), alive


def _look_again(run: str, seen: tuple[Any, ...]) -> None:
    """Draws nothing: the page is drawn again when there is something new to see."""
    if state_of(run) != seen:
        st.rerun()


def status_of(header: dict[str, Any]) -> str:
    """What it says of itself; of one that says it is running, whether that is believed."""
    status = str(header.get("status") or "?")
    return SILENT if status == "running" and not _alive(header) else status


def _alive(header: dict[str, Any]) -> bool:
    """Whether a run trains now: it says so, and its tables were written to not long ago for its
    pace.
    """
    if header.get("status") != "running":
        return False
    run = data.runs_folder() / header["name"]
    path = manifest.folder(run, "steps") / "manifest.json"
    try:
        return time.time() - path.stat().st_mtime < patience(
            bool(header.get("parent")), _seconds_of_a_write(header)
        )
    except OSError:
        try:
            return time.time() - (run / "run.json").stat().st_mtime < FIRST_S
        except OSError:
            return False


def patience(fork: bool, seconds: float) -> float:
    """Seconds without a write that are believed, by what its steps between two writes took."""
    return max(FIRST_S if fork else ALIVE_S, SLOW * seconds)


def _seconds_of_a_write(header: dict[str, Any]) -> float:
    """What the steps from one write of the tables to the next take, by the newest that are
    recorded; 0: not known.
    """
    parts = manifest.load(data.runs_folder() / header["name"], "steps").parts
    if not parts:
        return 0.0
    every = ((header.get("config") or {}).get("record") or {}).get("flush_every")
    path = manifest.folder(data.runs_folder() / header["name"], "steps") / parts[-1].file
    return _mean_seconds(str(path)) * (every if isinstance(every, int) else parts[-1].rows)


@functools.lru_cache(64)
def _mean_seconds(path: str) -> float:
    """Of the steps in a part of the table `steps`."""
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    try:
        return pc.mean(pq.read_table(path, columns=["seconds"])["seconds"]).as_py() or 0.0
    except (
        OSError,
        KeyError,
        ValueError,
    ):  # merged away meanwhile, or of a version that did not record them
        return 0.0


# ---- the tree


def _overview(run: str) -> None:
    headers = data.headers()
    health = {h["run"]: h for h in data.rows("run_health")}
    title, sentence = summary(headers, health)
    show.verdict(title, *sentence)
    rows = tree(headers, health)
    show.caption(
        "A bar is a run, from its first step to where it is; grey: a run, blue: a fork, light: its"
        " null forks · marks: spikes of the loss · click a bar"
    )
    _draw(rows[:MOST], run)
    if len(rows) > MOST:
        show.caption(f"and {len(rows) - MOST} more: choose one above")


def summary(
    headers: list[dict[str, Any]], health: dict[str, dict[str, Any]]
) -> tuple[str, list[Any]]:
    """What is the case with the runs, as a title and a sentence."""
    forks = [h for h in headers if h.get("parent")]
    own = [h for h in headers if not h.get("parent")]
    nothing = {"loss_spikes": 0, "nonfinite": 0}
    spiky = [h["name"] for h in own if health.get(h["name"], nothing)["loss_spikes"]]
    broken = [h["name"] for h in headers if health.get(h["name"], nothing)["nonfinite"]]
    stopped = [h["name"] for h in own if h.get("status") in ("interrupted", "failed")]
    status = {h["name"]: status_of(h) for h in headers}
    training = [name for name, said in status.items() if said == "running"]
    silent = [name for name, said in status.items() if said == SILENT]
    quiet = [h for h in own if h["name"] not in {*spiky, *broken, *stopped, *silent}]
    counted = f"{len(own)} {'run' if len(own) == 1 else 'runs'}"
    title = counted + (f", {len(forks)} {'fork' if len(forks) == 1 else 'forks'}" if forks else "")
    title += f": {len(quiet)} without a spike of the loss or a value that is not finite"
    said: list[Any] = []
    for names, what in (
        (training, "Training now"),
        (spiky, "With spikes of the loss"),
        (broken, "With values not finite"),
        (stopped, "Interrupted or failed"),
        (silent, SILENT.capitalize()),
    ):
        if names:
            said += [f"{what}: ", strong(words.listed(names)), ". "]
    return title, said


def tree(headers: list[dict[str, Any]], health: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of the tree, depth first: {row, run, first, last, ahead, kind, status, does, parent_row,
    parent_step}.
    """
    known = {h["name"] for h in headers}
    rows: list[dict[str, Any]] = []

    def add(h: dict[str, Any], depth: int, parent: str | None) -> None:
        reached = data.reached(h["name"])
        about = health.get(h["name"], {})
        label = ("  " * (depth - 1) + "└ " if depth else "") + h["name"]
        last = max(reached if reached is not None else h["first_step"], h["first_step"])
        row = {
            "row": label,
            "run": h["name"],
            "first": h["first_step"],
            "last": last,
            "ahead": h["steps"],
            "kind": "fork" if h.get("parent") else "run",
            "status": status_of(h),
            "does": about.get("sentence") or "",
            "parent_row": parent,
            "parent_step": h.get("parent_step"),
        }
        rows.append(row)
        nulls = (about.get("placebos") or 0) + (about.get("chaos") or 0)
        if nulls:
            rows.append(
                {
                    **row,
                    "row": "  " * depth + f"└ null ×{nulls} of {h['name']}",
                    "kind": "null",
                    "parent_row": parent,
                    "does": f"{about['placebos']} placebos, {about['chaos']} chaos forks",
                    "ahead": last,
                }
            )
        for child in headers:
            if child.get("parent") == h["name"] and child["name"] not in {r["run"] for r in rows}:
                add(child, depth + 1, label)

    for h in headers:
        if h.get("parent") not in known and h["name"] not in {r["run"] for r in rows}:
            add(h, 0, None)
    return rows


def _draw(rows: list[dict[str, Any]], run: str) -> None:
    import pyarrow as pa

    text, whole = pa.string(), pa.int64()
    by_run = {r["run"]: r for r in rows if r["kind"] != "null"}
    marks = [
        {"row": by_run[m["run"]]["row"], "step": m["step"], "kind": m["kind"]}
        for m in data.rows("run_marks")
        if m["run"] in by_run
    ]
    bars = pa.schema(
        [
            (n, text if n in ("row", "run", "kind", "status", "does") else whole)
            for n in ("row", "run", "first", "last", "kind", "status", "does")
        ]
    )
    span = pa.schema([("row", text), ("first", whole), ("last", whole)])
    joins = [
        {"step": r["parent_step"], "row": r["parent_row"], "row2": r["row"]}
        for r in rows
        if r["parent_row"] is not None and r["parent_step"] is not None
    ]
    shown = {
        "bars": pa.Table.from_pylist(rows, schema=bars),
        "ahead": pa.Table.from_pylist(
            [{**r, "first": r["last"], "last": r["ahead"]} for r in rows if r["ahead"] > r["last"]],
            schema=span,
        ),
        "chosen": pa.Table.from_pylist(
            [r for r in rows if r["run"] == run and r["kind"] != "null"], schema=span
        ),
        "joins": pa.Table.from_pylist(
            joins, schema=pa.schema([("step", whole), ("row", text), ("row2", text)])
        ),
        "marks": pa.Table.from_pylist(
            marks, schema=pa.schema([("row", text), ("step", whole), ("kind", text)])
        ),
    }
    spec = theme.filled(charts.tree(show.dark(), len(rows)), rows=[r["row"] for r in rows])
    theme.draw(spec, shown, key="tree", on_select=_clicked)


def bar_of(event: Any) -> dict[str, str] | None:
    """What a click on a bar changes in the URL."""
    mark = picked(event, "bar", "run")
    return {"run": str(mark["run"])} if mark else None


def _clicked() -> None:
    change = bar_of(st.session_state["tree"])
    if change:
        goto(**change)


# ---- one run


def _header(run: str) -> None:
    h = data.header(run)
    show.heading(code(run), f" · {status_of(h)}")
    if h.get("parent"):
        about = next(iter(data.recorded("forks", run)), {})
        show.note(
            "A fork of ",
            code(h["parent"]),
            f" at step {words.count(h.get('parent_step'))}: ",
            strong(about.get("sentence") or altered(h.get("interventions") or [])),
            ".",
        )
        if about and not about.get("control_bitwise"):
            show.amber(
                "Tolerance only: the control did not equal the parent bit for bit on this machine."
            )
    pairs = {
        "steps": (
            f"{words.count(h.get('first_step'))} to {words.count(data.reached(run))} of"
            f" {words.count(h.get('steps'))}"
        ),
        "parameters": words.count(h.get("parameters")),
        "recipe": h.get("recipe"),
        "device": f"{h.get('device')}, {h.get('precision')}, {h.get('threads')} threads",
        "created": h.get("created"),
        "software": h.get("git_commit") or words.NONE,
        "started with": " ".join(map(str, h.get("arguments") or [])) or words.NONE,
    }
    show.frame([{"": k, run: str(v)} for k, v in pairs.items()], height=36 * (len(pairs) + 1) + 2)
    with st.container(horizontal=True):
        link("spikes", "Spikes", run=run)
        link("forks", "Forks", run=run, fork=None)
        link("tokens", "Tokens", run=run)


def altered(interventions: list[dict[str, Any]]) -> str:
    """What a fork does that is not done yet, and so has no sentence: the kinds of its
    interventions.
    """
    return words.listed([i.get("kind", "?") for i in interventions]) or "changes nothing"


def flat(config: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """A configuration as dotted keys and JSON values."""
    found: dict[str, str] = {}
    for key, value in config.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and value:
            found |= flat(value, f"{name}.")
        else:
            found[name] = json.dumps(value, ensure_ascii=False)
    return found


def differs(mine: dict[str, Any], other: dict[str, Any]) -> list[tuple[str, str, str]]:
    """(key, the other's value, mine) of every key in which two configurations differ; – where one
    lacks it.
    """
    a, b = flat(other), flat(mine)
    return [
        (k, a.get(k, words.NONE), b.get(k, words.NONE))
        for k in dict.fromkeys([*b, *a])
        if a.get(k) != b.get(k)
    ]


def _configuration(run: str) -> None:
    h = data.header(run)
    parent = data.header(h["parent"]) if h.get("parent") else {}
    if parent:
        rows, other = differs(h.get("config") or {}, parent.get("config") or {}), str(h["parent"])
        show.heading("Configuration: only what differs from ", code(other))
        if not rows:
            show.note("Nothing: it differs by its interventions alone.")
        for each in h.get("interventions") or []:
            st.code(
                show.visible(json.dumps(each, ensure_ascii=False)[:600]),
                language=None,
                wrap_lines=True,
            )
    else:
        from forensics.config import Recipe, to_dict

        rows, other = differs(h.get("config") or {}, to_dict(Recipe())), "default"
        show.heading("Configuration: only what differs from the defaults")
    if rows:
        table = [
            {"key": k, other: a, "here" if other != "here" else "this run": b} for k, a, b in rows
        ]
        show.frame(table, height=min(360, 36 * (len(table) + 1) + 2))


def _events(run: str) -> None:
    found = sorted(data.recorded("events", run), key=lambda e: (e["step"], e["metric"] or ""))
    spikes = [e for e in found if e["kind"] == "spike"]
    bad = [e for e in found if e["kind"] == "nonfinite"]
    rest = [e for e in found if e["kind"] not in ("spike", "nonfinite")]
    show.heading(f"Spikes: {len(spikes)}", f" · not finite: {len(bad)}")
    if spikes or bad:
        step = chosen_spike(run)
        rows = [
            {
                "": "●" if e["step"] == step else "",
                "step": e["step"],
                "metric": e["metric"] or e["tensor"],
                "kind": e["spike_kind"] or "not finite",
                "from": e["baseline"],
                "to": e["value"],
                "σ": e["sigma"],
                "back at": e["recovered_at"],
            }
            for e in spikes + bad
        ]
        numbers = {n: st.column_config.NumberColumn(format="%.3f") for n in ("from", "to")}
        columns = {
            "": st.column_config.TextColumn(width=24),
            **numbers,
            "σ": st.column_config.NumberColumn(format="%.0f"),
        }
        # of this choice: the tick of another, from before Back, would not go away
        key = f"events-{run}-{step}"
        show.frame(
            rows,
            key=key,
            height=min(290, 36 * (len(rows) + 1) + 2),
            selection_mode="single-row",
            column_config=columns,
            on_select=partial(_chose_spike, key, [r["step"] for r in rows]),
        )
        if step is not None:
            link("spikes", f"Look at the spike at {words.count(step)}", run=run, spike=step)
    else:
        show.note("None was found.")
    show.heading(f"Notes and other events: {len(rest)}")
    if rest:
        show.frame(
            [
                {"step": e["step"], "kind": e["kind"], "text": e["text"] or e["metric"]}
                for e in rest
            ],
            height=min(220, 36 * (len(rest) + 1) + 2),
        )
    else:
        show.nothing(
            "The logbook is empty.",
            f'forensics note {run} {max(0, (data.reached(run) or 1) - 1)} "what was seen"',
        )


def chosen_spike(run: str) -> int | None:
    """The spike that the URL names, if it is of this run."""
    chosen = shown()
    return chosen.spike if chosen.run == run else None


def _chose_spike(key: str, steps: list[int]) -> None:
    step = picked_row(st.session_state[key], steps)
    if step is not None:
        goto(spike=step)


def _certificates(run: str) -> None:
    found = data.recorded("certificates", run)
    show.heading(
        f"Certificates: {sum(bool(c['bitwise']) for c in found)} of {len(found)} bit for bit"
    )
    if not found:
        at = data.reached(run) or 0
        show.nothing(
            "No window was replayed and compared yet.",
            f"replay verify {run} {max(0, at - 10)} {at}",
        )
        return
    rows = [
        {
            "steps": f"{c['first']:,}:{c['last']:,}",
            "bit for bit": c["bitwise"],
            "level": c["level"],
            "compared": c["compared"],
            "first difference": c["first_difference"],
            "same fingerprint": c["fingerprint_equal"],
            "by": c["source"],
            "when": c["created"],
        }
        for c in found
    ]
    show.frame(rows, height=min(220, 36 * (len(rows) + 1) + 2))


guarded(page)
