"""The command line's contract: JSON on stdout, one line for bad input, the exit codes of
docs/contract.md.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest

from forensics.cli.main import main as forensics
from replay.cli.main import main as replay

RECIPE = """
[data]
source = "stdlib/json"
tokenizer = "bytes"
sequence_length = 32
held_out = 4
[model]
layers = 1
width = 16
heads = 2
[train]
steps = 12
threads = 1
batch = 4
[checkpoint]
every = 4
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli")
    (folder / "tiny.toml").write_text(RECIPE)
    with pytest.raises(SystemExit) as e:
        forensics.main(
            [
                "train",
                str(folder / "tiny.toml"),
                "--name",
                "tiny",
                "--runs",
                str(folder / "runs"),
                "--json",
            ]
        )
    assert e.value.code == 0
    return folder


@pytest.fixture
def runs(trained: Path, tmp_path: Path) -> Path:
    shutil.copytree(trained / "runs", tmp_path / "runs")
    shutil.copy(trained / "tiny.toml", tmp_path / "tiny.toml")
    return tmp_path / "runs"


def call(
    program: click.Group, *arguments: str, capsys: pytest.CaptureFixture[str]
) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as e:
        program.main([str(a) for a in arguments])
    out, err = capsys.readouterr()
    return int(e.value.code or 0), out, err


def document(
    program: click.Group, *arguments: str, capsys: pytest.CaptureFixture[str], code: int = 0
) -> dict:
    found, out, err = call(program, *arguments, "--json", capsys=capsys)
    assert found == code, err
    return json.loads(out)


