"""Batches against states: who carries the jump, and is it there from another checkpoint?"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from forensics.errors import ForensicsError
from forensics.json_documents import plain
from forensics.store.resumable import Kept
from forensics.train.advance import advance
from forensics.train.run import Run
from replay.blame.result import BlamedStep
from replay.compare.loss_barrier import barrier, probe_loss
from replay.compare.probe_sequences import Probe
from replay.experiments import data_state_matrix as matrices
from replay.experiments import matrix_scope, windows_from_states
from replay.experiments.beside_blame import compare
from replay.experiments.matrix_scope import PLACEBOS, scope_of
from replay.experiments.matrix_text import beside_blame, headline
from replay.experiments.results import BesideBlame, MatrixConclusion, Part, WindowsResult
from replay.result_files import kept_results as kept


def matrix(*arguments: Any) -> dict[str, Any]:
    """A matrix, as its document."""
    return matrices.matrix(*arguments).to_document()


def windows(*arguments: Any) -> dict[str, Any]:
    """Whole windows from each state, as their document."""
    return windows_from_states.windows(*arguments).to_document()


@pytest.fixture(scope="module")
def found(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> dict:
    runs = tmp_path_factory.mktemp("matrix") / "runs"
    shutil.copytree(trained, runs)
    return matrix(runs, "base", 78, 84, [50, 81])


def test_a_cell_is_one_step_of_the_run_on_that_batch(found: dict, base: Run) -> None:
    cell = next(c for c in found["cells"] if (c["state"], c["step"]) == (50, 79))
    state, probe = base.state_at(50), Probe(base)
    after = []
    for b in [79, *range(84, 84 + PLACEBOS)]:  # which follow the window
        moved = state.clone()
        result = advance(moved, base.stream(b), base.policy(state.counters), base.model)
        after.append(probe.read(moved.params, {})["control"].loss)
        if b == 79:
            assert (cell["loss"], cell["grad_norm"]) == (result.loss, result.grad_norm)
    assert cell["jump"] == after[0] - float(np.median(after[1:]))


def test_the_runs_own_cell_is_what_it_recorded(found: dict, base: Run) -> None:
    cell = next(c for c in found["cells"] if (c["state"], c["step"]) == (81, 81))
    row = base.table("steps", ["step", "loss", "grad_norm"]).to_pylist()[81]
    assert (cell["loss"], cell["grad_norm"]) == (row["loss"], row["grad_norm"])


def test_cells_whose_state_was_trained_on_the_batch_are_marked(found: dict) -> None:
    marked = {(c["state"], c["step"]) for c in found["cells"] if c["consumed"]}
    assert marked == {(81, 78), (81, 79), (81, 80)} and found["consumed"] == 3


def test_cells_whose_state_was_trained_on_the_batch_take_no_part(found: dict) -> None:
    loss = found["effects"]["loss"]
    pairs = {(e["state"], e["step"]) for e in loss["interaction"]}
    assert pairs == {(50, b) for b in range(78, 84)} | {(81, b) for b in (81, 82, 83)}
    joint = next(p for p in loss["parts"] if p["part"] == "interaction")
    assert loss["judged"] == 81 and joint["freedom"] == 3


def test_the_planted_batches_stand_out_by_data_not_by_state(found: dict) -> None:
    loss = found["effects"]["loss"]
    by_step = {e["step"]: e["effect"] for e in loss["data"]}
    assert min(by_step[80], by_step[81]) > max(by_step[s] for s in (78, 79, 82, 83))
    assert found["conclusion"] == {
        "verdict": "data",
        "measure": "loss",
        "parts": ["data"],
        "reason": "shown",
    }
    data, state, joint = loss["parts"]
    assert data["present"] and data["step"] in (80, 81) and data["p"] <= 0.05 / 6
    assert not state["present"] and not joint["present"] and data["rise"] > 3 * joint["rise"]


def test_nothing_asked_is_the_largest_spike_from_its_own_state_and_those_before_it(
    base: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    peak = BlamedStep(80, 4.0, 3.0, 0.1, "batch", 79, 82, True, "")
    monkeypatch.setattr(matrix_scope, "the_spike", lambda run, step, force: peak)
    scope = scope_of(base)
    assert (scope.first, scope.last) == (80, 84)
    assert scope.states == (*range(0, 80, 4), 80), "the nearest lies before the onset"
    assert scope.stepping[-1] == 80 and len(scope.stepping) == 3
    late = BlamedStep(85, 4.0, 3.0, 0.1, "slow", 79, None, True, "")
    monkeypatch.setattr(matrix_scope, "the_spike", lambda run, step, force: late)
    assert scope_of(base).states == (*range(1, 85, 7), 85), "evenly spaced, none in the rise"


def test_a_matrix_of_the_damaged_batches_concludes_data_and_one_of_ordinary_batches_cannot_tell(
    runs: Path,
) -> None:
    spike = matrices.matrix(runs, "base", 80, 82)
    assert (spike.conclusion.verdict, spike.states[-1]) == ("data", 80)
    assert headline(spike).startswith("Cause: the data. Batch 8")
    clean = matrices.matrix(runs, "base", 90, 94)
    assert clean.states[-1] == 90 and clean.conclusion.verdict == "cannot tell"
    assert headline(clean) == (
        "Cannot tell data from state: no p of batches 90:94, of state 90 or of the two together is"
        " small enough (0.05 after correction for 6)."
    )


def test_a_kept_blame_of_the_same_spike_stands_beside_it(runs: Path) -> None:
    excess = {"data": 0.9, "state": 0.1}
    document = {"version": 0, "verdict": "data", "excess": excess}
    (runs / "base" / "blame-80.json").write_text(json.dumps(document))
    found = matrices.matrix(runs, "base", 80, 82, [40, 60, 80])
    assert found.blame == BesideBlame(80, "data", 0.9, 0.1, "agree")
    assert beside_blame(found) == "`replay blame` of step 80 says: data. The two agree."
    (runs / "base" / "blame-80.json").write_text('{"half')
    assert matrices.matrix(runs, "base", 80, 82, [40, 60, 80]).blame is None


@pytest.mark.parametrize(
    ("parts", "verdict", "excess", "comparison"),
    [
        (("data",), "data", (1.0, 0.0), "agree"),
        (("interaction",), "data and state", (1.0, 0.0), "agree"),
        (("data", "state"), "data and state", (1.0, 0.9), "agree"),
        (("state",), "state or policy", (0.0, 1.0), "agree"),
        ((), "cannot tell", (0.0, 0.0), "agree"),
        ((), "data", (1.0, 0.0), "one cannot tell"),
        (("data",), "cannot tell", (1.0, 0.0), "one cannot tell"),
        (("state",), "data", (0.1, 0.9), "the state was made before it"),
        (("state",), "policy", (0.1, 0.9), "the state was made before it"),
        (("state",), "before the window", (0.1, 0.9), "the state was made before it"),
        (("data",), "data and state", (1.0, 0.0), "blame tries more"),
        (("data",), "data or policy", (1.0, 0.0), "blame tries more"),
        (("state",), "data", (0.9, 0.1), "they differ"),
        (("data",), "data", (0.1, 0.9), "they differ"),
        (("data",), "policy", (0.9, 0.1), "they differ"),
        (("data",), "numerics", (0.9, 0.1), "they differ"),
    ],
)
def test_matrix_and_blame_agree_or_say_why_they_do_not(
    parts: tuple[Part, ...], verdict: str, excess: tuple[float, float], comparison: str
) -> None:
    named = "several" if len(parts) > 1 else parts[0] if parts else "cannot tell"
    assert compare(MatrixConclusion(named, "loss", parts, "shown"), verdict, *excess) == comparison


def test_finished_cells_are_not_computed_again(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = matrix(runs, "base", 78, 80, [50])
    monkeypatch.setattr(matrices, "_stepped", None)  # calling it would fail
    assert matrix(runs, "base", 78, 80, [50]) == first


def test_an_interrupted_matrix_goes_on_where_it_was(runs: Path) -> None:
    def stop(done: int, total: int | None, note: str = "") -> None:
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        matrix(runs, "base", 78, 80, [50], stop)
    seen: list[int] = []
    matrix(runs, "base", 78, 80, [50], lambda done, total, note="": seen.append(done))
    assert seen == list(range(6, PLACEBOS + 2 + 1))  # and 2 batches


def test_the_planted_batches_of_a_window_stand_out_from_any_checkpoint(runs: Path) -> None:
    found = windows(runs, "base", 78, 83, [50, 100])
    for w in found["windows"]:
        assert (
            w["peak"] == w["losses"][81 - 78] == max(w["losses"])
            and w["sigma"] > 2
            and w["jump"] is not None
        )
    assert [w["consumed"] for w in found["windows"]] == [False, True]
    assert windows(runs, "base", 78, 83, [50, 100]) == found
    # for the app, whoever ran it; JSON has no tuples and no NaN
    assert [document for _, document in kept(runs / "base", "windows", WindowsResult).results] == [
        json.loads(json.dumps(plain(found)))
    ]


@pytest.mark.parametrize(
    ("losses", "spiked"),
    [([2.0, 2.2], False), ([2.0, 4.0], True), ([2.0, float("nan")], True), ([0.1], False)],
)
def test_a_window_spikes_six_robust_sigmas_above_the_placebo_batches(
    losses: list[float], spiked: bool
) -> None:
    placebo = [1.9, 2.0, 2.1, 2.0, 1.8, 2.2]
    row = {"losses": losses, "placebo": placebo, "after": 2.0, "after_placebo": 1.5}
    judged = windows_from_states._judged(50, False, row)
    assert judged.spiked is spiked and judged.jump == 0.5


def test_a_window_from_the_states_own_step_is_the_run(runs: Path, base: Run) -> None:
    (own,) = windows(runs, "base", 75, 79, [75])["windows"]
    recorded = base.table("steps", ["step", "loss"]).to_pylist()[75:79]
    assert own["losses"] == [row["loss"] for row in recorded]


@pytest.mark.parametrize(
    ("first", "last", "states", "said"),
    [(98, 101, [50], "98:101"), (5, 5, [50], "5:5"), (5, 6, [101], "101"), (5, 6, [], "--states")],
)
def test_what_the_run_does_not_have_is_refused(
    trained: Path, first: int, last: int, states: list[int], said: str
) -> None:
    with pytest.raises(ForensicsError, match=said):
        matrix(trained, "base", first, last, states)


def test_a_line_cut_off_in_the_file_of_finished_parts_is_measured_again(tmp_path: Path) -> None:
    kept = Kept(tmp_path, "x")
    kept.put("1", {"loss": float("nan")})
    kept.put("2", [2])
    assert kept.path is not None
    kept.path.write_text(kept.path.read_text()[:-4])
    again = Kept(tmp_path, "x")
    assert "1" in again and "2" not in again
    again.put("2", [2])
    assert Kept(tmp_path, "x").get("2") == [2]


def test_the_barrier_of_a_valley_is_nothing_and_of_a_hill_its_height() -> None:
    a, b = {"w": torch.tensor([-1.0])}, {"w": torch.tensor([1.0])}
    hill = barrier(a, b, lambda p: 3.0 - float(p["w"].square()) + float(p["w"]))
    assert hill.height == pytest.approx(1.0) and hill.alpha == 0.5 and len(hill.losses) == 11
    assert barrier(a, b, lambda p: float(p["w"].square())).height == 0.0
    with pytest.raises(ForensicsError, match="architecture"):
        barrier(a, {"v": torch.zeros(1)}, lambda p: 0.0)


def test_the_barriers_ends_are_the_losses_of_the_two_states(base: Run) -> None:
    loss = probe_loss(base)
    one, other = base.load(25).params, base.load(100).params
    found = barrier(one, other, loss)
    assert found.losses[0] == (0.0, loss(other)) and found.losses[-1] == (1.0, loss(one))
    assert found.height >= 0


def test_a_run_that_holds_nothing_out_has_no_jumps(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(matrices, "Probe", _Empty)
    found = matrix(runs, "base", 78, 79, [40, 50])
    assert (
        found["cells"][0]["jump"] is None
        and found["effects"]["jump"] is None
        and found["effects"]["loss"]
    )


@dataclass
class _Empty:
    run: Run
    sequences: int = 0
