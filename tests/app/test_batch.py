"""The Batch page: its sentence, its colours, its clicks; token losses recorded, replayed or asked
for.
"""

import json
import math

import pytest

from app import reading
from app.step import step_of
from app.tokens import LEVELS
from app.views.batch import sequences, summary, text

DAMAGED = 121  # a batch of hostile documents


def row(slot, loss, **more):
    return {
        "slot": slot,
        "loss": loss,
        "weight": 32.0,
        "baseline": 2.0,
        "excess": ((loss or 0.0) - 2) * 32,
        "share": None,
        "z": None,
        "apart": (more.get("z") or 0) >= 3,
        "source": "clean",
        "path": "a.py",
    } | more


def said_of(parts):
    return "".join(p if isinstance(p, str) else p.text for p in parts)


# ---- what is said, from rows alone


def test_the_title_has_the_batch_its_loss_and_the_gap():
    assert (
        summary.title_of(1342, [row(0, 5.0), row(1, 3.0)])
        == "Batch 1,342: loss 4.000 nats/token, +2.000 against what the steps before let one expect"
    )
    assert summary.title_of(3, [row(0, 5.0, baseline=None)]) == "Batch 3: loss 5.000 nats/token"
    assert summary.title_of(3, [row(0, math.inf)]) == "Batch 3: the loss is not finite"
    assert (
        summary.title_of(3, [row(0, None, weight=0.0)])
        == "Batch 3: no predicted token counts in the loss"
    )
    masked = [row(0, 4.0), row(1, None, weight=0.0)]
    assert summary.title_of(3, masked).startswith("Batch 3: loss 4.000")


def test_the_sentence_names_the_worst_sequence_its_share_and_a_source_that_is_alone_apart():
    rows = [
        row(7, 6.0, share=0.6, z=9.0, source="damaged", path="x"),
        row(2, 4.0, share=0.3, z=3.5, source="damaged"),
        row(1, 2.4, z=0.3),
    ]
    said = said_of(summary.worst_of(rows))
    assert (
        "Of its 3 sequences, slot 7 has the highest loss (6.000). It makes up 60% of the batch's"
        " rise, and comes from damaged: x" in said
    )
    assert (
        "2 of 3 sequences lie 3σ or more above" in said
        and "all of them from the source damaged and make up 90% of the batch's rise" in said
    )
    calm = said_of(summary.worst_of([row(0, 1.5, z=-1.0), row(1, 1.2, z=-2.0)]))
    assert "makes up" not in calm and "None lies 3σ" in calm
    assert "an intervention, not from a document" in said_of(
        summary.worst_of([row(0, 3.0, path=None, source=None)])
    )


def test_tokens_are_coloured_by_loss_to_ln_v_and_underlined_above():
    levels, under = text.loss_levels(
        [None, 0.0, math.log(512) - 0.01, math.log(512) + 0.01, math.nan], 512
    )
    assert levels == [0, 0, LEVELS - 1, LEVELS - 1, LEVELS - 1] and under == {3, 4}


def test_influence_has_a_sign_and_the_largest_is_the_strongest():
    assert text.influence_levels([None, 4.0, -4.0, 1.0, 0.0]) == [0, 6, -6, 3, 0]
    assert text.influence_levels([None, 0.0]) == [0, 0]
    assert text.influence_levels([math.nan, -1.0]) == [0, -6]


@pytest.mark.parametrize(
    ("read", "event", "change"),
    [
        (sequences.slot_of, {"selection": {"bar": [{"slot": 3}]}}, {"slot": 3}),
        (sequences.slot_of, {"selection": {"bar": []}}, None),
        (text.position_of, {"selection": {"token": [{"place": 17}]}}, {"position": 17}),
        (text.position_of, {}, None),
    ],
)
def test_a_click_is_a_function_of_the_event(read, event, change):
    assert read(event) == change


