"""The options of `replay fork` that make interventions, and all its options as a fork file's keys.

Options are made from the kinds' own declarations, when a command asks for them: a kind that is
added has its flags here without a line, and `replay --help` loads no intervention.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from forensics.cli.console import Command
from forensics.errors import ForensicsError

if TYPE_CHECKING:
    from replay.interventions.base import Intervention
    from replay.interventions.fields import Field
    from replay.interventions.flags import Flag


class ForkCommand(Command):
    """A command with the options of every intervention after its `--to`."""

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """List the command's own options with those of the interventions between them."""
        params = super().get_params(ctx)
        after = next(i for i, param in enumerate(params, 1) if param.name == "last")
        return [*params[:after], *intervention_options(), *params[after:]]


def intervention_options() -> list[click.Parameter]:
    """Make the options of every kind, in the order in which they compose.

    An option that several kinds share stands after the last of them.
    """
    from replay.interventions.fields import fields_of
    from replay.interventions.registry import kinds

    options: dict[str, click.Parameter] = {}
    for kind in kinds():
        for flag in kind.flags:
            name = flag.name or f"--{kind.kind}"
            bare = flag.bare is not None  # it may stand alone
            make = (
                partial(click.Option, is_flag=False, flag_value=flag.bare) if bare else click.Option
            )
            options[name] = make(
                [name], multiple=True, type=flag.type, metavar=flag.metavar, help=flag.help
            )
        for field in fields_of(kind):
            if option := field.about.option:
                options.pop(option.name, None)
                options[option.name] = _option(field)
    return list(options.values())


def _option(field: Field) -> click.Option:
    """Make the option of one field: a switch, a choice, or a value; None where it is not given."""
    option, about = field.about.option, field.about
    assert option is not None
    if field.type is bool:
        return click.Option([option.name], is_flag=True, help=option.help)
    return click.Option(
        [option.name],
        type=click.Choice(about.choices) if about.choices else field.type,
        help=f"{option.help or ''}  [default: {_usual(field)}]".strip(),
    )


def _usual(field: Field) -> Any:
    """Return what an option stands for where it is not given."""
    option = field.about.option
    return field.default if option is None or option.default is None else option.default


def from_flags(flags: Mapping[str, Any]) -> dict[str, Any]:
    """Return the flags as a fork file's keys, those that are not given left out; interventions
    compose in the order in which `--help` lists them. Errors: usage.
    """
    from replay.interventions.fields import fields_of
    from replay.interventions.registry import kinds

    interventions: list[dict[str, Any]] = []
    idle: dict[str, list[str]] = {}  # options that are given → the flags that they go with
    for kind in kinds():
        documents = [keys for flag in kind.flags for keys in _read(kind, flag, flags)]
        settings: dict[str, Any] = {}
        for field in fields_of(kind):
            if option := field.about.option:
                value = flags[_parameter(option.name)]
                if value in (None, False):
                    settings[field.name] = _usual(field)
                    continue
                settings[field.name] = value
                idle.setdefault(option.name, []).extend(_names(kind) if not documents else [""])
        interventions += [{"kind": kind.kind, **keys, **settings} for keys in documents]
    for option_name, partners in idle.items():
        if "" not in partners:
            raise ForensicsError(
                "usage",
                f"wanted {option_name} with {' or '.join(partners)}, found it alone",
                "in a fork file it is a key of the intervention",
            )
    head = {key: flags[key] for key in ("placebos", "chaos", "record", "probe_every", "name")}
    head |= {"from": flags["first"], "to": flags["last"]}
    if flags["barrier"] is not None:
        head["barrier"] = steps(flags["barrier"], "--barrier")
    given_keys = {key: value for key, value in head.items() if value is not None}
    return {**given_keys, "intervention": interventions}


def _read(
    kind: type[Intervention], flag: Flag, flags: Mapping[str, Any]
) -> Iterator[dict[str, Any]]:
    """Yield the keys that each value of a flag says. Errors: usage."""
    name = flag.name or f"--{kind.kind}"
    for value in flags[_parameter(name)]:
        try:
            yield flag.read(value)
        except ValueError:
            raise ForensicsError(
                "usage",
                f"wanted {name} {flag.metavar}, found {value!r}",
                f"e.g. {name} {flag.example}",
            ) from None


def _names(kind: type[Intervention]) -> list[str]:
    """Return the flags of a kind, with their dashes."""
    return [flag.name or f"--{kind.kind}" for flag in kind.flags]


def _parameter(option: str) -> str:
    """Name the value of an option as click does."""
    return option.removeprefix("--").replace("-", "_")


def steps(text: str, flag: str) -> list[int]:
    """Read S,T,… as step numbers. Errors: usage."""
    numbers = [number.strip() for number in text.split(",")]
    if not all(number.isdecimal() for number in numbers):
        raise ForensicsError("usage", f"wanted {flag} S,T,…, found {text!r}", f"e.g. {flag} 50,200")
    return [int(number) for number in numbers]
