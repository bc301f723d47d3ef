"""Make the documents that follow from code and measurements: command line, tables and queries,
recipe keys, interventions, performance, studies.

python -m docs.generate           writes them
python -m docs.generate --check   exit code 1 where one is out of date
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import click

from docs.interventions import interventions
from docs.performance import performance
from docs.studies import nulls_page, spikes_page

HERE = Path(__file__).parent


def command_line() -> str:
    """Return docs/cli.md: every command's help, as it prints."""
    from forensics.cli.main import main as forensics
    from replay.cli.main import main as replay

    lines = ["# Command line", "", "Made from the programs' own help by `python -m docs.generate`."]
    for program in (forensics, replay):
        lines += ["", f"## {program.name}", "", "```", _help(program, program.name or ""), "```"]
        for name, command in sorted(program.commands.items()):
            lines += [
                "",
                f"### {program.name} {name}",
                "",
                "```",
                _help(command, f"{program.name} {name}"),
                "```",
            ]
    return "\n".join(lines) + "\n"


def _help(command: click.Command, path: str) -> str:
    context = click.Context(command, info_name=path, max_content_width=100, terminal_width=100)
    return command.get_help(context).rstrip()


def tables() -> str:
    """Return docs/tables.md: every table, view and named query."""
    import queries

    return queries.describe().rstrip() + "\n"


def recipes() -> str:
    """Return docs/recipes.md: every key with its default and meaning, and the packaged recipes."""
    from forensics import config

    lines = [
        "# Recipes",
        "",
        "Made from `forensics/config.py` by `python -m docs.generate`.",
        (
            "A recipe is TOML; every key can be set with `--set section.key=value`; unknown keys"
            " are refused."
        ),
    ]
    for section in dataclasses.fields(config.Recipe):
        cls = section.default_factory  # type: ignore[assignment]
        lines += [
            "",
            f"## [{section.name}]",
            "",
            (cls.__doc__ or "").strip(),
            "",
            "| key | default | meaning |",
            "|---|---|---|",
        ]
        for field in dataclasses.fields(cls):
            default = (
                field.default
                if field.default is not dataclasses.MISSING
                else field.default_factory()
            )  # type: ignore[misc]
            default_text = (
                "the family's" if default is None and section.name == "model" else _toml(default)
            )
            choices = (
                " · " + ", ".join(field.metadata["choices"]) if field.metadata["choices"] else ""
            )
            meaning = field.metadata["meaning"].replace("|", "\\|")
            lines.append(f"| `{field.name}` | {default_text} | {meaning}{choices} |")
    lines += ["", "## Packaged recipes", ""]
    for name in config.names():
        text = (config.RECIPES / f"{name}.toml").read_text()
        comment = " ".join(
            line.removeprefix("# ").strip() for line in text.splitlines() if line.startswith("# ")
        )
        lines.append(f"* `{name}`: {comment}")
    return "\n".join(lines) + "\n"


def _toml(value: object) -> str:
    if value is None:
        return "left out"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, (tuple, list)):
        return f"`{list(value)}`"
    return f"`{value!r}`".replace("'", '"')


MADE = {
    "cli.md": command_line,
    "tables.md": tables,
    "recipes.md": recipes,
    "interventions.md": interventions,
    "performance.md": performance,
    "spikes.md": spikes_page,
    "nulls.md": nulls_page,
}


def main(check: bool) -> int:
    """Write the documents, or with `check` compare them; return the exit code."""
    stale = []
    for name, make in MADE.items():
        path, text = HERE / name, make()
        if check:
            if not path.is_file() or path.read_text(encoding="utf-8") != text:
                stale.append(name)
        else:
            path.write_text(text, encoding="utf-8")
    for name in stale:
        print(f"docs/{name} is out of date: run `python -m docs.generate`", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main("--check" in sys.argv[1:]))
