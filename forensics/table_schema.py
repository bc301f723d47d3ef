"""What a table is: its columns with unit and meaning, its key. forensics.records lists them all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyarrow

SQL_TYPES = {
    "int64": "BIGINT",
    "int32": "INTEGER",
    "float64": "DOUBLE",
    "float32": "FLOAT",
    "bool": "BOOLEAN",
    "string": "VARCHAR",
}


@dataclass(frozen=True)
class Column:
    """One column of a table, with its unit and meaning."""

    name: str
    type: str  # a key of SQL_TYPES; every column but those of the key may be NULL
    unit: str
    meaning: str


@dataclass(frozen=True)
class Table:
    """One table of a run."""

    name: str
    meaning: str  # one row per …
    key: tuple[str, ...]
    columns: tuple[Column, ...]
    of_state: bool = (
        False  # its step is a state's number: resuming from step C keeps rows of state C
    )
    # a STRUCT whose fields are those of the data, a run's own; None: the table has none
    open_column: Column | None = None

    @property
    def stepped(self) -> bool:
        """Whether rows belong to a step, so that resuming from step C can cut them at C."""
        return self.key[0] == "step"

    def column(self, name: str) -> Column:
        """Return the column of this name."""
        return next(c for c in self.columns if c.name == name)

    def arrow_schema(self) -> pyarrow.Schema:
        """Return the columns as pyarrow types."""
        import pyarrow as pa

        return pa.schema([pa.field(c.name, pa.type_for_alias(c.type)) for c in self.columns])


def columns(*rows: tuple[str, str, str, str]) -> tuple[Column, ...]:
    """Make columns of (name, type, unit, meaning)."""
    return tuple(Column(*row) for row in rows)
