"""Fork files and flags: what SQL chooses, what is refused before a step runs, and how ids are
made.
"""

from __future__ import annotations

import dataclasses
import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch

from forensics.errors import ForensicsError
from forensics.train.header import write_header
from forensics.train.run import Run
from replay import verify
from replay.cli import fork_options as flags
from replay.cli import main
from replay.forks import run as fork_run
from replay.forks import spec, statement, toml_text
from replay.forks.spec import Spec
from replay.interventions import selection
from replay.interventions.base import KINDS, Intervention, Windowed
from replay.interventions.composition import composed
from replay.interventions.registry import from_dict
from replay.lineage import open_trajectory
from tests.replay.test_interventions import BY_SQL, EACH, FLAGS


def built(run: Run, *interventions: dict[str, Any], **head: Any) -> Spec:
    return spec.build(
        run.runs, run, {"from": 75, "to": 90, "intervention": list(interventions), **head}
    )


def only(run: Run, **intervention: Any) -> Any:
    return built(run, intervention).interventions[0]


@pytest.fixture(scope="module")
def base(trained: Path) -> Run:  # nothing here writes to it
    return open_trajectory(trained, "base")


def test_a_fork_file_of_every_kind_is_read_back_as_it_was_written(
    base: Run, tmp_path: Path
) -> None:
    whole = Spec("base", 2, 9, tuple(EACH), placebos=3, chaos=1, probe_every=2, seed=5, name="it")
    path = tmp_path / "it.toml"
    path.write_text(whole.toml(), encoding="utf-8")
    raw = spec.read(path)
    assert tuple(from_dict(each) for each in raw.pop("intervention")) == whole.interventions
    assert raw == {
        "parent": "base",
        "from": 2,
        "to": 9,
        "placebos": 3,
        "chaos": 1,
        "probe_every": 2,
        "record": "light",
        "seed": 5,
        "name": "it",
    }


def test_a_built_spec_written_out_is_built_again_with_the_same_id(
    base: Run, tmp_path: Path
) -> None:
    sql = "select step, slot, loss as rank from sequences where step between 80 and 81"
    first = built(
        base,
        {"kind": "reorder", "window": "80:82", "sql": sql},
        {"kind": "boost-token", "token": 123, "times": 2},
    )
    path = tmp_path / "again.toml"
    path.write_text(first.toml(), encoding="utf-8")
    again = spec.build(base.runs, base, spec.read(path))
    assert again == first and again.fork == first.fork
    assert built(base, {"kind": "boost-token", "token": 123, "times": 3}).fork != first.fork


# Ids of forks 3:9 of `base` with one intervention, in the order of EACH. Finished forks are found
# again by them: they were computed at 71beed1, and are not to be computed anew.
IDS = {
    "drop": "fd7a7bec",
    "skip": "4ad7a918",
    "skip-frozen": "c9dafe17",
    "zero-update": "463e1b7d",
    "hold-parameters": "2fb8b673",
    "swap": "1ba498cd",
    "lr-scale": "1e7605c9",
    "remove-documents": "b8af2508",
    "remove-sequences": "aa0cc01c",
    "mask-tokens": "e2bc5822 d963fd2d",
    "ulp": "7fd0f45d",
    "repeat": "916a5f23",
    "reorder": "9693f3d0",
    "shuffle": "808f8aa3",
    "replace": "43095967 6f711298 9733f80d",
    "insert": "d25cb869 f66e3f72",
    "edit-tokens": "7276f231",
    "boost-token": "c05507a4",
    "clip": "ba292ee1",
    "betas": "1aafd8c0",
    "eps": "f311d7b7",
    "weight-decay": "58594b76",
    "z-loss": "f01b2821",
    "skip-step": "9d62e6d6",
    "freeze": "b19ddbfd",
    "precision": "2790d1e0",
    "reset-moments": "4dc998f3 6ba59b82",
    "noise": "61d931da",
    "transplant": "e70bd6f9",
}
# The same of forks 75:90 whose fields SQL fills, from nothing that depends on a machine's bits.
FILLED = [
    ([{"kind": "remove-documents", "sql": "select 1 as document"}], "2a8d3687"),
    (
        [
            {
                "kind": "remove-sequences",
                "sql": "select step, slot from sequences where step = $first",
            }
        ],
        "8d6647a1",
    ),
    ([{"kind": "mask-tokens", "sql": "select 32 as token"}], "460efa04"),
    (
        [
            {
                "kind": "mask-tokens",
                "sql": "select step, slot, 5 as position from sequences where step = 77",
            }
        ],
        "a2720f4f",
    ),
    (
        [
            {
                "kind": "reorder",
                "window": "80:82",
                "sql": "select step, slot, -slot as rank from sequences",
            }
        ],
        "952a0d2e",
    ),
    ([{"kind": "replace", "window": "80:81", "sql": "select 7 as sequence"}], "1772e008"),
    ([{"kind": "insert", "at": 80, "sql": "select 7 as sequence"}], "e2b39e35"),
    (
        [
            {"kind": "skip"},
            {"kind": "lr-scale", "factor": 0.5, "window": "80:84"},
            {"kind": "reset-moments"},
        ],
        "5717149e",
    ),
]