def test_the_step_is_that_of_the_url_else_of_the_spike_else_of_the_largest_else_the_last():
    from app.selection import Selection

    spikes = [
        {"step": 5, "metric": "grad_norm", "sigma": 99.0},
        {"step": 7, "metric": "loss", "sigma": 8.0},
        {"step": 9, "metric": "loss", "sigma": 12.0},
    ]
    assert step_of(Selection(step=3, spike=7), spikes, 20) == 3
    assert step_of(Selection(spike=7), spikes, 20) == 7
    assert step_of(Selection(), spikes, 20) == 9
    assert step_of(Selection(), [], 20) == 19
    assert step_of(Selection(step=300), spikes, 20) == 19


def test_tokens_that_share_a_character_show_it_once_and_spaces_in_front_stay():
    def decode(ids):
        return bytes(ids).decode(errors="replace")

    ids = list("aé\u202e🙂".encode())
    assert reading.texts_of(decode, ids) == ["a", "é", "·", "\u202e", "·", "·", "🙂", "·", "·", "·"]
    assert reading.texts_of(decode, [0xFF, 0x61]) == ["�", "a"]
    assert reading.texts_of(decode, []) == []
    words = {0: "▁the", 1: "▁cat"}

    def stripping(ids):
        return "".join(words[i].replace("▁", " ") for i in ids).lstrip()

    assert reading.texts_of(stripping, [0, 1]) == ["the", " cat"]


def test_a_bar_without_a_past_to_stand_apart_from_is_quiet_and_not_without_a_colour():
    known = {"sequence": 1, "place": 0, "level": 2}
    apart, first = sequences.bars_of(
        [row(0, 5.0) | known, row(1, 3.0) | known | {"place": 1, "level": None}]
    )
    assert (apart["level"], first["level"]) == (2, 0)
    assert (first["place"], first["shown"], first["loss"]) == (1.0, 3.0, "3.000")
    broken = sequences.bars_of([row(0, math.nan) | known, row(1, 3.0) | known])[0]
    assert broken["shown"] == pytest.approx(3.3)


# ---- the page


def test_it_opens_on_the_batch_and_offers_the_token_losses_by_their_command(runs, app_page, said):
    test = app_page("batch", run="demo", step=DAMAGED)
    assert not test.exception
    text = said(test)
    assert (
        f"Batch {DAMAGED}: loss" in text
        and "against what the steps before let one expect" in text
        and "of the batch" in text
    )
    assert (
        "is no proof of a cause" in text and f"replay blame demo --spike {DAMAGED} --tokens" in text
    )
    assert f"forensics batch demo {DAMAGED} --token-losses" in [c.value for c in test.code]
    assert test.button(key="step-back") and not test.markdown
    assert "<script>" not in text and "\u202e" not in text


def test_the_button_starts_the_command_and_nothing_else(runs, app_page, monkeypatch):
    from app import jobs

    started = []
    monkeypatch.setattr(jobs, "start", lambda *a, **k: started.append(a))
    test = app_page("batch", run="demo", step=DAMAGED)
    next(b for b in test.button if b.label == "Compute the token losses").click().run()
    assert started == [("demo", "forensics", ["batch", "demo", str(DAMAGED), "--token-losses"])]


def test_replayed_losses_colour_the_text_and_a_chosen_token_tells_its_document(
    apart, app_page, said
):
    from replay.step.batch_contents import token_losses_at

    document = token_losses_at(apart, "demo", DAMAGED).to_document()
    assert document["exact"] is True
    worst = document["sequences"][0]
    test = app_page("batch", run="demo", step=DAMAGED, slot=worst["slot"], position=9)
    assert not test.exception
    text = said(test)
    assert "computed from the exact state" in text and "--token-losses" not in text
    assert f'Loss <span class="accent">{worst["token_losses"][8]:.3f}</span> nats' in text
    document = next(d for d in worst["documents"] if d["start"] <= 9 < d["stop"])
    assert f"Document <b>{document['document']}</b>" in text
    assert f"forensics tokens demo@{DAMAGED}" in text  # exposure was not recorded: how to
    read = next(d.value for d in test.dataframe if "from token" in d.value)
    assert read["tokens"].sum() == 33
    costly = next(d.value for d in test.dataframe if "after" in d.value)
    assert costly["loss"].is_monotonic_decreasing and costly["loss"][0] == pytest.approx(
        max(worst["token_losses"])
    )


