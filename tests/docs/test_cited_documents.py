"""Whatever a file of the repository cites is there: documents, links, paths, sections, modules."""

from __future__ import annotations

import os
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
SUFFIXES = {".cff", ".md", ".py", ".sh", ".sql", ".toml", ".yml", ".yaml"}
NOT_OURS = {".git", ".venv", "site", "build", "dist", "runs", "__pycache__", ".mypy_cache"}
PACKAGES = ("app", "benchmarks", "docs", "examples", "forensics", "queries", "replay")
FOLDERS = (*PACKAGES, "tests", r"\.ci")

DOCUMENT = re.compile(r"(?<![\w./-])(?:\.\.?/)*(?:[\w.-]+/)*[\w-]+\.md\b(?!\()")
# documents that stood beside the repository once; what they said is in docs/
ELSEWHERE = re.compile(r"\b(?:ANCHORS|DESIGN|FORMULAS|HOUSE)\b")
SECTION = re.compile(r"docs/([\w-]+\.md),\s+\"([^\"]+)\"")
LINK = re.compile(r"\]\(([^)\s#]+)(#[\w-]+)?\)")
PATH = re.compile(rf"(?<![\w./])((?:{'|'.join(FOLDERS)})/[\w./*-]*)")
MODULE = re.compile(r"(?<![\w.<-])(?:\w+/)*\w+\.py\b")
# a module of another project stands behind that project's name: allenai/OLMo olmo/train.py
_PATH = r"(?:[\w-]+/)*\w+\.py\b"
THEIRS = re.compile(rf"\b[\w-]+/[\w.-]+\s+{_PATH}(?:,\s+{_PATH})*")

# Names that stand for a file of the reader's own, or of the text that is trained on.
EXAMPLES = {
    "forensics/cli/main.py": {"my_metric.py", "FILE.py"},
    "forensics/data/corpus.py": {"json/__init__.py", "json/decoder.py"},
    "forensics/probes/runner.py": {"my_metric.py", "file.py"},
    "forensics/store/sandbox.py": {"json.py"},
    "tests/data/test_corpus.py": {"c.md", "b/c.md"},
}


def paths() -> list[Path]:
    """Return every file that belongs to the repository, from its root."""
    found = []
    for folder, inner, names in os.walk(ROOT):
        inner[:] = sorted(set(inner) - NOT_OURS)
        found += [Path(folder, name).relative_to(ROOT) for name in sorted(names)]
    return [path for path in found if ROOT / path != Path(__file__)]


def files(*suffixes: str) -> Iterator[tuple[str, str]]:
    """Yield (path from the root, text) of every text file that belongs to the repository."""
    extra = () if suffixes else ("Makefile", ".ci/run")
    for path in paths():
        if path.suffix in (suffixes or SUFFIXES) or path.as_posix() in extra:
            yield path.as_posix(), (ROOT / path).read_text(encoding="utf-8")


def missing(cited: dict[tuple[str, str], bool]) -> list[str]:
    """Return a line for each (file, name) that is not there."""
    return [
        f"{file}: {name}"
        for (file, name), there in cited.items()
        if not there and name not in EXAMPLES.get(file, ())
    ]


def test_every_cited_document_exists():
    cited = {}
    for file, text in files():
        for name in DOCUMENT.findall(text):
            places = (ROOT / name, ROOT / "docs" / name, (ROOT / file).parent / name)
            cited[file, name] = any(place.is_file() for place in places)
    assert len(cited) > 40, "the pattern finds nothing"
    assert missing(cited) == []


def test_nothing_cites_what_stands_outside_the_repository():
    assert [file for file, text in files() if ELSEWHERE.search(text)] == []


def test_every_cited_section_exists():
    cited = {}
    for file, text in files():
        for document, section in SECTION.findall(text):
            headings = re.findall(r"^#+ (.+)$", (ROOT / "docs" / document).read_text(), re.M)
            cited[file, section] = any(heading.startswith(section) for heading in headings)
    assert cited
    assert missing(cited) == []


def test_every_link_leads_to_a_file():
    cited = {}
    for file, text in files(".md"):
        for target, _ in LINK.findall(text):
            if "://" not in target:
                cited[file, target] = ((ROOT / file).parent / target).exists()
    assert cited
    assert missing(cited) == []


def test_every_path_in_the_documents_exists():
    cited = {}
    for file, text in files(".md", ".cff"):
        for path in PATH.findall(text):
            here = (ROOT, ROOT / "tests") if file.startswith("tests/") else (ROOT,)
            cited[file, path] = any(list(folder.glob(path.rstrip("."))) for folder in here)
    assert cited
    assert missing(cited) == []


@pytest.mark.parametrize("package", PACKAGES)
def test_every_module_that_a_module_names_exists(package):
    ours = [path.as_posix() for path in paths()]
    cited = {}
    for file, text in files(".py"):
        if file.startswith(f"{package}/"):
            for name in MODULE.findall(THEIRS.sub("", text)):
                cited[file, name] = any(f"/{path}".endswith(f"/{name}") for path in ours)
    assert missing(cited) == []


def test_every_name_of_the_api_page_exists():
    names = re.findall(r"^::: ([\w.]+)$", (ROOT / "docs/api.md").read_text(), re.MULTILINE)
    assert names
    for name in names:
        assert pkgutil.resolve_name(name) is not None


def test_the_site_leads_to_every_document():
    pages = {path.name for path in (ROOT / "docs").glob("*.md")}
    menu = set(re.findall(r"([\w-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE))
    assert menu == pages
