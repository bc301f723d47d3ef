"""SQL macros that every connection to the runs has beside its views, in the sandbox too.

select step, loss from steps_along('my-fork') order by step
select layer, head, robust_scale(attn_logit_max) from heads where run = 'demo' group by layer, head
"""

from __future__ import annotations

from dataclasses import dataclass

from forensics.records import TABLES

FOREVER = 2**63 - 1  # last_step of the run itself in lineage(): it has no end yet


@dataclass(frozen=True)
class Macro:
    """A name in SQL for an expression or, where it reads tables, for a SELECT."""

    name: str
    arguments: tuple[str, ...]
    meaning: str
    body: str
    reads: frozenset[str] = frozenset()  # tables; a macro that reads some gives rows

    @property
    def call(self) -> str:
        """Its name with its arguments, as it is written in a statement."""
        return f"{self.name}({', '.join(self.arguments)})"

    @property
    def definition(self) -> str:
        """The statement that creates it. Views that it reads must be there."""
        kind = "table " if self.reads else ""
        return f"create or replace macro {self.call} as {kind}{self.body.strip()}"


LINEAGE = Macro(
    "lineage",
    ("of_run",),
    "one row (run, first_step, last_step) for the run and for each ancestor, with the half-open"
    " range of steps in which its rows belong to the run's trajectory. The run's own rows have no"
    f" end ({FOREVER})",
    f"""
with recursive chain as (
    select
        run, parent, parent_created, coalesce(parent_step, 0) as first_step,
        {FOREVER} as last_step
    from runs where run = of_run
    union  -- not `union all`: two runs that name each other as parent end here
    select
        r.run, r.parent, r.parent_created, coalesce(r.parent_step, 0),
        least(chain.first_step, chain.last_step)
    from chain
    join runs as r  -- of that name, and the one that the fork left
        on r.run = chain.parent
        and (chain.parent_created is null or r.created = chain.parent_created)
)
select run, first_step, last_step from chain where first_step < last_step order by first_step
""",
    frozenset({"runs"}),
)


def _along(table: str) -> Macro:
    """Join the rows of a table along a run's trajectory; views never mix parent and fork."""
    return Macro(
        f"{table}_along",
        ("of_run",),
        f"the rows of `{table}` along the run's trajectory: its own, and each ancestor's up to the"
        " step at which the next run leaves it",
        f"""
select rows_of.*
from {table} as rows_of
join lineage(of_run) as own
    on own.run = rows_of.run and rows_of.step >= own.first_step and rows_of.step < own.last_step
""",
        frozenset({table, "runs"}),
    )


# Robust statistics, as in forensics.detect: MAD is the median absolute deviation from the median,
# and 1.4826·MAD estimates σ of a normal distribution.
# A NaN or an infinity has no place among values in order: aggregates are over the finite ones, and
# `nonfinite` counts the others, to stand beside them.
SCALARS = (
    Macro(
        "finite",
        ("x",),
        "x where it is finite, else NULL, which every aggregate passes over",
        "case when isfinite(x::double) then x end",
    ),
    Macro(
        "nonfinite",
        ("x",),
        "aggregate: how many values are NaN or infinite; NULL is no value",
        "count(x) filter (where not isfinite(x::double))",
    ),
    Macro(
        "robust_sigma",
        ("x",),
        "aggregate: 1.4826·MAD of the finite values",
        "1.4826 * mad(case when isfinite(x::double) then x end)",
    ),
    Macro(
        "robust_scale",
        ("x",),
        "aggregate: `robust_sigma`; where that is 0, because more than half of the values are one"
        " value, the standard deviation of the finite values",
        """
coalesce(
    nullif(1.4826 * mad(case when isfinite(x::double) then x end), 0),
    stddev_pop(case when isfinite(x::double) then x end)
)
""",
    ),
    Macro(
        "robust_z",
        ("x", "middle", "scale"),
        "(x − middle) / scale; ∞ where x is not finite, or where scale is 0 and x is not the"
        " middle",
        """
case
    when not isfinite(x) then 'infinity'::double
    when scale > 0 then (x - middle) / scale
    when x = middle then 0
    else 'infinity'::double
end
""",
    ),
    Macro(
        "stands_apart",
        ("z",),
        "whether a sequence's loss lies 3 robust σ or more above those of the 64 steps before: of"
        " ordinary sequences about 1 in 200",
        "z >= 3",
    ),
    Macro(
        "z_level",
        ("z",),
        "how many of 3, 6, 10, 20, 40 |z| reaches, with the sign of z",
        """
(case
    when abs(z) >= 40 then 5 when abs(z) >= 20 then 4 when abs(z) >= 10 then 3
    when abs(z) >= 6 then 2 when abs(z) >= 3 then 1 else 0
end * sign(z))::integer
""",
    ),
    Macro(
        "is_listed",
        ("name", "names"),
        "whether `name` is one of `names`, a text with commas between; empty or * names all",
        """
trim(names) in ('', '*') or list_contains(string_split(replace(names, ' ', ''), ','), name)
""",
    ),
)
ALONG = tuple(
    _along(table.name) for table in TABLES.values() if table.stepped and not table.of_state
)
MACROS = {macro.name: macro for macro in (LINEAGE, *ALONG, *SCALARS)}
