"""The Microscope page: what it says of a trace, its marks, and the command where there is none."""

import math
import shutil

import pytest

from app.views.trace import events, summary, timeline, update

DAMAGED = 121


def event(name, phase, values, ratio, **more):
    return {
        "name": name,
        "phase": phase,
        "start": 0.001,
        "seconds": 0.002,
        "values": values,
        "layer": None,
        "detail": [],
        "baseline": dict.fromkeys(values, 1.0),
        "ratio": ratio,
    } | more


def trace(**blame):
    return {
        "run": "demo",
        "step": 401,
        "baseline": 400,
        "exact": True,
        "version": 2,
        "conclusion": {
            "verdict": "update",
            "rise": 2.0,
            "scale": 0.1,
            "by_update": 1.5,
            "part": "gradient",
            "part_carries": 1.0,
            "tensor": "layers.1.attn.q_proj.weight",
            "tensor_alone": 0.9,
            "tensor_without": 0.1,
        },
        "grain": "sub-layer",
        "clock": "host",
        "compiled": False,
        "recomputed": False,
        "largest": [],
        "events": [
            event(
                "layers.0.attn forward",
                "forward",
                {"attn_logit_max": 1.1, "x": None},
                {"attn_logit_max": 1.1, "x": None},
                baseline={"attn_logit_max": 1.0, "x": None},
            ),
            event(
                "layers.1.attn forward",
                "forward",
                {"attn_logit_max": 6.0, "q_norm_max": 2.0},
                {"attn_logit_max": 6.0, "q_norm_max": 2.0},
            ),
            event("loss", "loss", {"loss": 5.0}, {"loss": 2.5}),
            event("layers.1.attn backward", "backward", {"grad_rms": 0.05}, {"grad_rms": 0.05}),
        ],
        "layer_blame": (
            {
                "rise_batch": 1.5,
                "memory_batch": 0.5,
                "data_batch": 1.0,
                "rise_probe": None,
                "memory_probe": None,
                "data_probe": None,
                "tensors": [
                    {
                        "tensor": "layers.1.attn.q_proj.weight",
                        "layer": 1,
                        "alone_batch": 0.9,
                        "alone_probe": None,
                        "without_batch": 0.1,
                        "without_probe": None,
                    }
                ],
            }
            | blame
        ),
        "line_scan": [
            {"alpha": a, "batch": (a - 0.5) ** 2, "probe": None} for a in (0.0, 0.5, 1.0)
        ],
    }


def said_of(parts):
    return "".join(p if isinstance(p, str) else p.text for p in parts)


def test_the_title_and_sentence_tell_the_first_to_move_the_largest_and_the_update():
    assert summary.title_of(trace()) == (
        "Update 400 carries +1.500 of the rise: the loss of step 401 stands +2.000 nats/token over"
        " step 400 (20.0 times the usual difference of two steps). Of the update the gradient of"
        " batch 400 alone brings +1.000; the part of layers.1.attn.q_proj.weight alone brings"
        " +0.900, and all others without it +0.100."
    )
    said = said_of(summary.sentence_of(trace()))
    assert (
        "The first value inside the step to change by 1.5× or more: layers.1.attn forward"
        " attn_logit_max, 6.00× its value in the step before" in said
    )
    assert (
        "Changed most: layers.1.attn backward grad_rms, 0.05×" in said
    )  # a fall to a twentieth is more than six times
    assert (
        "On this batch the update of step 400 is +1.500 nats/token, the part that Adam's moments"
        " carried over alone +0.500, that of its own gradient alone +1.000"
        in said
        and "ran eagerly, as in the run: once counted, once timed by the host's clock" in said
    )
    assert (
        "whose update alone changes it most is layers.1.attn.q_proj.weight (+0.900)" in said
        and "caused" not in said
    )


def test_a_calm_step_and_an_update_that_is_not_finite_are_said():
    calm = trace(rise_batch=None, tensors=[])
    calm["events"] = calm["events"][:1]
    assert "No value inside the step is 1.5×" in said_of(summary.sentence_of(calm))
    assert "the update of step" not in said_of(summary.sentence_of(calm))


def broken():
    """A trace in which layer 1's attention becomes NaN, and with it all that follows; kept, so NaN
    is null.
    """
    found = trace(rise_batch=math.nan, tensors=[])
    found["conclusion"] = {"verdict": "not finite", "rise": None, "scale": None, "by_update": None}
    found["events"][1] |= {
        "values": {"attn_out_rms": None, "attn_logit_max": None, "q_norm_max": 1.2},
        "baseline": {"attn_out_rms": 0.25, "attn_logit_max": 8.0, "q_norm_max": 1.0},
        "ratio": {"attn_out_rms": None, "attn_logit_max": None, "q_norm_max": 1.2},
    }
    found["events"][2] |= {
        "values": {"loss": None},
        "baseline": {"loss": 2.0},
        "ratio": {"loss": None},
    }
    return found


