"""Results that are kept: each is read as what it is, by its version, and none in another's
place.
"""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

from forensics.train.header import write_header
from replay.experiments.results import WindowsResult
from replay.lineage import identity, identity_text, open_trajectory
from replay.result_files import keep_result, kept_results

RESULT = WindowsResult(run="base", batches=(3, 5), states=(2,), probe_sequences=0, windows=())


def test_a_result_of_another_version_or_a_damaged_one_is_told_and_not_returned(
    tmp_path: Path,
) -> None:
    for i, identity_of in enumerate(("one", "two")):
        path = keep_result(tmp_path, "windows", identity_of, RESULT)
        os.utime(path, ns=(10**18 + i, 10**18 + i))
    (tmp_path / f"windows-{'0' * 16}.json").write_text("{")
    (tmp_path / f"windows-{'1' * 16}.json").write_text(json.dumps({"run": "base"}))
    (tmp_path / f"windows-{'2' * 16}.json").write_text("[]")
    old = RESULT.to_document() | {"version": 99}
    (tmp_path / f"windows-{'3' * 16}.json").write_text(json.dumps(old))
    (tmp_path / "windows-mine.json").write_text("{")
    found = kept_results(tmp_path, "windows", WindowsResult)
    assert [document for _, document in found.results] == [RESULT.to_document()] * 2
    newest = keep_result(tmp_path, "windows", "two", RESULT).stem
    assert found.results[0].name == newest
    words = sorted(str(error) for error in found.unreadable)
    for message, wanted in zip(
        words, ("is damaged", "one without a version", "one without a version", "version 99")
    ):
        assert wanted in message and WindowsResult.AGAIN in message
    assert len(words) == 4
    assert kept_results(tmp_path / "none", "windows", WindowsResult) == ([], [])


def test_what_is_kept_of_a_fork_depends_on_all_that_it_descends_from(runs: Path) -> None:
    base = open_trajectory(runs, "base")
    for name, parent in (("one", "base"), ("two", "one")):
        header = dataclasses.replace(
            base.header, name=name, parent=parent, parent_step=75, first_step=75, interventions=[]
        )
        write_header(runs, header)
    two = open_trajectory(runs, "two")
    assert identity(two)["parent"]["parent"] == {
        key: getattr(base.header, key) for key in ("name", "created", "order", "corpus")
    }
    before = identity_text(two)
    one = dataclasses.replace(open_trajectory(runs, "one").header)
    skip = {"kind": "skip", "first": 76, "last": 77}
    write_header(runs, dataclasses.replace(one, interventions=[skip]))
    assert identity_text(open_trajectory(runs, "two")) != before
