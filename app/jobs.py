"""Long work: a command of `replay` or `forensics` in a process of its own, which a closed tab or
app does not end.

    job = start("demo", "replay", ["blame", "demo", "--spike", "400"])
    listed("demo")                       # newest first, of this run; listed() of all runs
    runs/<run>/work · a folder <id> each: work.json (what, when), progress.json, log.txt,
                                         result.json, ended.json

`python -m app.jobs FOLDER` is that process: it runs the command, then writes how it ended. Only
commands of COMMANDS are started, as lists of arguments without a shell.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from forensics.errors import ForensicsError
from forensics.store.writer import write_atomic

COMMANDS = {
    "replay": (
        "fork",
        "verify",
        "blame",
        "trace",
        "attention",
        "matrix",
        "sweep",
        "scan",
        "noise",
        "state",
        "diff",
        "line",
    ),
    "forensics": ("tokens", "probe", "batch", "spikes", "where"),
}
ID = re.compile(r"[0-9]{8}-[0-9]{6}-[0-9a-f]{4}")
TAIL = 4000  # characters of a log that are shown


@dataclass(frozen=True)
class Job:
    """One command. status: running | done | failed | lost (its process is gone and did not say how
    it ended).
    """

    id: str
    run: str
    folder: Path
    program: str
    arguments: tuple[str, ...]
    started: str
    status: str
    code: int | None
    progress: dict[str, Any]  # label, done, total, note; empty before the first report

    @property
    def share(self) -> float | None:
        """0 … 1 of what the current stage has to do; None where that is not known."""
        finished, total = self.progress.get("done"), self.progress.get("total")
        return min(1.0, finished / total) if isinstance(finished, int | float) and total else None

    @property
    def command(self) -> str:
        """Return the command as a line."""
        return " ".join([self.program, *self.arguments])

    def result(self) -> Any:
        """Return the JSON document of the command; None where it wrote none."""
        return _read(self.folder / "result.json")

    def log(self) -> str:
        """Return the end of what the command wrote to stderr."""
        try:
            with open(self.folder / "log.txt", "rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL))
                return file.read().decode(errors="replace")
        except OSError:
            return ""


def start(
    run: str, program: str, arguments: Sequence[str], files: dict[str, str] | None = None
) -> Job:
    """Start a command on a run. `files`: written beside it first; `{folder}` in an argument is
    where. Errors: usage, missing.
    """
    from app import data

    if program not in COMMANDS or not arguments or arguments[0] not in COMMANDS[program]:
        raise ForensicsError(
            "usage",
            f"wanted a command the app may start, found {program} {' '.join(arguments[:1])}",
            ", ".join(COMMANDS.get(program, COMMANDS)),
        )
    runs = data.runs_folder()
    now = datetime.now(UTC)
    folder = runs / data.require(run) / "work" / f"{now:%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
    folder.mkdir(parents=True)
    for name, text in (files or {}).items():
        assert re.fullmatch(r"[a-z0-9_-]+\.(toml|txt|sql|json)", name), name
        write_atomic(folder / name, text.encode())
    filled = [argument.replace("{folder}", str(folder)) for argument in arguments]
    about = {
        "run": run,
        "runs": str(runs),
        "program": program,
        "arguments": filled,
        "started": now.isoformat("T", "seconds"),
    }
    write_atomic(folder / "work.json", json.dumps(about, indent=1).encode())
    root = str(Path(__file__).resolve().parents[1])
    path = os.pathsep.join(
        folder_path for folder_path in (root, os.environ.get("PYTHONPATH")) if folder_path
    )
    with open(folder / "log.txt", "ab") as log:
        # a session of its own: the end of the app, or of a terminal, does not reach it
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "app.jobs", str(folder)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            env=os.environ | {"PYTHONPATH": path},
        )
    _children.append(process)
    write_atomic(
        folder / "process.json",
        json.dumps({"pid": process.pid, "birth": _birth(process.pid)}).encode(),
    )
    return opened(run, folder.name)


_children: list[subprocess.Popen[bytes]] = []  # so that those that ended are reaped


def opened(run: str, id_: str) -> Job:
    """One piece of work. Errors: usage, missing."""
    from app import data

    folder = data.runs_folder() / data.require(run) / "work" / id_
    about = _read(folder / "work.json") if ID.fullmatch(id_) else None
    if about is None:
        raise ForensicsError(
            "missing", f"no work of {run} is called {id_!r}", "it may have been deleted"
        )
    ended = _read(folder / "ended.json")
    _children[:] = [process for process in _children if process.poll() is None]
    status = _status(ended, _read(folder / "process.json") or {}, folder)
    if status == "lost":  # it may have ended between the two looks
        ended = _read(folder / "ended.json")
        status = _status(ended, {}, folder) if ended else status
    return Job(
        id_,
        run,
        folder,
        about["program"],
        tuple(about["arguments"]),
        about["started"],
        status,
        ended["code"] if ended else None,
        _read(folder / "progress.json") or {},
    )


def listed(run: str | None = None) -> list[Job]:
    """Return the jobs of a run, or of all, newest first."""
    from app import data
    from forensics.store.reader import runs_in

    jobs = []
    for name in runs_in(data.runs_folder()) if run is None else [run]:
        with contextlib.suppress(FileNotFoundError):
            for entry in os.scandir(data.runs_folder() / name / "work"):
                if ID.fullmatch(entry.name):
                    with contextlib.suppress(ForensicsError):
                        jobs.append(opened(name, entry.name))
    return sorted(jobs, key=lambda w: w.id, reverse=True)


def stop(job: Job) -> None:
    """Ask the command to end, as Ctrl-C does: what it can resume stays resumable."""
    process = _read(job.folder / "process.json") or {}
    if job.status == "running" and _alive(process):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process["pid"], signal.SIGINT)


def panel(run: str | None = None, *, most: int = 5, key: str = "work") -> None:
    """Draw what runs and ran, with bars; it looks again each second while something runs."""
    import streamlit as st

    from app import safe_html

    busy = any(job.status == "running" for job in listed(run)[:most])

    @st.fragment(run_every=1.0 if busy else None)
    def body() -> None:
        works = listed(run)[:most]
        for job in works:
            with st.container(border=True, key=f"{key}-{job.id}"):
                safe_html.note(
                    safe_html.strong(job.status),
                    " ",
                    safe_html.code(job.command),
                    f" · started {job.started[11:19]} UTC",
                )
                if job.status == "running":
                    if job.share is not None:
                        st.progress(job.share)
                    progress_words = [str(job.progress.get(name, "")) for name in ("label", "note")]
                    safe_html.caption(
                        " ".join(word for word in progress_words if word) or "starting"
                    )
                    st.button("Stop", key=f"{key}-stop-{job.id}", on_click=stop, args=(job,))
                elif job.status in ("failed", "lost"):
                    from forensics.visible import visible

                    st.code(visible(job.log()[-800:]) or "it wrote nothing", language=None)
        if busy and not any(job.status == "running" for job in works):
            st.rerun()  # the page that waits for it

    body()


def busy(run: str, command: str) -> bool:
    """Return whether this command runs now; draw the panel while its newest run is not done."""
    newest = next((job for job in listed(run) if job.arguments[:1] == (command,)), None)
    if newest is None or newest.status == "done":
        return False
    panel(run, most=2, key=f"work-{command}")
    return newest.status == "running"


def launcher(run: str, program: str, arguments: Sequence[str], label: str, **options: Any) -> None:
    """Draw the button that starts a command on a run; `options` are `st.button`'s."""
    import streamlit as st

    def launch() -> None:
        start(run, program, arguments)

    st.button(label, on_click=launch, **options)