def test_recorded_losses_come_before_replayed_ones_and_masked_targets_have_none(apart):
    from forensics.store.writer import Writer

    with Writer(apart / "demo") as w:
        w.append(
            "tokens",
            step=50,
            slot=2,
            position=[0, 1, 2],
            token=[5, 6, 7],
            loss=[1.5, 2.5, 3.5],
            weight=[1.0, 0.0, 1.0],
        )
    assert reading.token_losses("demo", 50, 2) == ([1.5, None, 3.5], "recorded")
    assert reading.token_losses("demo", 50, 3) is None


def test_influence_is_shown_where_blame_kept_it_for_this_sequence(apart, app_page, said):
    influence = [None, 2.0, -0.5, *[0.0] * 30]
    (apart / "demo" / "blame-122.json").write_text(
        json.dumps(
            {
                "spike": {"step": 122},
                "candidates": [
                    {"step": DAMAGED, "slot": 1, "token_influence": influence},
                    {"step": 1, "slot": 0},
                ],
            }
        )
    )
    (apart / "demo" / "blame-9.json").write_text("{damaged")
    assert reading.influences("demo", DAMAGED, 1) == (influence, 122)
    assert reading.influences("demo", DAMAGED, 2) is None
    test = app_page("batch", run="demo", step=DAMAGED, slot=1, spike=122)
    assert not test.exception and "influence on the spike at step 122" in said(test)
    other = said(app_page("batch", run="demo", step=DAMAGED, slot=2, spike=122))
    assert "Colour: influence on the spike" not in other
    assert "The influence of these tokens is not known" in other


def test_the_influence_of_the_tokens_is_a_button_until_it_is_known(
    apart, app_page, said, monkeypatch
):
    from app import jobs

    started = []
    monkeypatch.setattr(jobs, "start", lambda *a, **k: started.append(a))
    command = "replay blame demo --spike 122 --tokens"
    test = app_page("batch", run="demo", step=DAMAGED, spike=122)
    assert command in [c.value for c in test.code]
    next(b for b in test.button if b.label == "Compute the influence of each token").click().run()
    assert started == [("demo", "replay", ["blame", "demo", "--spike", "122", "--tokens"])]

    def kept(**candidate):
        document = {
            "spike": {"step": 122},
            "candidates": [{"step": DAMAGED, "slot": 1} | candidate],
        }
        (apart / "demo" / "blame-122.json").write_text(json.dumps(document))
        return app_page("batch", run="demo", step=DAMAGED, spike=122, slot=2)

    assert command in [c.value for c in kept().code]  # blamed without --tokens: still to be had
    known = kept(token_influence=[0.5] * 33)
    assert command not in [
        c.value for c in known.code
    ] and "is not among those with the strongest influence" in said(known)
    late = app_page(
        "batch", run="demo", step=130, spike=122
    )  # a batch after the spike cannot have raised it
    assert command not in [c.value for c in late.code]


