"""What both programs share: the options of every command, JSON on stdout, errors in one line, exit
codes.

@program.command(example="forensics show demo")
@click.argument("run")
def show(run): ...
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from forensics.errors import ForensicsError
from forensics.json_documents import dumps
from forensics.result_records import ResultRecord
from forensics.version import __version__
from forensics.visible import visible


class Settings:
    """--runs and --json, given before or after the command's name."""

    def __init__(self) -> None:
        self.runs = Path(os.environ.get("FORENSICS_RUNS", "runs"))
        self.json = False


def settings() -> Settings:
    """Return the options that every command shares."""
    return click.get_current_context().find_root().ensure_object(Settings)


def runs_folder() -> Path:
    """Return the folder of runs that the command was given."""
    return settings().runs


def _set_runs(context: click.Context, parameter: click.Parameter, value: str | None) -> None:
    if value is not None:
        context.find_root().ensure_object(Settings).runs = Path(value)


def _set_json(context: click.Context, parameter: click.Parameter, value: bool) -> None:
    if value:
        context.find_root().ensure_object(Settings).json = True


def _common() -> list[click.Parameter]:
    return [
        click.Option(
            ["--runs"],
            metavar="DIR",
            expose_value=False,
            callback=_set_runs,
            is_eager=True,
            help="Folder of runs (default ./runs, or FORENSICS_RUNS).",
        ),
        click.Option(
            ["--json"],
            is_flag=True,
            expose_value=False,
            callback=_set_json,
            is_eager=True,
            help="One JSON document on stdout and nothing else there.",
        ),
    ]


def workers(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the option --workers N."""
    return click.option(
        "--workers",
        type=click.IntRange(min=1),
        default=1,
        show_default=True,
        help="Processes of one thread.",
    )(command)


class Command(click.Command):
    """A command with the common options, whose help ends with an example."""

    def __init__(self, *args: Any, example: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.example = example
        self.params += _common()

    def format_epilog(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the example at the end of the help."""
        _write_example(formatter, self.example)


class Program(click.Group):
    """A program: catches every error of ours and turns it into one line and an exit code."""

    command_class = Command

    def __init__(self, *args: Any, example: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.example = example
        self.params += _common()
        self.params.append(
            click.Option(
                ["--version"],
                is_flag=True,
                expose_value=False,
                is_eager=True,
                callback=_version,
                help="Show the version and exit.",
            )
        )

    def format_epilog(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the example at the end of the help."""
        _write_example(formatter, self.example)

    def main(self, args: list[str] | None = None, **extra: Any) -> Any:  # type: ignore[override]
        """Run a command; turn every error into one line and an exit code."""
        arguments = list(sys.argv[1:] if args is None else args)
        try:
            code = super().main(args=arguments, prog_name=self.name, standalone_mode=False, **extra)
            sys.exit(code if isinstance(code, int) else 0)
        except ForensicsError as e:
            _fail(e.kind, e.message, e.hint, e.exit_code, "--json" in arguments)
        except click.exceptions.NoArgsIsHelpError as e:
            click.echo(e.format_message())
            sys.exit(2)
        except click.ClickException as e:
            where = (
                f"see `{e.ctx.command_path} --help`"
                if isinstance(e, click.UsageError) and e.ctx
                else ""
            )
            _fail("usage", e.format_message().replace("\n", " "), where, 2, "--json" in arguments)
        except (KeyboardInterrupt, click.Abort) as e:
            _fail("interrupted", "interrupted", str(e), 130, "--json" in arguments)
        except BrokenPipeError:
            sys.exit(0)
        except MemoryError:
            _fail(
                "memory",
                "out of memory",
                "lower train.micro_batch, data.sequence_length or model.width",
                1,
                "--json" in arguments,
            )
        except OSError as e:
            if e.errno is None:
                raise
            _fail(
                "storage",
                f"{e.strerror}: {e.filename or 'a file'}",
                "is there space, and may this user write there?",
                1,
                "--json" in arguments,
            )


def _version(context: click.Context, parameter: click.Parameter, value: bool) -> None:
    if value:
        click.echo(f"{context.find_root().info_name} {__version__}")
        context.exit()


def _write_example(formatter: click.HelpFormatter, example: str) -> None:
    formatter.write_paragraph()
    formatter.write_text("Example:")
    for line in example.strip().splitlines():
        formatter.write(f"  {line.strip()}\n")


def _fail(kind: str, message: str, hint: str, code: int, as_json: bool) -> None:
    line = " ".join(f"{message}; {hint}".split() if hint else message.split())
    click.echo(f"error: {line}", err=True)
    if as_json:
        click.echo(json.dumps({"error": {"kind": kind, "message": message, "hint": hint}}))
    sys.exit(code)


def emit(document: dict[str, Any] | ResultRecord, story: Callable[[], None]) -> None:
    """Return the result: one JSON document under --json, else what `story` prints."""
    if settings().json:
        click.echo(dumps(document))
    else:
        story()


def say(text: str = "") -> None:
    """Return a line of the story on stdout, control and bidi characters made visible."""
    click.echo(visible(text))


NOT_EXACT = "TOLERANCE ONLY: the state is not the recorded one bit for bit"


def warn(text: str) -> None:
    """Write a warning to stderr."""
    click.echo(f"warning: {text}", err=True)


def table(columns: list[str], rows: list[list[Any]]) -> None:
    """Aligned columns, numbers to the right, plain text so that it can be piped."""
    cells = [[visible(cell(v)).replace("\n", "⏎") for v in row] for row in rows]
    widths = [max([len(c), *(len(row[i]) for row in cells)]) for i, c in enumerate(columns)]
    right = [
        all(isinstance(row[i], (int, float)) or row[i] is None for row in rows)
        for i in range(len(columns))
    ]
    for line in [columns, *cells]:
        click.echo(
            "  ".join(
                v.rjust(w) if r else v.ljust(w) for v, w, r in zip(line, widths, right)
            ).rstrip()
        )


def cell(value: Any) -> str:
    """Write a value as a table shows it."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value)
