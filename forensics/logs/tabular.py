"""Tables: CSV and TSV (wandb's charts and histories, plain ones), Parquet and Arrow files.

Columns are read whole, by pyarrow; a column of text that names runs parts the rows by run.
"""

from __future__ import annotations

import gzip
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from forensics.errors import ForensicsError, first_line
from forensics.logs.logged_rows import Column, LoggedRows, as_number

if TYPE_CHECKING:
    import pyarrow

HEAD = 1 << 16  # bytes by which delimiter and encoding are known
NULLS = ["", "null", "NULL", "None", "N/A", "<NA>"]  # of CSV; "nan" is a value
RUN_COLUMNS = ("run_name", "run_id", "run", "Run")  # texts that say whose a row is
AXES = ("Step", "step", "_step", "trainer/global_step", "global_step", "train/global_step")
# wandb's chart: `RUN - METRIC`, and of what it binned `RUN - METRIC__MIN`, `…__MAX`; a dash between
# blanks is rather a run's than a metric's
CHART_COLUMN = re.compile(r"(?P<run>.+) - (?P<metric>.+?)(?P<bin>__MIN|__MAX)?")


def read_delimited(path: Path) -> list[LoggedRows]:
    """Read a CSV or TSV file; wandb's chart is known by its columns. Errors: data."""
    with _opened(path) as file:
        head = file.read(HEAD)
    first = head.partition(b"\n")[0]
    cut: list[str] = []
    table = _csv(path, b"\t" if first.count(b"\t") > first.count(b",") else b",", cut, head)
    if not table.num_rows:
        raise ForensicsError(
            "data", f"wanted rows in {path.name}, found none", "is this the whole log?"
        )
    notes = (f"{path.name}: its last line is cut short, and left out",) if cut else ()
    if is_chart(table.column_names):
        return _chart_runs(path, table, notes)
    return _by_run("csv", table, notes)


def read_parquet(path: Path) -> list[LoggedRows]:
    """Read a Parquet or Arrow file: wandb's history, trackio's export. Errors: data."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with path.open("rb") as file:
            if file.read(4) == b"PAR1":
                table = pq.read_table(file)
            else:
                table = pa.ipc.open_file(file).read_all()
    except (pa.ArrowException, OSError) as e:
        raise ForensicsError(
            "data",
            f"wanted a whole Parquet or Arrow file, found {path.name}: {first_line(e)}",
            "is it cut short? copy it again",
        ) from None
    return _by_run("parquet", table, ())


def is_chart(names: list[str]) -> bool:
    """Whether the columns are those of a chart that wandb's pages export."""
    others = [name for name in names[1:] if name]
    return bool(others) and all(CHART_COLUMN.fullmatch(name) for name in others)