def test_what_became_nan_is_the_first_to_move_and_never_nothing():
    said = said_of(summary.sentence_of(broken()))
    assert (
        said
        == "The first value inside the step to change is no longer finite: layers.1.attn forward,"
        " its"
        " attn_out_rms, attn_logit_max (0.25, 8 in the step before), and 1 value after it. "
        + summary.way_of(broken())
    )
    assert summary.title_of(broken()).startswith("A loss of steps 400 and 401, or along update 400")
    assert [(d["place"], d["what"], d["level"]) for d in events.broken_of(broken())] == [
        (1, "attn_out_rms", events.BROKEN),
        (1, "attn_logit_max", events.BROKEN),
        (2, "loss", events.BROKEN),
    ]
    assert events.broken_of(trace()) == [], "what neither step has is no news"
    in_memory = broken()
    in_memory["events"][2]["values"]["loss"] = math.inf
    assert events.broken_of(in_memory) == events.broken_of(broken())


def test_what_moved_before_it_broke_comes_first_and_what_moved_after_it_is_not_named():
    early = broken()
    early["events"][0]["ratio"]["attn_logit_max"] = 4.0
    said = said_of(summary.sentence_of(early))
    assert said.startswith(
        "The first value inside the step to change by 1.5× or more: layers.0.attn forward"
        " attn_logit_max, 4.00× its value in the step before. The first value that is no longer"
        " finite: "
    )
    assert "backward" not in said and "Changed most" not in said


def test_the_table_of_what_moved_most_begins_with_what_is_no_longer_finite():
    rows = events.largest_of(broken(), 4)
    assert [(r["what"], r[""]) for r in rows] == [
        ("attn_out_rms", "not finite"),
        ("attn_logit_max", "not finite"),
        ("loss", "not finite"),
        ("grad_rms", ""),
    ]
    assert "" not in events.largest_of(trace(), 1)[0]


def test_a_step_that_was_not_applied_has_no_broken_update_and_one_after_a_broken_step_says_so():
    held = trace()
    held["events"].append(
        event(
            "embed.weight update",
            "update",
            {"grad_norm": 1.0, "rms_t": None},
            {"grad_norm": 1.0, "rms_t": None},
        )
    )
    assert events.broken_of(held) == []
    held["events"].append(
        event(
            "head.weight update",
            "update",
            {"grad_norm": 1.0, "rms_t": 1.0},
            {"grad_norm": 1.0, "rms_t": 1.0},
        )
    )
    assert [d["event"] for d in events.broken_of(held)] == ["embed.weight update"], (
        "another tensor was updated"
    )
    after = trace(rise_batch=None, tensors=[])
    after["events"] = [
        event("loss", "loss", {"loss": None}, {"loss": None}, baseline={"loss": None})
    ]
    assert said_of(
        summary.sentence_of(after)
    ) == "The step before was not finite either: trace an earlier one. " + summary.way_of(after)


def test_ratios_count_both_ways():
    assert [events.size_of(r) for r in (4.0, 0.25, 1.0, None, math.inf, 0.0)] == [4, 4, 1, 1, 1, 1]
    assert [events.level_of(r) for r in (1.4, 1.5, 2.0, 3.0, 5.0, 100.0, 0.5, 0.05)] == [
        0,
        1,
        2,
        3,
        4,
        5,
        -2,
        -5,
    ]


def test_dots_stand_in_the_order_of_the_step_and_phases_cover_them():
    assert [(d["place"], d["what"]) for d in events.dots_of(trace())] == [
        (0, "attn_logit_max"),
        (1, "attn_logit_max"),
        (1, "q_norm_max"),
        (2, "loss"),
        (3, "grad_rms"),
    ]
    phases = events.phases_of(trace())
    assert [(p["name"], p["first"], p["last"]) for p in phases] == [
        ("forward", -0.5, 1.5),
        ("loss", 1.5, 2.5),
        ("backward", 2.5, 3.5),
    ]
    assert phases[0]["seconds"] == pytest.approx(0.004)


def test_the_line_says_whether_the_step_went_too_far():
    assert "α = 0.5 would have been best: the update went too far" in update.reading_of(
        trace()["line_scan"]
    )
    worse = [{"alpha": a, "batch": a} for a in (0.0, 1.0, 2.0)]
    assert "any part of the update is worse than none" in update.reading_of(worse)
    better = [{"alpha": a, "batch": -a} for a in (0.0, 1.0, 2.0)]
    assert "lowest at α = 2: the update was not too long" in update.reading_of(better)
    assert update.reading_of([{"alpha": 0.0, "batch": None}]) == ""


