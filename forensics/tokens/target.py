"""TARGET → one object: what the tokenizer is, the vocabulary matrices, and a forward pass for those
who verify.

open_target("demo@300", Path("runs"))     a run's state      open_target("smol.gguf", …)        a GGUF file
open_target("olmo-1b/", …)                a folder           open_target("tokenizer.json", …)   the categories alone
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from forensics.errors import ForensicsError, nearest
from forensics.progress import ProgressCallback, silent
from forensics.state_name import parse_state
from forensics.store.reader import check_run_name, runs_in
from forensics.tokens import folder as hf
from forensics.tokens import gguf_file
from forensics.train.run import Run, open_run

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from forensics.tokens.forward import Forward
    from forensics.tokens.indicators import Weights

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
    """A run of that name comes before a path of that name. `open_run` opens forks too where it is
    replay's.

    Errors: missing (no such thing, step or file), data (a file that is not what it should be),
    integrity.
    """
    if "/" not in text and (runs / text.partition("@")[0] / "run.json").is_file():
        return _of_run(text, runs, open_run, progress)
    path = Path(text).expanduser()
    if path.is_dir():
        return _of_folder(path)
    if path.is_file():
        if path.suffix == ".gguf" or gguf_file.is_gguf(path):
            return _of_gguf(path)
        if path.suffix == ".json":
            return Target(str(path), "tokenizer", hf.tokenizer_file(path))
        raise ForensicsError(
            "data",
            f"wanted a GGUF file or a tokenizer.json, found {path.name}, which is neither",
            "give the folder for safetensors",
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
        "wanted a run's state, a Hugging Face folder, a GGUF file or a tokenizer.json, found no"
        f" {text!r}",
        _hint(text, runs),
    )


def _hint(text: str, runs: Path) -> str:
    return f"runs in {runs}: {nearest(text, runs_in(runs))}"


def _of_run(text: str, runs: Path, open_run: Open, progress: ProgressCallback) -> Target:
    from forensics.model.decoder import unembedding
    from forensics.tokens.forward import of_decoder
    from forensics.tokens.indicators import Weights

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
    tokenizer = hf.tokenizer_file(
        run.corpus.folder / "tokenizer.json"
    )  # of its own: another's switches may be set

    def forward() -> Forward:
        # Beyond what it was trained on, a position says nothing about the token there.
        return of_decoder(params, run.shape, run.recipe.data.sequence_length, run.header.device)

    special = frozenset({run.header.eot})
    return Target(f"{name}@{at}", "run", tokenizer, special, weights, forward, run, at)


def _state(run: Run, step: int, progress: ProgressCallback) -> Any:
    if step in run.saved_steps():
        return run.load(step)
    start = run.checkpoint_before(step) if step >= run.header.first_step else 0
    return run.state_at(
        step, lambda state, result: progress(state.counters.step - start, step - start, "replaying")
    )


def _of_folder(path: Path) -> Target:
    from forensics.tokens.forward import of_folder

    if (
        (path / "tokenizer.json").is_file()
        and not (path / "config.json").is_file()
        and not any(path.glob("*.safetensors"))
    ):
        return Target(str(path), "tokenizer", hf.tokenizer_file(path / "tokenizer.json"))
    config = hf.read_config(path)
    tokenizer = hf.read_tokenizer(path)
    weights = hf.read_weights(path, config)
    return Target(
        str(path),
        "folder",
        tokenizer,
        hf.special_ids(path, tokenizer),
        weights,
        lambda: of_folder(path),
    )


def _of_gguf(path: Path) -> Target:
    from forensics.tokens.forward import of_folder

    read = gguf_file.read(path)
    return Target(
        str(path),
        "gguf",
        read.tokenizer,
        frozenset(),
        read.weights,
        lambda: of_folder(path.absolute().parent, path.name),
        notes=read.notes,
    )
