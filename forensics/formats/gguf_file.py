"""A GGUF file: its vocabulary matrices, dequantised, with the step of their quantisation, and its
tokenizer.

The tokenizer is built from the file's own metadata: byte-level BPE ("gpt2") by its merges and the
way of splitting that `tokenizer.ggml.pre` names; sentencepiece's ("llama") by its scores, with
bytes to fall back on. transformers (5.23) reads GGUF files too, but splits every byte-level one as
GPT-2 does: of SmolLM2 it encodes spaces before a digit otherwise than its own tokenizer.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from forensics.errors import ForensicsError, nearest
from forensics.formats.protocol import ForeignModel, Format
from forensics.model.vocabulary_matrices import Weights

if TYPE_CHECKING:
    from gguf import GGUFReader, ReaderTensor
    from tokenizers import Tokenizer

    from forensics.formats.foreign_run import ForeignRun

MAGIC = b"GGUF"
CONTROL, USER_DEFINED = 3, 4  # of tokenizer.ggml.token_type
STEP_FIRST = (
    "Q4_0",
    "Q4_1",
    "Q5_0",
    "Q5_1",
    "Q8_0",
)  # kinds whose blocks of 32 begin with their step as a float16
PLAIN = ("F32", "F16", "BF16", "F64")

_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_SUFFIXES = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
# What the names in `tokenizer.ggml.pre` split by, before bytes are merged.
SPLITS: dict[str, str] = {
    **dict.fromkeys(
        ("gpt-2", "gpt2", "mpt", "olmo", "jais", "granite", "trillion", "phi-2"), "gpt2"
    ),
    **dict.fromkeys(
        ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"),
        "digits",
    ),
    **dict.fromkeys(("llama3", "llama-v3", "llama-bpe", "falcon3", "dbrx", "smaug-bpe"), "llama3"),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "stablelm2", "hunyuan"), "qwen2"),
}


@dataclass(frozen=True, eq=False)
class Gguf:
    """What the indicators need of a file; `notes` tell what was assumed."""

    architecture: str
    weights: Weights
    tokenizer: Tokenizer
    notes: tuple[str, ...]


def is_gguf(path: Path) -> bool:
    """Tell whether a file begins as GGUF files do."""
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def opened(path: Path) -> GGUFReader:
    """Open a whole file of a known architecture. Errors: data."""
    import gguf

    if not is_gguf(path):
        raise ForensicsError(
            "data",
            f"wanted a GGUF file, found {path.name}, which does not begin with GGUF",
            "is it another format, or a pointer file that was never fetched?",
        )
    try:
        reader = gguf.GGUFReader(path)
        complete = all(t.data_offset + t.n_bytes <= path.stat().st_size for t in reader.tensors)
    except Exception as e:  # whatever numpy says of bytes that are not there
        raise _cut_short(path, str(e)) from None
    if not complete or not reader.tensors:
        raise _cut_short(
            path, "its tensors reach beyond its end" if reader.tensors else "it holds no tensor"
        )
    architecture = str(value(reader, "general.architecture"))
    architectures = {name for name in gguf.MODEL_ARCH_NAMES.values() if name}
    if architecture not in architectures:
        raise ForensicsError(
            "data",
            f"{path.name}: unknown architecture {architecture!r}",
            nearest(architecture, architectures)[:120],
        )
    return reader


def read_file(path: Path) -> Gguf:
    """Errors: data, for a file that is none, is cut short, or whose architecture, tokenizer or
    quantisation is unknown.
    """
    reader = opened(path)
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    weights = _weights(tensors, path)
    tokenizer, notes = tokenizer_of(reader, path)
    return Gguf(str(value(reader, "general.architecture")), weights, tokenizer, notes)


def _cut_short(path: Path, why: str) -> ForensicsError:
    return ForensicsError(
        "data",
        f"{path.name} is no whole GGUF file: {why}"[:200],
        "fetch it again and compare its size",
    )


def value(reader: GGUFReader, key: str, default: Any = None) -> Any:
    """Return one entry of the metadata."""
    field = reader.fields.get(key)
    return default if field is None else field.contents()


def _weights(tensors: dict[str, ReaderTensor], path: Path) -> Weights:
    if "token_embd.weight" not in tensors:
        raise ForensicsError(
            "data",
            f"{path.name}: wanted the tensor token_embd.weight, found none of that name",
            "is it a language model, and its first part?",
        )
    output = tensors.get("output.weight")
    embedding = dequantised(tensors["token_embd.weight"], path)
    unembedding = embedding if output is None else dequantised(output, path)
    bias = (
        dequantised(tensors["output.bias"], path).reshape(-1) if "output.bias" in tensors else None
    )
    grain = quantisation_steps(output or tensors["token_embd.weight"], unembedding)
    return Weights(embedding, unembedding, bias, output is None, grain)


def dequantised(tensor: ReaderTensor, path: Path) -> Tensor:
    """Return a tensor's numbers in float32. Errors: data."""
    from gguf import dequantize

    try:
        values = dequantize(tensor.data, tensor.tensor_type)
    except (NotImplementedError, ValueError) as e:
        raise ForensicsError(
            "data",
            f"{path.name}: {tensor.name} is {tensor.tensor_type.name}: {e or 'not read here'}",
            "a file of another quantisation may do",
        ) from None
    # the reader maps the file; a tensor of its own may be written to, and outlives it
    return torch.from_numpy(np.array(values, np.float32))