def test_the_id_of_a_fork_never_changes(base: Run) -> None:
    ids: dict[str, str] = {}
    for intervention in EACH:
        id = Spec("base", 3, 9, (intervention,)).fork.removeprefix("base-fork-")
        ids[intervention.kind] = f"{ids.get(intervention.kind, '')} {id}".strip()
    assert {kind: ids[kind] for kind in IDS} == IDS


def test_what_is_filled_in_when_a_fork_file_is_read_is_part_of_its_id_and_does_not_change(
    base: Run,
) -> None:
    ids = [
        built(base, *interventions).fork.removeprefix("base-fork-") for interventions, _ in FILLED
    ]
    assert ids == [id for _, id in FILLED]


def test_the_worst_sequences_of_the_window_are_chosen_by_their_loss(base: Run) -> None:
    rows = sorted(
        (r for r in base.table("sequences").to_pylist() if 75 <= r["step"] < 90),
        key=lambda r: -r["loss"],
    )[:10]
    sql = (
        "select step, slot from sequences where step >= $first and step < $last and run = $run"
        " order by loss desc limit 10"
    )
    chosen = only(base, kind="remove-sequences", sql=sql)
    assert chosen.at == tuple(
        (s, b, 0, 32) for s, b in sorted((r["step"], r["slot"]) for r in rows)
    )
    ids = tuple(dict.fromkeys(r["sequence"] for r in rows))
    by_id = (
        "select sequence from sequences where step >= $first and step < $last order by loss desc"
        " limit 10"
    )
    assert (
        only(
            base,
            kind="replace",
            window="80:81",
            sql=by_id.replace("$first", "75").replace("$last", "90"),
        ).sequences
        == ids
    )
    held = only(base, kind="remove-sequences", sql=by_id)
    assert {(s, b) for s, b, _, _ in held.at} >= {(r["step"], r["slot"]) for r in rows}
    stream, _ = composed([held], base)
    assert all(stream(s).sequence[b] not in ids for s, b, _, _ in held.at)


def test_documents_and_tokens_are_chosen_by_their_columns(base: Run) -> None:
    table = base.corpus.documents.to_pydict()
    wanted = tuple(d for d, share in zip(table["document"], table["repeat_share"]) if share > 0.001)
    if wanted:
        assert (
            only(
                base,
                kind="remove-documents",
                sql="select document from documents where repeat_share > 0.001",
            ).documents
            == wanted
        )
    assert only(base, kind="mask-tokens", sql="select 32 as token").tokens == (32,)
    sql = "select step, slot, 5 as position from sequences where slot = 2 and step < 77"
    assert only(base, kind="mask-tokens", sql=sql).at == ((75, 2, 5), (76, 2, 5))


