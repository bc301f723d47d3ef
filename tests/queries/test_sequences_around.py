"""The dots of a large batch: thinned so that what stands apart and the cloud's shape stay."""

import itertools
import math

import pytest

from forensics.store.writer import Writer
from queries import run


@pytest.fixture
def wide(tmp_path):
    """Five batches of 1,000 sequences, losses 2 to 3; at step 3 slot 500 stands far above, slot 600
    is not a number.
    """
    folder = tmp_path / "wide"
    folder.mkdir()
    (folder / "run.json").write_text("{}")
    with Writer(folder) as writer:
        writer.append("runs", name="wide")
        for step in range(5):
            losses = [2 + (slot * 7 % 1000) / 999 for slot in range(1000)]
            if step == 3:
                losses[500], losses[600] = 9.0, math.nan
            writer.append("sequences", step=step, slot=list(range(1000)), sequence=0, loss=losses)
    return tmp_path


def dots(runs, step, **parameters):
    result = run(runs, "sequences_around", {"run": "wide", "step": 3, **parameters}).to_pylist()
    return [dot for dot in result if dot["step"] == step]


def test_a_large_batch_keeps_its_highest_its_lowest_what_stands_apart_and_its_shape(wide):
    drawn = dots(wide, 3)
    assert len(drawn) == 206 and {dot["sequences"] for dot in drawn} == {1000}
    assert 500 in [dot["slot"] for dot in drawn if dot["apart"]]
    losses = sorted(dots(wide, 2), key=lambda dot: -dot["loss"])
    values = [dot["loss"] for dot in losses]
    assert values[:103] == pytest.approx(
        [3 - i / 999 for i in range(103)]
    )  # the highest, all of them
    assert values[-1] == 2.0  # and the lowest
    gaps = [higher - lower for higher, lower in itertools.pairwise(values[103:])]
    assert max(gaps) < 10 / 999  # the others, 897, each eighth or ninth of them
    assert len(dots(wide, 3, top=10)) == 10


def test_a_small_batch_is_drawn_whole(wide):
    assert len(dots(wide, 1, top=1000)) == 1000
    assert len(dots(wide, 1, top=1999)) == 1000
    assert len(dots(wide, 1, top=1500)) == 1000
