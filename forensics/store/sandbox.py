"""A stranger's SQL: one SELECT over the runs' views, in a child process that can read nothing else
and write nothing.

`allowed_directories` alone is no sandbox: DuckDB would still let COPY, also one inside a CTE, write
there. So a statement is first held against a list of what may stand in its syntax tree; then a
fresh process (no shared memory, nothing pickled: JSON in, Arrow IPC out) opens only the parts of
the tables that the statement names, gives up every other file, locks its configuration and is
limited in memory, time, file size and rows.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from forensics.errors import ForensicsError, nearest
from forensics.records import TABLES
from forensics.store import manifest, reader
from forensics.store.macros import MACROS

if TYPE_CHECKING:
    import pyarrow

LONGEST = 200_000  # characters
DEEPEST = (
    500  # opening brackets within one another; DuckDB's parser overflows the stack at some 50,000
)
LARGEST = 256 << 20  # bytes of a result
GRACE = 3.0  # seconds that an interrupted statement has to stop before its process is ended

QUERY_NODES = {
    "SELECT_NODE",
    "SET_OPERATION_NODE",
    "RECURSIVE_CTE_NODE",
    "CTE_NODE",
}  # COPY, INSERT, … in a CTE are not
ROW_MACROS = {name: macro.reads for name, macro in MACROS.items() if macro.reads}
TABLE_FUNCTIONS = {
    *ROW_MACROS,
    "range",
    "generate_series",
    "unnest",
    "json_each",
    "json_tree",
    "repeat",
    "repeat_row",
    "histogram",
    "histogram_values",
}
# They tell of the process, change its state or idle; a CSV reader or the like is a table function
# and not listed above.
REFUSED_FUNCTIONS = {
    "getenv",
    "current_setting",
    "getvariable",
    "write_log",
    "sleep_ms",
    "pg_sleep",
    "setval",
    "nextval",
    "setseed",
    "json_execute_serialized_sql",
    "json_serialize_plan",
    "inet_client_addr",
    "inet_server_addr",
}
SCHEMAS = {"", "main", "information_schema"}


def check_select(sql: str) -> str:
    """Return the statement, if it is one SELECT that can only read tables. Errors: sql."""
    _tables(_tree(sql))
    return sql


def used_tables(sql: str) -> set[str]:
    """Tables of the schema (and `sources`) that a SELECT reads, by its syntax tree. Errors: sql."""
    return _tables(_tree(sql))


def run_sandboxed(
    runs_folder: str | Path,
    sql: str,
    *,
    params: dict[str, Any] | None = None,
    limit: int = 100_000,
    timeout_s: float = 30,
    memory: str = "1GB",
) -> pyarrow.Table:
    """Return the result of a user's SELECT over the views of `reader.connect`, from a child
    process.

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
    request = {
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


def _ask(request: dict[str, Any]) -> tuple[dict[str, Any], memoryview]:
    """Send one request to a fresh child; its answer's head (JSON) and body (Arrow IPC)."""
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
        return json.loads(line), memoryview(body)
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


# ---- the syntax tree


def _tree(sql: str) -> dict[str, Any]:
    import duckdb

    if len(sql) > LONGEST:
        raise _refused(f"a statement of {len(sql)} characters", f"at most {LONGEST}")
    if _depth(sql) > DEEPEST:
        raise _refused("brackets within brackets", f"at most {DEEPEST} deep")
    try:
        statements = duckdb.extract_statements(sql)
    except duckdb.Error as e:
        raise ForensicsError(
            "sql", one_line(e), "see `forensics query --list` for examples"
        ) from None
    if len(statements) != 1:
        raise _refused(f"{len(statements)} statements", "write one SELECT")
    kind = statements[0].type.name
    if kind != "SELECT":
        hint = (
            "write PIVOT … ON column IN (values)"
            if kind == "MULTI"
            else "write one SELECT; the store is read-only"
        )
        raise _refused("a PIVOT over values not named" if kind == "MULTI" else f"{kind}", hint)
    con = duckdb.connect(":memory:", config={"threads": 1})
    try:
        text = con.sql("select json_serialize_sql($sql)", params={"sql": sql}).fetchall()[0][0]
        tree: dict[str, Any] = json.loads(text)
    except (duckdb.Error, RecursionError):
        raise _refused(
            "a statement that is nested too deep", "write it with fewer terms or subqueries"
        ) from None
    finally:
        con.close()
    if tree["error"]:
        raise ForensicsError(
            "sql", one_line(tree["error_message"]), "write one SELECT; the store is read-only"
        )
    return tree


def _depth(sql: str) -> int:
    """How deep round brackets go, those in quotes counted too: an upper bound."""
    deepest = depth = 0
    for c in sql:
        if c == "(":
            depth += 1
            deepest = max(deepest, depth)
        elif c == ")" and depth:
            depth -= 1
    return deepest


def _tables(tree: dict[str, Any]) -> set[str]:
    """Walk the tree: the tables it reads. Errors: sql, for anything that is not on the lists
    above.
    """
    tables: set[str] = set()
    for node in _nodes(tree):
        kind = node.get("type")
        if isinstance(kind, str) and kind.endswith("_NODE") and kind not in QUERY_NODES:
            raise _refused(
                kind.removesuffix("_NODE").removesuffix("_QUERY"),
                "write one SELECT; the store is read-only",
            )
        name = str(node.get("function_name", "")).lower()
        if name in REFUSED_FUNCTIONS:
            raise _refused(f"the function {name}", "it is not available here")
        if kind == "TABLE_FUNCTION":
            name = str(node["function"].get("function_name", "")).lower()
            if name not in TABLE_FUNCTIONS:
                raise _refused(f"the table function {name}", nearest(name, TABLE_FUNCTIONS))
            tables |= ROW_MACROS.get(name, frozenset())
        elif kind == "SHOW_REF" and node.get("query") is None:
            tables |= {str(node.get("table_name", "")).strip('"').lower()} & {*TABLES, "sources"}
        elif kind == "BASE_TABLE":
            path = [str(x).lower() for x in node["qualified_name"]["path"]]
            if len(path) > 2 or (len(path) == 2 and path[0] not in SCHEMAS):
                raise _refused(f"the table {'.'.join(path)}", "tables are named without a catalog")
            tables.add(path[-1])
    return tables & {*TABLES, "sources"}


def _nodes(value: Any) -> Iterator[dict[str, Any]]:
    stack = [value]
    while stack:
        value = stack.pop()
        if isinstance(value, dict):
            yield value
            stack.extend(value.values())
        elif isinstance(value, list):
            stack.extend(value)


def _refused(found: str, hint: str) -> ForensicsError:
    return ForensicsError("sql", f"wanted one SELECT over the runs' tables, found {found}", hint)


def _too_long(seconds: float) -> ForensicsError:
    return ForensicsError(
        "sql",
        f"the statement ran longer than {seconds:g} s and was stopped",
        "filter by run and step, or aggregate",
    )


def one_line(error: Exception | str) -> str:
    """DuckDB's message without its quotation of the statement."""
    text = str(error).split("\n\nLINE ")[0].split("\nPossible solutions")[0].split("\n\n")[0]
    return " ".join(text.split())[:400]


# ---- the child


class _Stale(ForensicsError):
    """A part was merged away between reading the manifest and the statement: worth asking again."""


def _serve() -> None:
    """Answer the request on stdin: one line of JSON, then an Arrow stream."""
    request = json.loads(sys.stdin.buffer.read())
    out = sys.stdout.buffer
    manifest.CHECKED.update((p, s, t, h) for p, s, t, h in request["checked"])
    try:
        schema, batches, truncated = _answer(request)
    except ForensicsError as e:
        error = {"kind": e.kind, "message": e.message, "hint": e.hint}
        out.write(json.dumps({"error": error, "stale": isinstance(e, _Stale)}).encode() + b"\n")
    else:
        import pyarrow as pa

        checked_parts = {tuple(key) for key in request["checked"]}
        checked = [key for key in manifest.CHECKED if key not in checked_parts]
        out.write(json.dumps({"checked": checked, "truncated": truncated}).encode() + b"\n")
        with pa.ipc.new_stream(out, schema) as stream:
            for batch in batches:
                stream.write_batch(batch)
    out.flush()
    os._exit(0)  # no destructor of a stopped statement holds the process


def _answer(request: dict[str, Any]) -> tuple[Any, list[Any], bool]:
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
            raise _refused("a statement without rows", "write one SELECT")
        return _capped(
            relation.limit(request["limit"] + 1).to_arrow_reader(10_000), request["limit"]
        )
    except (duckdb.Error, MemoryError, OSError, RuntimeError, ValueError, TypeError) as e:
        if fired.is_set():
            raise _too_long(request["timeout_s"]) from None
        if isinstance(e, MemoryError) or "Out of Memory" in str(e) or "malloc" in str(e):
            raise ForensicsError(
                "sql",
                f"the statement needs more than the {request['memory']} it may have",
                "select fewer rows, or aggregate before sorting and joining",
            ) from None
        kind = ForensicsError if all(path.exists() for path in paths) else _Stale
        raise kind("sql", one_line(e), "see `forensics query --list` for the tables") from None
    finally:
        timer.cancel()
        signal.setitimer(signal.ITIMER_REAL, 0)


def _capped(stream: Any, limit: int) -> tuple[Any, list[Any], bool]:
    """Return the first `limit` rows of a stream of batches, and whether there were more.

    Errors: sql, when they are too large.
    """
    batches: list[Any] = []
    rows = size = 0
    for batch in stream:
        if rows + batch.num_rows > limit:
            return stream.schema, [*batches, batch.slice(0, limit - rows)], True
        batches.append(batch)
        rows, size = rows + batch.num_rows, size + batch.nbytes
        if size > LARGEST:
            raise ForensicsError(
                "sql",
                f"the result is larger than {LARGEST >> 20} MiB",
                "select fewer rows or columns",
            )
    return stream.schema, batches, False


def _limit_process(memory: str) -> None:
    """Address space, file size and core dumps of this process; DuckDB's own limit does not bind one
    long string.
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
    """Forbid this process to open a file for writing, to make, delete or rename one, and to use TCP
    (Linux Landlock).

    False where the kernel cannot; the other walls stand. Tried: without it, and with the syntax
    check switched off, COPY (use_tmp_file false) emptied a part, which a limit of 0 bytes on file
    size does not prevent.
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
    """From here on the connection reads these files and nothing else, and no setting can be
    changed.
    """
    both = {name for path in paths for name in (str(path), reader.literal_path(str(path)))}
    allowed = ", ".join("'" + name.replace("'", "''") + "'" for name in sorted(both))
    con.execute(f"""
        set memory_limit = '{_bytes(memory)}B'; set threads = 2; set temp_directory = '';
        set allowed_paths = [{allowed}]; set allow_community_extensions = false;
        set enable_external_access = false; set lock_configuration = true""")


def _bytes(text: str) -> int:
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
