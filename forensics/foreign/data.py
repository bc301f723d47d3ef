"""The data and the order of a run made elsewhere: its token files linked, its batches known or not.

bring_in(foreign, options, recipe, shape, Path("runs"))  → ImportedData

A model alone has none; text given with --data is then tokenised by its own tokenizer, and its
batches are drawn here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import xxhash

from forensics import config
from forensics.data.batches import own_stream
from forensics.data.foreign_order import order_of
from forensics.data.linked_corpus import bring_in_corpus, located
from forensics.data.made_elsewhere import ForeignOrder, ReadSoFar, TokenFiles
from forensics.data.shards import Corpus
from forensics.data.shuffled_documents import RULES
from forensics.data.token_files.description import described, row_length
from forensics.data.tokenize import prepare
from forensics.errors import ForensicsError
from forensics.foreign.options import ImportOptions
from forensics.foreign.recipe import says
from forensics.formats.foreign_run import ForeignCheckpoint, ForeignRun
from forensics.model.shape import Shape
from forensics.progress import ProgressCallback
from forensics.store.writer import write_atomic
from forensics.train.create import corpus_rows
from forensics.train.origin import absolute

NO_EOT = -1  # no id ends a document, as far as is known
DATA = "_data"  # of a folder of runs: what its corpora are made of
UNINDEXED = (
    "its order depends on the seed, on how many samples it asked for and on which documents its"
    " split holds, which are not all known; --order FILE, one of the three index maps that its"
    " trainer wrote"
)


@dataclass(frozen=True, eq=False)
class ImportedData:
    """What an imported run reads, as far as it is known here."""

    recipe: config.Recipe  # with the keys that say where data and order are
    corpus: Corpus | None = None  # None: its data is not here
    order: Literal["known", "unknown"] = "unknown"
    order_why: str = ""
    order_fingerprint: str = ""  # empty: no batch is known
    sources: tuple[dict[str, Any], ...] = ()  # as a header lists them
    files: tuple[str, ...] = ()
    tokenizer: str = ""
    eot: int = NO_EOT
    notes: tuple[str, ...] = ()


def bring_in(
    foreign: ForeignRun,
    options: ImportOptions,
    checkpoints: Sequence[ForeignCheckpoint],
    recipe: config.Recipe,
    shape: Shape,
    runs: Path,
    progress: ProgressCallback,
) -> ImportedData:
    """Bring in data and order. Errors: missing, data, usage, config, storage."""
    tokenizer = _tokenizer(foreign, options, runs)
    bare = ImportedData(recipe, tokenizer=tokenizer, eot=_eot(foreign))
    places = [Path(place).expanduser() for place in options.data]
    tokens = foreign.tokens or described(places)
    if tokens is None:
        if options.data:
            return _text(bare, options, shape, runs, progress)
        return _without(bare, options, "no token files are known; --data PATH gives them")
    tokens = _of_dtype(tokens, options)
    end = foreign.configuration.get("eos_token_id")
    if tokens.eot is None and isinstance(end, int):  # of a model's own config.json
        tokens = dataclasses.replace(tokens, eot=end)
        bare = dataclasses.replace(bare, eot=end)
    try:
        tokens = located(tokens, places)
    except ForensicsError as e:
        if places or e.kind != "missing":
            raise
        return _without(bare, options, f"{e.message}; --data PATH says where they lie now")
    row = row_length(tokens)
    T = recipe.data.sequence_length if says(foreign, options, "data", "sequence_length") else None
    rows = row is not None and T in (None, row - 1)  # each is a training sample
    if rows and row is not None:
        recipe = _with_data(recipe, sequence_length=row - 1, window="separate")
    elif T is None:
        raise ForensicsError(
            "usage",
            "wanted the length of its sequences, found none in its configuration",
            "--sequence-length T",
        )
    bare = dataclasses.replace(bare, recipe=recipe)
    order = ForeignOrder("rows") if rows else _order(foreign, options)
    corpus = bring_in_corpus(
        dataclasses.replace(tokens, tokenizer="bytes") if tokenizer == "bytes" else tokens,
        recipe.data.sequence_length,
        recipe.data.window,
        shape.vocabulary,
        runs,
        Path(tokenizer) if tokenizer not in ("", "bytes") else None,
        progress,
        order,
    )
    linked = dataclasses.replace(
        bare, corpus=corpus, files=tokens.paths, sources=tuple(corpus_rows(corpus, recipe.data))
    )
    return _ordered(linked, order, foreign, options, checkpoints, progress)


def _order(foreign: ForeignRun, options: ImportOptions) -> ForeignOrder:
    """Return what is known of the order. Megatron's kind depends on more than a seed."""
    order = foreign.order or ForeignOrder("unknown", why_unknown="its configuration names no order")
    if options.order is not None:
        rule = "file" if order.rule == "unknown" else order.rule
        order = dataclasses.replace(order, rule=rule, file=options.order.expanduser())
    if order.rule in RULES and None in (order.seed, order.samples, order.documents):
        return order if order.file is not None else ForeignOrder("unknown", why_unknown=UNINDEXED)
    return order


