"""Rows into series by step: the later value wins, and what counts the steps is found."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forensics.errors import ForensicsError
from forensics.logs.logged_rows import RowCollector, as_number
from forensics.logs.merge import merged

NAMES = ("loss", "lr", "odd/one")
rows_of_a_log = st.lists(
    st.tuples(
        st.integers(0, 12),
        st.dictionaries(
            st.sampled_from(NAMES), st.floats(width=32, allow_nan=True), min_size=1, max_size=3
        ),
    ),
    min_size=1,
    max_size=30,
)


def log(*rows, kind="jsonl", **about):
    collector = RowCollector(kind)
    for row in rows:
        collector.add(row)
    return collector.collected(**about)


def counted(rows, **about):
    """Rows of a format that counts steps itself."""
    collector = RowCollector("tensorboard")
    for step, values in rows:
        collector.add(values, step=step)
    return collector.collected(**about)


@given(st.lists(rows_of_a_log, min_size=1, max_size=3))
@settings(max_examples=40, deadline=None)
def test_of_repeated_steps_the_later_value_stands_metric_by_metric(files):
    wanted: dict = {}
    repeated: dict = {}
    for rows in files:
        for step, values in rows:
            for name, value in values.items():
                if step in wanted.setdefault(name, {}):
                    repeated.setdefault(name, set()).add(step)
                wanted[name][step] = value
    table = merged([counted(rows) for rows in files])
    assert set(table.metrics) == set(wanted)
    for name, series in table.metrics.items():
        assert series.steps.tolist() == sorted(wanted[name])
        expected = [wanted[name][step] for step in sorted(wanted[name])]
        assert np.array_equal(series.values, np.array(expected, float), equal_nan=True)
    judged = ["loss"] if "loss" in wanted else list(wanted)
    twice = {step for name in judged for step in repeated.get(name, ())}
    assert table.summary.repeated == len(twice)
    finite = [v for values in wanted.values() for v in values.values() if np.isfinite(v)]
    assert table.summary.nonfinite == sum(map(len, wanted.values())) - len(finite)


@given(rows_of_a_log, rows_of_a_log)
@settings(max_examples=40, deadline=None)
def test_a_file_that_takes_over_leaves_nothing_of_the_earlier_one_behind_its_start(first, second):
    table = merged([counted(first), counted(second, takes_over=True)])
    before = {name for _, values in first for name in values}
    shared = [step for step, values in second if before & set(values)]
    start = min(shared, default=10**6)
    for name, series in table.metrics.items():
        of_second = {step for step, values in second if name in values}
        of_first = {step for step, values in first if name in values and step < start}
        assert set(series.steps.tolist()) == of_second | of_first


def test_what_a_resumed_run_did_not_reach_again_is_told():
    first = counted([(s, {"loss": 1.0}) for s in range(10)])
    resumed = counted([(s, {"loss": 2.0}) for s in range(6, 8)], takes_over=True)
    table = merged([first, resumed])
    assert table.metrics["loss"].steps.tolist() == list(range(8))
    assert table.summary.repeated == 2
    assert table.summary.notes[0].startswith("2 steps that a resumed run did not come to again")


def test_another_writers_file_beside_it_takes_nothing_over():
    training = counted([(s, {"loss": 1.0}) for s in range(10)])
    evaluation = counted([(3, {"eval": 2.0})], takes_over=True)
    assert merged([training, evaluation]).metrics["loss"].steps.tolist() == list(range(10))


def test_a_logged_step_is_preferred_to_the_trackers_own_counter():
    rows = [{"_step": i, "train/global_step": 10 * i, "train/loss": 1.0} for i in range(4)]
    table = merged([log(*rows)])
    assert table.summary.step_name == "train/global_step"
    assert table.metrics["train/loss"].steps.tolist() == [0, 10, 20, 30]


def test_a_counter_that_is_not_in_every_row_gives_way_to_one_that_is():
    rows = [{"_step": 0, "step": 5, "loss": 1.0}, {"_step": 1, "eval/loss": 2.0}]
    assert merged([log(*rows)]).summary.step_name == "_step"


def test_a_counter_that_starts_again_and_again_counts_no_steps():
    rows = [{"_step": i, "iter": i % 5, "loss": 1.0} for i in range(100)]
    assert merged([log(*rows)]).summary.step_name == "_step"


def test_a_resumed_run_falls_back_once_and_its_later_rows_stand():
    steps = [*range(8), *range(5, 10)]
    table = merged([log(*({"step": s, "loss": float(i)} for i, s in enumerate(steps)))])
    assert table.metrics["loss"].values.tolist() == [0, 1, 2, 3, 4, 8, 9, 10, 11, 12]
    assert table.summary.repeated == 3


def test_entries_without_values_repeat_nothing():
    table = merged([log({"step": 1, "loss": 3.0}, {"step": 1}, {"step": 2, "loss": 2.0})])
    assert table.summary.repeated == 0
    assert table.metrics["loss"].values.tolist() == [3.0, 2.0]


def test_a_log_may_start_at_any_step_and_tells_how_far_its_rows_lie_apart():
    table = merged([log(*({"step": 61_010 + 10 * i, "loss": 2.0} for i in range(5)))])
    assert (table.summary.first, table.summary.last, table.summary.every) == (61_010, 61_050, 10)


@pytest.mark.parametrize(
    "rows, trainer, base",
    [
        ({"_step": 1, "train/CrossEntropyLoss": 5.0}, "olmo", 1),
        ({"step": 1, "train/CE loss": 5.0}, "olmo_core", 1),
        ({"step": 1, "loss_metrics/global_avg_loss": 5.0, "grad_norm": 1.0}, "torchtitan", 1),
        ({"iteration": 1, "lm loss": 5.0, "learning-rate": 1e-3}, "megatron_core", 1),
        ({"_step": 1, "train/lm_loss": 5.0}, "neox", 1),
        ({"iter": 1, "train/loss": 5.0, "val/loss": 5.0}, "nanogpt", 0),
        ({"step": 100, "train/loss": 5.0, "train/lrm": 1.0}, "nanochat", 0),
        (
            {"step": 1, "train/loss": 5.0, "train/learning_rate": 1e-3, "train/epoch": 0.1},
            "transformers",
            1,
        ),
        ({"step": 1, "loss": 5.0}, "", 0),
    ],
)
def test_the_trainer_is_known_by_its_names_and_with_it_which_batch_a_step_is(rows, trainer, base):
    table = merged([log(rows)])
    assert (table.summary.trainer, table.summary.step_base) == (trainer, base)
    assert table.summary.step_base_known == bool(trainer)
    assert any("is not known" in note for note in table.summary.notes) != bool(trainer)
    assert table.batches("loss").tolist() == [next(iter(rows.values())) - base]


def test_what_the_caller_knows_of_the_counting_comes_first():
    row = {"step": 4, "loss": 1.0}
    assert merged([log(row)], trainer="olmo").batches("loss").tolist() == [3]
    assert merged([log(row)], step_base=4, trainer="olmo").batches("loss").tolist() == [0]


@pytest.mark.parametrize(
    "text, number",
    [("NaN", np.nan), ("-Infinity", -np.inf), ("inf", np.inf), (" 2.5e-1 ", 0.25), (True, 1.0)],
)
def test_numbers_are_read_as_loggers_write_them(text, number):
    assert np.array_equal(as_number(text), number, equal_nan=True)


@pytest.mark.parametrize("text", ["", "1_000", "fast", None, [1.0], "0x10"])
def test_what_is_no_number_is_none(text):
    assert as_number(text) is None


def test_a_log_without_steps_is_refused_with_what_it_has():
    with pytest.raises(ForensicsError, match=r"counts steps.*found loss, time"):
        merged([log({"loss": 1.0, "time": 0.5})])
