"""The definitions say what the code has, and mark as planned what it has not."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import click

from forensics import config, records
from forensics.cli.main import main as forensics
from forensics.errors import EXIT_CODES
from replay.cli.main import main as replay

DOCS = Path(__file__).parent.parent.parent / "docs"
PROGRAMS = {"forensics": forensics, "replay": replay}


def section(document: str, title: str) -> str:
    """Return the text below a heading of the second level, up to the next one."""
    text = (DOCS / document).read_text(encoding="utf-8")
    found = re.search(rf"^## {title}.*?$\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    assert found is not None, f"{document} has no section {title}"
    return found[1]


def calls(text: str) -> list[tuple[str, str, set[str]]]:
    """Return (program, command, flags) of every command in a table's first column and its notes."""
    found = []
    for row in text.splitlines():
        if row.startswith("| `"):
            cells = re.split(r"(?<!\\)\|", row)
            codes = re.findall(r"`([^`]+)`", cells[1] + cells[2])
            program, command = codes[0].split()[:2]
            for code in codes:
                if code.split()[0] in PROGRAMS:
                    program, command = code.split()[:2]
                flags = set(re.findall(r"(?<![\w-])--[\w-]+", code))
                found.append((program, command, flags))
    return found


def options(command: click.Command) -> set[str]:
    """Return every spelling of a command's options."""
    return {
        spelling
        for parameter in command.get_params(click.Context(command))
        for spelling in (*parameter.opts, *parameter.secondary_opts)
    }


def test_the_contract_lists_every_command_with_options_that_it_has():
    listed = set()
    for program, name, flags in calls(section("contract.md", "Commands")):
        command = PROGRAMS[program].commands.get(name)
        assert command is not None, f"{program} {name}"
        assert flags <= options(command), f"{program} {name}"
        listed.add((program, name))
    assert listed == {(p, name) for p, program in PROGRAMS.items() for name in program.commands}


def test_what_the_contract_plans_is_not_there_yet():
    planned = calls(section("contract.md", "Planned"))
    assert planned
    for program, name, flags in planned:
        command = PROGRAMS[program].commands.get(name)
        assert command is None or not flags or flags - options(command), f"{program} {name}"


def test_the_contract_has_every_exit_code():
    text = (DOCS / "contract.md").read_text(encoding="utf-8")
    codes = {int(code) for code in re.findall(r"^\| (\d+) \|", text, re.MULTILINE)}
    assert codes == {0, 130, *EXIT_CODES.values()}


def test_the_recipe_of_the_contract_is_a_recipe(tmp_path):
    recipe = re.search(r"```toml\n(.*?)```", section("contract.md", "Recipes"), re.DOTALL)
    assert recipe is not None
    file = tmp_path / "contract.toml"
    file.write_text(recipe[1].replace('source = "stdlib"', "", 1), encoding="utf-8")
    assert config.load(file).data.sources.keys() == {"clean", "damaged"}


def test_every_column_that_has_a_formula_is_recorded():
    text = (DOCS / "formulas.md").read_text(encoding="utf-8")
    for table in ("steps", "tensors", "heads"):
        part = re.search(rf"^## [^\n]*\(`{table}`\)\n(.*?)^## ", text, re.MULTILINE | re.DOTALL)
        assert part is not None, table
        names = [
            name
            for row in part[1].splitlines()
            if row.startswith("| `")
            for name in re.findall(r"`(\w+)`", row.split("|")[1])
        ]
        columns = {column.name for column in records.TABLES[table].columns}
        assert names and set(names) <= columns, table


def test_the_floors_of_the_architecture_are_those_that_are_checked():
    project = tomllib.loads((DOCS.parent / "pyproject.toml").read_text(encoding="utf-8"))
    layers = project["tool"]["importlinter"]["contracts"][0]["layers"]
    checked = [sorted(re.split(r" [:|] ", layer)) for layer in layers]
    table = section("architecture.md", "The floors")
    drawn = [
        re.findall(r"`([\w/.]+)`", row.split("|")[1]) for row in table.splitlines() if "| `" in row
    ]
    modules = [
        sorted(path.removesuffix(".py").strip("/").replace("/", ".") for path in row)
        for row in drawn
    ]
    assert modules == checked


def test_every_word_of_the_glossary_stands_once_and_in_order():
    words = re.findall(r"^\| \*\*(.+?)\*\*", (DOCS / "glossary.md").read_text(), re.MULTILINE)
    assert words == sorted(set(words), key=str.lower) and len(words) > 40
