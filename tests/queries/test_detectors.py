"""The detectors in SQL and in Python are one rule: row by row on synthetic runs, with NaN, inf,
NULL and gaps.
"""

import json
import math

import numpy as np
import pytest

import queries
from forensics.detect import alarms
from forensics.detect.spikes import robust
from forensics.detect.windows import robust_z, series
from forensics.errors import ForensicsError
from forensics.store.writer import Writer, replace_table

S, HEADS, TENSORS = 900, 4, ["a", "b", "c"]


def column(rng, level, size, spikes, bad=()):
    """(S,) as a run records it: None where nothing was computed, heavy tails, planted values."""
    x = level + size * rng.standard_t(3, S)
    for at in spikes:
        x[at] += 40 * size
        x[at + 1] += 60 * size  # so that the onset is not the peak
    values = [float(value) for value in x]
    for step, value in bad:
        values[step] = value
    return values


def grid(rng, n, draw, bad):
    """(S, n) float32 as recorded; NaN, inf and NULL stand where `bad` says."""
    x = np.stack([draw(rng) for _ in range(n)], 1).astype(np.float32)
    rows = [[float(value) for value in row] for row in x]
    for step, i, value in bad:
        rows[step][i] = value
    return rows


def run_of(seed):
    """Everything a synthetic run records: steps (None: not computed), (S, N) columns, every how
    many steps each.
    """
    rng = np.random.default_rng(seed)
    planted = sorted(rng.choice(np.arange(150, S - 1), 6, replace=False).tolist())
    holes = [(int(s), None) for s in rng.choice(S, 12, replace=False)]
    grow = 2 + 0.05 * rng.standard_normal((S, 1))
    bad = [
        (70, 0, math.nan),
        (300, 1, None),
        (301, 1, math.inf),
        (500, 2, -math.inf),
        (640, 0, None),
    ]
    loss = column(
        rng,
        3,
        0.05,
        planted,
        [*holes, (400, math.nan), (401, math.nan), (700, math.inf), (3, math.nan)],
    )
    loss = [  # a small rise that lasts, for the CUSUM
        x if x is None else x + 0.6 * (820 <= s < 870) for s, x in enumerate(loss)
    ]
    norm = column(
        rng,
        1,
        0.1,
        [max(s - 5, 0) for s in planted[:4]],
        [*holes, (402, math.inf), (650, math.nan)],
    )
    norm = [
        None if value is None else value * math.exp(max(s - 500, 0) / 300)
        for s, value in enumerate(norm)
    ]
    return {
        "loss": loss,
        "grad_norm": norm,
        "planted": planted,
        "rms_t": grid(rng, 3, lambda random: 1 + 0.25 * random.standard_t(4, S), bad),
        "gss_share": grid(
            rng,
            3,
            lambda random: np.where(
                random.random(S) < 0.03, 3e-3 * random.random(S), 2e-5 * random.random(S)
            ),
            bad,
        ),
        "attn_entropy_norm": grid(
            rng,
            4,
            lambda random: 0.6 + 0.02 * random.standard_t(3, S),
            [*bad, (20, 3, 0.04), (800, 3, 0.3)],
        ),
        "attn_logit_max": grid(
            rng,
            4,
            lambda random: np.exp(grow[:, 0] + 0.05 * random.standard_t(3, S)),
            [*bad, (30, 2, 2e4), (810, 2, 90.0)],
        ),
        "update_norm": column(rng, 2, 0.05, planted[2:5], [*holes, (30, math.nan)]),
        "update_ratio": grid(
            rng,
            3,
            lambda random: np.exp(-5 + 0.02 * random.standard_t(3, S)),
            [*bad, (20, 1, 0.0), (810, 2, 0.5)],
        ),
        "act_kurtosis": grid(
            rng, 2, lambda random: 3 + 0.02 * random.standard_t(3, S), [*bad[:3], (800, 1, 30.0)]
        ),
        "every": {"layers": 1 + seed % 2, "tensors": 1 + seed % 2, "heads": 1 + seed % 3},
    }