def _opened(path: Path) -> Any:
    """Open a file of bytes, through gzip where it is packed."""
    with path.open("rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    return gzip.open(path) if packed else path.open("rb")


def _encoding(head: bytes) -> str:
    """Return the encoding of a file that begins so: UTF-8, or one in which every byte is a sign."""
    try:
        (head if len(head) < HEAD else head.rpartition(b"\n")[0]).decode()
    except UnicodeDecodeError:
        return "latin-1"
    return "utf8"


def _csv(path: Path, delimiter: bytes, cut: list[str], head: bytes) -> pyarrow.Table:
    """Read a CSV file; a cut last line comes into `cut`. Errors: data."""
    import pyarrow as pa
    import pyarrow.csv as pc

    broken: list[Any] = []

    def note(row: Any) -> str:
        broken.append(row)
        return "skip"

    with _opened(path) as file:
        try:
            table = pc.read_csv(
                file,
                # one thread numbers the rows, so that a broken one can be named
                read_options=pc.ReadOptions(use_threads=False, encoding=_encoding(head)),
                parse_options=pc.ParseOptions(
                    delimiter=delimiter.decode(), invalid_row_handler=note
                ),
                convert_options=pc.ConvertOptions(null_values=NULLS, strings_can_be_null=True),
            )
        except (pa.ArrowException, OSError, EOFError) as e:
            raise ForensicsError(
                "data",
                f"wanted a table of comma-separated values, found {path.name}: {first_line(e)}",
                "a line for the names, then a line a row",
            ) from None
    for row in broken:
        if row.number is None or row.number <= table.num_rows + 1:
            raise ForensicsError(
                "data",
                f"{path.name}:{row.number}: wanted {row.expected_columns} values, found"
                f" {row.actual_columns}",
                "are two logs in one file?",
            )
        cut.append(row.text)
    return table


def _chart_runs(path: Path, table: pyarrow.Table, notes: tuple[str, ...]) -> list[LoggedRows]:
    """Part a chart into its runs; of a bin of several steps the largest value stands."""
    runs: dict[str, dict[str, dict[str, str]]] = {}  # run → metric → bin ("" for its mean) → column
    for name in table.column_names[1:]:
        match = CHART_COLUMN.fullmatch(name)
        if match is not None:
            metrics = runs.setdefault(match["run"], {})
            metrics.setdefault(match["metric"], {})[match["bin"] or ""] = name
    axis, read = table.column_names[0], []
    for run, metrics in runs.items():
        columns: dict[str, Column] = {}
        if axis in AXES:
            columns[axis] = _column(table[axis])
        several = np.zeros(0, np.int64)
        for metric, bins in metrics.items():
            if metric == axis:
                continue
            numbers = {each: _column(table[name]) for each, name in bins.items()}
            mean, low, high = (numbers.get(each) for each in ("", "__MIN", "__MAX"))
            plain = mean or high or low
            if plain is None:
                continue
            columns[metric] = plain
            if low is None or high is None or len(low.rows) != len(high.rows):
                continue
            apart = low.values != high.values
            if bool(apart.any()) and metric not in AXES:
                several = np.union1d(several, low.rows[apart])
                columns[metric] = high
                columns[f"{metric}__MEAN"], columns[f"{metric}__MIN"] = plain, low
        held = [column.rows for column in columns.values()]
        if not held:
            continue
        about = notes + _said_of_bins(path, len(several))
        read.append(
            LoggedRows(
                "wandb-chart", table.num_rows, columns, run, sampled=len(several), notes=about
            )
        )
    return read


def _said_of_bins(path: Path, several: int) -> tuple[str, ...]:
    if not several:
        return ()
    return (
        f"{path.name} is a chart: {several:,} of its rows are bins of several steps, of which the"
        " largest value is taken",
    )


def _by_run(kind: str, table: pyarrow.Table, notes: tuple[str, ...]) -> list[LoggedRows]:
    """Make rows of a table, parted by the column that names runs where there is one."""
    import pyarrow as pa
    import pyarrow.compute as pc

    named = [
        name
        for name in RUN_COLUMNS
        if name in table.column_names
        and (pa.types.is_string(table[name].type) or pa.types.is_large_string(table[name].type))
    ]
    if not named:
        return [_rows(kind, "", table, notes)]
    runs = [run for run in pc.unique(table[named[0]]).to_pylist() if run is not None]
    return [_rows(kind, run, table.filter(pc.equal(table[named[0]], run)), notes) for run in runs]


def _rows(kind: str, run: str, table: pyarrow.Table, notes: tuple[str, ...]) -> LoggedRows:
    columns, texts = {}, []
    for name, column in _leaves(table):
        numbers = _column(column)
        if len(numbers.rows):
            columns[name] = numbers
        elif column.null_count < len(column):
            texts.append(name)
    return LoggedRows(kind, table.num_rows, columns, run, notes=notes, not_numbers=tuple(texts))


def _leaves(table: pyarrow.Table) -> Iterator[tuple[str, Any]]:
    """Yield the columns of a table, those inside structures by names joined with a slash."""
    import pyarrow as pa

    while any(pa.types.is_struct(field.type) for field in table.schema):
        flat = table.flatten()
        names = [
            name if name in table.column_names else name.replace(".", "/", 1)
            for name in flat.column_names
        ]
        table = flat.rename_columns(names)
    yield from zip(table.column_names, table.columns)


def _column(column: Any) -> Column:
    """Return the numbers of a column, "NaN" and "Infinity" among them."""
    import pyarrow as pa

    kind = column.type
    if pa.types.is_dictionary(kind):
        column = column.cast(kind.value_type)
        kind = kind.value_type
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind):
        there = np.asarray(column.is_valid(), dtype=bool)
        rows = np.flatnonzero(there).astype(np.int64)
        values = np.asarray(column.drop_null().cast(pa.float64(), safe=False), dtype=np.float64)
        return Column(rows, values)
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        return Column(np.empty(0, np.int64), np.empty(0, np.float64))
    numbers = [(row, as_number(text)) for row, text in enumerate(column.to_pylist())]
    read = [(row, number) for row, number in numbers if number is not None]
    rows_read, values_read = zip(*read) if read else ((), ())
    return Column(np.array(rows_read, np.int64), np.array(values_read, np.float64))