def test_a_click_is_a_function_of_the_event():
    assert timeline.event_of({"selection": {"event": [{"place": 3}]}}) == {"position": 3}
    assert timeline.event_of({"selection": {"event": []}}) is None


@pytest.fixture(scope="module")
def traced(app_runs, tmp_path_factory):
    from forensics import identity
    from replay.step.trace import trace as go

    copy = tmp_path_factory.mktemp("traced") / "runs"
    shutil.copytree(app_runs, copy)
    identity.enable_determinism(1)
    go(copy, "demo", DAMAGED)
    return copy


def test_an_untraced_step_opens_on_its_records_and_the_command(runs, app_page, said, monkeypatch):
    from app import jobs

    started = []
    monkeypatch.setattr(jobs, "start", lambda *a, **k: started.append(a))
    test = app_page("trace", run="demo", step=DAMAGED)
    assert not test.exception
    assert f"Step {DAMAGED}: loss" in said(test) and "gradient norm" in said(test)
    assert [c.value for c in test.code] == [f"replay trace demo {DAMAGED}"]
    next(b for b in test.button if b.label == "Trace this step").click().run()
    assert started == [("demo", "replay", ["trace", "demo", str(DAMAGED)])]
    first = app_page("trace", run="demo", step=0)
    assert not first.exception and "beside the one before it" in said(first)
    assert not any(b.label == "Trace this step" for b in first.button)


def test_a_kept_trace_is_shown_with_the_event_that_was_chosen(traced, app_page, said, monkeypatch):
    monkeypatch.setenv("FORENSICS_RUNS", str(traced))
    test = app_page(
        "trace", run="demo", step=DAMAGED, position=4
    )  # 2 layers: 4 sub-layers, then the loss
    assert not test.exception and not test.markdown
    text = said(test)
    assert (
        f"Not the update: the loss of step {DAMAGED} stands +" in text
        and f"replay blame demo --spike {DAMAGED}" in text
    )
    assert "Tolerance only" not in text
    assert len(test.get("vega_lite_chart")) == 3
    values = next(d.value for d in test.dataframe if "the step before" in d.value)
    assert "worst_sequence" in set(values["what"])
    assert any("token" in d.value for d in test.dataframe)
    near = app_page("trace", run="demo", step=DAMAGED - 1)
    assert f"{DAMAGED}" in [b.label for b in near.button]


def test_a_trace_that_is_not_the_recorded_step_gets_the_banner_and_a_damaged_file_is_none(
    traced, app_page, said, monkeypatch, tmp_path
):
    import json

    from replay.step import artifacts

    copy = tmp_path / "runs"
    shutil.copytree(traced, copy)
    monkeypatch.setenv("FORENSICS_RUNS", str(copy))
    path = artifacts.trace_of(copy / "demo", DAMAGED)
    document = json.loads(path.read_bytes())
    document["exact"] = False
    document["events"][0]["name"] = "<script>alert(1)</script>\u202e"
    path.write_text(json.dumps(document))
    text = said(app_page("trace", run="demo", step=DAMAGED, position=0))
    assert "Tolerance only" in text and "<script>" not in text and "\u202e" not in text
    document["events"][1]["values"] = dict.fromkeys(
        document["events"][1]["values"]
    )  # as NaN is kept
    path.write_text(json.dumps(document))
    test = app_page("trace", run="demo", step=DAMAGED, position=1)
    text = said(test)
    assert (
        not test.exception
        and "layers.0.mlp forward</span>, its mlp_out_rms" in text
        and "✚ at the top" in text
    )
    first, chosen = (d.value for d in test.dataframe)
    assert first[""][0] == "not finite" and set(chosen[""]) == {"not finite"}
    dots = next(d for d in test.get("vega_lite_chart")[0].proto.datasets if d.name == "dots")
    assert b"not finite" in dots.data.data
    path.write_text('{"half')
    assert f"replay trace demo {DAMAGED}" in said(app_page("trace", run="demo", step=DAMAGED))


def test_what_was_not_timed_by_itself_says_so() -> None:
    assert timeline.time_of(event("embed.weight update", "update", {}, {})) == "at 1.0 ms, 2.00 ms"
    untimed = event("embed.weight update", "update", {}, {}, start=None, seconds=None)
    assert timeline.time_of(untimed) == "no time of its own was measured"
    only = trace() | {"events": [untimed]}
    assert [p["phase"] for p in events.phases_of(only)] == ["update"]
