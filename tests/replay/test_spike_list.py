"""The list of spikes: its record, its settings, and what it says of runs that are too short."""

import json

import numpy as np
import pytest

from forensics.cli.main import main as forensics
from forensics.errors import ForensicsError
from replay import spike_list
from replay.spike_list import SpikeList, spikes_of


@pytest.fixture
def recorded(monkeypatch):
    """`recorded(losses)`: a run of these losses and gradient norms, all its own."""

    def put(losses, norms=None, first=0, warmup=0):
        columns = {"loss": list(losses), "grad_norm": list(norms if norms is not None else losses)}
        rows = spike_list._Recorded(list(range(len(losses))), columns, [], first, warmup)
        monkeypatch.setattr(spike_list, "_recorded", lambda runs, name: rows)

    return put


def noisy(n, seed=0):
    return np.random.default_rng(seed).normal(3.0, 0.05, n).tolist()


def test_the_list_goes_through_json_and_back(recorded, tmp_path):
    losses = noisy(200)
    losses[100], losses[150] = 9.0, float("nan")
    recorded(losses)
    listed = spikes_of(tmp_path, "a")
    assert [(s.step, s.metric) for s in listed.spikes] == [
        (100, "grad_norm"),
        (100, "loss"),
        (150, "grad_norm"),
        (150, "loss"),
    ]
    again = SpikeList.from_document(json.loads(listed.to_json()), "spikes")
    assert again.to_json() == listed.to_json()
    assert (listed.steps, listed.judged, listed.fewest) == (200, 136, 64)


@pytest.mark.parametrize("detector", ["robust", "monitor", "skip-step"])
def test_a_higher_sigma_never_finds_more(recorded, tmp_path, detector):
    losses = np.exp(0.4 * np.random.default_rng(3).normal(size=3000))
    recorded(losses.tolist())
    counts = [
        len(spikes_of(tmp_path, "a", "loss", detector, sigma, 30).spikes)
        for sigma in (3.0, 4.0, 5.0, 6.0, 8.0, 12.0)
    ]
    assert counts == sorted(counts, reverse=True) and counts[0] > counts[-1]


def test_a_window_of_30_judges_from_15_steps_on(recorded, tmp_path):
    losses = noisy(40)
    losses[20] = 9.0
    recorded(losses)
    assert spikes_of(tmp_path, "a", "loss").spikes == ()
    listed = spikes_of(tmp_path, "a", "loss", window=30)
    assert [s.step for s in listed.spikes] == [20]
    assert (listed.window, listed.fewest, listed.judged) == (30, 15, 25)


@pytest.mark.parametrize(("sigma", "window"), [(0.0, 128), (-1.0, 128), (6.0, 9), (6.0, 0)])
def test_a_setting_that_judges_nothing_is_refused(recorded, tmp_path, sigma, window):
    recorded(noisy(40))
    with pytest.raises(ForensicsError, match="window of at least 10") as error:
        spikes_of(tmp_path, "a", sigma=sigma, window=window)
    assert error.value.kind == "usage"


def test_a_forks_steps_are_judged_by_its_ancestors_past(recorded, tmp_path):
    losses = noisy(220)
    losses[50], losses[210] = 9.0, 9.0
    recorded(losses, first=200)
    listed = spikes_of(tmp_path, "fork", "loss")
    assert [s.step for s in listed.spikes] == [210]
    assert (listed.steps, listed.judged) == (20, 20)


def test_a_run_of_15_steps_says_that_nothing_could_be_judged(recorded, capsys, tmp_path):
    recorded(noisy(15))
    with pytest.raises(SystemExit) as ended:
        forensics(["--runs", str(tmp_path), "spikes", "a"])
    assert not ended.value.code
    said = capsys.readouterr().out
    assert "None of its 15 steps could be judged" in said
    assert "no spike" not in said
    assert "Trend of the gradient norm: none that stands out from step 0 to 14" in said


def test_the_trend_is_told_of_the_steps_that_there_are(recorded, capsys, tmp_path):
    norms = 0.8 * np.exp(-0.003348 * np.arange(240))
    recorded(noisy(240), norms)
    with pytest.raises(SystemExit) as ended:
        forensics(["--runs", str(tmp_path), "spikes", "a"])
    assert not ended.value.code
    said = capsys.readouterr().out
    assert "Trend of the gradient norm: -55.1 % from step 0 to 239" in said
    assert "per 1,000" not in said