def write(runs, name, columns, spikes):
    folder = runs / name
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({"corpus_sources": []}))
    replace_table(folder, "runs", {"name": [name], "steps": [S]})
    with Writer(folder) as writer:
        writer.append(
            "steps",
            step=list(range(S)),
            loss=columns["loss"],
            grad_norm=columns["grad_norm"],
            update_norm=columns["update_norm"],
        )
        at = list(range(0, S, columns["every"]["layers"]))
        writer.append(
            "layers",
            step=np.repeat(at, 2),
            layer=[0, 1] * len(at),
            act_kurtosis=[x for s in at for x in columns["act_kurtosis"][s]],
        )
        at = list(range(0, S, columns["every"]["tensors"]))
        writer.append(
            "tensors",
            step=np.repeat(at, 3),
            tensor=TENSORS * len(at),
            rms_t=[x for s in at for x in columns["rms_t"][s]],
            gss_share=[x for s in at for x in columns["gss_share"][s]],
            update_ratio=[x for s in at for x in columns["update_ratio"][s]],
        )
        at = list(range(0, S, columns["every"]["heads"]))
        writer.append(
            "heads",
            step=np.repeat(at, HEADS),
            layer=[0, 0, 1, 1] * len(at),
            head=[0, 1, 0, 1] * len(at),
            attn_logit_max=[x for s in at for x in columns["attn_logit_max"][s]],
            attn_entropy_norm=[x for s in at for x in columns["attn_entropy_norm"][s]],
        )
        for x in spikes:
            writer.append(
                "events",
                step=x.step,
                kind="spike",
                metric=x.metric,
                onset=x.onset,
                spike_kind=x.kind,
            )
        writer.append("events", step=5, kind="nonfinite", metric="loss")


def expected(columns, spikes):
    """detector → (S,) bool, by the functions of forensics.detect."""

    def recorded(name, table):
        x = np.array(
            [[np.nan if value is None else value for value in row] for row in columns[name]]
        )
        x[np.arange(S) % columns["every"][table] != 0] = np.nan
        return x

    norm, finite = series(columns["grad_norm"])
    z = robust_z(np.where(finite, norm, np.nan), window=128, minimum=64, floor=1e-12)
    onsets = np.zeros(S, bool)
    onsets[[x.onset for x in spikes if x.metric == "grad_norm"]] = True
    with np.errstate(invalid="ignore", over="ignore"):
        return {
            "monitor_loss": alarms.monitor(columns["loss"]),
            "monitor_grad_norm": alarms.monitor(columns["grad_norm"]),
            "skip_step": alarms.skip_step(columns["loss"], columns["grad_norm"]),
            "robust_grad_norm": (z > 6) | (finite & ~np.isfinite(norm)),
            "spike_grad_norm": onsets,
            "grad_norm_trend": alarms.grad_norm_trend(columns["grad_norm"]),
            "cusum_loss": alarms.cusum(columns["loss"]),
            "cusum_grad_norm": alarms.cusum(columns["grad_norm"]),
            "update_norm": alarms.update_norm(columns["update_norm"]),
            "relative_change": alarms.relative_change(recorded("update_ratio", "tensors")),
            "act_kurtosis": alarms.act_kurtosis(recorded("act_kurtosis", "layers")),
            "rms_t": alarms.rms_t(recorded("rms_t", "tensors")),
            "gss_share": alarms.gss_share(recorded("gss_share", "tensors")),
            "entropy_collapse": alarms.entropy_collapse(recorded("attn_entropy_norm", "heads")),
            "logit_growth": alarms.logit_growth(recorded("attn_logit_max", "heads")),
        }


@pytest.fixture(scope="module")
def synthetic(tmp_path_factory):
    """The runs' folder; name → (alarms by detector, spikes of the loss)."""
    runs = tmp_path_factory.mktemp("synthetic") / "runs"
    fired_by_run = {}
    for seed in range(3):
        columns, name = run_of(seed), f"r{seed}"
        spikes = robust(columns["loss"], metric="loss") + robust(
            columns["grad_norm"], metric="grad_norm"
        )
        write(runs, name, columns, spikes)
        fired_by_run[name] = (
            expected(columns, spikes),
            [x for x in spikes if x.metric == "loss"],
        )
    return runs, fired_by_run


def test_every_alarm_in_sql_is_one_in_python_and_the_other_way(synthetic):
    runs, fired_by_run = synthetic
    result = {
        (row["run"], row["detector"], row["step"])
        for row in queries.run(runs, "alarms").to_pylist()
    }
    for name, (fired, _) in fired_by_run.items():
        for detector, at in fired.items():
            assert at.any(), f"{detector} has nothing to agree about in {name}"
            mine = sorted(step for run, which, step in result if (run, which) == (name, detector))
            assert mine == np.flatnonzero(at).tolist(), (name, detector)
    assert {which for _, which, _ in result} == set(next(iter(fired_by_run.values()))[0])


def test_alarms_come_once_each_in_order(synthetic):
    rows = [
        tuple(row.values())
        for row in queries.run(synthetic[0], "alarms", {"runs": "r1"}).to_pylist()
    ]
    assert rows == sorted(set(rows)) and {row[0] for row in rows} == {"r1"}


