"""A contestant in a process of its own: memory, allocator, threads and environment as alone.

    with Elsewhere("benchmarks.plain", "plain GPT", CPU) as step:
        step()                    # one step there; what it said is in `step.told`

The other end is `python -m benchmarks.elsewhere MODULE NAME SIZES`: for each line on its input it
takes one step of MODULE.contestants(sizes)[NAME]() and answers with a line of JSON: parameters, and
the process's peak memory.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import resource
import subprocess
import sys
from typing import Any

from benchmarks.plain import Sizes

OURS = (
    "GOMP_SPINCOUNT",
)  # set by `import forensics` in this process: a contestant that is not ours goes without


class Elsewhere:
    """A step in the other process, when called; its numbers are known after the first."""

    def __init__(self, module: str, name: str, sizes: Sizes) -> None:
        environment = {
            variable: value for variable, value in os.environ.items() if variable not in OURS
        }
        command = [
            sys.executable,
            "-m",
            "benchmarks.elsewhere",
            module,
            name,
            json.dumps(vars(sizes)),
        ]
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
        )
        self.name, self.told = name, {"parameters": 0, "peak_gib": 0.0}

    def __call__(self) -> None:
        """Take one step there."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write("step\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise RuntimeError(f"{self.name} ended with code {self.process.wait()}")
        self.told = json.loads(answer)

    @property
    def parameters(self) -> int:
        """Return its parameters; 0 before the first step."""
        return int(self.told["parameters"])

    def close(self) -> None:
        """End it in order: its input ends."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def __enter__(self) -> Elsewhere:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def serve(module: str, name: str, sizes: dict[str, int]) -> None:
    """Answer each line of the input with one step."""
    out = os.fdopen(os.dup(1), "w")
    with contextlib.redirect_stdout(sys.stderr):  # what a library prints is no answer
        step: Any = importlib.import_module(module).contestants(Sizes(**sizes))[name]()
        for _ in sys.stdin:
            step()
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
            print(
                json.dumps({"parameters": step.parameters, "peak_gib": round(peak, 2)}),
                file=out,
                flush=True,
            )


if __name__ == "__main__":
    serve(sys.argv[1], sys.argv[2], json.loads(sys.argv[3]))
