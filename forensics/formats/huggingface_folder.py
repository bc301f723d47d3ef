"""A Hugging Face folder: its vocabulary matrices straight from safetensors, its tokenizer, its
special ids.

No code of the folder's is run and no pickle is opened; transformers is asked only for a forward
pass, and for the few tokenizers that are not stored as a tokenizer.json.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from forensics.errors import ForensicsError, first_line
from forensics.formats.protocol import ForeignModel, Format
from forensics.formats.tokenizer_json import is_tokenizer_alone, tokenizer_file
from forensics.model.families import FAMILIES
from forensics.model.hugging_face import is_tied, stored_name
from forensics.model.vocabulary_matrices import Weights

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from torch import Tensor

# Names under which architectures keep the two matrices, after any of the prefixes.
PREFIXES = (
    "",
    "model.",
    "transformer.",
    "model.language_model.",
    "language_model.model.",
    "language_model.",
    "model.transformer.",
    "gpt_neox.",
    "backbone.",
    "decoder.",
    "model.decoder.",
)
INPUTS = (
    "embed_tokens.weight",
    "wte.weight",
    "embed_in.weight",
    "word_embeddings.weight",
    "tok_embeddings.weight",
    "embeddings.weight",
    "embedding.weight",
)
OUTPUTS = ("lm_head.weight", "embed_out.weight", "output.weight", "ff_out.weight")
OLD_TOKENIZERS = (
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
)
NAMED = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")


def read_config(folder: Path) -> dict[str, Any]:
    """config.json. Errors: missing, data (not JSON, or an architecture nobody here knows)."""
    path = folder / "config.json"
    if not path.is_file():
        raise ForensicsError(
            "missing",
            f"wanted a Hugging Face folder, found no config.json in {folder}",
            "give the folder that holds the weights, or RUN@STEP",
        )
    document = _json(path)
    kind = document.get("model_type")
    if kind not in FAMILIES:
        from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

        if kind not in CONFIG_MAPPING_NAMES:
            raise ForensicsError(
                "data",
                f"{folder}: unknown architecture {kind!r}",
                _near(str(kind), CONFIG_MAPPING_NAMES)
                if kind
                else "its config.json names no model_type",
            )
    return document


def read_weights(folder: Path, config: dict[str, Any]) -> Weights:
    """Input embedding, unembedding and LM-head bias in float32. Errors: missing, data."""
    stored = _stored(folder)
    family = FAMILIES.get(str(config.get("model_type")))
    embedding = stored_name(family, "embed.weight", stored) if family else None
    embedding = embedding or _first(stored, INPUTS)
    if embedding is None:
        raise ForensicsError(
            "data",
            f"{folder}: found no input embedding of a {config.get('model_type')} model among "
            f"{len(stored)} tensors",
            f"known names: {', '.join(INPUTS)}",
        )
    tied = is_tied(config, stored)
    text = config.get("text_config")  # of models that also read images
    if tied is None and isinstance(text, dict):
        tied = text.get("tie_word_embeddings")
    output = stored_name(family, "unembed.weight", stored) if family else None
    output = None if tied else output or _first(stored, OUTPUTS)
    if output is None and tied is False:
        raise ForensicsError(
            "data",
            f"{folder}: config.json says the embeddings are not tied, found no unembedding",
            f"is it complete? known names: {', '.join(OUTPUTS)}",
        )
    E = _tensor(stored, embedding)
    if output is None:
        return Weights(E, E, _bias(stored, "lm_head.weight"), tied=True)
    return Weights(E, _tensor(stored, output), _bias(stored, output), tied=False)


def read_tokenizer(folder: Path) -> Tokenizer:
    """Return the folder's tokenizer. Errors: missing, data."""
    path = folder / "tokenizer.json"
    if path.is_file():
        return tokenizer_file(path)
    if not any((folder / name).is_file() for name in OLD_TOKENIZERS):
        raise ForensicsError(
            "missing",
            f"wanted a tokenizer in {folder}, found no tokenizer.json",
            "copy the tokenizer's files beside the weights",
        )
    from transformers import AutoTokenizer

    try:
        loaded = AutoTokenizer.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=False
        )
        return loaded.backend_tokenizer
    except Exception as e:  # transformers raises what its converters raise
        raise ForensicsError(
            "data",
            f"{folder}: transformers cannot read its tokenizer: {first_line(e)}",
            "save it as a tokenizer.json",
        ) from None


