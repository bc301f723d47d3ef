"""What the commands of `replay` share about runs made elsewhere: --warm-moments."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import click

from forensics.train.warm_setting import VARIABLE


def _set(context: click.Context, parameter: click.Parameter, value: int | None) -> None:
    """Let every run that this command opens make moments of so many batches."""
    if value is None:
        return
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = str(value)  # the processes that a command starts read it too

    def restore() -> None:
        os.environ.pop(VARIABLE, None)
        if before is not None:
            os.environ[VARIABLE] = before

    context.call_on_close(restore)


def warm_moments(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the option --warm-moments N."""
    return click.option(
        "--warm-moments",
        type=click.IntRange(min=1),
        metavar="N",
        expose_value=False,
        callback=_set,
        help="Of a state of a run made elsewhere that has no moments: make them of the N batches"
        " before it.",
    )(command)
