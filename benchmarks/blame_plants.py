"""`make blame-study`, its second part: planted runs whose loss or gradient is not finite, or whose
gradient norm spikes.

    python -m benchmarks.blame_plants --seeds 5

    plant = nan_document(seed, runs)         → Plant(run, step, of, verdicts)
    plant = nan_rate(seed, runs)
    plant = norm_token(seed, runs)

Each trains (or goes on with) its run and says where to blame it and which verdicts are right.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import blame_study
from benchmarks.blame_study import AT, SEQUENCE, STEPS
from forensics import config
from forensics.train import checkpoint
from forensics.train.loop import train
from replay.spike_list import Metric

ODD = "ж"  # bytes 0xD0 0xB6, which the text never holds
HUGE = 3e19  # a weight whose product with itself and the width is beyond float32's 3.4e38
CAPITALS = "QZ"  # letters that the text never holds, a byte each
# of batch AT that is the planted document, sequence by sequence the same
ODD_SHARE, CAPITALS_SHARE = 0.125, 0.25


class Plant(NamedTuple):
    """A run with a cause: where to blame it, and what is right."""

    run: str
    step: int
    of: Metric
    verdicts: tuple[str, ...]
    source: str | None  # of the documents that a right answer names


def nan_rate(seed: int, runs: Path) -> Plant:
    """Plant a learning rate 1e39 times as high for one step, beyond float32: no data cause."""
    name = f"nan-rate-{seed}"
    _train(_recipe(seed, runs / "texts", None, 0.0), name, runs)
    change = {"kind": "lr-scale", "factor": 1e39, "window": f"{AT}:{AT + 1}"}
    _fork(runs, name, [change])
    return Plant(f"{name}-fork", AT + 2, "loss", ("policy",), None)


def nan_document(seed: int, runs: Path) -> Plant:
    """Plant a document with a token that a weight of 3e19 turns into infinity: by construction the
    MLP of layer 0 overflows at that token, and nowhere else.
    """
    name = f"nan-document-{seed}"
    recipe = _recipe(seed, runs / "texts", _odd_document(seed), ODD_SHARE)
    _train(recipe, name, runs)
    donor = f"{name}-weights"
    if not (runs / donor).exists():
        shutil.copytree(runs / name, runs / donor)  # a run is where it lies
    _make_huge(runs, donor)
    _fork(runs, name, [{"kind": "transplant", "checkpoint": f"{donor}@{AT}", "tensors": ["*"]}])
    return Plant(f"{name}-fork", AT, "loss", ("data", "data and state"), "planted")


def norm_token(seed: int, runs: Path) -> Plant:
    """Plant an ordinary document with one pair of letters that the text never holds, in a quarter
    of a batch: the loss of 2 targets in 65 hardly moves its mean, and their gradients add up.
    """
    name = f"norm-token-{seed}"
    document = _ordinary_document(seed, runs / "texts")
    middle = SEQUENCE // 2
    document = document[:middle] + CAPITALS + document[middle + len(CAPITALS) :]
    _train(_recipe(seed, runs / "texts", document, CAPITALS_SHARE), name, runs)
    return Plant(name, AT, "grad_norm", ("data", "data and state"), "planted")


def _recipe(seed: int, folder: Path, planted: str | None, share: float) -> config.Recipe:
    """Return the study's clean run, with a document in a share of batch AT."""
    clean = blame_study.recipe("clean run", seed, folder)
    if planted is None:
        return clean
    path = folder / f"{_number(planted)}.txt"
    path.write_text(planted, encoding="utf-8")
    sources = dict(clean.data.sources or {})
    document: dict[str, Any] = config.to_dict(clean)
    document["data"]["sources"] = sources | {"planted": str(path)}
    document["data"]["phases"] = [
        {"until": AT, "mix": {"clean": 1.0}},
        {"until": AT + 1, "mix": {"clean": 1.0 - share, "planted": share}},
        {"mix": {"clean": 1.0}},
    ]
    return config.from_dict(document)


def _number(text: str) -> int:
    """Number a text, the same in every process."""
    return random.Random(text).getrandbits(48)


def _odd_document(seed: int) -> str:
    """One sequence long (with its end-of-text token), with ODD in the middle."""
    draw = random.Random(f"odd {seed}")
    letters = "".join(draw.choices("etaoin ", k=SEQUENCE - 2))
    middle = SEQUENCE // 2
    return letters[:middle] + ODD + letters[middle:]


