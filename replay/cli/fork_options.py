"""The options of `replay fork` that make interventions, and all its options as a fork file's keys.

Options are made from the kinds' own declarations, when a command asks for them: a kind that is
added has its flags here without a line, and `replay --help` loads no intervention.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import click

from forensics.cli.console import Command
from forensics.errors import ForensicsError


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


def _option(field: Any) -> click.Parameter:
    """Make the option of one field: a switch, a choice, or a value with its default."""
    option, about = field.about.option, field.about
    if field.type is bool:
        return click.Option([option.name], is_flag=True, help=option.help)
    return click.Option(
        [option.name],
        type=click.Choice(about.choices) if about.choices else field.type,
        default=field.default if option.default is None else option.default,
        show_default=True,
        help=option.help,
    )


def from_flags(flags: Mapping[str, Any]) -> dict[str, Any]:
    """Return the flags as a fork file's keys; interventions compose in the order in which `--help`
    lists them. Errors: usage.
    """
    from replay.interventions.fields import fields_of
    from replay.interventions.registry import kinds

    interventions: list[dict[str, Any]] = []
    for kind in kinds():
        further = {
            field.name: flags[_parameter(field.about.option.name)]
            for field in fields_of(kind)
            if field.about.option
        }
        for flag in kind.flags:
            name = flag.name or f"--{kind.kind}"
            for value in flags[_parameter(name)]:
                try:
                    keys = flag.read(value)
                except ValueError:
                    raise ForensicsError(
                        "usage",
                        f"wanted {name} {flag.metavar}, found {value!r}",
                        f"e.g. {name} {flag.example}",
                    ) from None
                interventions.append({"kind": kind.kind, **keys, **further})
    head = {key: flags[key] for key in ("placebos", "chaos", "record", "probe_every", "name")}
    if flags["barrier"]:
        head["barrier"] = steps(flags["barrier"], "--barrier")
    return head | {"from": flags["first"], "to": flags["last"], "intervention": interventions}


def _parameter(option: str) -> str:
    """Name the value of an option as click does."""
    return option.removeprefix("--").replace("-", "_")


def steps(text: str, flag: str) -> list[int]:
    """Read S,T,… as step numbers. Errors: usage."""
    numbers = [number.strip() for number in text.split(",")]
    if not all(number.isdecimal() for number in numbers):
        raise ForensicsError("usage", f"wanted {flag} S,T,…, found {text!r}", f"e.g. {flag} 50,200")
    return [int(number) for number in numbers]