def test_a_reorder_follows_the_rank(base: Run) -> None:
    sql = "select step, slot, loss as rank from sequences"
    rows = only(base, kind="reorder", window="80:82", sql=sql).rows
    loss = {(r["step"], r["slot"]): r["loss"] for r in base.table("sequences").to_pylist()}
    assert [loss[row] for row in rows] == sorted(loss[s, b] for s in (80, 81) for b in range(8))
    by_id = only(
        base,
        kind="reorder",
        window="80:82",
        sql="select sequence, -sequence as rank from sequences",
    )
    stream, _ = composed([by_id], base)
    ids = [*stream(80).sequence.tolist(), *stream(81).sequence.tolist()]
    assert ids == sorted(ids, reverse=True) and stream(82).origin == 82


def test_rows_of_another_run_are_not_seen(runs: Path) -> None:
    other = open_trajectory(runs, "base")
    write_header(runs, dataclasses.replace(other.header, name="other"))
    sql = "select run, 1 as token from runs"
    _, named = statement.select(runs, other, sql, selection.TOKENS, (75, 90))
    assert named == {"token": [1]}


def test_an_ancestors_steps_after_the_fork_left_it_do_not_count(runs: Path) -> None:
    parent = open_trajectory(runs, "base")
    write_header(
        runs,
        dataclasses.replace(
            parent.header,
            name="child",
            parent="base",
            parent_step=80,
            first_step=80,
            interventions=[],
        ),
    )
    child = open_trajectory(runs, "child")
    sql = "select run, step, slot from sequences"
    _, rows = statement.select(runs, child, sql, selection.ROWS, (0, 100))
    assert max(rows["step"]) == 79
    with pytest.raises(ForensicsError, match="'run' too"):
        sql = "select step, slot from sequences"
        statement.select(runs, child, sql, selection.ROWS, (0, 100))


REFUSED = [
    (
        {"kind": "remove-sequences", "sql": "select step from sequences"},
        "'step' and 'slot' or 'sequence', found step",
    ),
    (
        {"kind": "remove-sequences", "sql": "select step, slot from sequences where false"},
        "selected nothing",
    ),
    (
        {"kind": "remove-sequences", "sql": "select step, slot from sequences where step < 70"},
        "nothing inside 75:90",
    ),
    ({"kind": "remove-sequences", "sql": "select 0 as sequence where false"}, "selected nothing"),
    ({"kind": "reorder", "sql": "select step, slot from sequences"}, "'rank'"),
    ({"kind": "mask-tokens", "sql": "select 999 as token"}, "below 257"),
    ({"kind": "mask-tokens", "sql": "select 'x' as token"}, "whole numbers"),
    ({"kind": "mask-tokens", "sql": "select path from documents"}, "'token'"),
    ({"kind": "replace", "window": "10:12", "sql": "select 1 as sequence"}, "inside 75:90"),
    ({"kind": "insert", "at": 80, "sql": "select -5 as sequence"}, "found id -5"),
    ({"kind": "insert"}, "'at' is missing"),
    ({"kind": "clip", "value": "high"}, "wanted a number"),
    ({"kind": "betas", "betas": [0.9]}, "a list of 2"),
    ({"kind": "skip-step", "on": 1}, "wanted true or false"),
    ({"kind": "freeze", "tensors": ["nothing.like.it"]}, "no tensor of base"),
    ({"kind": "boost-token", "token": 999, "times": 2}, "below 257"),
    ({"kind": "boost-token", "token": 5}, "'times' is missing"),
    ({"kind": "swap", "a": 80, "b": 85, "window": "80:82"}, "unknown key 'window'"),
    ({"kind": "repet"}, "did you mean 'repeat'"),
]