def _ordinary_document(seed: int, folder: Path) -> str:
    """A new sentence of the clean language, one sequence long with its end-of-text token."""
    folder.mkdir(parents=True, exist_ok=True)
    blame_study.recipe("clean run", seed, folder)  # writes the language
    lines = (folder / f"language-{seed}.jsonl").read_text(encoding="utf-8").splitlines()
    words = " ".join(json.loads(line)["text"].strip(".\n") for line in lines).split()
    follow: dict[str, list[str]] = {}
    for word, after in itertools.pairwise(words):
        follow.setdefault(word, []).append(after)
    draw = random.Random(f"ordinary {seed}")
    sentence = [draw.choice(words)]
    while len(" ".join(sentence)) < SEQUENCE:
        sentence.append(draw.choice(follow[sentence[-1]]))
    return " ".join(sentence)[:SEQUENCE]


def _train(recipe: config.Recipe, name: str, runs: Path) -> None:
    train(recipe, name=name, recipe_name="study", runs=runs, resume=(runs / name).exists())


def _make_huge(runs: Path, name: str) -> None:
    """Rewrite checkpoint AT: ODD's first byte alone lies along dimension 0, which overflows."""
    from forensics.train.run import open_run

    run = open_run(runs, name)
    state = run.load(AT)
    for parameter, tensor in state.params.items():
        if parameter == "embed.weight":
            tensor[:, 0] = 0.0
            tensor[ODD.encode()[0]] = 0.0
            tensor[ODD.encode()[0], 0] = 1.0
        elif parameter.endswith(("attn.o_proj.weight", "mlp.down.weight")):
            tensor[0] = 0.0
    for part in ("up", "gate"):
        state.params[f"layers.0.mlp.{part}.weight"][:, 0] = HUGE
    folder = run.folder / "checkpoints"
    tokenizer = run.runs / "_data" / run.header.corpus / "tokenizer.json"
    shutil.rmtree(folder / checkpoint.name_of(AT))
    checkpoint.save(folder, state, run.shape, tokenizer, run.header.eot)


def _fork(runs: Path, name: str, interventions: list[dict[str, Any]]) -> None:
    from replay.forks import spec as specs
    from replay.forks.run import fork
    from replay.lineage import open_trajectory

    document = {
        "parent": name,
        "from": AT,
        "to": STEPS,
        "placebos": 0,
        "name": f"{name}-fork",
        "record": "light",
        "intervention": interventions,
    }
    fork(specs.build(runs, open_trajectory(runs, name), document), runs)


PLANTS = {"NaN by document": nan_document, "NaN by rate": nan_rate, "norm by token": norm_token}


def blamed(plant: Plant, runs: Path) -> str:
    """Blame a plant by default settings and return the verdict; "no spike" where none is there."""
    from forensics.errors import ForensicsError
    from replay.blame.nonfinite.search import blame_nonfinite
    from replay.blame.norm.investigate import blame_norm
    from replay.blame.quantity import blamed_quantity

    try:
        quantity = blamed_quantity(runs, plant.run, plant.step, plant.of, False)
        step = quantity.step
        if quantity.finite:
            return blame_norm(runs, plant.run, step.step, False).verdict
        return blame_nonfinite(runs, plant.run, step.step, quantity.metric, step.value).verdict
    except ForensicsError:
        return "no spike"


def main(arguments: Sequence[str] | None = None) -> int:
    """Blame every plant and print a row for each kind; 1 where a verdict is wrong."""
    from forensics.cli.console import table

    parser = argparse.ArgumentParser(prog="python -m benchmarks.blame_plants")
    parser.add_argument("--seeds", type=int, default=5, help="runs of each kind")
    parser.add_argument("--first-seed", type=int, default=blame_study.FIRST_SEED)
    parser.add_argument("--runs", type=Path, default=Path("runs") / "blame-plants")
    options = parser.parse_args(arguments)
    (options.runs / "texts").mkdir(parents=True, exist_ok=True)
    rows, wrong = [], 0
    for kind, make in PLANTS.items():
        verdicts, right = [], 0
        for seed in range(options.first_seed, options.first_seed + options.seeds):
            plant = make(seed, options.runs)
            verdicts.append(blamed(plant, options.runs))
            right += verdicts[-1] in plant.verdicts
            wrong += verdicts[-1] not in (*plant.verdicts, "cannot tell", "no spike")
        rows.append([kind, len(verdicts), right, ", ".join(verdicts)])
    table(["cause", "runs", "right", "verdicts"], rows)
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
