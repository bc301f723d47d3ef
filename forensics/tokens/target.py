"""Open a TARGET: its tokenizer, its vocabulary matrices, and a forward pass for those who verify.

open_target("demo@300", Path("runs"))     a run's state
open_target("smol.gguf", …)               a GGUF file
open_target("olmo-1b/", …)                a folder
open_target("tokenizer.json", …)          the categories alone
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from forensics.errors import ForensicsError, nearest
from forensics.formats import formats, recognised
from forensics.formats.tokenizer_json import tokenizer_file
from forensics.progress import ProgressCallback, silent
from forensics.state_name import parse_state
from forensics.store.reader import check_run_name, runs_in
from forensics.train.run import Run, open_run

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from forensics.model.forward import Forward
    from forensics.model.vocabulary_matrices import Weights

Open = Callable[[Path, str], Run]


@dataclass(frozen=True, eq=False)
class Target:
    """What is looked at. kind: run | folder | gguf | tokenizer; a tokenizer alone has neither
    weights nor forward.
    """

    name: str
    kind: str
    tokenizer: Tokenizer
    special: frozenset[int] = frozenset()  # beside those that the tokenizer marks itself
    weights: Weights | None = None
    forward: Callable[[], Forward] | None = None
    run: Run | None = None
    step: int | None = None
    notes: tuple[str, ...] = ()  # what was assumed


def open_target(
    text: str, runs: Path, open_run: Open = open_run, progress: ProgressCallback = silent
) -> Target:
    """Open a run's state, or what a file of `forensics/formats/` recognises.

    A run of that name comes before a path of that name. `open_run` opens forks too where it is
    replay's.

    Errors: missing (no such thing, step or file), data (a file that is not what it should be),
    integrity.
    """
    if "/" not in text and (runs / text.partition("@")[0] / "run.json").is_file():
        return _of_run(text, runs, open_run, progress)
    path = Path(text).expanduser()
    if known := recognised(path):
        if known.read is None:
            raise ForensicsError(
                "data",
                f"{path.name} is {known.title}: a run that another trainer made",
                "bring it in with `forensics import`, then name its state RUN@STEP",
            )
        model = known.read(path)
        return Target(
            str(path),
            known.kind,
            model.tokenizer,
            model.special,
            model.weights,
            model.forward,
            notes=model.notes,
        )
    if path.is_file():
        raise ForensicsError(
            "data",
            f"wanted {_titles()}, found {path.name}, which is none of them",
            "give the folder for safetensors",
        )
    if path.is_dir():
        raise ForensicsError(
            "missing",
            f"wanted {_titles()}, found no config.json in {path}",
            "give the folder that holds the weights, or RUN@STEP",
        )
    if "/" not in text and "@" in text:
        name, _ = parse_state(text)
        check_run_name(name)
        raise ForensicsError(
            "missing",
            f"wanted run {name!r}, found none in {runs}",
            nearest(name, runs_in(runs)) + " (`forensics list`)",
        )
    raise ForensicsError(
        "missing",
        f"wanted a run's state, {_titles()}, found no {text!r}",
        _hint(text, runs),
    )


def _titles() -> str:
    """Name every format of a model."""
    *titles, last = (known.title for known in formats() if known.read is not None)
    return f"{', '.join(titles)} or {last}"


def _hint(text: str, runs: Path) -> str:
    return f"runs in {runs}: {nearest(text, runs_in(runs))}"


def _of_run(text: str, runs: Path, open_run: Open, progress: ProgressCallback) -> Target:
    from forensics.model.decoder import unembedding
    from forensics.model.forward import of_decoder
    from forensics.model.vocabulary_matrices import Weights

    name, step = parse_state(text)
    run = open_run(runs, name)
    at = run.last_step() if step is None else step
    state = _state(run, at, progress)
    params = state.params
    E = (
        params["embed.weight"].float().cpu().clone()
    )  # as a folder's is, so that both give the same bits
    weights = Weights(
        E, E if run.shape.tied else unembedding(params).float().cpu().clone(), None, run.shape.tied
    )
    file = run.tokenizer_file
    if file is None:
        raise ForensicsError(
            "missing",
            f"wanted the tokenizer of {name}, found a run without one",
            "import it again with --tokenizer PATH of its tokenizer.json",
        )
    tokenizer = tokenizer_file(file)  # of its own: another's switches may be set

    def forward() -> Forward:
        # Beyond what it was trained on, a position says nothing about the token there.
        return of_decoder(params, run.shape, run.recipe.data.cut.targets, run.header.device)

    special = frozenset({run.header.eot})
    return Target(f"{name}@{at}", "run", tokenizer, special, weights, forward, run, at)


def _state(run: Run, step: int, progress: ProgressCallback) -> Any:
    if step in run.saved_steps():
        return run.load(step)
    start = run.checkpoint_before(step) if step >= run.header.first_step else 0
    return run.state_at(
        step, lambda state, result: progress(state.counters.step - start, step - start, "replaying")
    )