def quantisation_steps(tensor: ReaderTensor, values_VD: Tensor) -> Tensor | None:
    """Return the step of each block of a quantised matrix, (V, D / block); None where it is not
    quantised.

    Read from the block where it stands there, else the smallest difference that occurs within it.
    """
    kind = tensor.tensor_type.name
    if kind in PLAIN:
        return None
    V, D = values_VD.shape
    if kind in STEP_FIRST:
        blocks = np.ascontiguousarray(tensor.data).reshape(V, D // 32, -1)
        return torch.from_numpy(
            np.abs(blocks[:, :, :2].copy().view(np.float16)[..., 0].astype(np.float32))
        )
    width = 16 if kind.endswith("_K") else 32
    steps = []
    for rows in values_VD.split(1 << 12):
        apart = rows.view(len(rows), D // width, width).sort(2).values.diff(dim=2)
        smallest = torch.where(apart > 0, apart, torch.inf).amin(2)
        steps.append(torch.where(smallest.isfinite(), smallest, 0.0))
    return torch.cat(steps)


def tokenizer_of(reader: GGUFReader, path: Path) -> tuple[Tokenizer, tuple[str, ...]]:
    """Build the tokenizer of the metadata, and say what was assumed. Errors: data."""
    from tokenizers import AddedToken, processors

    kind, tokens = value(reader, "tokenizer.ggml.model"), value(reader, "tokenizer.ggml.tokens")
    if kind is None or not tokens:
        raise ForensicsError(
            "data", f"{path.name} holds no tokenizer", "convert it again, with its vocabulary"
        )
    if kind not in ("gpt2", "llama"):
        raise ForensicsError(
            "data",
            f"{path.name}: a tokenizer of kind {kind!r} is not built here",
            "give the Hugging Face folder instead; gpt2 and llama are built",
        )
    types = value(reader, "tokenizer.ggml.token_type") or [1] * len(tokens)
    try:
        tokenizer, notes = (_byte_level if kind == "gpt2" else _sentencepiece)(reader, tokens)
        tokenizer.add_special_tokens(
            [
                AddedToken(t, special=True, normalized=False)
                for t, type in zip(tokens, types)
                if type == CONTROL
            ]
        )
        tokenizer.add_tokens(
            [
                AddedToken(t, normalized=False)
                for t, type in zip(tokens, types)
                if type == USER_DEFINED
            ]
        )
        if value(reader, "tokenizer.ggml.add_bos_token", kind == "llama"):
            bos = int(value(reader, "tokenizer.ggml.bos_token_id", 1))
            tokenizer.post_processor = processors.TemplateProcessing(
                f"{tokens[bos]} $A", special_tokens=[(tokens[bos], bos)]
            )
    except ForensicsError:
        raise
    except Exception as e:  # the library raises a bare Exception
        raise ForensicsError(
            "data",
            f"{path.name}: its tokenizer does not hold together: {str(e).splitlines()[0]}",
            "give the Hugging Face folder instead",
        ) from None
    return tokenizer, notes


def _byte_level(reader: GGUFReader, tokens: list[str]) -> tuple[Tokenizer, tuple[str, ...]]:
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    merges = [tuple(m.split(" ", 1)) for m in value(reader, "tokenizer.ggml.merges", [])]
    pre = value(reader, "tokenizer.ggml.pre", "default")
    split = SPLITS.get(pre)
    notes = (
        ()
        if split
        else (
            (
                f"its way of splitting, {pre!r}, is not built here: split as GPT-2 does, so"
                " categories may differ"
            ),
        )
    )
    # a vocabulary with the same token twice keeps the first
    vocabulary = {token: id for id, token in reversed(list(enumerate(tokens)))}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, ignore_merges=split == "llama3"))
    by_words = pre_tokenizers.ByteLevel(add_prefix_space=False)
    by_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    if split == "digits":
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), by_words]
        )
    elif split in ("llama3", "qwen2"):
        numbers = r"\p{N}{1,3}" if split == "llama3" else r"\p{N}"
        pattern = Regex(f"{_SUFFIXES}|{_WORDS}|{numbers}|{_REST}")
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Split(pattern, "isolated"), by_bytes]
        )
    else:
        tokenizer.pre_tokenizer = by_words
    if split == "qwen2" and pre != "stablelm2":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer, notes