@pytest.mark.parametrize(
    ("intervention", "words"), REFUSED, ids=lambda x: x.get("kind") if isinstance(x, dict) else ""
)
def test_a_fork_file_that_cannot_be_run_is_refused_in_one_line(
    intervention: dict, words: str, base: Run
) -> None:
    with pytest.raises(ForensicsError, match=words) as e:
        built(base, intervention)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    ("head", "words"),
    [
        ({"from": 101, "to": 120}, "states 0 to 100"),
        ({"from": 80, "to": 80}, "--from below --to"),
    ],
)
def test_a_window_outside_the_run_is_refused(head: dict, words: str, base: Run) -> None:
    with pytest.raises(ForensicsError, match=words):
        built(base, {"kind": "boost-token", "token": 5, "times": 1}, **head)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("from = true", "from: wanted a whole number, found True"),
        ("placebos = 1.5", "placebos: wanted a whole number, found 1.5"),
        ("placebos = true", "placebos: wanted a whole number, found True"),
        ("chaos = -1", "chaos: wanted at least 0, found -1"),
        ("seed = -1", "seed: wanted at least 0, found -1"),
        ("seed = 99999999999999999999", "seed: wanted a number below 2"),
        ('probe_every = "x"', "probe_every: wanted a whole number, found 'x'"),
        ("probe_every = 0", "probe_every: wanted at least 1, found 0"),
        ("record = 3", "record: wanted a string, found 3"),
        ('record = "lite"', "record: wanted off, light, dense, found 'lite'; did you mean 'light'"),
        ("name = 5", "name: wanted a string, found 5"),
        ('name = "../x"', "wanted a run's name, found '../x'"),
        ("parent = 5", "parent: wanted a string, found 5"),
        ("barrier = 80", "barrier: wanted a list, found 80"),
        ('barrier = ["80"]', "barrier.0.: wanted a whole number, found '80'"),
        ('intervention = "x"', "intervention: wanted a list of tables, found 'x'"),
        ('intervention = ["x"]', "intervention: wanted a list of tables"),
        ('[intervention]\nkind = "skip"', "found a table; each begins with .*in double brackets"),
        ("[[intervention]]\nfactor = 1", "an intervention lacks its kind"),
        ('[[intervention]]\nkind = ["skip"]', "unknown intervention .*'skip'"),
        ('[[intervention]]\nkind = "skip"\nwindow = 80', "skip.window: wanted A:B"),
        (
            '[[intervention]]\nkind = "skip"\nwindow = "80:81"\nfirst = 82',
            "found window and first; leave one of the two out",
        ),
        ('[[intervention]]\nkind = "mask-tokens"\nsql = 5', "mask-tokens.sql: wanted a string"),
        ('[[intervention]]\nkind = "mask-tokens"\nfirst = "8"', "first: wanted a whole number"),
        ('[[intervention]]\nkind = "shuffle"\nseed = 1.5', "shuffle.seed: wanted a whole number"),
        ('[[intervention]]\nkind = "shuffle"\nsede = 1', "key 'sede'; did you mean 'seed'"),
        ('[[intervention]]\nkind = "shuffle"\nseed = -4', "shuffle.seed: wanted a number from 0"),
        (
            '[[intervention]]\nkind = "boost-token"\ntoken = 101\ntimes = 2\nseed = -4',
            "boost-token.seed: wanted a number from 0",
        ),
        ("plcebos = 3", "unknown key 'plcebos' .*did you mean 'placebos'"),
    ],
)
def test_a_wrong_type_in_a_fork_file_is_one_line_that_names_the_key(
    text: str, words: str, base: Run, tmp_path: Path
) -> None:
    head = 'parent = "base"\nfrom = 75\nto = 90\n'
    key = text.split(" = ")[0]
    lines = "".join(line for line in head.splitlines(True) if not line.startswith(f"{key} "))
    path = tmp_path / "bad.toml"
    path.write_text(lines + text)
    with pytest.raises(ForensicsError, match=words) as e:
        spec.build(base.runs, base, spec.read(path))
    assert e.value.exit_code == 2 and "\n" not in str(e.value)