def special_ids(folder: Path, tokenizer: Tokenizer) -> frozenset[int]:
    """Ids that tokenizer_config.json names as special, beside those that the tokenizer marks
    itself.
    """
    path = folder / "tokenizer_config.json"
    if not path.is_file():
        return frozenset()
    config = _json(path)
    declared = [config.get(name) for name in NAMED]
    declared += config.get("additional_special_tokens") or config.get("extra_special_tokens") or []
    spelled = [n.get("content") if isinstance(n, dict) else n for n in declared]
    ids = (tokenizer.token_to_id(n) for n in spelled if isinstance(n, str))
    return frozenset(id for id in ids if id is not None)


def _stored(folder: Path) -> dict[str, Path]:
    """Every tensor's name and the file it lies in."""
    from safetensors import SafetensorError, safe_open

    files = [f for f in sorted(folder.glob("*.safetensors")) if f.name != "optimizer.safetensors"]
    if not files:
        raise ForensicsError(
            "missing",
            f"wanted *.safetensors in {folder}, found none",
            "convert the weights to safetensors",
        )
    file_of = {}
    for file in files:
        try:
            with safe_open(file, framework="pt") as opened:
                file_of.update(dict.fromkeys(opened.keys(), file))
        except (SafetensorError, OSError) as e:
            raise ForensicsError(
                "data", f"{file.name} cannot be read: {first_line(e)}", "is it complete?"
            ) from None
    return file_of


def _first(stored: dict[str, Path], names: tuple[str, ...]) -> str | None:
    return next((p + n for n in names for p in PREFIXES if p + n in stored), None)


def _tensor(stored: dict[str, Path], name: str) -> Tensor:
    from safetensors import safe_open

    with safe_open(stored[name], framework="pt") as opened:
        # cloned, for the bits of a product may depend on how the file's bytes happen to lie in
        # memory
        tensor = opened.get_tensor(name).float().clone()
    if tensor.ndim != 2:
        raise ForensicsError(
            "data",
            f"{name}: wanted a matrix, found shape {tuple(tensor.shape)}",
            "is it another model's?",
        )
    return tensor


def _bias(stored: dict[str, Path], output: str) -> Tensor | None:
    from safetensors import safe_open

    name = output.removesuffix("weight") + "bias"
    if name not in stored:
        return None
    with safe_open(stored[name], framework="pt") as opened:
        return opened.get_tensor(name).float().reshape(-1)


def _json(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as e:
        raise ForensicsError(
            "data", f"{path} cannot be read: {first_line(e)}", "is it complete?"
        ) from None
    if not isinstance(document, dict):
        raise ForensicsError(
            "data",
            f"{path}: wanted a JSON object, found {type(document).__name__}",
            "is it complete?",
        )
    return document


def _near(name: str, known: Iterable[str]) -> str:
    """Return the known name that is closest; all of them would be hundreds."""
    import difflib

    match = difflib.get_close_matches(name, list(known), n=1)
    return (
        f"did you mean {match[0]!r}?" if match else "neither this project nor transformers knows it"
    )


def is_folder(path: Path) -> bool:
    """Tell whether it is a folder that is not a tokenizer alone."""
    return path.is_dir() and not is_tokenizer_alone(path)


def read(folder: Path) -> ForeignModel:
    """Read a Hugging Face folder. Errors: missing, data."""
    from forensics.model.forward import of_folder

    config = read_config(folder)
    tokenizer = read_tokenizer(folder)
    weights = read_weights(folder, config)
    special = special_ids(folder, tokenizer)
    return ForeignModel(tokenizer, special, weights, lambda: of_folder(folder))


FORMAT = Format("folder", "a Hugging Face folder", is_folder, read)
