"""The app in a real headless Chromium. Every test fails on page errors, Vega's errors, flat charts
and foreign requests.
"""

import pytest

from app import navigation

ALL = list(navigation.views())


@pytest.fixture
def spike(runs):
    from app import data

    return next(s for s in data.rows("spikes", run="demo") if s["metric"] == "loss")["step"]


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("name", ALL)
def test_every_page_opens_on_a_sentence_without_an_error(open_page, spike, name, dark):
    tab = open_page(name, dark=dark, run="demo", spike=spike, step=spike)
    assert tab.page.locator(".fw h1, .fw p").first.inner_text()


def test_a_click_on_a_spike_reaches_the_url_and_back_and_reload_restore_it(open_page, spike):
    tab = open_page("spikes", run="demo")
    assert "spike" not in tab.parameters()
    tab.click_mark(0, 0.95, 0.5)  # the nearest spike to the right end
    chosen = tab.parameters()["spike"]
    title = tab.page.locator(".fw h1").inner_text()
    assert title.startswith(f"Step {int(chosen):,}")
    tab.page.reload()
    tab.settle()
    assert tab.parameters()["spike"] == chosen
    assert tab.page.locator(".fw h1").inner_text() == title
    tab.page.go_back()
    tab.settle()
    assert "spike" not in tab.parameters()


def test_from_the_first_page_by_the_row_on_top_a_click_is_kept_though_no_url_named_a_run(
    open_page, spike
):
    tab = open_page("runs")
    assert tab.parameters() == {}
    row = tab.page.locator(".st-key-navigation a")
    row.filter(has_text="Spikes").click()
    tab.page.wait_for_url("**/spikes")
    tab.settle()
    assert tab.page.locator(".fw h1").inner_text().startswith(f"Step {spike}: loss")  # the largest
    tab.click_mark(0, 0.2, 0.5)  # the nearest is that of the gradient norm, one step earlier
    assert tab.parameters() == {"run": "demo", "spike": str(spike - 1)}
    assert tab.page.locator(".fw h1").inner_text().startswith(f"Step {spike - 1}: gradient norm")
    tab.page.go_back()
    tab.settle()
    assert tab.page.locator(".fw h1").inner_text().startswith(f"Step {spike}: loss")
    row.filter(has_text="Batch").click()
    tab.page.wait_for_url("**/batch")
    tab.settle()
    before = tab.page.locator(".fw h2").first.inner_text()
    tab.click_mark(0, 0.9, 0.9)  # a bar
    assert {
        "run": "demo",
        "step": str(spike),
    }.items() <= tab.parameters().items() and "slot" in tab.parameters()
    after = tab.page.locator(".fw h2").first.inner_text()
    assert after != before and after.startswith(f"Slot {tab.parameters()['slot']} ·")
    tab.page.get_by_role("button", name=f"{spike + 1} ›").click()
    tab.page.wait_for_url(f"**step={spike + 1}**")
    tab.settle()
    assert tab.page.locator(".fw h1").inner_text().startswith(f"Batch {spike + 1}:")


def test_a_click_on_a_layer_changes_the_heads_and_the_url_and_nothing_above(open_page, spike):
    from app import data

    cells = data.rows("layer_heat", run="demo", step=spike, before=64, after=32)
    layers = sorted({c["layer"] for c in cells})
    cell = max((c for c in cells if c["step"] >= spike), key=lambda c: abs(c["level"]))
    assert cell["level"], (
        "the spike moves no head of the test's run: click on nothing proves nothing"
    )
    tab = open_page("spikes", run="demo", spike=spike)
    title = tab.page.locator(".fw h1").inner_text()
    tab.click_cell(3, cell["step"] - spike, layers.index(cell["layer"]), len(layers))
    assert tab.parameters()["layer"] == str(cell["layer"])
    assert tab.parameters()["step"] == str(cell["step"])
    assert f"The heads of L{cell['layer']}" in tab.page.inner_text('[data-testid="stMain"]')
    assert tab.page.locator(".fw h1").inner_text() == title


def test_the_row_of_pages_keeps_the_run(open_page, spike):
    tab = open_page("spikes", run="demo", spike=spike)
    tab.page.locator(".st-key-navigation a", has_text="SQL").click()
    tab.page.wait_for_url("**/sql?**")
    tab.settle()
    assert tab.parameters() == {"run": "demo", "spike": str(spike)}


def test_a_hostile_url_is_told_and_acts_on_nothing(open_page):
    tab = open_page(
        "spikes", run="<img src=x onerror=alert(1)>", spike="../..", sql="<script>alert(1)</script>"
    )
    assert "Ignored in the URL" in tab.page.inner_text('[data-testid="stMain"]')


def test_a_statement_in_the_editor_gives_a_table_and_a_chart(open_page):
    tab = open_page(
        "sql", run="demo", sql="select step, loss from steps where run = 'demo' order by step"
    )
    assert "136 rows" in tab.page.inner_text('[data-testid="stMain"]')
    assert len(tab.charts()) == 1


def row_of(tab, key, row):
    """Click on a row of a table, from 0."""
    table = tab.page.locator(f"[class*='st-key-{key}'] canvas").first
    table.scroll_into_view_if_needed()
    box = table.bounding_box()
    tab.page.mouse.click(box["x"] + 12, box["y"] + 35 * (row + 1.5))
    tab.page.wait_for_timeout(300)
    tab.settle()


def test_after_back_a_click_on_the_same_row_chooses_it_again(open_page, spike):
    tab = open_page("spikes", run="demo", spike=spike)
    row_of(tab, "worst-demo", 2)
    slot = tab.parameters()["slot"]
    assert tab.page.get_by_text(f"Read slot {slot}", exact=True).count() == 1
    tab.page.go_back()
    tab.settle()
    assert "slot" not in tab.parameters()
    row_of(tab, "worst-demo", 2)
    assert tab.parameters()["slot"] == slot
    row_of(tab, "worst-demo", 4)
    assert tab.parameters()["slot"] != slot


def test_the_first_page_sees_what_a_run_writes_while_it_is_open(open_page, runs):
    import json
    import shutil

    from forensics.store.writer import Writer

    folder = runs / "live"
    shutil.copytree(runs / "demo", folder)
    try:
        header = json.loads((folder / "run.json").read_bytes())
        (folder / "run.json").write_text(json.dumps(header | {"name": "live", "status": "running"}))
        tab = open_page("runs", run="live")
        page = tab.page.locator('[data-testid="stMain"]')
        assert (
            "Notes and other events: 0" in page.inner_text()
            and "live" in page.locator(".fw p b").first.inner_text()
        )
        with Writer(folder) as w:
            w.append("events", step=130, kind="note", text="seen")
        page.get_by_text("Notes and other events: 1").wait_for(timeout=15_000)
        (folder / "run.json").write_text(
            json.dumps(header | {"name": "live", "status": "finished"})
        )
        page.get_by_text("live · finished").wait_for(timeout=15_000)
        tab.settle()
    finally:
        shutil.rmtree(folder)