def _sentencepiece(reader: GGUFReader, tokens: list[str]) -> tuple[Tokenizer, tuple[str, ...]]:
    from tokenizers import Tokenizer, decoders, models, normalizers

    scores = value(reader, "tokenizer.ggml.scores") or [0.0] * len(tokens)
    vocabulary = {token: id for id, token in reversed(list(enumerate(tokens)))}
    unknown = tokens[int(value(reader, "tokenizer.ggml.unknown_token_id", 0))]
    merges = _merges(vocabulary, scores)
    tokenizer = Tokenizer(
        models.BPE(vocabulary, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True)
    )
    spaces = normalizers.Replace(" ", "▁")
    decoding = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if value(reader, "tokenizer.ggml.add_space_prefix", True):
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), spaces])
        decoding.append(decoders.Strip(" ", 1, 0))
    else:
        tokenizer.normalizer = spaces
    tokenizer.decoder = decoders.Sequence(decoding)
    return tokenizer, ()


def _merges(vocabulary: dict[str, int], scores: list[float]) -> list[tuple[str, str]]:
    """Sentencepiece's BPE merges whichever neighbours make the best-scored piece: as a list, every
    way to each piece.
    """
    merges = []
    for token, id in vocabulary.items():
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in vocabulary and right in vocabulary:
                merges.append((-scores[id], id, vocabulary[left], vocabulary[right], left, right))
    return [(left, right) for *_, left, right in sorted(merges)]


def is_gguf_file(path: Path) -> bool:
    """Tell whether it is a file that is called .gguf or begins like one."""
    return path.is_file() and (path.suffix == ".gguf" or is_gguf(path))


def read(path: Path) -> ForeignModel:
    """Read a GGUF file. Errors: data."""
    from forensics.model.forward import of_folder

    parts = read_file(path)
    return ForeignModel(
        parts.tokenizer,
        weights=parts.weights,
        forward=lambda: of_folder(path.absolute().parent, path.name),
        notes=parts.notes,
    )


def read_as_run(path: Path) -> ForeignRun:
    """Read a model with every tensor. Errors: data, config."""
    from forensics.formats.gguf_run import read_run

    return read_run(path)


FORMAT = Format(
    "gguf", "a GGUF file", is_gguf_file, read, read_as_run, "a file that begins with GGUF"
)