@pytest.mark.parametrize("horizon", [1, 20, 300])
def test_the_scores_in_sql_are_those_of_python(synthetic, horizon):
    runs, fired_by_run = synthetic
    for name, (fired, spikes) in fired_by_run.items():
        result = {
            row["detector"]: row
            for row in queries.run(
                runs, "detectors", {"runs": name, "horizon": horizon}
            ).to_pylist()
        }
        assert set(result) == set(fired)
        for detector, at in fired.items():
            row, score = result[detector], alarms.score(at, spikes, horizon)
            for key in (
                "steps",
                "spikes",
                "alarms",
                "hits",
                "misses",
                "median_lead",
                "false_alarms",
            ):
                assert row[key] == score[key], (name, detector, key)
            assert row["false_per_1000"] == pytest.approx(score["false_per_1000"])
            assert row["random_hits"] == pytest.approx(score["random_hits"], abs=1e-9)
            assert row["runs"] == 1


def test_several_runs_are_added_up_each_with_its_own_chance(synthetic):
    runs, fired_by_run = synthetic
    for runs_text, names in (
        ("", list(fired_by_run)),
        ("*", list(fired_by_run)),
        ("r0, r2", ["r0", "r2"]),
    ):
        for row in queries.run(runs, "detectors", {"runs": runs_text}).to_pylist():
            scores = [
                alarms.score(fired_by_run[n][0][row["detector"]], fired_by_run[n][1], 20)
                for n in names
            ]
            leads = [lead for s in scores for lead in s["lead_times"] if lead is not None]
            assert (row["runs"], row["steps"]) == (len(names), S * len(names))
            for key in ("spikes", "alarms", "hits", "misses", "false_alarms"):
                assert row[key] == sum(s[key] for s in scores)
            assert row["median_lead"] == (np.median(leads) if leads else None)
            assert row["random_hits"] == pytest.approx(
                sum(s["random_hits"] for s in scores), abs=1e-9
            )


def test_steps_read_tells_a_silent_detector_from_one_that_saw_nothing(synthetic, tmp_path):
    result = {
        row["detector"]: row
        for row in queries.run(synthetic[0], "detectors", {"runs": "r1"}).to_pylist()
    }
    columns = run_of(1)
    assert result["monitor_loss"]["steps_read"] == sum(
        value is not None for value in columns["loss"]
    )
    assert (
        result["rms_t"]["steps_read"] == S // 2 and result["logit_growth"]["steps_read"] == S // 2
    )
    write_bare(tmp_path / "bare", [1.0] * 10)
    bare = {row["detector"]: row for row in queries.run(tmp_path, "detectors").to_pylist()}
    assert (
        len(bare) == 15
        and bare["gss_share"]["steps_read"] == 0
        and bare["monitor_loss"]["steps_read"] == 10
    )


def write_bare(folder, losses):
    folder.mkdir()
    (folder / "run.json").write_text("{}")
    replace_table(folder, "runs", {"name": [folder.name]})
    if losses:
        with Writer(folder) as writer:
            writer.append("steps", step=list(range(len(losses))), loss=losses, grad_norm=losses)


@pytest.mark.parametrize(
    "losses", [[], [None, None], [math.nan] * 5, [0.1] * 500, [0.1] * 200 + [0.2] + [0.1] * 200]
)
def test_a_run_without_rows_or_with_constant_ones_scores_as_in_python(tmp_path, losses):
    write_bare(tmp_path / "bare", losses)
    for row in queries.run(tmp_path, "detectors").to_pylist():
        fired = alarms.monitor(losses) if row["detector"] == "monitor_loss" else None
        if fired is not None:
            score = alarms.score(fired, [], 20)
            assert {
                key: row[key] for key in ("steps", "alarms", "false_alarms", "false_per_1000")
            } == {
                key: pytest.approx(score[key])
                for key in ("steps", "alarms", "false_alarms", "false_per_1000")
            }
        assert (row["spikes"], row["hits"], row["random_hits"], row["median_lead"]) == (
            0,
            0,
            0.0,
            None,
        )


def test_the_monitor_judges_from_64_values_on_and_forgets_after_128(tmp_path):
    ripple = [2.0 + 0.01 * (s % 5) for s in range(300)]
    early = [9.0 if s in (63, 150) else x for s, x in enumerate(ripple)]
    first = [9.0 if s == 64 else x for s, x in enumerate(ripple)]
    late = {
        at: [1e6 if s == 0 else 9.0 if s == at else x for s, x in enumerate(ripple)]
        for at in (128, 129)
    }
    for i, losses in enumerate([early, first, *late.values()]):
        write_bare(tmp_path / f"r{i}", losses)
        result = queries.run(tmp_path, "alarms", {"runs": f"r{i}"}).to_pylist()
        expected = np.flatnonzero(alarms.monitor(losses)).tolist()
        assert [row["step"] for row in result if row["detector"] == "monitor_loss"] == expected
        assert expected == [[150], [64], [], [129]][i]
        z = robust_z(np.array(losses), window=128, minimum=64, floor=1e-12)
        assert [
            row["step"] for row in result if row["detector"] == "robust_grad_norm"
        ] == np.flatnonzero(z > 6).tolist()
        assert i != 1 or z[64] > 6


