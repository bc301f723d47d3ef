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
    assert text_of(matrix.matrix_title(matrix_of(), "jump")).endswith(
        "above all it depends on the batch (data) (50× the spread of random other batches)"
    )
    assert text_of(matrix.matrix_title(matrix_of(0.5, 0.45), "jump")).endswith(
        "it depends on the batch (data) as much as it depends on the state (50× the spread of"
        " random"
        " other batches)"
    )
    assert text_of(matrix.matrix_title(matrix_of(0.01, 0.0), "jump")).endswith(
        "no batch and no state stands out from random other batches"
    )
    assert text_of(matrix.matrix_title(matrix_of(), "loss")).endswith(
        "so it cannot be split into data and state"
    )


def test_the_cells_of_a_matrix_are_over_the_placebo_scale_and_mark_what_happened() -> None:
    cells = {(c["state"], c["step"]): c for c in matrix.cells_of(matrix_of(), "jump", "all")}
    assert cells["5", 11]["over"] == pytest.approx(50) and cells["5", 11]["level"] == 5
    assert (
        cells["10", 10]["own"]
        and cells["12", 10]["consumed"]
        and not cells["5", 10]["own"]
        and cells["5", 10]["level"] == 0
    )
    assert [c["step"] for c in matrix.cells_of(matrix_of(), "jump", "data")] == [10, 11]
    assert [matrix.level_of(x) for x in (None, 2.9, 3, -6, 10, 20, -41)] == [0, 0, 1, -2, 3, 4, -5]


def test_a_matrix_is_drawn_on_canvas() -> None:
    assert (
        matrix_charts.matrix(False, 40, "jump")["usermeta"]["embedOptions"]["renderer"] == "canvas"
    )


def test_a_matrix_without_a_scale_colours_nothing() -> None:
    found = matrix_of()
    found["effects"]["jump"]["placebo_scale"] = None
    assert {c["level"] for c in matrix.cells_of(found, "jump", "all")} == {0}