def offer(
    run: str,
    program: str,
    arguments: Sequence[str],
    label: str,
    missing: str,
    *,
    hint: str = "",
    key: str,
) -> None:
    """Offer a command: what is missing, the command, a button; once it runs, how far it is."""
    from app import safe_html

    same = [
        job for job in listed(run) if job.program == program and job.arguments == tuple(arguments)
    ]
    if not any(job.status == "running" for job in same):
        safe_html.nothing(missing, " ".join([program, *arguments]), hint)
        launcher(run, program, arguments, label, key=f"offer-{key}", type="primary")
    if same and same[0].status != "done":
        panel(run, most=3, key=f"{key}-work")


def _status(ended: dict[str, Any] | None, process: dict[str, Any], folder: Path) -> str:
    if ended is not None:
        return "done" if ended["code"] == 0 else "failed"
    if process:
        return "running" if _alive(process) else "lost"
    young = time.time() - folder.stat().st_mtime < 10  # started a moment ago by another thread
    return "running" if young else "lost"


def _alive(process: dict[str, Any]) -> bool:
    """Whether it is this very process: a number is used again, the time of its birth is not."""
    return bool(process.get("pid")) and _birth(process["pid"]) == process.get("birth") is not None


def _birth(pid: int) -> str | None:
    """When the process was made, in the kernel's ticks; None where there is none, or only its
    remains.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        if not Path(
            "/proc/self/stat"
        ).exists():  # no Linux: all that can be asked is whether the number is in use
            with contextlib.suppress(OSError):
                os.kill(pid, 0)
                return "?"
        return None
    return None if fields[0] == "Z" else fields[19]


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None


@functools.cache
def _module(program: str) -> str:
    return {"replay": "replay.cli.main", "forensics": "forensics.cli.main"}[program]


def main(folder: Path) -> int:
    """Run the command of this folder, then write how it ended."""
    about = json.loads((folder / "work.json").read_bytes())
    command = [
        sys.executable,
        "-P",
        "-m",
        _module(about["program"]),
        "--runs",
        about["runs"],
        *about["arguments"],
        "--json",
    ]
    environment = os.environ | {"FORENSICS_PROGRESS": str(folder / "progress.json")}
    signal.signal(
        signal.SIGINT, lambda *_: None
    )  # the command gets it too; this process stays to write the end
    with open(folder / ".result.tmp", "wb") as out:
        code = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=out, env=environment
        ).returncode
    os.replace(folder / ".result.tmp", folder / "result.json")
    ended = {"code": code, "ended": datetime.now(UTC).isoformat("T", "seconds")}
    write_atomic(folder / "ended.json", json.dumps(ended).encode())
    return code


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
