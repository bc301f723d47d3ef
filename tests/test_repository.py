"""What holds the repository together: one version, one list of checks, types."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

import yaml

import forensics

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_the_version_has_one_source():
    assert PROJECT["project"]["dynamic"] == ["version"] and "version" not in PROJECT["project"]
    assert PROJECT["tool"]["setuptools"]["dynamic"]["version"] == {
        "attr": "forensics.version.__version__"
    }
    from forensics import identity

    fingerprint = identity.fingerprint(
        device="cpu", threads=1, compiled=False, optimizer="fused", precision="fp32"
    )
    assert fingerprint["packages"]["forensics-workbench"] == forensics.__version__
    assert json.loads(json.dumps(fingerprint)) == fingerprint


def test_the_changelog_begins_with_this_version():
    headings = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert headings[0] == forensics.__version__


def test_pre_commit_runs_what_make_check_runs():
    makefile = (ROOT / "Makefile").read_text()
    lines = re.search(r"^check:.*\n((?:\t.*\n)+)", makefile, re.MULTILINE)
    assert lines is not None
    checks = [line.strip().replace("$(BIN)", ".venv/bin") for line in lines[1].splitlines()]
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    hooks = [hook for repository in config["repos"] for hook in repository["hooks"]]
    assert [hook["entry"] for hook in hooks] == checks
    for hook in hooks:
        assert hook["language"] == "system" and hook["always_run"] and not hook["pass_filenames"]


def test_every_package_says_that_it_has_types():
    for package in PROJECT["tool"]["mypy"]["packages"]:
        assert (ROOT / package / "py.typed").is_file(), package
        assert "py.typed" in PROJECT["tool"]["setuptools"]["package-data"][package]


def test_the_licence_is_the_one_that_the_project_names():
    assert PROJECT["project"]["license"] == "Apache-2.0"
    assert "Apache License" in (ROOT / "LICENSE").read_text()
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["license"] == "Apache-2.0"
