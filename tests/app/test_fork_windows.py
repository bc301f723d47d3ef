"""The whole window from each state: what is said, what is drawn, where it comes from."""

from __future__ import annotations

import json
import os

import pytest

from app.views.forks import matrix, windows


def window(
    state: int,
    peak: float | None,
    sigma: float | None,
    jump: float | None = 0.1,
    consumed: bool = False,
):
    """One state of the document; a peak of None: not finite."""
    return {
        "state": state,
        "consumed": consumed,
        "losses": [3.0, peak, 3.1],
        "peak": peak,
        "placebo_median": 3.0,
        "sigma": sigma,
        "spiked": peak is None or (sigma or 0) > 6,
        "jump": jump,
    }


def windows_of(*each, run="demo"):
    """What `replay matrix RUN --window --json` writes."""
    return {
        "version": 1,
        "run": run,
        "batches": [90, 93],
        "states": [w["state"] for w in each],
        "probe_sequences": 4,
        "windows": list(each),
    }


def text_of(parts):
    return "".join(p if isinstance(p, str) else p.text for p in parts)


# ---- the words


@pytest.mark.parametrize(
    "sigmas, outcome",
    [
        ((9.0, 31.0), "2 states: a spike from each of them"),
        ((1.0, 2.0), "2 states: no spike from any of them"),
        ((1.0, 31.0), "2 states: a spike from 90, none from 50"),
        ((31.0,), "1 state: a spike"),
        ((1.0,), "1 state: no spike"),
    ],
)
def test_the_title_says_from_where_it_spikes(sigmas, outcome: str) -> None:
    d = windows_of(*(window(s, 4.0, sigma) for s, sigma in zip((50, 90), sigmas)))
    assert windows.title_of(d) == f"Batches 90:93 of demo, trained from {outcome}"


def test_the_sentence_has_the_peaks_and_what_stays_in_the_state() -> None:
    said = text_of(
        windows.sentence_of(windows_of(window(50, 4.0, 32.0, -0.25), window(90, 5.0, 31.0, 0.5)))
    )
    assert (
        said
        == "The highest loss on the way is 5.000 from state 90, 31σ above random other batches; the"
        " lowest of these peaks is 4.000 from state 50, 32σ above random other batches. After the"
        " window the held-out loss is +0.500 (from 90) to −0.250 (from 50) nats/token above that"
        " after as many random other batches."
    )
    bare = text_of(windows.sentence_of(windows_of(window(90, 5.0, None, None))))
    assert (
        bare
        == "The highest loss on the way is 5.000 from state 90. The run has no held-out probe set,"
        " so"
        " what stays in the model was not measured."
    )


def test_a_loss_that_is_not_finite_is_the_highest_and_is_said() -> None:
    d = windows_of(window(50, 9.0, 99.0), window(90, None, None))
    assert (
        "The highest loss on the way is not finite from state 90; the lowest of these peaks is"
        " 9.000" in text_of(windows.sentence_of(d))
    )
    assert windows.title_of(d).endswith("a spike from each of them")
    assert [r["step"] for r in windows.curves_of(d) if r["state"] == "90"] == [90, 92]


def test_the_marks_of_a_long_window_are_the_highest_of_each_stretch() -> None:
    d = windows_of(window(50, 9.0, 99.0), window(90, 4.0, 8.0))
    assert [(r["state"], r["step"], r["loss"]) for r in windows.curves_of(d)][:3] == [
        ("50", 90, 3.0),
        ("50", 91, 9.0),
        ("50", 92, 3.1),
    ]
    few = windows.curves_of(d, most=2)
    assert [(r["state"], r["step"], r["loss"]) for r in few] == [("50", 91, 9.0), ("90", 91, 4.0)]
    assert [r["rank"] for r in few] == [0.0, 1.0]


def test_the_words_on_the_chart_are_the_highest_and_the_lowest_peak() -> None:
    d = windows_of(window(50, 9.0, 99.0), window(70, 5.0, 9.0), window(90, 4.0, 8.0))
    found = [(e["word"], e["step"], e["below"]) for e in windows.ends_of(windows.curves_of(d))]
    assert found == [("from 50", 91, False), ("from 90", 91, True)]
    alone = windows.ends_of(windows.curves_of(windows_of(window(50, 9.0, 99.0))))
    assert [(e["word"], e["below"]) for e in alone] == [("from 50", False)]


def test_the_form_starts_one_step_on_each_batch_or_the_whole_window() -> None:
    assert matrix.arguments_of("demo", 90, 93, "50,90", False) == [
        "matrix",
        "demo",
        "--batches",
        "90:93",
        "--states=50,90",
    ]
    assert matrix.arguments_of("demo", 90, 93, "50,90", True)[-1] == "--window"
    assert matrix.arguments_of("demo", 90, 93, " ", False) == [
        "matrix",
        "demo",
        "--batches",
        "90:93",
    ]


# ---- where it comes from