def test_flags_beside_a_fork_file_add_to_it_and_replace_nothing() -> None:
    file = spec.checked(
        {"parent": "base", "from": 75, "placebos": 3, "intervention": [{"kind": "skip"}]}, "a file"
    )
    more = {"to": 90, "name": "it", "placebos": 3, "intervention": [{"kind": "reset-moments"}]}
    assert spec.joined(file, more) == {
        "parent": "base",
        "from": 75,
        "to": 90,
        "placebos": 3,
        "name": "it",
        "intervention": [{"kind": "skip"}, {"kind": "reset-moments"}],
    }
    for contradiction in ({"placebos": 5}, {"from": 76}):
        with pytest.raises(ForensicsError, match=r"the fork file says .*, the flag .*leave one"):
            spec.joined(file, contradiction)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (
            ["--how", "mask"],
            "--how with --remove-documents or --remove-text or --remove-sequences, found it alone",
        ),
        (["--skip", "3:5", "--times", "4"], "--times with --boost-token, found it alone"),
        (["--reset-counter"], "--reset-counter with --reset-moments, found it alone"),
        (["--skip", "3:5", "--renormalise"], "--renormalise with --mask-tokens, found it alone"),
    ],
)
def test_an_option_without_the_flag_that_it_goes_with_is_refused(
    given: list[str], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ForensicsError, match=words):
        parsed(given, monkeypatch)


