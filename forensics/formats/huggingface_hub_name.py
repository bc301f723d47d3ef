"""hf:ORG/NAME[@REVISION]: a repository in the local cache, or fetched where there is a network.

local_folder("EleutherAI/pythia-160m")             # the cached repository with all its revisions
local_folder("EleutherAI/pythia-160m@step1000")    # that revision's folder

The cache is huggingface_hub's: HF_HUB_CACHE, else HF_HOME/hub, else ~/.cache/huggingface/hub; in
it models--ORG--NAME/refs/REVISION holds a commit, and snapshots/COMMIT its files.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path

from forensics.errors import ForensicsError, first_line, nearest
from forensics.formats.revision_names import parse_all

NAME = re.compile(r"(?P<repository>[\w.-]+(/[\w.-]+)?)(@(?P<revision>[\w./-]+))?")
COMMIT = re.compile(r"[0-9a-f]{7,40}")
WANTED = ("config.json", "*.safetensors", "*.safetensors.index.json", "tokenizer*", "*.model")
SHOWN = 6  # revisions in one sentence


def cache_folder() -> Path:
    """Return where huggingface_hub keeps what it fetched."""
    if cache := os.environ.get("HF_HUB_CACHE"):
        return Path(cache).expanduser()
    home = os.environ.get("HF_HOME")
    if home is None:
        home = os.path.join(os.environ.get("XDG_CACHE_HOME", "~/.cache"), "huggingface")
    return Path(home).expanduser() / "hub"


def local_folder(name: str) -> Path:
    """Return the folder of a repository or of one revision, fetched where it is not here.

    Errors: usage (no such form of name), missing (no such repository or revision, no network).
    """
    found = NAME.fullmatch(name)
    if found is None or ".." in name:
        raise ForensicsError(
            "usage",
            f"wanted hf:ORG/NAME or hf:ORG/NAME@REVISION, found hf:{name}"[:200],
            "e.g. hf:EleutherAI/pythia-160m@step1000",
        )
    repository, revision = found["repository"], found["revision"]
    place = cache_folder() / ("models--" + repository.replace("/", "--"))
    if revision is None:
        return place if snapshots(place) else _fetched(repository, "main", place)
    folder = snapshot_of(place, revision)
    return folder if folder is not None else _fetched(repository, revision, place)


def snapshots(place: Path) -> dict[str, Path]:
    """Return the cached revisions of a repository by name; a commit that no name means by itself.

    A name whose commit has no files here is left out.
    """
    refs, folders = place / "refs", place / "snapshots"
    if not folders.is_dir():
        return {}
    commits = {folder.name: folder for folder in sorted(folders.iterdir()) if folder.is_dir()}
    named: dict[str, Path] = {}
    for file in sorted(refs.rglob("*")) if refs.is_dir() else ():
        if not file.is_file():
            continue
        commit = file.read_text(encoding="utf-8", errors="replace").strip()
        if commit in commits:
            named[file.relative_to(refs).as_posix()] = commits[commit]
    meant = {folder.name for folder in named.values()}
    return named | {name: folder for name, folder in commits.items() if name not in meant}


def snapshot_of(place: Path, revision: str) -> Path | None:
    """Return the folder of a cached revision; None where it is not here."""
    known = snapshots(place)
    if revision in known:
        return known[revision]
    if not COMMIT.fullmatch(revision):
        return None
    folders = {folder.name: folder for folder in known.values()}
    return next((f for commit, f in folders.items() if commit.startswith(revision)), None)


def _fetched(repository: str, revision: str, place: Path) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    here = sorted(snapshots(place))
    try:
        return Path(
            snapshot_download(
                repository, revision=revision, cache_dir=place.parent, allow_patterns=list(WANTED)
            )
        )
    except RevisionNotFoundError:
        raise _no_revision(repository, revision, _all_revisions(repository) or here) from None
    except RepositoryNotFoundError as e:
        raise ForensicsError(
            "missing",
            f"wanted the repository {repository}, found none: {first_line(e)}",
            "is its name right, and may this user read it?",
        ) from None
    except Exception as e:  # what huggingface_hub and its clients raise without a network
        if here and revision not in here:
            raise _no_revision(
                repository, revision, here, " in the cache, and no network"
            ) from None
        raise ForensicsError(
            "missing",
            f"wanted {repository} at {revision}, found it neither in {place.parent} nor on a"
            f" network: {first_line(e)}"[:300],
            "fetch config.json, *.safetensors (with model.safetensors.index.json) and"
            f" tokenizer.json elsewhere (hf download {repository} --revision {revision}), and give"
            f" the folder, or put them into {place}/snapshots/COMMIT with COMMIT in"
            f" refs/{revision}",
        ) from None


def _all_revisions(repository: str) -> list[str]:
    from huggingface_hub import list_repo_refs

    try:
        refs = list_repo_refs(repository)
        return [ref.name for ref in (*refs.branches, *refs.tags)]
    except Exception:  # the answer only makes the hint better
        return []


def _no_revision(
    repository: str, revision: str, names: Iterable[str], where: str = ""
) -> ForensicsError:
    known = list(names)
    return ForensicsError(
        "missing",
        f"wanted revision {revision} of {repository}, found none{where}",
        f"{nearest(revision, known)}; nearest: {', '.join(nearest_names(revision, known))}"
        if known
        else "`main` is its last state",
    )


def nearest_names(revision: str, names: Iterable[str]) -> list[str]:
    """Return the revisions nearest in step to the one asked for, else the first ones."""
    every = parse_all([*names, revision])
    asked = next((r for r in every.parsed if r.name == revision), None)
    known = [r for r in every.parsed if r.name != revision]
    if asked is None or not known:
        return [name for name in (*(r.name for r in known), *every.unparsed) if name != revision][
            :SHOWN
        ]
    known.sort(key=lambda r: (r.stage != asked.stage, abs(r.step - asked.step)))
    return [r.name for r in sorted(known[:SHOWN])]
