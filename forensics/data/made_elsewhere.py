"""Token files and an order that another trainer made: what its configuration says of them.

Readers of forensics.formats fill these in; forensics.data.linked_corpus and
forensics.data.foreign_order make a corpus and an order of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

# bare: token ids and nothing else; numpy: a real .npy; megatron: .bin with an .idx beside it;
# datatrove: .ds with its .index; jsonl: {"token_ids": […]} a line
TokenFileKind = Literal["bare", "numpy", "megatron", "datatrove", "jsonl"]


@dataclass(frozen=True)
class TokenFiles:
    """The token files that a run read, as its configuration names them, in their order."""

    paths: tuple[str, ...]
    kind: TokenFileKind
    dtype: str | None = None  # uint16, uint32, …; None: the configuration does not say
    eot: int | None = None  # id that ends a document
    tokenizer: str | None = None  # as the configuration names it; "bytes": ids 0 … 255 are bytes
    # the files are one stream, cut anywhere (Pythia's shards); else no sequence crosses files
    joined: bool = False
    # tokens of each file beyond a multiple of it are not read (OLMo-core's
    # max_target_sequence_length, where it is longer than a sequence)
    multiple: int = 1


@dataclass(frozen=True)
class ReadSoFar:
    """How much of its order a run had read at a saved state, as its trainer's state says it."""

    step: int  # the state
    sequences: int  # of its epoch's order
    epoch: int | None = None  # as its trainer counts; None: it does not say


@dataclass(frozen=True)
class ForeignOrder:
    """How batches are drawn from the sequences; or why that is not known.

    `rule` names a function of forensics.data.foreign_order; "file" reads ids from a file alone.
    """

    rule: str  # olmo | olmo_core | rows (as they lie) | neox | megatron | file | unknown
    seed: int | None = None
    epoch: int = 0  # the first one, as its trainer counts
    # ids as the trainer wrote them: of `epoch`, or of the epoch that `file_epoch` says
    file: Path | None = None
    why_unknown: str = ""  # a sentence, where rule is unknown
    still_known: str = ""  # what is known all the same
    file_epoch: int | None = None
    dtype: str = "uint32"  # of `file`, where it is a bare memory map
    chunk: int = 1  # olmo_core: sequences that stay together
    world_size: int = 1  # olmo: the order's length is made a multiple of it
    drop_last: bool = True  # olmo: by leaving the tail out; else by repeating the order's start
    rank_logs: tuple[Path, ...] = ()  # data-indices/rankR.tsv.gz, of all ranks
    # neox, megatron: the documents of the split that was trained on, [first, last); None: all
    documents: tuple[int, int] | None = None
    samples: int | None = None  # neox, megatron: that the index was asked for; None: steps × batch