def test_train_tells_what_the_contract_names(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = document(
        forensics,
        "train",
        runs.parent / "tiny.toml",
        "--runs",
        runs,
        "--set",
        "train.steps=3",
        capsys=capsys,
    )
    assert told["run"] == "tiny-2" and told["steps"] == 3
    assert (
        told["final_loss"] > 0 and told["tokens_per_second"] > 0 and told["peak_memory_bytes"] > 0
    )


def test_the_documents_hold_at_least_the_contracts_keys(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    on = ("--runs", runs)
    assert [r["name"] for r in document(forensics, "list", *on, capsys=capsys)["runs"]] == ["tiny"]
    assert document(forensics, "show", "tiny", *on, capsys=capsys)["steps"] == 12
    batch = document(forensics, "batch", "tiny", "5", *on, capsys=capsys)
    assert batch["step"] == 5 and len(batch["sequences"]) == 4
    one = batch["sequences"][0]
    assert {"slot", "sequence", "loss", "text", "tokens", "documents"} <= one.keys() and len(
        one["tokens"]
    ) == 33
    assert {"document", "source", "path", "offset"} <= one["documents"][0].keys()
    window = document(forensics, "batch", "tiny", "4:7", *on, capsys=capsys)
    assert (window["from"], window["to"]) == (4, 7) and window["batches"][1] == batch
    losses = [s["loss"] for s in batch["sequences"]]
    assert losses == sorted(losses, reverse=True)
    spikes = document(forensics, "spikes", "tiny", *on, capsys=capsys)
    assert {"spike_score", "trend", "spikes"} <= spikes.keys()
    bad = document(forensics, "first-bad-step", "tiny", *on, capsys=capsys)
    assert (bad["first"], bad["last"], bad["found"]) == (0, 12, None) and bad["series"] > 50
    verify = document(replay, "verify", "tiny", "3", "9", *on, capsys=capsys)
    assert verify["bitwise"] is True and verify["steps"] == 6 and verify["first_difference"] is None
    assert verify["fingerprint_equal"] is True and verify["max_abs_difference"] == 0
    fork = document(
        replay,
        "fork",
        "tiny",
        "--from",
        "4",
        "--to",
        "9",
        "--skip",
        "5:6",
        "--placebos",
        "1",
        *on,
        capsys=capsys,
    )
    assert fork["control"]["level"] == "exact" and fork["control"]["bitwise"] is True
    assert {"loss_control", "loss_fork", "logit_kl", "l2", "effect", "p", "placebos"} <= fork[
        "final"
    ].keys()
    diff = document(replay, "diff", "tiny", fork["fork"], *on, capsys=capsys)
    assert (
        diff["first_difference"]["step"] == 5
        and {"step", "loss_gap", "logit_kl", "l2"} <= diff["divergence"][0].keys()
    )
    assert "time_to_reconverge" in diff
    scan = document(
        replay, "scan", "tiny@4", "--batches", "2:6", "--per-sequence", *on, capsys=capsys
    )
    assert (
        len(scan["batches"]) == 16
        and {"step", "slot", "loss", "grad_norm"} <= scan["batches"][0].keys()
    )
    assert document(
        replay, "trace", "tiny", "5", "--perfetto", runs.parent / "t.json", *on, capsys=capsys
    )["events"]
    assert json.loads((runs.parent / "t.json").read_text())["traceEvents"]
    exported = document(forensics, "export", "tiny@7", runs.parent / "out", *on, capsys=capsys)
    assert Path(exported["path"], "config.json").is_file()
    state = document(replay, "state", "tiny@7", runs.parent / "out2", *on, capsys=capsys)
    assert state["digest"] == exported["digest"]
    assert (
        document(forensics, "note", "tiny", "5", "odd text", *on, capsys=capsys)["event"]["text"]
        == "odd text"
    )
    assert document(forensics, "doctor", "tiny", *on, capsys=capsys)["problems"] == []
    assert document(forensics, "doctor", capsys=capsys)["fingerprint"]["deterministic"] is True


def test_queries_come_out_in_every_format(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sql = "select step, loss from steps where run = 'tiny' order by step limit 3"
    told = call(forensics, "query", "--sql", sql, "--runs", runs, "--json", capsys=capsys)
    assert [row["step"] for row in json.loads(told[1])] == [0, 1, 2]
    assert (
        call(forensics, "query", "--sql", sql, "--runs", runs, "--format", "csv", capsys=capsys)[
            1
        ].splitlines()[0]
        == '"step","loss"'
    )
    assert (
        "loss"
        in call(
            forensics, "query", "loss_curve", "--param", "run=tiny", "--runs", runs, capsys=capsys
        )[1]
    )
    assert "worst_sequences" in call(forensics, "query", "--list", "--runs", runs, capsys=capsys)[1]


def test_the_list_of_queries_names_each_in_a_line_and_shows_one_whole(
    capsys: pytest.CaptureFixture[str],
) -> None:
    lines = call(forensics, "query", "--list", capsys=capsys)[1].splitlines()
    (line,) = [line for line in lines if line.split()[:1] == ["worst_sequences"]]
    assert "sequences of one batch with the highest loss" in line
    one = call(forensics, "query", "--list", "worst_sequences", capsys=capsys)[1]
    assert one == call(forensics, "query", "worst_sequences", "--list", capsys=capsys)[1]
    for words in ("sequences at most", "nats/token", "select * from final", "--param run=demo"):
        assert words in one
    table = call(forensics, "query", "--list", "heads", capsys=capsys)[1]
    assert "one row per step × layer × head" in table and "attn_logit_max" in table
    listed = document(forensics, "query", "--list", capsys=capsys)
    assert {"tables", "queries"} <= set(listed) and "worst_sequences" in listed["queries"]
    shown = document(forensics, "query", "--list", "worst_sequences", capsys=capsys)
    assert shown["columns"]["slot"] == "row of the batch" and "with " in shown["sql"]
    by_format = call(forensics, "query", "--list", "--format", "json", capsys=capsys)[1]
    assert json.loads(by_format) == listed


BAD = [
    # (program, arguments, exit code, words that the line holds)
    (forensics, ["show", "nosuch"], 3, "nosuch"),
    (forensics, ["show", "tinny"], 3, "did you mean 'tiny'"),
    (forensics, ["show", "../tiny"], 2, "../tiny"),
    (forensics, ["batch", "tiny", "12"], 3, "0 to 11"),
    (forensics, ["batch", "tiny", "-1"], 2, ""),
    (forensics, ["batch", "tiny", "x"], 2, "STEP or A:B"),
    (forensics, ["batch", "tiny", "5:3"], 2, "A < B"),
    (forensics, ["batch", "tiny", "10:14"], 3, "0 to 11"),
    (forensics, ["batch", "tiny", "1:3", "--token-losses"], 2, "one step"),
    (forensics, ["train", "nosuch"], 3, "recipe"),
    (forensics, ["train", "demo", "--set", "train.stepz=3"], 2, "did you mean 'steps'"),
    (forensics, ["train", "demo", "--set", "train.steps=0"], 2, "at least 1"),
    (forensics, ["train", "demo", "--set", "train.betas=[0.9, 1.5]"], 2, "train.betas"),
    (forensics, ["train", "demo", "--set", "nonsense"], 2, "section.key=value"),
    (forensics, ["train", "demo", "--name", "a/b"], 2, "a/b"),
    (forensics, ["train", "TINY", "--name", "tiny"], 2, "already"),
    (forensics, ["train", "TINY", "--set", "train.device=cuda"], 2, "CUDA"),
    (forensics, ["train", "TINY", "--set", "data.source=/no/such/folder"], 3, "folder"),
    (forensics, ["train", "TINY", "--set", "model.heads=3"], 2, "model.heads"),
    (forensics, ["train", "demo", "--set", "data.source=stdlib"], 2, "data.sources.clean"),
    (forensics, ["train", "TINY", "--set", "data.sources.a=stdlib"], 2, "beside the sources a"),
    (forensics, ["train", "TINY", "--set", "data.vocabulary=300"], 2, "no effect"),
    (forensics, ["train", "TINY", "--set", "record.every.steps=2"], 2, "record.every.steps"),
    (forensics, ["train", "TINY", "--set", "train.decay_steps=3"], 2, "wsd"),
    (forensics, ["train", "TINY", "--set", "checkpoint.steps=[400]"], 2, "train.steps"),
    (forensics, ["query", "nosuch"], 2, "nosuch"),
    (forensics, ["query", "--sql", "selec 1"], 2, "selec"),
    (forensics, ["query", "--sql", "select 1; select 2"], 2, "one"),
    (forensics, ["query", "--sql", "drop view steps"], 2, ""),
    (forensics, ["query", "--sql", "select * from read_text('/etc/passwd')"], 2, ""),
    (forensics, ["query", "--sql", "copy steps to '/tmp/x.csv'"], 2, ""),
    (forensics, ["query"], 2, "--list"),
    (forensics, ["query", "--list", "spike"], 2, "did you mean 'spikes'"),
    (forensics, ["spikes", "nosuch"], 3, "nosuch"),
    (forensics, ["where", "nosuch", "x"], 3, "nosuch"),
    (forensics, ["where", "tiny"], 2, "TEXT or --file"),
    (forensics, ["where", "tiny", ""], 2, "1 to 65,536 bytes"),
    (replay, ["fork", "tiny", "--from", "4", "--to", "9", "--remove-text", "nowhere!"], 2, "none"),
    (forensics, ["export", "tiny@99", "/tmp/nowhere-forensics"], 3, "0 to 12"),
    (forensics, ["export", "tiny@x", "/tmp/nowhere-forensics"], 2, "RUN@STEP"),
    (forensics, ["note", "tiny", "99", "x"], 3, "0 to 12"),
    (replay, ["verify", "tiny", "9", "3"], 3, "9:3"),
    (replay, ["verify", "tiny", "0", "13"], 3, "0 to 12"),
    (replay, ["fork", "tiny", "--from", "4"], 2, "to"),
    (replay, ["fork", "tiny", "--from", "4", "--to", "9", "--skip", "1:2"], 2, "inside 4:9"),
    (replay, ["fork", "tiny", "--from", "4", "--to", "9", "--skip", "x"], 2, "A:B"),
    (replay, ["fork", "tiny", "--from", "40", "--to", "90"], 3, "0 to 12"),
    (replay, ["fork", "tiny", "--from", "4", "--to", "9", "--lr-scale", "x@4:5"], 2, "F@A:B"),
    (
        replay,
        ["fork", "tiny", "--from", "4", "--to", "9", "--remove-documents", "select 1 as x"],
        2,
        "'document'",
    ),
    (
        replay,
        [
            "fork",
            "tiny",
            "--from",
            "4",
            "--to",
            "9",
            "--remove-documents",
            "select document from documents where false",
        ],
        2,
        "nothing",
    ),
    (replay, ["fork", "no.toml"], 3, "no.toml"),
    (replay, ["scan", "tiny@4", "--batches", "5:2"], 2, "A < B"),
    (replay, ["scan", "tiny@4", "--batches", "5"], 2, "A:B"),
    (replay, ["scan", "tiny@4", "--batches", "2:5", "--batch-size", "3"], 2, "found RUN@STEP"),
    (replay, ["fork", "tiny", "--from", "4"], 2, "wanted a step as 'to'"),
    (replay, ["fork", "tiny", "--from", "4", "--to", "9", "--name", "tiny"], 2, "its parent"),
    (replay, ["fork", "tiny", "--from", "4", "--to", "9", "--how", "mask"], 2, "found it alone"),
    (
        replay,
        ["fork", "tiny", "--from", "4", "--to", "9", "--clip", "0.5", "--clip", "2"],
        2,
        "another intervention leaves nothing of it",
    ),
    (replay, ["trace", "tiny", "0"], 3, "one before it"),
    (replay, ["diff", "tiny", "nosuch"], 3, "nosuch"),
    (replay, ["nosuch"], 2, "nosuch"),
]


@pytest.mark.parametrize(
    ("program", "arguments", "code", "words"),
    BAD,
    ids=lambda x: " ".join(x)[:50] if isinstance(x, list) else "",
)
def test_bad_input_is_one_line_and_the_contracts_exit_code(
    program: click.Group,
    arguments: list[str],
    code: int,
    words: str,
    runs: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = [a.replace("TINY", str(runs.parent / "tiny.toml")) for a in arguments]
    found, out, err = call(program, *arguments, "--runs", str(runs), "--json", capsys=capsys)
    line = err.strip().splitlines()
    assert found == code, err
    assert len(line) == 1 and line[0].startswith("error: ") and words in line[0], err
    error = json.loads(out)["error"]
    assert {"kind", "message", "hint"} <= error.keys() and error["message"]


@pytest.mark.parametrize(
    "which",
    [
        "checkpoints/step-000004/model.safetensors",
        "checkpoints/step-000004/state.json",
        "tables/steps",
    ],
)
def test_one_flipped_byte_is_found_and_nothing_is_lost(
    which: str, runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = runs / "tiny" / which
    path = next(path.glob("*.parquet")) if path.is_dir() else path
    whole = path.read_bytes()
    broken = bytearray(whole)
    broken[len(broken) // 2] ^= 1
    path.write_bytes(broken)
    code, out, err = call(forensics, "doctor", "tiny", "--runs", str(runs), "--json", capsys=capsys)
    assert code == 1 and len(json.loads(out)["problems"]) == 1, err
    commands = (
        (replay, "verify", "tiny", "4", "6")
        if "checkpoints" in which
        else (forensics, "query", "--sql", "select sum(loss) from steps")
    )
    code, out, err = call(commands[0], *commands[1:], "--runs", str(runs), capsys=capsys)  # type: ignore[arg-type]
    assert code == 1 and len(err.strip().splitlines()) == 1 and path.name in err, err
    path.write_bytes(whole)
    assert (
        document(forensics, "doctor", "tiny", "--runs", str(runs), capsys=capsys)["problems"] == []
    )


def test_each_folder_is_listed_once_under_its_own_name(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(runs / "tiny", runs / "copy")
    (runs / "broken").mkdir()
    (runs / "broken" / "run.json").write_text("{")
    listed = document(forensics, "list", "--runs", str(runs), capsys=capsys)
    assert [run["name"] for run in listed["runs"]] == ["copy", "tiny"]
    assert [run["name"] for run in listed["damaged"]] == ["broken"]
    out = call(forensics, "list", "--runs", str(runs), capsys=capsys)[1]
    assert [line.split()[0] for line in out.splitlines()[1:3]] == ["copy", "tiny"]
    assert "forensics doctor broken" in out


def commands() -> list[tuple[click.Group, str]]:
    return [(program, name) for program in (forensics, replay) for name in program.commands]


@pytest.mark.parametrize(
    ("program", "name"), commands(), ids=lambda x: x if isinstance(x, str) else x.name
)
def test_every_help_ends_with_an_example_of_itself(
    program: click.Group, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = call(program, name, "--help", capsys=capsys)
    after = out.split("Example:")[-1].strip().splitlines()
    assert code == 0 and after[0].startswith(f"{program.name} {name}")
    assert all(option in out for option in ("--runs", "--json"))


def test_starting_is_quick_because_nothing_heavy_is_imported() -> None:
    probe = (
        "import sys, forensics, forensics.cli.main, replay.cli.main, queries; "
        "print([m for m in ('torch',"
        " 'streamlit', 'transformers', 'duckdb', 'pyarrow', 'numpy') if m in sys.modules])"
    )
    assert (
        subprocess.run(
            [sys.executable, "-c", probe], capture_output=True, text=True, check=True
        ).stdout.strip()
        == "[]"
    )


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    for program in (forensics, replay):
        code, out, _ = call(program, "--version", capsys=capsys)
        assert code == 0 and out.startswith(f"{program.name} 0.")


def test_the_runs_folder_may_come_from_the_environment(runs: Path) -> None:
    told = subprocess.run(
        [sys.executable, "-m", "forensics.cli.main", "list", "--json"],
        env=os.environ | {"FORENSICS_RUNS": str(runs)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(told.stdout)["runs"][0]["name"] == "tiny" and told.stderr == ""


def test_generated_documents_are_up_to_date() -> None:
    from docs.generate import MADE

    for name, make in MADE.items():
        assert (Path("docs") / name).read_text(encoding="utf-8") == make(), (
            f"run `python -m docs.generate` ({name})"
        )


def test_text_of_a_corpus_cannot_drive_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    from forensics.cli.console import say

    say("a\x1b[31mb\u202ec\u200bd")
    assert capsys.readouterr().out == "a⟨U+001B⟩[31mb⟨U+202E⟩c⟨U+200B⟩d\n"
