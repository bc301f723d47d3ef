"""What trainers call their metrics, and from which number they count steps.

Names are compared without case and marks: `train/CE loss`, `train_ce_loss` are one. A trainer is
recognised by names that it alone writes; from it follows which batch a logged step is.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

# of our names, those that other trainers give them, the surest first
NAMES = {
    "loss": (
        *("train crossentropyloss", "train ce loss", "loss metrics global avg loss", "lm loss"),
        *("train lm loss", "lm loss training lm loss", "loss", "train loss", "training loss"),
        *("loss train", "train nll", "trl", "tr loss"),
    ),
    "grad_norm": (
        *("optim total grad norm", "grad norm", "train grad norm", "grad norm total"),
        *("loss grad norm", "grad norm grad norm", "gradient norm", "norm"),
        *("train gradient norm", "global grad norm", "train global grad norm"),
    ),
    "lr": (
        *("optim learning rate group0", "optim lr group 0", "learning rate", "lr"),
        *("train learning rate", "train lr", "optim learning rate", "optim lr"),
        *("learning rate learning rate", "lr group 0", "lr adamw"),
    ),
    "z_loss": ("train zloss", "train z loss", "z loss", "zloss"),
    "tokens": (
        *("throughput total tokens", "total tokens", "tokens", "consumed tokens", "n tokens seen"),
        *("num tokens", "num input tokens seen", "train num input tokens seen", "tokens seen"),
        *("consumed train tokens", "lm loss training consumed train tokens"),
    ),
}

# columns that count steps, the surest first; a tracker's own counter comes last
STEP_NAMES = (
    *("step", "iter", "iteration", "trainer global step", "global step", "train global step"),
    *("iteration step", "iterations", "steps", "update", "num updates", "train step"),
    *("train iter", "lm loss training iteration", "s", "_step"),
)


@dataclass(frozen=True)
class Trainer:
    """How one trainer logs."""

    kind: str  # as the readers of its runs are called
    title: str
    step_base: int  # a value logged at n is batch n − step_base
    marks: tuple[tuple[str, ...], ...]  # it is this one where all names of one of these are there
    note: str = ""  # what its logged loss is, where that is not the loss of the step


TRAINERS = (
    # allenai/OLMo olmo/train.py: the step is counted up before it is logged
    Trainer("olmo", "OLMo", 1, (("train crossentropyloss",),)),
    # allenai/OLMo-core train/trainer.py: likewise
    Trainer("olmo_core", "OLMo-core", 1, (("train ce loss",),)),
    # pytorch/torchtitan train.py: likewise
    Trainer("torchtitan", "torchtitan", 1, (("loss metrics global avg loss",),)),
    # NVIDIA/Megatron-LM training.py, `training_log(…, iteration)` after `iteration += 1`
    Trainer(
        "megatron_core",
        "Megatron",
        1,
        (("lm loss", "learning rate"), ("lm loss", "loss scale"), ("lm loss training lm loss",)),
    ),
    # EleutherAI/gpt-neox megatron/training.py: likewise
    Trainer("neox", "GPT-NeoX", 1, (("train lm loss",),)),
    # huggingface/nanotron trainer.py: iteration_step counts from 1
    Trainer("nanotron", "nanotron", 1, (("lm loss", "consumed tokens"),)),
    # huggingface/transformers trainer.py: global_step is counted up before it is logged
    Trainer(
        "transformers",
        "Hugging Face's Trainer",
        1,
        (("train global step",), ("train loss", "train learning rate", "train epoch")),
        "its loss is the mean of the steps since the row before",
    ),
    # karpathy/nanoGPT train.py
    Trainer(
        "nanogpt",
        "nanoGPT",
        0,
        (("iter", "train loss", "val loss"),),
        "its loss is an estimate over random batches at this state, not the loss of the step",
    ),
    # karpathy/nanochat scripts/base_train.py
    Trainer(
        "nanochat",
        "nanochat",
        0,
        (("train loss", "train lrm"),),
        "its loss is a moving average: a spike of few steps is smoothed away",
    ),
    # written by `forensics train --log-to`
    Trainer("forensics", "this workbench", 0, (("loss", "clip scale", "schedule", "updates"),)),
)


def plain_name(name: str) -> str:
    """Return a metric's name without case and marks; a leading underscore stays."""
    words = re.sub(r"[^a-z0-9]+", " ", name.lower()).strip()
    return f"_{words}" if name.startswith("_") else words


def columns_of(names: Iterable[str]) -> dict[str, str]:
    """Find which of a log's names are our loss, grad_norm, lr, z_loss and tokens."""
    plain: dict[str, str] = {}
    for name in names:
        plain.setdefault(plain_name(name), name)
    found = {}
    for column, known in NAMES.items():
        match = next((plain[name] for name in known if name in plain), None)
        if match is not None:
            found[column] = match
    return found


def trainer_of(names: Iterable[str]) -> Trainer | None:
    """Recognise the trainer by the names of its metrics; None: they could be anybody's."""
    plain = {plain_name(name) for name in names}
    return next(
        (
            trainer
            for trainer in TRAINERS
            if any(plain.issuperset(marks) for marks in trainer.marks)
        ),
        None,
    )


def trainer_called(kind: str) -> Trainer | None:
    """Return the trainer whose runs a reader of this kind reads, if its counting is known."""
    return next((trainer for trainer in TRAINERS if trainer.kind == kind), None)