@pytest.fixture
def kept(runs):
    """`kept(document, seconds)`: in the run's folder as a command keeps it. `answered(…)`: only as
    the answer to a command of the app.
    """
    made = []

    def write(path, document, at):
        path.write_text(json.dumps(document))
        os.utime(path, (at, at))
        made.append(path)

    def keep(document, at=1000.0, name="windows-0123456789abcdef"):
        write(runs / "demo" / f"{name}.json", document, at)

    def answer(
        document,
        at=1000.0,
        id_="20260101-000000-0001",
        arguments=("matrix", "demo", "--window"),
        code=0,
    ):
        folder = runs / "demo" / "work" / id_
        folder.mkdir(parents=True)
        about = {
            "program": "replay",
            "arguments": list(arguments),
            "started": "2026-01-01T00:00:00+00:00",
        }
        for name, text in (("work", about), ("ended", {"code": code})):
            write(folder / f"{name}.json", text, at)
        write(folder / "result.json", document, at)
        made.append(folder)

    keep.answered = answer
    yield keep
    for path in made:
        path.unlink() if path.is_file() else None
    for path in made:
        path.rmdir() if path.is_dir() else None


def test_windows_of_the_folder_and_of_the_apps_own_commands_are_found_once_newest_first(
    kept,
) -> None:
    one, other = windows_of(window(50, 4.0, 7.0)), windows_of(window(60, 4.0, 7.0))
    kept(one, 1000.0)
    kept.answered(one, 2000.0)  # the same
    kept.answered(other, 3000.0, "20260101-000000-0002")
    assert [(at, document.name) for at, document in windows.measured("demo")] == [
        (3000.0, "20260101-000000-0002"),
        (2000.0, "20260101-000000-0001"),
    ]
    assert [name for name, _ in matrix.measured("demo")] == [
        "20260101-000000-0002",
        "20260101-000000-0001",
    ]


def test_what_is_no_window_of_this_run_is_left_out(kept) -> None:
    kept.answered({"error": {"message": "no"}}, code=3)
    kept.answered(windows_of(window(50, 4.0, 7.0), run="other"), id_="20260101-000000-0003")
    kept.answered(
        windows_of(window(50, 4.0, 7.0)), id_="20260101-000000-0004", arguments=("matrix", "demo")
    )
    kept.answered([], id_="20260101-000000-0005")
    assert windows.measured("demo") == []


def test_the_page_shows_what_was_measured_last_and_the_url_chooses(kept, app_page, said) -> None:
    kept(windows_of(window(50, 4.0, 7.0), window(90, 3.0, 1.0, consumed=True)), 2000.0)
    page = app_page("forks", run="demo", part="matrix")
    assert not page.exception and "a spike from 50, none from 90" in said(page)
    assert len(page.get("vega_lite_chart") or page.get("arrow_vega_lite_chart")) == 2
    assert "Train the whole window from each state, instead of holding each batch against it" in [
        c.label for c in page.checkbox
    ]
    rows = page.dataframe[0].value
    assert list(rows["spikes"]) == ["yes", "no"] and list(rows["•"]) == ["", "•"]
    kept(windows_of(window(60, 3.0, 1.0)), 3000.0, "windows-00000000000000ff")
    assert "from 1 state: no spike" in said(app_page("forks", run="demo", part="matrix"))
    page = app_page("forks", run="demo", part="matrix", query="windows-0123456789abcdef")
    assert "a spike from 50, none from 90" in said(page)


def test_a_run_that_holds_nothing_out_and_a_loss_that_is_nowhere_finite_are_sentences(
    kept, app_page, said
) -> None:
    kept(windows_of(window(50, None, None, None) | {"losses": [None, None, None]}), 4000.0)
    page = app_page("forks", run="demo", part="matrix")
    assert (
        not page.exception
        and "No loss of these windows was finite" in said(page)
        and "has no held-out probe set" in said(page)
    )


def test_the_tick_box_starts_the_command_whose_answer_is_shown(runs, app_page, said) -> None:
    import shutil
    import time

    from app import jobs

    before = {w.id for w in jobs.listed("demo")}
    page = app_page("forks", run="demo", part="matrix", step=121)
    fields = {t.label: t for t in [*page.text_input, *page.number_input, *page.checkbox]}
    fields["First batch"].set_value(119)
    fields["Up to batch"].set_value(122)
    fields["States"].set_value("110,119")
    next(c for label, c in fields.items() if label.startswith("Train the whole window")).check()
    next(b for b in page.button if b.label == "Start the matrix").click().run()
    started = next(w for w in jobs.listed("demo") if w.id not in before)
    try:
        end = time.monotonic() + 120
        while (started := jobs.opened("demo", started.id)).status == "running":
            assert time.monotonic() < end
            time.sleep(0.1)
        assert started.status == "done", started.log()
        text = said(app_page("forks", run="demo", part="matrix"))
        assert (
            "Batches 119:122 of demo, trained from 2 states:" in text and "The highest loss" in text
        )
    finally:
        shutil.rmtree(started.folder)
        shutil.rmtree(runs / "demo" / "matrix", ignore_errors=True)
        for path in (runs / "demo").glob("windows-*.json"):
            path.unlink()


@pytest.mark.parametrize("dark", [False, True])
def test_it_is_drawn_in_a_browser(open_tab, app_url, kept, dark: bool) -> None:
    kept(
        windows_of(
            window(50, 4.0, 7.0, -0.1),
            window(70, None, None, 0.3),
            window(90, 3.2, 1.0, consumed=True),
        ),
        5000.0,
    )
    tab = open_tab(app_url, "forks", dark=dark, run="demo", part="matrix")
    assert len(tab.charts()) == 2
