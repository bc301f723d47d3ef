"""The first bad step of a run, and of a fork whose weights were damaged at its start."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from replay.first_bad_step import FirstBadStep, first_bad_step_of
from replay.forks import spec as specs
from replay.forks.run import fork
from replay.lineage import open_trajectory


def test_the_first_bad_step_of_a_damaged_fork_is_its_first(trained: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    shutil.copytree(trained, runs)
    assert first_bad_step_of(runs, "base").found is None
    document = {
        "parent": "base",
        "from": 85,
        "to": 89,
        "placebos": 0,
        "name": "damaged",
        "record": "light",
        "intervention": [{"kind": "noise", "sigma": 1.0}],
    }
    fork(specs.build(runs, open_trajectory(runs, "base"), document), runs)
    result = first_bad_step_of(runs, "damaged")
    assert result.found is not None
    # 85 is judged by what the ancestor recorded before it
    assert (result.found.step, result.first, result.last) == (85, 0, 89)
    assert 0.04 * result.found.judged <= result.found.out <= result.found.judged <= result.series
    far = [abs(moved.scales) for moved in result.found.moved]
    assert far == sorted(far, reverse=True) and far[-1] >= 6
    again = FirstBadStep.from_document(json.loads(result.to_json()), "bad.json")
    assert again == result
