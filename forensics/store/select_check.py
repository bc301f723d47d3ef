"""What SQL a stranger may ask: one SELECT that can only read the runs' tables, by its syntax tree.

    check_select("select step from steps")      the statement
    used_tables("select * from detectors()")    {"steps", …}

Only what stands on the lists below may stand in the tree: DuckDB's own settings would still let
COPY, also one inside a CTE, write into a folder that it may read.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from forensics.errors import ForensicsError, nearest
from forensics.records import TABLES
from forensics.store.macros import MACROS

LONGEST = 200_000  # characters
DEEPEST = (
    500  # opening brackets within one another; DuckDB's parser overflows the stack at some 50,000
)

Tree = dict[str, Any]  # DuckDB's syntax tree, or one node of it

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
    """Return the statement if it is one SELECT that can only read tables. Errors: sql."""
    _tables(_tree(sql))
    return sql


def used_tables(sql: str) -> set[str]:
    """Return the tables of the schema (and `sources`) that a SELECT reads. Errors: sql."""
    return _tables(_tree(sql))


def _tree(sql: str) -> Tree:
    """Parse one SELECT with DuckDB into its syntax tree, JSON. Errors: sql."""
    import duckdb

    if len(sql) > LONGEST:
        raise refused(f"a statement of {len(sql)} characters", f"at most {LONGEST}")
    if _depth(sql) > DEEPEST:
        raise refused("brackets within brackets", f"at most {DEEPEST} deep")
    try:
        statements = duckdb.extract_statements(sql)
    except duckdb.Error as error:
        raise ForensicsError(
            "sql", one_line(error), "see `forensics query --list` for examples"
        ) from None
    if len(statements) != 1:
        raise refused(f"{len(statements)} statements", "write one SELECT")
    kind = statements[0].type.name
    if kind != "SELECT":
        hint = (
            "write PIVOT … ON column IN (values)"
            if kind == "MULTI"
            else "write one SELECT; the store is read-only"
        )
        raise refused("a PIVOT over values not named" if kind == "MULTI" else f"{kind}", hint)
    con = duckdb.connect(":memory:", config={"threads": 1})
    try:
        text = con.sql("select json_serialize_sql($sql)", params={"sql": sql}).fetchall()[0][0]
        tree: Tree = json.loads(text)
    except (duckdb.Error, RecursionError):
        raise refused(
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
    """Return how deep round brackets go, those in quotes counted too: an upper bound."""
    deepest = depth = 0
    for character in sql:
        if character == "(":
            depth += 1
            deepest = max(deepest, depth)
        elif character == ")" and depth:
            depth -= 1
    return deepest


def _tables(tree: Tree) -> set[str]:
    """Return the tables that a tree reads. Errors: sql, for what is not on the lists above."""
    tables: set[str] = set()
    for node in _nodes(tree):
        kind = node.get("type")
        if isinstance(kind, str) and kind.endswith("_NODE") and kind not in QUERY_NODES:
            raise refused(
                kind.removesuffix("_NODE").removesuffix("_QUERY"),
                "write one SELECT; the store is read-only",
            )
        name = str(node.get("function_name", "")).lower()
        if name in REFUSED_FUNCTIONS:
            raise refused(f"the function {name}", "it is not available here")
        if kind == "TABLE_FUNCTION":
            name = str(node["function"].get("function_name", "")).lower()
            if name not in TABLE_FUNCTIONS:
                raise refused(f"the table function {name}", nearest(name, TABLE_FUNCTIONS))
            tables |= ROW_MACROS.get(name, frozenset())
        elif kind == "SHOW_REF" and node.get("query") is None:
            tables |= {str(node.get("table_name", "")).strip('"').lower()} & {*TABLES, "sources"}
        elif kind == "BASE_TABLE":
            path = [str(name).lower() for name in node["qualified_name"]["path"]]
            if len(path) > 2 or (len(path) == 2 and path[0] not in SCHEMAS):
                raise refused(f"the table {'.'.join(path)}", "tables are named without a catalog")
            tables.add(path[-1])
    return tables & {*TABLES, "sources"}


def _nodes(value: Any) -> Iterator[Tree]:
    """Yield every node below a value of the tree; no recursion, which deep trees would exhaust."""
    stack = [value]
    while stack:
        value = stack.pop()
        if isinstance(value, dict):
            yield value
            stack.extend(value.values())
        elif isinstance(value, list):
            stack.extend(value)


def refused(found: str, hint: str) -> ForensicsError:
    """Make the error for a statement that is not a plain SELECT."""
    return ForensicsError("sql", f"wanted one SELECT over the runs' tables, found {found}", hint)


def one_line(error: Exception | str) -> str:
    """Return DuckDB's message in one line, without its quotation of the statement."""
    text = str(error).split("\n\nLINE ")[0].split("\nPossible solutions")[0].split("\n\n")[0]
    return " ".join(text.split())[:400]
