"""Independent tasks, handed out: a function and a list of plain-JSON tasks in, results as they
finish out.

for index, result in spawned(2)(sweep.point, tasks): ...

That call is the whole interface (`Map`): a cluster's engine can take its place. `here` computes in
this process; `spawned(n)` in n fresh processes (never forked, so that no lock and no thread of
torch is inherited) of one CPU thread each, which read a task and write a result per line. A task's
bits do not depend on which of them computes it.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import queue
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from forensics.errors import ForensicsError

Task = dict[str, Any]
Result = dict[str, Any]
Work = Callable[[Task], Result]  # a function of a module, found again by its name
Map = Callable[
    [Work, Sequence[Task]], Iterator[tuple[int, Result]]
]  # yields (index of the task, its result)


def here(work: Work, tasks: Sequence[Task]) -> Iterator[tuple[int, Result]]:
    """One after the other, in this process."""
    for index, task in enumerate(tasks):
        yield index, work(task)


def spawned(workers: int) -> Map:
    """In `workers` new processes; they end with the iteration, also where it is left early. Errors:
    what a task raised.
    """

    def hand_out(work: Work, tasks: Sequence[Task]) -> Iterator[tuple[int, Result]]:
        waiting: queue.SimpleQueue[tuple[int, Task]] = queue.SimpleQueue()
        finished: queue.SimpleQueue[tuple[int, Result | Exception]] = queue.SimpleQueue()
        for numbered in enumerate(tasks):
            waiting.put(numbered)
        started = [_start(work) for _ in range(min(workers, len(tasks)))]
        feeding = [
            threading.Thread(target=_feed, args=(p, waiting, finished), daemon=True)
            for p in started
        ]
        try:
            for thread in feeding:
                thread.start()
            for _ in tasks:
                index, result = finished.get()
                if isinstance(result, Exception):
                    raise result
                yield index, result
        finally:
            for process in started:
                process.kill()
            for process, thread in zip(started, feeding):
                process.wait()
                if thread.ident is not None:
                    thread.join()
                for pipe in (process.stdin, process.stdout):
                    if pipe is not None:
                        with contextlib.suppress(OSError):
                            pipe.close()

    return hand_out


def _start(work: Work) -> subprocess.Popen[str]:
    root = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(p for p in (root, os.environ.get("PYTHONPATH")) if p)
    # one thread each; passive, so that a worker's idle threads leave the cores to the others
    environment = {
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "OMP_WAIT_POLICY": "passive",
        "PYTHONPATH": path,
    }
    # a session of its own: Ctrl-C reaches only the parent, which ends its workers
    return subprocess.Popen(
        [sys.executable, "-m", "replay.executors.local", f"{work.__module__}:{work.__qualname__}"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        env=os.environ | environment,
        start_new_session=True,
    )


def _feed(process: subprocess.Popen[str], waiting: Any, finished: Any) -> None:
    """Give one process tasks until there are none left."""
    assert process.stdin is not None and process.stdout is not None
    while True:
        try:
            index, task = waiting.get_nowait()
        except queue.Empty:
            return
        line = ""
        with contextlib.suppress(OSError):  # it has ended
            process.stdin.write(json.dumps(task) + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
        if not line.endswith("\n"):
            finished.put(
                (
                    index,
                    ForensicsError(
                        "memory",
                        f"a worker ended (exit code {process.poll()}) during task {index}",
                        "fewer --workers need less memory; finished tasks are kept",
                    ),
                )
            )
            return
        document = json.loads(line)
        error = document.get("error")
        finished.put((index, ForensicsError(*error) if error else document["result"]))


def main(name: str) -> None:
    """Return a worker.

    The function's name, then a task per line of stdin. Results go to stdout, all else to stderr.
    """
    results = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(
        sys.stderr.fileno(), sys.stdout.fileno()
    )  # a print inside a task must not look like a result
    module, _, function = name.partition(":")
    work = getattr(importlib.import_module(module), function)
    for line in sys.stdin:
        try:
            document: dict[str, Any] = {"result": work(json.loads(line))}
        except ForensicsError as e:
            document = {"error": [e.kind, e.message, e.hint]}
        except Exception as e:
            traceback.print_exc()
            document = {
                "error": [
                    "mismatch",
                    f"a task failed: {type(e).__name__}: {e}",
                    "the traceback stands above",
                ]
            }
        results.write(json.dumps(document) + "\n")
        results.flush()


if __name__ == "__main__":
    main(sys.argv[1])
