"""Create a run's folder, header and corpus, or open a run that is to go on."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

from forensics import config, identity
from forensics.data.batches import own_stream
from forensics.data.shards import Corpus
from forensics.data.tokenize import prepare
from forensics.errors import ForensicsError
from forensics.model.knobs import shape_of
from forensics.model.shape import parameter_shapes
from forensics.progress import ProgressCallback
from forensics.recipe_conflicts import refuse_sparse_steps
from forensics.store.writer import link_table
from forensics.train.header import Header, now, write_header
from forensics.train.optimizer import require_patterns
from forensics.train.run import (
    Run,
    check_compiler,
    current_fingerprint,
    enable_determinism_for,
    open_run,
)


def create(
    recipe: config.Recipe,
    name: str,
    recipe_name: str,
    runs: Path,
    arguments: list[str],
    preparing: ProgressCallback,
) -> Run:
    """Create a run's folder, header and corpus from its recipe, and open it.

    Errors: config, data, device, missing, storage.
    """
    refuse_sparse_steps(recipe)
    device = identity.device_for(recipe.train.device)
    precision = identity.precision_for(recipe.train.precision, device)
    threads = identity.thread_count(recipe.train.threads)
    enable_determinism_for(device, threads)
    check_compiler(device, recipe.train.compile)  # before anything is written
    corpus = prepare(
        recipe.data, runs, recipe.train.seed, lambda done, total: preparing(done, total, "")
    )
    shape = shape_of(recipe.model, corpus.vocabulary, recipe.data.sequence_length)
    batches = own_stream(corpus, recipe.data, recipe.train)
    parameters = parameter_shapes(shape)
    require_patterns(parameters, recipe.train.undecayed)
    sizes = [math.prod(size) for size in parameters.values()]
    fingerprint = current_fingerprint(recipe, device, precision, threads)
    header = Header(
        name=name,
        recipe=recipe_name,
        config=_as_json(recipe),
        first_step=0,
        steps=recipe.train.steps,
        corpus=corpus.hash,
        corpus_sources=corpus_rows(corpus, recipe.data),
        order=batches.order.fingerprint,
        shape=dataclasses.asdict(shape),
        parameters=sum(sizes),
        eot=corpus.eot,
        device=device,
        precision=precision,
        threads=threads,
        fingerprint=fingerprint,
        arguments=arguments,
        created=now(),
        git_commit=fingerprint["git_commit"],
    )
    write_header(runs, header)
    link_table(runs / name, "documents", corpus.documents_file)
    return open_run(runs, name)


def reopen(runs: Path, name: str, recipe: config.Recipe) -> Run:
    """Open a run that is to go on, under the recipe it was started with.

    Errors: config (another recipe), missing, integrity.
    """
    run = open_run(runs, name)
    run.corpus.require_intact()
    # through the recipe: a key of a later version of this software then has its default
    before, after = (_as_json(run.recipe), _as_json(recipe))
    changed = config.differences(before, after)
    if changed:
        key, (old, new) = next(iter(changed.items()))
        raise ForensicsError(
            "config",
            f"{name} was started with {key} = {old!r}, found {new!r}",
            "resume with the recipe it was started with, or start another run with --name",
        )
    return run


def corpus_rows(corpus: Corpus, data: config.Data) -> list[dict[str, Any]]:
    """Return what a header lists of each source of its corpus. Errors: data."""
    layout = corpus.layout(data.cut)
    return [
        {
            "source": source.name,
            "first_sequence": first,
            "sequences": sequences,
            "tokens": source.tokens,
        }
        for source, first, sequences in zip(
            corpus.sources, layout.first_sequence, layout.n_sequences
        )
    ]


def _as_json(recipe: config.Recipe) -> dict[str, Any]:
    """Return the recipe as JSON gives it back: lists for tuples."""
    return json.loads(json.dumps(config.to_dict(recipe)))