def _ordered(
    linked: ImportedData,
    order: ForeignOrder,
    foreign: ForeignRun,
    options: ImportOptions,
    checkpoints: Sequence[ForeignCheckpoint],
    progress: ProgressCallback,
) -> ImportedData:
    """Find the order in which the data was read. Errors: data, missing, storage."""
    recipe, corpus = linked.recipe, linked.corpus
    assert corpus is not None, "an order is of a corpus"
    if not says(foreign, options, "train", "batch"):
        why = "how many sequences a step reads is not known; --batch B gives it"
        return dataclasses.replace(linked, order_why=why)
    made = order_of(
        order,
        corpus,
        recipe.data.sequence_length,
        recipe.data.window,
        recipe.train.batch,
        recipe.train.steps,
        [ReadSoFar(c.step, c.sequences, c.epoch) for c in checkpoints if c.sequences is not None],
        progress,
    )
    if not made.known:
        return dataclasses.replace(linked, order_why=" ".join(made.notes))
    recipe = _with_data(recipe, order_file=made.order_file)
    stream = own_stream(corpus, recipe.data, recipe.train)
    return dataclasses.replace(
        linked,
        recipe=recipe,
        order="known",
        order_fingerprint=stream.order.fingerprint,
        notes=(*linked.notes, *made.notes),
    )


def _text(
    bare: ImportedData,
    options: ImportOptions,
    shape: Shape,
    runs: Path,
    progress: ProgressCallback,
) -> ImportedData:
    """Tokenise a text for a model alone; its batches are drawn here. Errors: usage, data, …"""
    if len(options.data) > 1:
        raise ForensicsError(
            "usage",
            f"wanted one source of text, found {len(options.data)}",
            "a folder that holds them all",
        )
    if not bare.tokenizer:
        raise ForensicsError(
            "missing",
            f"wanted a tokenizer for the text in {options.data[0]}, found none beside the model",
            "--tokenizer PATH of its tokenizer.json",
        )
    for flag, value in (("--order", options.order), ("--dtype", options.dtype)):
        if value is not None:
            raise ForensicsError(
                "usage", f"wanted token files for {flag}, found text", f"leave {flag} out"
            )
    recipe = _with_data(bare.recipe, source=options.data[0], tokenizer=bare.tokenizer)
    corpus = prepare(
        recipe.data, runs, recipe.train.seed, lambda done, total: progress(done, total, "reading")
    )
    if corpus.vocabulary > shape.vocabulary:
        raise ForensicsError(
            "data",
            f"wanted a tokenizer of at most {shape.vocabulary} ids, which the model has, found"
            f" {corpus.vocabulary}",
            "give the model's own tokenizer",
        )
    stream = own_stream(corpus, recipe.data, recipe.train)
    return dataclasses.replace(
        bare,
        recipe=recipe,
        corpus=corpus,
        order="known",
        order_fingerprint=stream.order.fingerprint,
        sources=tuple(corpus_rows(corpus, recipe.data)),
        files=(options.data[0],),
        eot=corpus.eot,
        notes=("its batches are drawn here from the text that was given, by train.seed",),
    )


def _without(bare: ImportedData, options: ImportOptions, why: str) -> ImportedData:
    """Return no data, and why. Errors: usage, for a flag that needs some."""
    if options.order is not None:
        raise ForensicsError(
            "usage", f"--order: wanted the data that it is of, found none: {why}", "--data PATH"
        )
    return dataclasses.replace(bare, order_why=why)


def _tokenizer(foreign: ForeignRun, options: ImportOptions, runs: Path) -> str:
    """Return bytes, the path of a tokenizer.json, or nothing. Errors: missing."""
    if options.tokenizer in (None, ""):
        if foreign.tokenizer is not None:
            return absolute(foreign.tokenizer)
        if foreign.tokenizer_text and options.data:
            return _written(foreign.tokenizer_text, runs)
        return "bytes" if foreign.tokens and foreign.tokens.tokenizer == "bytes" else ""
    assert options.tokenizer is not None, "asked above"
    if options.tokenizer == "bytes":
        return "bytes"
    path = Path(options.tokenizer).expanduser()
    path = path / "tokenizer.json" if path.is_dir() else path
    if not path.is_file():
        raise ForensicsError(
            "missing", f"--tokenizer: wanted bytes or a tokenizer.json, found none at {path}", ""
        )
    return absolute(path)


def _written(text: str, runs: Path) -> str:
    """Write a tokenizer that lay in the weights' own file, under the hash of its text."""
    data = text.encode()
    path = runs / DATA / f"tokenizer-{xxhash.xxh3_128_hexdigest(data)}.json"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, data)
    return absolute(path)


def _eot(foreign: ForeignRun) -> int:
    known = foreign.tokens.eot if foreign.tokens else None
    return NO_EOT if known is None else known


def _of_dtype(tokens: TokenFiles, options: ImportOptions) -> TokenFiles:
    if options.dtype is None:
        return tokens
    if tokens.kind not in ("bare", "datatrove"):
        raise ForensicsError(
            "usage",
            f"--dtype: wanted bare token files, found {tokens.kind} files, which say it themselves",
            "leave it out",
        )
    return dataclasses.replace(tokens, dtype=options.dtype)


def _with_data(recipe: config.Recipe, **keys: Any) -> config.Recipe:
    return dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, **keys))