@pytest.fixture
def made(apart):
    """A fork of `demo` whose batch 122 has a sequence that an intervention made, in slot 0."""
    from forensics.store.writer import Writer, replace_table

    folder = apart / "made"
    folder.mkdir()
    header = json.loads((apart / "demo" / "run.json").read_bytes())
    header |= {
        "name": "made",
        "parent": "demo",
        "parent_step": 122,
        "first_step": 122,
        "steps": 124,
        "interventions": [{"kind": "x"}],
        "created": "2026-01-01T00:00:00Z",
    }
    (folder / "run.json").write_text(json.dumps(header))
    kept = ("name", "status", "parent", "parent_step", "first_step", "steps", "created")
    replace_table(
        folder, "runs", {k: [header[k]] for k in kept} | {"config": [json.dumps(header["config"])]}
    )
    with Writer(folder) as w:
        w.append("steps", step=[122, 123], loss=2.0, grad_norm=1.0)
        w.append("sequences", step=122, slot=[0, 1], sequence=[-1, 5], loss=[9.0, 2.0], weight=32.0)
    return folder


def told(folder, at, tokens):
    """What `forensics batch made 122` left, run by the app at that time."""
    place = folder / "work" / f"{at}-abcd"
    place.mkdir(parents=True)
    started = f"{at[:4]}-{at[4:6]}-{at[6:8]}T{at[9:11]}:{at[11:13]}:{at[13:15]}+00:00"
    about = {
        "run": "made",
        "program": "forensics",
        "arguments": ["batch", "made", "122"],
        "started": started,
    }
    (place / "work.json").write_text(json.dumps(about))
    (place / "ended.json").write_text(json.dumps({"code": 0, "ended": started}))
    (place / "result.json").write_text(json.dumps({"sequences": [{"slot": 0, "tokens": tokens}]}))


def test_a_sequence_that_an_intervention_made_is_read_by_a_process_and_not_by_the_page(
    made, app_page, said, monkeypatch
):
    import replay.step.batch_contents
    from app import jobs
    from forensics.errors import ForensicsError

    def never(*_):
        raise AssertionError("the page's script replays nothing")

    monkeypatch.setattr(replay.step.batch_contents, "batch_at", never)
    started = []
    monkeypatch.setattr(jobs, "start", lambda *a, **k: started.append(a))
    test = app_page("batch", run="made", step=122)
    assert not test.exception and "made by an intervention" in said(test)
    assert "forensics batch made 122" in [c.value for c in test.code]
    next(b for b in test.button if b.label == "Read it from the fork's stream").click().run()
    assert started == [("made", "forensics", ["batch", "made", "122"])]
    with pytest.raises(ForensicsError, match="nobody has read it yet"):
        reading.sequence("made", 122, 0, -1)
    assert reading.sequence("made", 122, 1, 5).spans  # the others are the corpus' own

    told(made, "20250101-000000", [66] * 33)  # of an earlier fork of this name
    assert reading.made("made", 122) == {}
    told(made, "20260102-000000", list(b"A sequence that nobody had stored"))
    found = reading.sequence("made", 122, 0, -1)
    assert "".join(found.texts) == "A sequence that nobody had stored" and found.spans == ()
    test = app_page("batch", run="made", step=122)
    assert not test.exception and "Read it from the fork's stream" not in [
        b.label for b in test.button
    ]
    assert "forensics batch made 122 --token-losses" in [c.value for c in test.code]


def test_links_to_a_fork_open_the_form_whatever_fork_the_url_held(runs, app_page):
    from urllib.parse import parse_qsl

    url = {
        "run": "demo",
        "step": DAMAGED,
        "slot": 1,
        "fork": "old",
        "part": "blame",
        "kind": "skip",
        "position": 4,
        "document": 0,
    }
    test = app_page("batch", **url)
    forks = [
        (e.proto.label, dict(parse_qsl(e.proto.query_string)))
        for e in test.get("page_link")
        if e.proto.label.startswith("Fork ")
    ]
    assert [label for label, _ in forks].count("Fork without this document") == 2
    for label, query in forks:
        assert query["part"] == "build" and "fork" not in query and query["step"] == str(DAMAGED), (
            label
        )
        if label == "Fork without this sequence":
            assert (
                query["kind"] == "remove-sequences"
                and query["slot"] == "1"
                and "document" not in query
            )
        else:
            assert query["kind"] == "remove-documents" and "document" in query


