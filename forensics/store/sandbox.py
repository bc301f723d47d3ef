"""Run a stranger's SELECT in a child process that reads the runs' tables and can write nothing.

`allowed_directories` alone is no sandbox: DuckDB would still let COPY, also one inside a CTE, write
there. So a statement is first held against a list of what may stand in its syntax tree
(`select_check`); then a fresh process (no shared memory, nothing pickled: JSON in, Arrow IPC out)
opens only the parts of the tables that the statement names, gives up every other file, locks its
configuration and is limited in memory, time, file size and rows.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from forensics.errors import ForensicsError
from forensics.store import manifest, reader
from forensics.store.select_check import one_line, refused, used_tables

if TYPE_CHECKING:
    import pyarrow

Request = dict[str, Any]  # what goes to the child as JSON; its keys are in `run_sandboxed`

LARGEST = 256 << 20  # bytes of a result
GRACE = 3.0  # seconds that an interrupted statement has to stop before its process is ended


def run_sandboxed(
    runs_folder: str | Path,
    sql: str,
    *,
    params: dict[str, Any] | None = None,
    limit: int = 100_000,
    timeout_s: float = 30,
    memory: str = "1GB",
) -> pyarrow.Table:
    """Return the rows of a user's SELECT over the views of `reader.connect`, from a child process.

    At most `limit` rows: schema metadata b"truncated" is b"true" where there were more. Errors:
    sql, missing, integrity.
    """
    import pyarrow as pa

    if not Path(runs_folder).is_dir():
        raise ForensicsError(
            "missing",
            f"wanted a folder of runs at {runs_folder}, found none",
            "`forensics train RECIPE` makes the first run; or set --runs",
        )
    request: Request = {
        "folder": str(Path(runs_folder).absolute()),
        "sql": sql,
        "params": params or {},
        "limit": limit,
        "timeout_s": timeout_s,
        "memory": memory,
        "checked": sorted(manifest.CHECKED),
    }
    for attempt in range(reader.ATTEMPTS):
        head, body = _ask(request)
        if not (head.get("stale") and attempt < reader.ATTEMPTS - 1):
            break
    if "error" in head:
        raise ForensicsError(**head["error"])
    manifest.CHECKED.update((p, s, t, h) for p, s, t, h in head["checked"])
    table = pa.ipc.open_stream(body).read_all()
    return table.replace_schema_metadata({b"truncated": b"true" if head["truncated"] else b"false"})


class _Reply(NamedTuple):
    """A child's answer: one line of JSON and, where there is no error, an Arrow stream."""

    head: dict[str, Any]
    body: memoryview


def _ask(request: Request) -> _Reply:
    """Send one request to a fresh child and return its reply. Errors: sql."""
    environment_names = (
        "LD_LIBRARY_PATH",
        "SYSTEMROOT",
    )  # secrets in the environment stay with the parent
    environment = {name: os.environ[name] for name in environment_names if name in os.environ}
    environment["PYTHONPATH"] = os.pathsep.join(
        [str(Path(__file__).parents[2]), *filter(None, sys.path)]
    )
    # -P: a file json.py beside the caller must not become the child's json
    finished = subprocess.run(
        [sys.executable, "-P", "-m", "forensics.store.sandbox"],
        input=json.dumps(request).encode(),
        capture_output=True,
        env=environment,
        cwd="/",
    )
    line, _, body = finished.stdout.partition(b"\n")
    if line.startswith(b"{"):
        return _Reply(json.loads(line), memoryview(body))
    if finished.returncode == -signal.SIGALRM:
        raise _too_long(request["timeout_s"])
    last = finished.stderr.decode(errors="replace").strip().splitlines()[-1:] or [
        f"exit {finished.returncode}"
    ]
    raise ForensicsError(
        "sql",
        f"the statement ended its process: {last[0][:200]}",
        "it needs more memory than it may have: select fewer rows or shorter text",
    )


def _too_long(seconds: float) -> ForensicsError:
    """Make the error for a statement that was stopped after its time."""
    return ForensicsError(
        "sql",
        f"the statement ran longer than {seconds:g} s and was stopped",
        "filter by run and step, or aggregate",
    )


# ---- the child


class _Stale(ForensicsError):
    """A part was merged away between reading the manifest and the statement: ask again."""


class _Rows(NamedTuple):
    """The rows of a statement as Arrow record batches, and whether the limit cut some off."""

    schema: Any
    batches: list[Any]
    truncated: bool


def _serve() -> None:
    """Answer the request on stdin: one line of JSON, then an Arrow stream."""
    request: Request = json.loads(sys.stdin.buffer.read())
    out = sys.stdout.buffer
    manifest.CHECKED.update((p, s, t, h) for p, s, t, h in request["checked"])
    try:
        rows = _answer(request)
    except ForensicsError as failure:
        error = {"kind": failure.kind, "message": failure.message, "hint": failure.hint}
        out.write(
            json.dumps({"error": error, "stale": isinstance(failure, _Stale)}).encode() + b"\n"
        )
    else:
        import pyarrow as pa

        checked_parts = {tuple(key) for key in request["checked"]}
        checked = [key for key in manifest.CHECKED if key not in checked_parts]
        out.write(json.dumps({"checked": checked, "truncated": rows.truncated}).encode() + b"\n")
        with pa.ipc.new_stream(out, rows.schema) as stream:
            for batch in rows.batches:
                stream.write_batch(batch)
    out.flush()
    os._exit(0)  # no destructor of a stopped statement holds the process


