"""The parts of a matrix: planted ones are found, and on noise every p is uniform."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from replay.experiments import matrix_parts
from replay.experiments.matrix_parts import Layout, conclude, parts_of
from replay.experiments.results import MatrixConclusion, MatrixEffects

R, W, N, B = 21, 4, 19, 8
STATES = list(range(20, 20 + 4 * R, 4))


def layout(
    seed: int = 0,
    data: float = 0.0,
    state: float = 0.0,
    pair: float = 0.0,
    first: int = STATES[-1],
    by_sequence: bool = True,
) -> Layout:
    """A falling loss of batches that differ, with a planted rise of the first batch of the window,
    of the judged state, or of the two together.
    """
    random = np.random.default_rng(seed)
    sequences = random.normal(3.0, 0.3, (1, W + N, B)) + random.normal(0, 0.05, (R, W + N, B))
    sequences += random.normal(0, 0.01, (R, 1, 1)) - np.arange(R)[:, None, None] * 0.02
    sequences[:, 0] += data
    sequences[-1] += state
    sequences[-1, 0] += pair
    table = sequences.mean(2)
    split = (sequences[:, :W], sequences[:, W:]) if by_sequence else (None, None)
    return Layout(STATES, first, table[:, :W], table[:, W:], *split)


def conclusion(seed: int = 0, **planted: float) -> MatrixConclusion:
    """What is concluded from the batch's own loss."""
    return conclude({"loss": parts_of(layout(seed, **planted)), "jump": None})


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    ("planted", "verdict"),
    [
        ({"data": 1.0}, "data"),
        ({"state": 1.0}, "state"),
        ({"pair": 1.0}, "interaction"),
        ({"data": 1.0, "state": 0.9}, "several"),
        ({"data": 1.0, "state": 0.2}, "data"),
    ],
)
def test_what_was_planted_is_what_is_named(
    seed: int, planted: dict[str, float], verdict: str
) -> None:
    assert conclusion(seed, **planted).verdict == verdict


def test_a_lowered_batch_or_state_is_no_rise() -> None:
    assert conclusion(data=-1.0).verdict == conclusion(state=-1.0).verdict == "cannot tell"


def effects(seed: int, by_sequence: bool = True) -> MatrixEffects:
    """The parts of noise."""
    parts = parts_of(layout(seed, by_sequence=by_sequence))
    assert parts is not None
    return parts


def test_on_noise_every_p_is_uniform_and_hardly_ever_is_anything_concluded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The parts' mean squares were once not divided by their degrees of freedom: "interaction" was
    the largest of 84 % of pure noise.
    """
    monkeypatch.setattr(matrix_parts, "RELABELLINGS", 199)  # enough to tell 0.05 from 0.06
    trials = [effects(seed) for seed in range(400)]
    for i, part in enumerate(("data", "state", "interaction")):
        p = np.array([trial.parts[i].p for trial in trials])
        assert {trial.parts[i].part for trial in trials} == {part}
        for level in (0.05, 0.1, 0.25, 0.5, 0.75):
            share, error = np.mean(p <= level), np.sqrt(level * (1 - level) / len(p))
            assert abs(share - level) < 3.5 * error, (part, level, share)
        squares = np.array([trial.parts[i].mean_square for trial in trials])
        if part == "interaction":  # noise is all there is of it here; batches and states differ
            assert np.mean(squares) == pytest.approx(0.05**2 / B, rel=0.15)
    concluded = [conclude({"loss": trial}).verdict for trial in trials]
    assert np.mean([verdict != "cannot tell" for verdict in concluded]) < 0.05


def test_by_batch_alone_the_p_of_the_data_is_uniform_too() -> None:
    p = np.array([effects(seed, by_sequence=False).parts[0].p for seed in range(400)])
    for level in (0.25, 0.5, 0.75):
        assert np.mean(p <= level) == pytest.approx(level, abs=0.1), "19 placebos: p is coarse"
    assert effects(0, by_sequence=False).parts[0].p_at_best == pytest.approx(1 - 0.95**4)


@given(st.integers(2, 6), st.integers(1, 5), st.integers(2, 5), st.integers(0, 2**32 - 1))
def test_the_parts_of_a_cell_that_takes_part_add_up_to_it(
    rows: int, columns: int, placebos: int, seed: int
) -> None:
    random = np.random.default_rng(seed)
    window, ordinary = random.normal(size=(rows, columns)), random.normal(size=(rows, placebos))
    states, first = list(range(10, 10 + rows)), 11
    consumed = np.array(states)[:, None] > first + np.arange(columns)
    window[consumed] = np.nan
    parts = parts_of(Layout(states, first, window, ordinary))
    assert parts is not None and parts.judged == states[-1]
    data = {effect.step: effect.effect for effect in parts.data}
    state = {effect.state: effect.effect for effect in parts.state}
    shown = {(effect.state, effect.step): effect.effect for effect in parts.interaction}
    for i, s in enumerate(states):
        for j in range(columns):
            b = first + j
            assert ((s, b) in shown) == (s <= b and b in data)
            if (s, b) in shown:
                total = parts.mean + data[b] + state[s] + shown[s, b]
                assert total == pytest.approx(window[i, j], abs=1e-9)
    assert sum(x for s, x in state.items() if s != parts.judged) == pytest.approx(0, abs=1e-9)
    for b in data:
        others = [x for (s, step), x in shown.items() if step == b and s != parts.judged]
        assert sum(others) == pytest.approx(0, abs=1e-9)


def test_a_cell_whose_state_was_trained_on_the_batch_changes_nothing() -> None:
    """A state has seen the batches before it: their loss there is of what is known by heart."""
    first = STATES[-1] - 2
    clean = layout(3, first=first)
    clean.window[-1, :2] = np.nan  # as the measurement leaves them
    other = layout(3, first=first)
    other.window[-1, :2] = -100.0
    assert clean.window_sequences is not None
    assert _parts(clean) == _parts(other)


def _parts(table: Layout) -> MatrixEffects | None:
    return parts_of(table)


def test_a_cell_that_is_not_finite_or_a_state_alone_cannot_be_taken_apart() -> None:
    table = layout()
    table.window[0, 0] = np.inf
    assert parts_of(table) is None
    assert conclude({"loss": None, "jump": None}).reason == "not finite"
    alone = layout()
    assert parts_of(Layout([99], 99, alone.window[:1], alone.placebos[:1])) is None


def test_states_that_are_not_evenly_spaced_have_no_p_of_their_rise() -> None:
    """A rise over 200 steps is no measure of one over 10."""
    uneven = layout()
    states = [0, *STATES[1:]]
    parts = parts_of(Layout(states, STATES[-1], uneven.window, uneven.placebos))
    assert parts is not None and parts.parts[1].p is None and not parts.parts[1].present
    found = conclude({"loss": parts})
    assert (found.verdict, found.reason) == ("cannot tell", "too few to show"), "not: no rise"


def test_too_few_states_and_placebos_are_said_to_be_too_few() -> None:
    few = layout(by_sequence=False)
    parts = parts_of(Layout(STATES[:3], STATES[2], few.window[:3], few.placebos[:3, :5]))
    assert conclude({"loss": parts}).reason == "too few to show"
    assert conclude({"loss": parts_of(layout())}).reason == "no p is small enough"
