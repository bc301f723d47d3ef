"""Early against late, and data or state: titles, sentences and marks."""

from __future__ import annotations

import pytest

from app.views.forks import matrix, matrix_charts, sweep
from tests.app.forks_by_hand import matrix_of, sweep_of, text_of


def test_a_sweep_says_early_or_late_only_where_the_placebos_allow_it() -> None:
    assert text_of(sweep.sweep_title(sweep_of())).endswith(
        "the effect is largest early, from state 60 (40× the median placebo)"
    )
    none = sweep_of("not distinguishable")
    assert text_of(sweep.sweep_title(none)).endswith(
        "not distinguishable from the placebos at any of them"
    )
    said = text_of(sweep.sweep_sentence(sweep_of()))
    assert (
        "it ends 40× as far from the control as the median placebo when made at state 60, and 3× at"
        " 300 (p = 0.25 and 0.25, 3 placebos)"
        in said
        and "2 of 4 come back among the placebos within 16 steps" in said
    )


def test_a_fork_beyond_placebos_that_moved_nothing_is_infinitely_far_in_the_sentence() -> None:
    assert "(∞× the median placebo)" in text_of(
        sweep.sweep_title(sweep_of(over=(float("inf"), 3.0)))
    )


def test_a_matrix_names_what_stands_out_and_nothing_where_nothing_does() -> None:
    assert matrix.matrix_title(matrix_of()) == (
        "Cause: the data. Batch 11 is +0.5 nats/token above the placebo batches at the states"
        " beside 12 too (p = 0.0004)."
    )
    assert matrix.matrix_title(matrix_of(0.5, 0.45, named=("data", "state"))) == (
        "Causes: the batch and the state. Batch 11 is +0.5 nats/token above the placebo batches at"
        " the states beside 12 too (p = 0.0004). At state 12 the placebo batches too have risen by"
        " +0.45 nats/token since the state before it (p = 0.6)."
    )
    assert matrix.matrix_title(matrix_of(0.01, 0.0, named=())) == (
        "Cannot tell data from state: no p of batches 10:13, of state 12 or of the two together is"
        " small enough (0.05 after correction for 6)."
    )
    broken = matrix_of(named=())
    broken["effects"]["loss"] = None
    broken["conclusion"]["reason"] = "not finite"
    assert "a cell is not finite" in matrix.matrix_title(broken)


def test_the_sentence_of_a_matrix_tells_each_part_with_its_p_and_what_it_could_be_at_best() -> None:
    assert text_of(matrix.matrix_sentence(matrix_of(), "loss")) == (
        "The loss of the batch at state 12, held against 2 other states and 19 random other"
        " batches: the batch (data) +0.500 nats/token (batch 11, p = 0.0004); the state +0.010"
        " nats/token (p = 0.6; 0.5 at best); the two together +0.000 nats/token (batch 12, p ="
        " 0.5). "
    )
    assert "cannot be taken apart" in text_of(matrix.matrix_sentence(matrix_of(), "jump"))
    blamed = {
        "step": 11,
        "verdict": "state or policy",
        "data": 0.1,
        "state": 0.9,
        "comparison": "they differ",
    }
    said = text_of(matrix.matrix_sentence(matrix_of(blame=blamed), "loss"))
    assert "replay blame of step 11 says: state or policy. They differ: " in said


def test_the_cells_of_a_matrix_are_over_the_placebo_scale_and_mark_what_happened() -> None:
    cells = {(c["state"], c["step"]): c for c in matrix.cells_of(matrix_of(), "loss", "all")}
    assert cells["5", 11]["over"] == pytest.approx(50) and cells["5", 11]["level"] == 5
    assert (
        cells["10", 10]["own"]
        and cells["12", 10]["consumed"]
        and not cells["5", 10]["own"]
        and cells["5", 10]["level"] == 0
    )
    assert [c["step"] for c in matrix.cells_of(matrix_of(), "loss", "data")] == [10, 11, 12]
    assert [matrix.level_of(x) for x in (None, 2.9, 3, -6, 10, 20, -41)] == [0, 0, 1, -2, 3, 4, -5]


def test_only_the_states_that_took_a_step_are_drawn_for_what_needs_one() -> None:
    assert {c["state"] for c in matrix.cells_of(matrix_of(), "jump", "all")} == {"12"}
    assert matrix.states_of(matrix_of(), "loss") == [5, 10, 12]


def test_a_matrix_is_drawn_on_canvas() -> None:
    assert (
        matrix_charts.matrix(False, 40, "jump")["usermeta"]["embedOptions"]["renderer"] == "canvas"
    )


def test_a_matrix_without_a_scale_colours_nothing() -> None:
    found = matrix_of()
    found["effects"]["loss"]["placebo_scale"] = None
    assert {c["level"] for c in matrix.cells_of(found, "loss", "all")} == {0}
