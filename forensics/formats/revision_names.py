"""The names that public runs give their saved states, as one expression: stage, ingredient, step.

    parse("stage2-ingredient1-step3000-tokens13B")   # Revision(stage=2, ingredient=1, step=3000, …)
    known_run("EleutherAI/pythia-1.4b-v0").updates(parse("step1000"))   # 500

The number of tokens in a name is rounded, and not in one way: it is never counted with. What is
exact is step × tokens a step, for the runs whose tokens a step are known here.
Sources: the repositories' lists of branches and their READMEs, read for each run below.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

NAME = re.compile(
    r"(?:stage(?P<stage>\d{1,3})-)?"
    r"(?:ingredient(?P<ingredient>\d{1,3})-)?"
    r"step-?(?P<step>\d{1,12})"
    r"(?:-tokens(?P<tokens>\d+(?:\.\d+)?)(?P<unit>[MBT]))?"
    r"|ckpt_(?P<chunk>\d{1,6})"
    r"|checkpoint-(?P<saved>\d{1,12})"
)
UNITS = {"M": 10**6, "B": 10**9, "T": 10**12}


class Revision(NamedTuple):
    """A saved state as its name tells of it; sorted, stages and steps follow one another."""

    stage: int  # 0: none named
    ingredient: int  # of a stage that was trained several times; 0: none named
    step: int  # as its trainer counts; of a `ckpt_NNN`, the chunk
    name: str
    named_tokens: int | None = None  # rounded
    chunk: bool = False  # the step is a chunk of data (Amber)

    @property
    def stage_name(self) -> str:
        """Return stage2-ingredient1, stage1, or nothing."""
        parts = [f"stage{self.stage}"] if self.stage else []
        parts += [f"ingredient{self.ingredient}"] if self.ingredient else []
        return "-".join(parts)


def parse(name: str) -> Revision | None:
    """Read a name; None where it tells no step (main, a commit, fp32)."""
    found = NAME.fullmatch(name)
    if found is None:
        return None
    of = found.groupdict()
    step = of["step"] or of["chunk"] or of["saved"]
    tokens = round(float(of["tokens"]) * UNITS[of["unit"]]) if of["tokens"] else None
    return Revision(
        int(of["stage"] or 0),
        int(of["ingredient"] or 0),
        int(step),
        name,
        tokens,
        of["chunk"] is not None,
    )


class Revisions(NamedTuple):
    """Names in the order of training, and those that tell no step."""

    parsed: tuple[Revision, ...]
    unparsed: tuple[str, ...]


def parse_all(names: Iterable[str]) -> Revisions:
    """Read and sort names; none is dropped.

    Where some have a stage, those with none are the first stage's: OLMo 2's earliest were named
    before there were stages.
    """
    found = {name: parse(name) for name in names}
    parsed = [revision for revision in found.values() if revision is not None]
    if any(revision.stage for revision in parsed):
        parsed = [r if r.stage else r._replace(stage=1) for r in parsed]
    return Revisions(
        tuple(sorted(parsed)), tuple(sorted(name for name, r in found.items() if r is None))
    )


@dataclass(frozen=True)
class KnownRun:
    """What is known of a public run beside its names."""

    repositories: str  # an expression that the repository's name, without its owner, matches whole
    batch: int  # sequences an update; of Amber, a chunk
    sequence_length: int  # tokens trained on in each
    named_updates: int = 1  # the step that one update adds to the name
    runs_on: bool = False  # steps go on over the stages
    note: str = ""

    def updates(self, revision: Revision) -> int | None:
        """Return the updates made; None where the name says none that can be."""
        whole, rest = divmod(revision.step, self.named_updates)
        return None if rest else whole

    def tokens(self, revision: Revision) -> int | None:
        """Return the tokens read up to a state; None where a stage began to count anew."""
        updates = self.updates(revision)
        if updates is None or (revision.stage > 1 and not self.runs_on):
            return None
        return (updates + revision.chunk) * self.batch * self.sequence_length


KNOWN = (
    KnownRun(
        r"pythia-(160m|410m|1\.4b)(-deduped)?-v0",
        2048,
        2048,
        named_updates=2,
        note="its steps are named in twos: an update reads 2,048 sequences, and adds 2 to the name",
    ),
    KnownRun(r"pythia-.*", 1024, 2048),
    KnownRun(r"OLMo-1B(-hf)?", 2048, 2048),
    KnownRun(
        r"OLMo-7B(-Twin-2T)?(-hf)?",
        2160,
        2048,
        note="its names say 2,160 sequences an update (556,000 are 2,460 B tokens), its published "
        "configuration 2,048: the names count",
    ),
    KnownRun(r"OLMo-2-1124-7B", 1024, 4096),
    KnownRun(r"OLMo-2-1124-13B", 2048, 4096),
    KnownRun(r"OLMo-2-0425-1B(-early-training)?", 512, 4096),
    KnownRun(r"OLMo-2-0325-32B", 2048, 4096),
    KnownRun(r"Olmo-3-1025-7B", 512, 8192),
    KnownRun(r"Olmo-3-1125-32B", 1024, 8192),
    KnownRun(r"OLMoE-1B-7B-0924", 1024, 4096),
    KnownRun(
        r"Amber",
        1_706_976,
        2048,
        note="its states are named by chunks of data: state k has read chunks 0 to k, and steps "
        "here are chunks; the order inside a chunk is not recoverable",
    ),
    KnownRun(r"SmolLM3-3B-checkpoints", 576, 4096, runs_on=True),
)


def known_run(repository: str) -> KnownRun | None:
    """Find a public run by its repository, ORG/NAME or NAME."""
    name = repository.rpartition("/")[2]
    return next((known for known in KNOWN if re.fullmatch(known.repositories, name)), None)