def _answer(request: Request) -> _Rows:
    """Run the statement in this process, which gives up all that it does not need. Errors: sql."""
    import duckdb

    folder, sql = request["folder"], request["sql"]
    tables = used_tables(sql)
    parts = tables | {"runs"}  # lineage() reads them
    names = reader.runs_in(folder)
    reader.check_parts(folder, parts - {"sources"}, names)
    _limit_process(request["memory"])
    con = reader.connect(folder, parts, names)
    paths = reader.live_parts(folder, parts - {"sources"}, names)
    _lock(con, paths, request["memory"])
    fired = threading.Event()

    def stop() -> None:
        fired.set()
        con.interrupt()

    timer = threading.Timer(request["timeout_s"], stop)
    timer.daemon = True
    signal.setitimer(
        signal.ITIMER_REAL, request["timeout_s"] + GRACE
    )  # its signal ends the process
    timer.start()
    try:
        relation = con.sql(sql, params=request["params"] or None)
        if relation is None:
            raise refused("a statement without rows", "write one SELECT")
        return _capped(
            relation.limit(request["limit"] + 1).to_arrow_reader(10_000), request["limit"]
        )
    except (duckdb.Error, MemoryError, OSError, RuntimeError, ValueError, TypeError) as error:
        if fired.is_set():
            raise _too_long(request["timeout_s"]) from None
        if (
            isinstance(error, MemoryError)
            or "Out of Memory" in str(error)
            or "malloc" in str(error)
        ):
            raise ForensicsError(
                "sql",
                f"the statement needs more than the {request['memory']} it may have",
                "select fewer rows, or aggregate before sorting and joining",
            ) from None
        kind = ForensicsError if all(path.exists() for path in paths) else _Stale
        raise kind("sql", one_line(error), "see `forensics query --list` for the tables") from None
    finally:
        timer.cancel()
        signal.setitimer(signal.ITIMER_REAL, 0)


def _capped(stream: Any, limit: int) -> _Rows:
    """Read the first `limit` rows of a stream of batches. Errors: sql, when they are too large."""
    batches: list[Any] = []
    rows = size = 0
    for batch in stream:
        if rows + batch.num_rows > limit:
            return _Rows(stream.schema, [*batches, batch.slice(0, limit - rows)], True)
        batches.append(batch)
        rows, size = rows + batch.num_rows, size + batch.nbytes
        if size > LARGEST:
            raise ForensicsError(
                "sql",
                f"the result is larger than {LARGEST >> 20} MiB",
                "select fewer rows or columns",
            )
    return _Rows(stream.schema, batches, False)


def _limit_process(memory: str) -> None:
    """Limit this process's address space, files and core dumps.

    DuckDB's own limit does not bind one long string.
    """
    import resource

    space = (1 << 30) + 2 * _bytes(memory)
    resource.setrlimit(resource.RLIMIT_AS, (space, space))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))  # not one byte can be written to a file
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(
        signal.SIGXFSZ, signal.SIG_IGN
    )  # such a write fails instead of ending the process
    read_only_process()


def read_only_process() -> bool:
    """Forbid this process to write, make, delete or rename files and to use TCP (Linux Landlock).

    Return False where the kernel cannot; the other walls stand. Tried: without it, and with the
    syntax check switched off, COPY (use_tmp_file false) emptied a part, which a limit of 0 bytes on
    file size does not prevent.
    """
    import ctypes

    create, restrict, version_flag, no_new_privileges = 444, 446, 1, 38
    libc = ctypes.CDLL(None, use_errno=True)
    version = libc.syscall(create, None, 0, version_flag) if sys.platform == "linux" else -1
    if version < 1:
        return False
    write_file, remove_to_make_symlink, truncate = (
        1 << 1,
        sum(1 << bit for bit in range(4, 13)),
        1 << 14,
    )
    files = write_file | remove_to_make_symlink | (truncate if version >= 3 else 0)
    tcp = 0b11 if version >= 4 else 0
    rules = (ctypes.c_uint64 * 2)(files, tcp)
    descriptor = libc.syscall(create, ctypes.byref(rules), 16 if version >= 4 else 8, 0)
    if descriptor < 0 or libc.prctl(no_new_privileges, 1, 0, 0, 0) != 0:
        return False
    status: int = libc.syscall(restrict, descriptor, 0)
    os.close(descriptor)
    return status == 0


def _lock(con: Any, paths: list[Path], memory: str) -> None:
    """Let the connection read these files and nothing else, and change no setting any more."""
    spellings = {name for path in paths for name in (str(path), reader.literal_path(str(path)))}
    allowed = ", ".join("'" + name.replace("'", "''") + "'" for name in sorted(spellings))
    con.execute(f"""
        set memory_limit = '{_bytes(memory)}B'; set threads = 2; set temp_directory = '';
        set allowed_paths = [{allowed}]; set allow_community_extensions = false;
        set enable_external_access = false; set lock_configuration = true""")


def _bytes(text: str) -> int:
    """Read an amount of memory, e.g. 512MB. Errors: usage."""
    units = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
    number = text.strip().upper().rstrip("KMGIB")
    unit = text.strip().upper()[len(number) :]
    try:
        return int(float(number) * units[unit])
    except (ValueError, KeyError):
        raise ForensicsError(
            "usage", f"wanted an amount of memory, found {text!r}", "e.g. 1GB or 512MB"
        ) from None


if __name__ == "__main__":
    _serve()
