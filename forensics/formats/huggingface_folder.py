"""A Hugging Face folder: its vocabulary matrices straight from safetensors, its tokenizer, its
special ids.

No code of the folder's is run and no pickle is opened; transformers is asked only for a forward
pass, and for the few tokenizers that are not stored as a tokenizer.json.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from forensics.errors import ForensicsError, first_line
from forensics.formats.foreign_run import ForeignRun, LazyTensor
from forensics.formats.huggingface_tensors import tying_of
from forensics.formats.protocol import ForeignModel, Format
from forensics.formats.tokenizer_json import is_tokenizer_alone, tokenizer_file
from forensics.formats.weights_folder import has_weights, json_object, stored_tensors
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
OTHERS = ("config.yaml", ".metadata.json", "model_and_optim")  # of OLMo, OLMo-core, nanotron
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
    document = json_object(path)
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
    stored = stored_tensors(folder)
    family = FAMILIES.get(str(config.get("model_type")))
    embedding = stored_name(family, "embed.weight", stored) if family else None
    embedding = embedding or _first(stored, INPUTS)
    tied, output = _unembedding(stored, config, folder)
    if embedding is None and tied and family is not None:
        embedding = _first(stored, OUTPUTS)  # one tensor, under the other's name
    if embedding is None:
        raise ForensicsError(
            "data",
            f"{folder}: found no input embedding of a {config.get('model_type')} model among "
            f"{len(stored)} tensors",
            f"known names: {', '.join(INPUTS)}",
        )
    E = _matrix(stored[embedding])
    if output is None:
        return Weights(E, E, _bias(stored, "lm_head.weight"), tied=True)
    return Weights(E, _matrix(stored[output]), _bias(stored, output), tied=False)


def _unembedding(
    stored: Mapping[str, LazyTensor], config: dict[str, Any], folder: Path
) -> tuple[bool, str | None]:
    """Tell whether the model is tied, and the unembedding's name where it is not. Errors: data."""
    family = FAMILIES.get(str(config.get("model_type")))
    if family is not None:
        tied = tying_of(stored, config).tied
        return tied, None if tied else stored_name(family, "unembed.weight", stored)
    said = is_tied(config)
    text = config.get("text_config")  # of models that also read images
    if said is None and isinstance(text, dict):
        said = text.get("tie_word_embeddings")
    if said is None:
        said = _class_ties(str(config.get("model_type")))
    output = None if said else _first(stored, OUTPUTS)
    if output is None and said is False:
        raise ForensicsError(
            "data",
            f"{folder}: config.json says the embeddings are not tied, found no unembedding",
            f"is it complete? known names: {', '.join(OUTPUTS)}",
        )
    return output is None, output


def _class_ties(kind: str) -> bool | None:
    """Ask transformers for a class's own default; None where it has none."""
    from transformers import AutoConfig

    try:
        said = getattr(AutoConfig.for_model(kind), "tie_word_embeddings", None)
    except Exception:  # whatever a class of transformers raises without its other packages
        return None
    return said if isinstance(said, bool) else None


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
    config = json_object(path)
    declared = [config.get(name) for name in NAMED]
    for name in ("additional_special_tokens", "extra_special_tokens"):  # a list, or name → token
        more = config.get(name) or []
        declared += more.values() if isinstance(more, dict) else more
    spelled = [n.get("content") if isinstance(n, dict) else n for n in declared]
    ids = (tokenizer.token_to_id(n) for n in spelled if isinstance(n, str))
    return frozenset(id for id in ids if id is not None)


def _first(stored: Mapping[str, LazyTensor], names: tuple[str, ...]) -> str | None:
    return next((p + n for n in names for p in PREFIXES if p + n in stored), None)


def _matrix(stored: LazyTensor) -> Tensor:
    if len(stored.shape) != 2:
        raise ForensicsError(
            "data",
            f"{stored.stored_name}: wanted a matrix, found shape {stored.shape}",
            "is it another model's?",
        )
    # cloned, for the bits of a product may depend on how the file's bytes happen to lie in memory
    return stored.read().float().clone()


def _bias(stored: Mapping[str, LazyTensor], output: str) -> Tensor | None:
    name = output.removesuffix("weight") + "bias"
    return stored[name].read().float().clone().reshape(-1) if name in stored else None


def _near(name: str, known: Iterable[str]) -> str:
    """Return the known name that is closest; all of them would be hundreds."""
    import difflib

    match = difflib.get_close_matches(name, list(known), n=1)
    return (
        f"did you mean {match[0]!r}?" if match else "neither this project nor transformers knows it"
    )


def is_folder(path: Path) -> bool:
    """Tell whether it is a model's folder, one of several, or one that looks like it.

    What is not whole is recognised too, so that reading it says what it lacks; another trainer's
    configuration beside the weights (config.yaml, .metadata.json) is not.
    """
    from forensics.formats.huggingface_run import is_run

    if not path.is_dir() or is_tokenizer_alone(path):
        return False
    if any((path / name).exists() for name in OTHERS):
        return False
    return (path / "config.json").is_file() or has_weights(path) or is_run(path)


def read(folder: Path) -> ForeignModel:
    """Read a Hugging Face folder. Errors: missing, data."""
    from forensics.model.forward import of_folder

    config = read_config(folder)
    tokenizer = read_tokenizer(folder)
    weights = read_weights(folder, config)
    special = special_ids(folder, tokenizer)
    note = tying_of(stored_tensors(folder), config).note
    notes = (note,) if note else ()
    return ForeignModel(tokenizer, special, weights, lambda: of_folder(folder), notes)


def read_as_run(path: Path) -> ForeignRun:
    """Read a model, or a folder or cached repository of its revisions. Errors: missing, data."""
    from forensics.formats.huggingface_run import read_run

    return read_run(path)


FORMAT = Format(
    "folder",
    "a Hugging Face folder",
    is_folder,
    read,
    read_as_run,
    "a folder with config.json (model_type) beside *.safetensors, a folder of such folders, or "
    "models--ORG--NAME of Hugging Face's cache",
    takes_any_folder=True,
)
