"""The first bad step of synthetic series whose fault is planted."""

import numpy as np
import pytest

from forensics.detect.first_bad import first_bad_step, scales_off

S, N, AT = 240, 60, 170


def healthy(seed: int) -> np.ndarray:
    """Norms that fall and creep, some constant, some missing at first: (S, N)."""
    rng = np.random.default_rng(seed)
    t = np.arange(S)[:, None]
    drift = rng.uniform(-1, 1, N) * np.log1p(t / 30)
    common = 0.05 * rng.standard_normal((S, 1))  # an odd batch moves them all a little
    x = np.exp(drift + common + 0.1 * rng.standard_t(5, (S, N)))
    x[:, 0] = 1.0
    x[:20, 1] = np.nan
    return x


def found(x: np.ndarray) -> int | None:
    bad = first_bad_step(range(S), [f"s{n}" for n in range(x.shape[1])], x)
    return bad.step if bad else None


def test_healthy_series_have_no_bad_step() -> None:
    assert [found(healthy(seed)) for seed in range(5)] == [None] * 5


def grown(x: np.ndarray) -> None:
    x[AT:, 10:20] *= 5


def spiked(x: np.ndarray) -> None:
    x[AT, 10:30] *= 5


def frozen(x: np.ndarray) -> None:
    x[AT:, 5:14] = 0.0


def broken(x: np.ndarray) -> None:
    x[AT:, 30:50] = np.nan


def shrunk(x: np.ndarray) -> None:
    x[AT:, 10:20] /= 5


@pytest.mark.parametrize("fault", [grown, spiked, frozen, broken, shrunk])
@pytest.mark.parametrize("seed", range(3))
def test_a_planted_fault_is_found_at_its_step(fault, seed: int) -> None:
    x = healthy(seed)
    fault(x)
    assert found(x) == AT


def test_what_moved_is_told_the_farthest_first_with_its_level() -> None:
    x = healthy(0)
    x[AT, 10:20] *= 20
    x[AT, 12] *= 20
    bad = first_bad_step(range(1000, 1000 + S), [f"s{n}" for n in range(N)], x, top=3)
    assert bad is not None and bad.step == 1000 + AT
    assert bad.moved[0].name == "s12" and bad.moved[0].scales > bad.moved[1].scales > 6
    assert bad.moved[0].level == pytest.approx(np.median(x[AT - 9 : AT, 12]))
    assert bad.out == 10 and len(bad.moved) == 3


def test_a_constant_series_is_not_judged_and_a_later_value_changes_nothing_before() -> None:
    x = healthy(0)
    off = scales_off(x)
    assert np.isnan(off[:, 0]).all()
    later = x.copy()
    later[AT + 20 :] *= 100
    assert np.array_equal(off[: AT + 20], scales_off(later)[: AT + 20], equal_nan=True)


def test_too_few_steps_have_no_bad_step() -> None:
    assert first_bad_step(range(15), ["a"], np.ones((15, 1))) is None
    assert first_bad_step([], [], np.empty((0, 0))) is None
