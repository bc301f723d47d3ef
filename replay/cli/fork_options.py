"""The flags of `replay fork` as a fork file's keys."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from forensics.errors import ForensicsError

WINDOW = re.compile(r"\d+:\d+")


def from_flags(flags: dict[str, Any]) -> dict[str, Any]:
    """The flags as a fork file's keys; interventions compose in the order in which `--help` lists
    them.
    """
    made: list[dict[str, Any]] = []

    def add(
        kind: str, read: Callable[[str], dict[str, Any]], wanted: str, example: str, flag: str = ""
    ) -> None:
        flag = flag or kind
        for text in flags[flag.replace("-", "_")]:
            try:
                made.append({"kind": kind, **read(text)})
            except ValueError:
                raise ForensicsError(
                    "usage", f"wanted --{flag} {wanted}, found {text!r}", f"e.g. --{flag} {example}"
                ) from None

    def alone(text: str) -> dict[str, Any]:
        return {"window": text}

    def value(key: str, read: Callable[[str], Any] = float) -> Callable[[str], dict[str, Any]]:
        return lambda text: {key: read(_at(text)[0]), **_at(text)[1]}

    add("drop", alone, "A:B", "200:204")
    add("swap", lambda t: dict(zip("ab", _two(t, ",", int))), "S,T", "200,210")
    add(
        "repeat",
        lambda t: {"window": _cut(t, "@")[0], "times": int(_cut(t, "@")[1])},
        "A:B@N",
        "200:204@2",
    )
    add(
        "reorder",
        value("sql", str),
        "SQL@A:B",
        "'select step, slot, loss as rank from sequences@200:204'",
    )
    add(
        "shuffle",
        lambda t: {"window": t.partition("@")[0], "seed": int(t.partition("@")[2] or 0)},
        "A:B[@SEED]",
        "200:204@1",
    )
    add(
        "replace",
        lambda t: {"window": _cut(t)[0], "batch": int(_cut(t)[1])},
        "A:B=S",
        "200:204=100",
    )
    add(
        "replace",
        lambda t: {"window": _cut(t)[0], "text": _cut(t)[1]},
        "A:B=TEXT",
        "'200:204=to be'",
        "replace-text",
    )
    add(
        "replace",
        lambda t: {"window": _cut(t)[0], "sql": _cut(t)[1]},
        "A:B=SQL",
        "'200:204=select 7 as sequence'",
        "replace-sequences",
    )
    add("insert", lambda t: {"at": int(_cut(t)[0]), "text": _cut(t)[1]}, "S=TEXT", "'200=to be'")
    add(
        "insert",
        lambda t: {"at": int(_cut(t)[0]), "sql": _cut(t)[1]},
        "S=SQL",
        "'200=select 7 as sequence'",
        "insert-sequences",
    )
    add(
        "edit-tokens",
        lambda t: {**dict(zip(("find", "replace"), _cut(_at(t)[0], "=>"))), **_at(t)[1]},
        "OLD=>NEW@A:B",
        "'old=>new@200:204'",
        "edit",
    )
    add("remove-documents", lambda t: {"sql": t, "how": flags["how"]}, "SQL", "'select …'")
    add("remove-sequences", lambda t: {"sql": t, "how": flags["how"]}, "SQL", "'select …'")
    add(
        "mask-tokens",
        lambda t: {"sql": t, "renormalise": flags["renormalise"]},
        "SQL",
        "'select …'",
    )
    made += [
        {"kind": "boost-token", "token": token, "times": flags["times"]}
        for token in flags["boost_token"]
    ]
    for kind in ("skip", "skip-frozen", "zero-update", "hold-parameters"):
        add(kind, alone, "A:B", "200:204")
    add("lr-scale", value("factor"), "F@A:B", "0.5@200:210")
    add("clip", value("value"), "V@A:B", "0.5@200:210")
    add("betas", value("betas", lambda t: _two(t, ",", float)), "B1,B2@A:B", "0.9,0.99@200:210")
    add("eps", value("value"), "V@A:B", "1e-6@200:210")
    add("weight-decay", value("value"), "V@A:B", "0@200:210")
    add("z-loss", value("value"), "V@A:B", "1e-4@200:210")
    add(
        "skip-step", value("on", lambda t: bool(("off", "on").index(t))), "on|off@A:B", "on@200:210"
    )
    add("freeze", value("tensors", lambda t: [t]), "PATTERN@A:B", "'embed.*@200:210'")
    add("precision", value("precision", str), "P@A:B", "fp32@200:210")
    add(
        "reset-moments",
        lambda t: {"tensors": [t], "counter": flags["reset_counter"]},
        "[PATTERN]",
        "'layers.0.*'",
    )
    add(
        "noise",
        lambda t: {"sigma": float(t.partition("@")[0]), "seed": int(t.partition("@")[2] or 0)},
        "σ[@SEED]",
        "0.001@1",
    )
    made += [{"kind": "ulp", "seed": seed} for seed in flags["ulp"]]
    add(
        "transplant",
        lambda t: {
            "checkpoint": t.partition(":")[0],
            "tensors": [t.partition(":")[2] or "*"],
            "moments": flags["with_moments"],
        },
        "RUN@STEP[:PATTERN]",
        "'demo@200:embed.*'",
    )
    kept = {k: flags[k] for k in ("placebos", "chaos", "record", "probe_every", "name")}
    if flags["barrier"]:
        kept["barrier"] = steps(flags["barrier"], "--barrier")
    return kept | {"from": flags["first"], "to": flags["last"], "intervention": made}


def _at(text: str) -> tuple[str, dict[str, Any]]:
    """VALUE@A:B as the value and its window; no window where none is named."""
    value, at, where = text.rpartition("@")
    return (value, {"window": where}) if at and WINDOW.fullmatch(where) else (text, {})


def _cut(text: str, mark: str = "=") -> tuple[str, str]:
    """What stands before and after the first mark. Raises ValueError where there is none."""
    before, found, after = text.partition(mark)
    if not found:
        raise ValueError(text)
    return before, after


def _two(text: str, mark: str, read: Callable[[str], Any]) -> list[Any]:
    a, b = text.split(mark)
    return [read(a), read(b)]


def steps(text: str, flag: str) -> list[int]:
    """S,T,… as step numbers. Errors: usage."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise ForensicsError("usage", f"wanted {flag} S,T,…, found {text!r}", f"e.g. {flag} 50,200")
    return [int(part) for part in parts]
