"""The public functions: quick to import, the same object in every order of imports, and examples
that run.
"""

from __future__ import annotations

import inspect
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"

ORDERS = [
    "from forensics import open_run, train; import forensics.train.loop as loop",
    "import forensics.train.loop as loop; from forensics import open_run, train",
]


def in_a_new_process(code: str) -> str:
    """Return what `code` prints in a fresh interpreter."""
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=EXAMPLES.parent
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_importing_a_package_loads_no_torch():
    heavy = "{'torch', 'numpy', 'duckdb', 'click', 'inspect'}"
    for package in ("forensics", "replay"):
        code = f"import sys; before = set(sys.modules); import {package}\n"
        code += f"print(sorted({heavy} & (set(sys.modules) - before)))"
        assert in_a_new_process(code) == "[]", package


@pytest.mark.parametrize("imports", ORDERS)
def test_train_is_a_package_and_the_function_in_every_order_of_imports(imports):
    checks = """
import inspect, sys
import forensics.train
from forensics.train import checkpoint
from forensics.train.run import open_run as the_function
assert callable(train) and train is forensics.train is sys.modules["forensics.train"]
assert forensics.train.checkpoint is checkpoint and forensics.train.loop is loop
assert inspect.signature(train) == inspect.signature(loop.train)
assert open_run is the_function
print("same")
"""
    assert in_a_new_process(imports + checks) == "same"


def test_naming_train_loads_no_torch():
    code = "import forensics, sys; train = forensics.train\n"
    code += "from forensics import train as same\n"
    code += "print(train is same, callable(train), 'torch' in sys.modules)"
    assert in_a_new_process(code) == "True True False"


def test_fork_and_verify_are_functions():
    code = "from replay import fork, verify; import replay.verify\n"
    code += "from replay.verify import certify\n"
    code += "assert (fork, verify) == (replay.fork, replay.verify) and certify\n"
    code += "print(callable(fork), callable(verify))"
    assert in_a_new_process(code) == "True True"


def test_a_name_that_is_not_there_is_an_attribute_error():
    import forensics
    import replay

    for package in (forensics, replay):
        with pytest.raises(AttributeError, match="no attribute 'trian'"):
            package.trian  # noqa: B018


def test_calling_the_package_passes_arguments_on(monkeypatch):
    import forensics
    from forensics.train import loop

    monkeypatch.setattr(loop, "train", lambda *arguments, **options: (arguments, options))
    assert forensics.train("recipe", name="a") == (("recipe",), {"name": "a"})
    assert list(inspect.signature(forensics.train).parameters) == ["arguments", "options"]


def test_every_example_runs(tmp_path, monkeypatch, capsys):
    order = ["train_a_run", "open_a_run", "verify_a_window", "fork_a_run"]
    assert {path.stem for path in EXAMPLES.glob("*.py")} == set(order), "one is missing here"
    printed = {}
    for name in order:
        script = EXAMPLES / f"{name}.py"
        monkeypatch.setattr(sys, "argv", [str(script), str(tmp_path)])
        runpy.run_path(str(script), run_name="__main__")
        printed[name] = capsys.readouterr().out
    assert printed["train_a_run"].startswith("tiny: 40 steps, last loss")
    assert printed["open_a_run"].endswith("state 31 bit for bit as recorded: True\n")
    assert printed["verify_a_window"] == "steps 10 to 30: 30 compared, bit for bit: True\n"
    assert "control: exact" in printed["fork_a_run"] and "(N = 3)" in printed["fork_a_run"]
