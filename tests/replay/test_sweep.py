"""The same intervention early and late; in this process or in others, with the same bits."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from forensics.errors import ForensicsError
from forensics.train.loop import train
from forensics.train.run import Run
from replay.cli import output
from replay.executors.local import Task, Work, here, spawned
from replay.experiments.results import PointControl, SweepPoint, SweepResult
from replay.experiments.sweep import moved, summarise, sweep
from replay.forks import spec
from replay.forks.run import fork
from replay.interventions.base import KINDS, Intervention
from replay.interventions.fields import about, fields_of


def swept(*arguments: Any, **options: Any) -> dict[str, Any]:
    """The result of a sweep, as its document."""
    return sweep(*arguments, **options).to_document()


RAW = {
    "parent": "base",
    "from": 40,
    "to": 46,
    "placebos": 1,
    "intervention": [{"kind": "skip", "window": "41:42"}],
}


def test_steps_move_with_the_start_and_only_what_draws_takes_the_seed() -> None:
    raw = {
        "parent": "base",
        "from": 40,
        "to": 46,
        "intervention": [
            {"kind": "drop", "window": "41:42"},
            {"kind": "swap", "a": 43, "b": 44},
            {"kind": "shuffle", "first": 40, "last": 42},
            {"kind": "remove-sequences", "window": "41:42", "at": [[41, 1, 0, 8]]},
            {"kind": "replace", "batch": 7},
            {"kind": "insert", "at": 45, "text": "x"},
            {"kind": "noise", "sigma": 1.0, "seed": 2},
        ],
    }
    there = moved(raw, 10, 3)
    assert (there["from"], there["to"], there["parent"]) == (10, 16, "base")
    assert there["intervention"] == [
        {"kind": "drop", "window": "11:12"},
        {"kind": "swap", "a": 13, "b": 14},
        {"kind": "shuffle", "first": 10, "last": 12, "seed": 3},
        {"kind": "remove-sequences", "window": "11:12", "at": [[11, 1, 0, 8]]},
        {"kind": "replace", "batch": 7},
        {"kind": "insert", "at": 15, "text": "x"},
        {"kind": "noise", "sigma": 1.0, "seed": 5},
    ]
    assert moved(there, 40)["intervention"][0] == raw["intervention"][0] and raw["from"] == 40


def test_every_step_field_moves_because_it_is_one() -> None:
    """A kind that no one knew: a step with a default, a list of steps, places, and a number that is
    no step.
    """

    @dataclass(frozen=True)
    class Marked(Intervention):
        kind = "marked"
        begin: int = field(default=40, metadata=about(step=True))
        steps: tuple[int, ...] = field(default=(), metadata=about(step=True))
        places: tuple[tuple[int, int], ...] = field(default=(), metadata=about(step=True))
        count: int = 7
        follows: int | None = field(default=None, metadata=about(settled=True))

    try:
        keys = {"kind": "marked", "steps": [41, 42], "places": [[43, 1]], "follows": 5}
        raw = {"parent": "base", "from": 40, "to": 46, "barrier": [42], "intervention": [keys]}
        there = moved(raw, 10)
        assert there["barrier"] == [12]
        assert there["intervention"] == [
            {"kind": "marked", "steps": [11, 12], "places": [[13, 1]], "begin": 10}
        ]
    finally:
        del KINDS["marked"]


@pytest.mark.parametrize("kind", list(KINDS))
def test_every_field_that_names_steps_is_declared_as_one(kind: str) -> None:
    steps = {"first", "last", "a", "b", "at", "rows"}
    declared = {f.name: f.about.step for f in fields_of(KINDS[kind])}
    assert {name for name in declared if name in steps} == {n for n, s in declared.items() if s}


def test_sql_chooses_anew_in_each_moved_window(runs: Path, base: Run) -> None:
    sql = "select step, slot from sequences where step >= $first and step < $last and slot = 2"
    raw = RAW | {
        "to": 42,
        "placebos": 0,
        "intervention": [{"kind": "remove-sequences", "window": "40:41", "sql": sql}],
    }
    chosen = [spec.build(runs, base, moved(raw, step)).interventions[0] for step in (20, 60)]
    assert [i.at for i in chosen] == [((20, 2, 0, 32),), ((60, 2, 0, 32),)]  # type: ignore[attr-defined]
    assert all(p["l2"] > 0 for p in swept(runs, raw, [20])["points"])


@pytest.fixture(scope="module")
def found(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    runs = tmp_path_factory.mktemp("sweep") / "runs"
    shutil.copytree(trained, runs)
    return swept(runs, RAW, [70, 30])


def test_each_step_has_a_point_in_either_arm_whose_control_is_the_run(
    found: dict[str, Any], base: Run
) -> None:
    assert [(p["step"], p["arm"]) for p in found["points"]] == [
        (30, "own"),
        (30, "equal"),
        (70, "own"),
        (70, "equal"),
    ]
    assert all(p["control"]["bitwise"] for p in found["points"])
    assert [p["control"]["compared"] for p in found["points"]] == [6, 1, 6, 1]
    lr = {r["step"]: r["lr"] for r in base.table("steps", ["step", "lr"]).to_pylist()}
    assert [p["learning_rate"] for p in found["points"]] == [lr[30], lr[30], lr[70], lr[30]]


def test_the_equal_arm_holds_the_rate_through_the_window(found: dict[str, Any]) -> None:
    own, equal = found["points"][:2]
    assert (
        own["moved"] != equal["moved"] and own["l2"] != equal["l2"]
    )  # the schedule falls after the first step


def test_on_a_constant_schedule_there_is_one_arm_for_both_would_train_the_same(
    tmp_path: Path, recipe_of: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    constant = {"train.schedule": "constant", "train.warmup": 2, "train.steps": 12}
    recipe = recipe_of(**constant, **{"checkpoint.every": 4, "model.layers": 1})
    train(recipe, name="base", recipe_name="tiny", runs=tmp_path)
    raw = RAW | {"from": 4, "to": 7, "placebos": 0}
    raw["intervention"] = [{"kind": "skip", "window": "4:5"}]
    result = sweep(tmp_path, raw, [4, 8])
    assert [(p.step, p.arm) for p in result.points] == [(4, "own"), (8, "own")]
    output.sweep(result)
    assert "One arm: the run's own learning rate is 0.01 throughout." in capsys.readouterr().out
    early = raw | {"from": 0, "to": 3, "intervention": [{"kind": "skip", "window": "1:2"}]}
    assert len(sweep(tmp_path, early, [0]).points) == 2  # the warm-up is no constant rate


def test_a_point_is_the_fork_that_the_engine_makes(
    found: dict[str, Any], runs: Path, base: Run
) -> None:
    raw = RAW | {"from": 70, "to": 76, "intervention": [{"kind": "skip", "window": "71:72"}]}
    made = fork(spec.build(runs, base, raw), runs).to_document()
    own = found["points"][2]
    assert own["l2"] == made["final"]["l2"] and own["logit_kl"] == made["final"]["logit_kl"]
    assert own["placebos"] == 1 and own["time_to_reconverge"] == made["time_to_reconverge"]


def test_sizes_are_over_what_the_control_moved_and_over_the_placebos(found: dict[str, Any]) -> None:
    for p in found["points"]:
        assert p["l2_over_moved"] == p["l2"] / p["moved"]
        assert p["over_placebos"] == p["l2"] / p["placebo_l2"][0]
    assert [(r["step"], r["arm"], r["seeds"], r["placebos"]) for r in found["summary"]] == [
        (30, "own", 1, 1),
        (30, "equal", 1, 1),
        (70, "own", 1, 1),
        (70, "equal", 1, 1),
    ]


def test_an_effect_over_placebos_that_moved_nothing_is_infinity_in_the_document() -> None:
    exact = PointControl(level="exact", bitwise=True, compared=6, what="every step")
    one_point = SweepPoint(
        **dict.fromkeys((f.name for f in dataclasses.fields(SweepPoint)), None)
        | {"step": 40, "arm": "own", "seed": 0, "learning_rate": 1e-3, "control": exact}
        | {"l2": 0.5, "moved": 1.0, "placebo_l2": (0.0, 0.0, 0.0)}
    )
    (row,) = summarise([one_point])
    assert row.over_placebos == math.inf and row.finding == "beyond"
    swept_once = SweepResult("base", "skips", 40, (40,), 6, summary=(row,))
    document = swept_once.to_document()
    assert document["summary"][0]["over_placebos"] == "Infinity"
    assert SweepResult.from_document(document, "sweep").summary == (row,)


def test_seeds_draw_other_placebos_of_the_same_fork(runs: Path) -> None:
    found = swept(runs, RAW, [30], seeds=2)
    own = [p for p in found["points"] if p["arm"] == "own"]
    assert len({p["l2"] for p in own}) == 1 and len({p["placebo_l2"][0] for p in own}) > 1
    assert found["summary"][0]["placebos"] == 2


def test_one_thread_workers_find_the_parent_bit_for_bit_and_the_same_numbers(
    found: dict[str, Any], runs: Path
) -> None:
    other = swept(runs, RAW, [30], workers=2)["points"]
    assert other == found["points"][:2] and all(p["control"]["bitwise"] for p in other)


def test_an_interrupted_sweep_goes_on_where_it_was(runs: Path) -> None:
    computed: list[str] = []

    def cut_off(work: Work, tasks: Sequence[Task]) -> Iterator[tuple[int, dict[str, Any]]]:
        for index, result in here(work, tasks):
            computed.append(result["arm"])
            yield index, result
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        swept(runs, RAW, [30], hand_out=cut_off)
    assert len(swept(runs, RAW, [30])["points"]) == 2 and computed == ["own"]

    def never(work: Work, tasks: Sequence[Task]) -> Iterator[tuple[int, dict[str, Any]]]:
        raise AssertionError("all of it is done")

    assert swept(runs, RAW, [30], hand_out=never)["points"]


@pytest.mark.parametrize(
    ("raw", "at", "said"),
    [
        (RAW, [95], "6 steps after it"),
        (RAW, [], "--at"),
        (RAW | {"intervention": [{"kind": "skip", "window": "39:42"}]}, [30], "40:46"),
        (RAW | {"parent": "bose"}, [30], "bose"),
    ],
)
def test_what_cannot_run_at_every_step_is_refused_before_any(
    trained: Path, raw: dict[str, Any], at: list[int], said: str
) -> None:
    with pytest.raises(ForensicsError, match=said):
        swept(trained, raw, at)


def test_an_error_in_a_worker_is_told_as_it_is() -> None:
    with pytest.raises(ForensicsError) as e:
        list(spawned(1)(_refuse, [{}]))
    assert (e.value.kind, e.value.hint) == ("mismatch", "the traceback stands above")


def _refuse(task: Task) -> dict[str, Any]:
    raise AssertionError("not found by this name in a worker: tests are no package")


def test_points_survive_the_way_through_the_file(found: dict[str, Any]) -> None:
    assert json.loads(json.dumps(found["points"])) == found["points"]
