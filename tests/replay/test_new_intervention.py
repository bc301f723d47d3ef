"""An intervention that is added as one file is known everywhere: on the command line, in fork
files, to sweeps, to the app's form and in the docs.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import replay.interventions
from app.views.forks import forms
from docs import generate
from forensics.errors import ForensicsError
from forensics.train.run import Run
from replay.cli.main import main
from replay.experiments.sweep import moved, sweep
from replay.forks import spec, toml_text
from replay.forks.run import fork
from replay.interventions import registry
from replay.interventions.base import KINDS
from replay.interventions.registry import from_dict, to_dict

FILE = '''
from dataclasses import dataclass, field, replace

from replay.interventions.base import Intervention
from replay.interventions.fields import Columns, Option, about
from replay.interventions.flags import Flag, split
from replay.interventions.requirements import require


@dataclass(frozen=True)
class LearningRateStep(Intervention):
    """Multiply the learning rate by `factor` from step `onset` on, to no less than `floor`."""

    kind = "lr-step"
    title = "Lower the learning rate for good"
    flags = (Flag("F@S", "LR times F from S.", "0.1@200", split("@", factor=float, onset=int)),)
    factor: float = field(metadata=about(label="Factor", begin=0.1))
    onset: int = field(
        metadata=about(
            step=True,
            label="From step",
            columns=(Columns(("onset",), lambda run, rows, first, last: rows["onset"][0]),),
        )
    )
    floor: float = field(default=0.0, metadata=about(option=Option("--lr-floor", "At least.")))
    sql: str = ""

    def policy(self, policy, run):
        def altered(counters):
            own = policy(counters)
            if counters.step < self.onset:
                return own
            return replace(own, learning_rate=max(own.learning_rate * self.factor, self.floor))

        return altered

    def check(self, run, first, last):
        inside = f"a step inside {first}:{last}"
        require(first <= self.onset < last, self.kind, inside, self.onset, "move it")

    def sentence(self):
        return f"multiplies the learning rate by {self.factor:g} from {self.onset} on"
'''


@pytest.fixture(autouse=True)
def added(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The file in a folder beside the others, until the test's end."""
    (tmp_path / "lr_step.py").write_text(FILE, encoding="utf-8")
    folders = [*replay.interventions.__path__, str(tmp_path)]
    monkeypatch.setattr(replay.interventions, "__path__", folders)
    before = set(KINDS)
    registry.discover()
    yield
    for kind in set(KINDS) - before:
        del KINDS[kind]
    sys.modules.pop("replay.interventions.lr_step")
    del replay.interventions.lr_step


def test_replay_fork_has_its_flags_in_their_place(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main.main(["fork", "--help"])
    text = capsys.readouterr().out
    assert (
        text.index("--precision P@A:B") < text.index("--lr-step F@S  ") < text.index("--lr-floor")
    )
    assert text.index("--lr-floor FLOAT") < text.index("--reset-moments [PATTERN]")

    window = ["--from", "75", "--to", "84", "--runs", str(trained)]
    flags = ["--noise", "0.1", "--lr-step", "0.5@80", "--lr-floor", "0.001", "--skip", "76:77"]
    with pytest.raises(SystemExit) as e:
        main.main(["fork", "base", *window, *flags, "--dry-run", "--json"])
    assert not e.value.code
    plan = json.loads(capsys.readouterr().out)
    assert [i["kind"] for i in plan["interventions"]] == ["skip", "lr-step", "noise"]
    assert plan["interventions"][1] == {
        "kind": "lr-step",
        "factor": 0.5,
        "onset": 80,
        "floor": 0.001,
        "sql": "",
    }
    with pytest.raises(SystemExit) as e:
        main.main(["fork", "base", *window, "--lr-step", "0.5", "--dry-run"])
    assert e.value.code == 2
    assert "wanted --lr-step F@S, found '0.5'; e.g. --lr-step 0.1@200" in capsys.readouterr().err


def test_a_fork_file_spells_it_and_sql_fills_its_step(base: Run, tmp_path: Path) -> None:
    lr_step = from_dict({"kind": "lr-step", "factor": 1, "onset": 80})
    assert from_dict(to_dict(lr_step)) == lr_step
    file = tmp_path / "fork.toml"
    file.write_text(spec.Spec("base", 75, 90, (lr_step,)).toml(), encoding="utf-8")
    assert spec.build(base.runs, base, spec.read(file)).interventions == (lr_step,)
    sql = {"kind": "lr-step", "factor": 0.5, "sql": "select $first + 3 as onset"}
    raw = {"from": 75, "to": 90, "intervention": [sql]}
    assert to_dict(spec.build(base.runs, base, raw).interventions[0])["onset"] == 78
    with pytest.raises(ForensicsError, match="did you mean 'onset'"):
        from_dict({"kind": "lr-step", "factor": 1.0, "onsett": 80})
    with pytest.raises(ForensicsError, match="inside 75:90, found 95"):
        raw = {"from": 75, "to": 90, "intervention": [{**sql, "sql": "select 95 as onset"}]}
        spec.build(base.runs, base, raw)


def test_a_sweep_moves_its_step_with_the_start(runs: Path) -> None:
    raw = {
        "parent": "base",
        "from": 40,
        "to": 43,
        "intervention": [{"kind": "lr-step", "factor": 0.5, "onset": 41}],
    }
    assert moved(raw, 10)["intervention"] == [{"kind": "lr-step", "factor": 0.5, "onset": 11}]
    points = sweep(runs, raw, [10, 70]).points
    assert {p.step: p.l2 > 0 for p in points if p.arm == "own"} == {10: True, 70: True}


def test_the_apps_form_asks_for_it_and_its_answers_are_a_fork_that_runs(
    runs: Path, base: Run
) -> None:
    assert forms.titles()["lr-step"] == "Lower the learning rate for good"
    asked = {f.name: (f.label, f.default, f.wanted) for f in forms.fields("lr-step")}
    assert asked == {
        "factor": ("Factor", 0.1, "a number"),
        "onset": ("From step", "", "a whole number"),
        "sql": ("SQL that returns onset", "", "text"),
    }
    assert [f.name for f in forms.fields("lr-step") if f.step] == ["onset"]  # begins in the window
    answers = forms.intervention("lr-step", {"factor": "0.5", "onset": "81"})
    text = toml_text.written({"parent": "base", "from": 80, "to": 83}, [answers])
    made = spec.build(runs, base, tomllib.loads(text))
    assert made.sentence() == "multiplies the learning rate by 0.5 from 81 on"
    difference = fork(made, runs).first_difference
    assert difference is not None and difference.step == 81


def test_the_documents_have_it() -> None:
    text = generate.interventions()
    section = text[text.index("### `lr-step`") : text.index("## State")].split("\n\n", 2)
    assert section[1].startswith("Multiply the learning rate by `factor` from step `onset` on")
    assert "| `onset` | whole number |  |" in section[2]
    assert "| `sql` | in place of `onset`: a SELECT that returns `onset` | |" in section[2]
    assert "* `--lr-step F@S`: LR times F from S. E.g. `0.1@200`." in section[2]
    assert "* `--lr-floor` goes with it. At least." in section[2]
    assert "--lr-step F@S" in generate.command_line()


def test_what_names_the_interventions_for_help_loads_no_torch() -> None:
    script = (
        "import sys, replay.interventions.registry;"
        " print([m for m in ('torch', 'pyarrow', 'duckdb', 'tokenizers') if m in sys.modules])"
    )
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert loaded.stdout.strip() == "[]", loaded.stderr