def parsed(given: list[str], monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What the flags of `replay fork` say, without running it."""
    said: list[dict[str, Any]] = []
    command = main.main.commands["fork"]
    monkeypatch.setattr(
        command,
        "callback",
        lambda run, dry_run, again, **values: said.append(flags.from_flags(values)),
    )
    command.main(["base", "--from", "2", "--to", "9", *given], standalone_mode=False)
    return said[0]["intervention"]


@pytest.mark.parametrize(
    ("flags", "wanted"), FLAGS, ids=lambda x: x[0] if isinstance(x, list) else ""
)
def test_a_flag_says_the_same_as_the_fork_file(
    flags: list[str], wanted: Intervention, monkeypatch: pytest.MonkeyPatch
) -> None:
    [raw] = parsed(flags, monkeypatch)
    if isinstance(wanted, Windowed) and "window" not in raw:
        raw |= {"first": 2, "last": 9}
    assert from_dict(raw) == wanted


def test_flags_that_take_sql_hand_it_on(monkeypatch: pytest.MonkeyPatch) -> None:
    said = parsed(
        [
            "--reorder",
            "select 1@3:5",
            "--replace-sequences",
            "3:5=select 2",
            "--insert-sequences",
            "3=select 3",
            "--remove-documents",
            "select 4",
            "--remove-sequences",
            "select 5",
            "--how",
            "mask",
            "--mask-tokens",
            "select 6",
            "--renormalise",
        ],
        monkeypatch,
    )
    assert [each["sql"] for each in said] == [f"select {n}" for n in range(1, 7)]
    assert [each["kind"] for each in said] == [
        "reorder",
        "replace",
        "insert",
        "remove-documents",
        "remove-sequences",
        "mask-tokens",
    ]
    assert said[4]["how"] == "mask" and said[5]["renormalise"] is True


def test_every_kind_has_a_flag_and_flags_come_in_the_order_of_the_help(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert {wanted.kind for _, wanted in FLAGS} | BY_SQL == set(KINDS)
    said = parsed(["--noise", "0.1", "--skip", "3:4", "--drop", "3:5"], monkeypatch)
    assert [each["kind"] for each in said] == ["drop", "skip", "noise"]


@pytest.mark.parametrize(
    "flags",
    [
        ["--repeat", "3:5"],
        ["--swap", "3"],
        ["--edit", "a@3:5"],
        ["--betas", "0.9@3:5"],
        ["--skip-step", "maybe"],
        ["--insert", "x=y"],
        ["--noise", "much"],
        ["--replace", "3:5=x"],
        ["--clip", "1@x"],
    ],
    ids=lambda f: f[0],
)
def test_a_flag_that_does_not_parse_is_answered_with_an_example(
    flags: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ForensicsError, match=f"wanted {flags[0]} .*e.g. {flags[0]}") as e:
        parsed(flags, monkeypatch)
    assert e.value.exit_code == 2


def test_the_plan_of_a_fork_with_many_interventions_is_printed_without_a_step(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [
        "--edit",
        "self=>this@80:82",
        "--shuffle",
        "80:82",
        "--clip",
        "0.5",
        "--noise",
        "0.001",
        "--dry-run",
        "--json",
    ]
    with pytest.raises(SystemExit) as e:
        main.main.main(
            ["fork", "base", "--from", "78", "--to", "84", *flags, "--runs", str(trained)]
        )
    assert not e.value.code
    plan = json.loads(capsys.readouterr().out)
    assert plan["sequences_by_step"].keys() == {"80", "81"}
    assert [i["kind"] for i in plan["interventions"]] == ["shuffle", "edit-tokens", "clip", "noise"]
    assert not (trained / plan["fork"]).exists()


def test_a_fork_of_everything_at_once_runs_and_its_stream_is_found_again(runs: Path) -> None:
    base = open_trajectory(runs, "base")
    many = built(
        base,
        {"kind": "edit-tokens", "window": "80:82", "find": "e", "replace": "ee"},
        {"kind": "boost-token", "window": "80:82", "token": 123, "times": 2},
        {"kind": "insert", "at": 81, "text": "to be or not"},
        {"kind": "mask-tokens", "window": "82:83", "tokens": [32], "renormalise": True},
        {"kind": "freeze", "window": "80:83", "tensors": "embed.*"},
        {"kind": "z-loss", "value": 1e-4},
        {"kind": "reset-moments", "tensors": "layers.0.*"},
        {"kind": "transplant", "checkpoint": "base@50", "tensors": "layers.1.*"},
        to=84,
        **{"from": 79},
        placebos=1,
    )
    result = fork_run.fork(many, runs)
    assert result.control.bitwise
    assert result.first_difference is not None and result.first_difference.step == 79
    again = open_trajectory(runs, many.fork)
    stream, _ = composed(many.interventions, base)
    for s in range(79, 84):
        assert torch.equal(again.stream(s).tokens, stream(s).tokens)
    report = verify.verify(runs, many.fork, 79, 84)
    assert report.bitwise


def test_a_fork_file_is_written_with_a_key_a_line_whatever_its_strings_hold() -> None:
    head = {"parent": "base", "from": 3, "name": None, "barrier": [5, 6], "nothing": []}
    hostile = 'a,\n]["\\ \x7f\x00 [\n 🦭,'
    rows = [[5, 1, 0, 32], [5, 3, 0, 32]]
    text = toml_text.written(head, [{"kind": "x", "at": rows, "text": hostile}, {"kind": "y"}])
    assert tomllib.loads(text) == {
        "parent": "base",
        "from": 3,
        "barrier": [5, 6],
        "nothing": [],
        "intervention": [{"kind": "x", "at": rows, "text": hostile}, {"kind": "y"}],
    }
    assert "barrier = [5, 6]" in text.splitlines()
    assert "at = [[5, 1, 0, 32], [5, 3, 0, 32]]" in text.splitlines()
    assert text.count("[[intervention]]\n") == 2


def test_an_unknown_field_of_an_intervention_names_the_nearest() -> None:
    for key, wanted in (("windo", "window"), ("fist", "first"), ("kidn", "kind")):
        with pytest.raises(ForensicsError, match=f"did you mean '{wanted}'"):
            from_dict({"kind": "drop", "window": "4:5", key: 1})