def test_exposure_is_that_of_the_last_state_before_the_batch(apart, app_page, said):
    from app import data
    from forensics.store.writer import replace_table

    found = reading.sequence(
        "demo", DAMAGED, 0, data.rows("batch_at", run="demo", step=DAMAGED)[0]["sequence"]
    )
    token = found.tokens[4]
    replace_table(
        apart / "demo",
        "vocabulary",
        {
            "step": [100, 120, 130],
            "token": [token] * 3,
            "exposure_out": [10, 12, 99],
            "exposure_in": [11, 13, 99],
            "first_seen": [3, 3, 3],
        },
    )
    slot = data.rows("batch_at", run="demo", step=DAMAGED)[0]["slot"]
    text = said(app_page("batch", run="demo", step=DAMAGED, slot=slot, position=4))
    assert (
        "By state 120 the model had seen this token as an input 13 times, as the token to predict"
        " 12 times, first at step 3" in text
    )


@pytest.mark.parametrize("page", ["batch", "attention", "trace"])
def test_steps_and_slots_that_are_not_there_are_said(runs, app_page, said, page):
    test = app_page(page, run="demo", step=99999, slot=99, position=9999, layer=77, head=88)
    assert not test.exception
    assert "Step 99,999 was not trained" in said(test)


@pytest.mark.parametrize("page", ["batch", "attention", "trace"])
def test_an_empty_folder_and_a_run_without_a_step_name_the_command(
    empty_runs, app_page, said, page
):
    assert [c.value for c in app_page(page).code] == ["forensics demo"]
    (empty_runs / "none").mkdir()
    (empty_runs / "none" / "run.json").write_text(
        json.dumps({"name": "none", "first_step": 0, "steps": 9, "created": "2026"})
    )
    test = app_page(page, run="none")
    assert not test.exception and "has recorded no step yet" in said(test)


# ---- in the browser


def test_hostile_text_is_drawn_as_text_and_a_click_on_a_token_opens_its_card(open_page, runs):
    from app import data

    slot = next(
        r["slot"]
        for r in data.rows("batch_at", run="demo", step=DAMAGED)
        if r["source"] == "damaged"
    )
    tab = open_page("batch", run="demo", step=DAMAGED, slot=slot)
    spans = tab.page.locator(".tokens span")
    assert spans.count() == 33
    assert (
        tab.page.locator(".tokens :not(span)").count() == 0
        and tab.page.locator(".tokens span *").count() == 0
    )
    assert "\u202e" not in tab.page.inner_text('[data-testid="stMain"]')
    spans.nth(5).click()
    tab.page.wait_for_url("**position=5**")
    tab.settle()
    assert "position 5" in tab.page.locator(".st-key-token-card").inner_text()
    tab.page.go_back()
    tab.settle()
    assert "position" not in tab.parameters()


def test_the_first_batch_has_bars_that_are_seen(open_page):
    tab = open_page("batch", run="demo", step=0)
    painted = """() => { const c = document.querySelector('[data-testid="stVegaLiteChart"] canvas');
      const d = c.getContext('2d').getImageData(
        Math.round(c.width * 0.1), Math.round(c.height * 0.7), 1, 1).data;
      return d[3]; }"""
    assert tab.page.evaluate(painted) > 0


def test_a_click_on_a_bar_chooses_the_sequence_and_back_restores_it(open_page):
    tab = open_page("batch", run="demo", step=DAMAGED)
    before = tab.page.locator(".fw h2").first.inner_text()
    tab.click_mark(0, 0.9, 0.9)
    assert "slot" in tab.parameters()
    assert tab.page.locator(".fw h2").first.inner_text() != before
    tab.page.go_back()
    tab.settle()
    assert tab.page.locator(".fw h2").first.inner_text() == before