@pytest.mark.parametrize(("runs", "nearest"), [("r9", "r"), ("r0,r9", "r"), (",", "r")])
def test_a_run_that_is_not_there_is_one_line(synthetic, runs, nearest):
    with pytest.raises(ForensicsError) as error:
        queries.run(synthetic[0], "detectors", {"runs": runs})
    assert error.value.kind == "missing" and nearest in error.value.hint


def test_what_a_query_builds_on_stands_in_front_of_it():
    assert queries.load("alarms").rstrip() in queries.load("detectors")
    assert "Builds on `alarms`" in queries.describe()


def test_the_growth_exponent_is_that_of_the_formula(tmp_path):
    forward, backward = 0.09, -0.05
    for name, layers in (("deep", 6), ("one", 1), ("dead", 2)):
        write_bare(tmp_path / name, [])
        with Writer(tmp_path / name) as writer:
            i = np.arange(layers)
            out = 0.02 * np.exp(forward * (i + 1)) * (name != "dead")
            for step in (0, 7):
                writer.append(
                    "layers",
                    step=step,
                    layer=i,
                    resid_rms_in=0.02 * np.exp(forward * i) * (1 + step),
                    resid_rms_out=out,
                    resid_grad_rms=1e-4 * np.exp(backward * (layers - 1 - i)),
                )
    result = {row["run"]: row for row in queries.run(tmp_path, "growth_exponent").to_pylist()}
    assert list(result) == ["dead", "deep", "one"]
    assert result["deep"]["forward"] == pytest.approx(forward, rel=1e-5)
    assert result["deep"]["backward"] == pytest.approx(backward, rel=1e-5)
    assert (result["deep"]["layers"], result["one"]["backward"], result["dead"]["forward"]) == (
        6,
        None,
        None,
    )
    later = queries.run(tmp_path, "growth_exponent", {"runs": "deep", "step": "7"}).to_pylist()
    assert [row["forward"] for row in later] == [pytest.approx(forward - math.log(8) / 6, rel=1e-5)]
    assert queries.run(tmp_path, "growth_exponent", {"step": 3}).num_rows == 0


def test_a_run_that_has_no_rows_yet_has_no_spikes_and_is_no_error(tmp_path):
    for name, header in (
        ("fresh", True),
        ("bare", False),
    ):  # `bare`: ended between run.json and its first table
        folder = tmp_path / name
        folder.mkdir()
        (folder / "run.json").write_text("{}")
        if header:
            replace_table(folder, "runs", {"name": [name], "status": ["running"]})
        result = queries.run(tmp_path, "spikes", {"run": name})
        assert result.num_rows == 0 and result.schema.names == list(
            queries.catalog()["spikes"].columns
        )
        assert queries.run(tmp_path, "loss_curve", {"run": name}).num_rows == 0


def test_a_run_that_still_trains_shows_what_is_settled_and_what_is_open_later(tmp_path):
    folder = tmp_path / "live"
    write_bare(folder, [])
    with Writer(folder) as writer:
        writer.append("steps", step=list(range(100)), loss=[2.0] * 99 + [9.0], grad_norm=1.0)
        writer.flush()
        assert (
            queries.run(tmp_path, "spikes", {"run": "live"}).num_rows == 0
        )  # nobody knows its kind yet
        assert queries.run(tmp_path, "loss_curve", {"run": "live"}).num_rows == 100
        writer.append("steps", step=[100, 101], loss=[2.0, 2.0], grad_norm=1.0)
        writer.append(
            "events",
            step=99,
            kind="spike",
            metric="loss",
            value=9.0,
            baseline=2.0,
            onset=99,
            spike_kind="slow",
        )
        writer.flush()
        (spike,) = queries.run(tmp_path, "spikes", {"run": "live"}).to_pylist()
        # not recovered: its cost is summed over what there is of the 100 steps
        assert (spike["step"], spike["recovered_at"], spike["excess"]) == (99, None, 7.0)
        assert {row["spikes"] for row in queries.run(tmp_path, "detectors").to_pylist()} == {1}
