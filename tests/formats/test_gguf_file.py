"""GGUF files that are written here, and what can be wrong with one."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from forensics.data.tokenize import train_tokenizer
from forensics.errors import ForensicsError
from forensics.formats import gguf_file
from forensics.tokens.categories import categorise

gguf = pytest.importorskip("gguf")
WIDTH = 64
TEXT = "the cat sat on the mat, 1234 times and 5 more, naïve 数学; the other cats sang"


def write(
    path: Path,
    *,
    kind: str = "Q8_0",
    architecture: str = "llama",
    pre: str = "gpt-2",
    output: bool = False,
    tokens: list[str] | None = None,
    **fields,
) -> np.ndarray:
    """A language model's vocabulary and nothing else; returns the embedding before it was
    quantised.
    """
    writer = gguf.GGUFWriter(str(path), architecture)
    if tokens is None:
        tokenizer = train_tokenizer([TEXT] * 4, 300)
        vocabulary = tokenizer.get_vocab()
        tokens = sorted(vocabulary, key=vocabulary.__getitem__)
        document = json.loads(tokenizer.to_str())
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(pre)
        writer.add_token_merges([" ".join(m) for m in document["model"]["merges"]])
        writer.add_token_types([3] + [1] * (len(tokens) - 1))
    writer.add_token_list(tokens)
    for name, value in fields.items():
        getattr(writer, name)(value)
    E = np.random.default_rng(0).normal(size=(len(tokens), WIDTH)).astype(np.float32)
    type_ = gguf.GGMLQuantizationType[kind]
    for name in ("token_embd.weight", "output.weight")[: 1 + output]:
        writer.add_tensor(name, gguf.quantize(E, type_) if kind != "F32" else E, raw_dtype=type_)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return E


@pytest.mark.parametrize("kind", ["F32", "F16", "Q8_0", "Q4_1", "Q6_K"])
def test_the_matrix_comes_back_within_its_quantisation_step(kind: str, tmp_path: Path) -> None:
    if kind == "Q6_K":
        pytest.importorskip("gguf")
        # the library writes no K-quants: their steps are read off the values alone
        values = torch.round(torch.randn(8, 64) * 5) * 0.25
        assert (gguf_file.quantisation_steps(_Typed("Q6_K"), values) == 0.25).all()  # type: ignore[arg-type]
        return
    E = write(tmp_path / "m.gguf", kind=kind)
    weights = gguf_file.read_file(tmp_path / "m.gguf").weights
    assert weights.tied and weights.embedding is weights.unembedding
    if kind in ("F32", "F16"):
        assert weights.grain is None
        np.testing.assert_allclose(weights.embedding.numpy(), E, rtol=1e-3)
    else:
        assert weights.grain is not None
        step = np.repeat(weights.grain.numpy(), WIDTH // weights.grain.shape[1], axis=1)
        assert (np.abs(weights.embedding.numpy() - E) <= 0.51 * step + 2e-3).all() and (
            step > 0
        ).all()


class _Typed:
    def __init__(self, kind: str) -> None:
        self.tensor_type = gguf.GGMLQuantizationType[kind]


def test_an_output_matrix_makes_it_untied(tmp_path: Path) -> None:
    write(tmp_path / "m.gguf", output=True)
    weights = gguf_file.read_file(tmp_path / "m.gguf").weights
    assert not weights.tied and weights.default() == "input-norm"


def test_the_byte_level_tokenizer_is_the_one_that_was_written(tmp_path: Path) -> None:
    write(tmp_path / "m.gguf")
    read, own = gguf_file.read_file(tmp_path / "m.gguf"), train_tokenizer([TEXT] * 4, 300)
    assert read.notes == ()
    for text in (TEXT, " 12 34\n\n  x", "<|endoftext|> and «ö»"):
        assert read.tokenizer.encode(text).ids == own.encode(text).ids
    assert categorise(read.tokenizer).counts() == categorise(own).counts()


def test_the_way_of_splitting_is_the_files_own_and_an_unknown_one_is_told(tmp_path: Path) -> None:
    write(tmp_path / "m.gguf", pre="smollm")
    ids = gguf_file.read_file(tmp_path / "m.gguf").tokenizer.encode("1234").tokens
    assert ids == ["1", "2", "3", "4"]  # digits alone, although 1234 was learnt as one
    write(tmp_path / "m.gguf", pre="nobody-knows")
    assert "nobody-knows" in gguf_file.read_file(tmp_path / "m.gguf").notes[0]


def test_a_sentencepiece_tokenizer_splits_as_sentencepiece_does(tmp_path: Path) -> None:
    spm = pytest.importorskip("sentencepiece")
    model = io.BytesIO()
    words = [
        "the cat sat on the mat",
        "the other cats sang",
        "a cat and a hat and more mats",
        "naïve cats",
    ] * 8
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter(words),
        model_writer=model,
        vocab_size=320,
        model_type="bpe",
        byte_fallback=True,
        hard_vocab_limit=False,
        minloglevel=2,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        num_threads=1,
    )
    own = spm.SentencePieceProcessor(model_proto=model.getvalue())
    n = own.vocab_size()
    kinds = [
        2 if own.is_unknown(i) else 3 if own.is_control(i) else 6 if own.is_byte(i) else 1
        for i in range(n)
    ]
    write(
        tmp_path / "m.gguf",
        tokens=[own.id_to_piece(i) for i in range(n)],
        add_tokenizer_model="llama",
        add_token_scores=[own.get_score(i) for i in range(n)],
        add_token_types=kinds,
    )
    read = gguf_file.read_file(tmp_path / "m.gguf").tokenizer
    for text in ("the cats sat on more hats", "a naïve mat 数", "cat  cat", "sang"):
        assert read.encode(text, add_special_tokens=False).ids == own.encode(text), text
    assert read.encode("cat").ids[0] == own.bos_id()
    counts = categorise(read).counts()
    assert counts["OK"] > 0.9 * (n - 259) and counts["OK_SPECIAL"] == 2


@pytest.mark.parametrize("share", [0.0001, 0.02, 0.3, 0.6, 0.97])
def test_a_file_cut_short_is_one_line(share: float, tmp_path: Path) -> None:
    write(tmp_path / "m.gguf")
    data = (tmp_path / "m.gguf").read_bytes()
    (tmp_path / "m.gguf").write_bytes(data[: max(4, int(len(data) * share))])
    with pytest.raises(ForensicsError) as e:
        gguf_file.read_file(tmp_path / "m.gguf")
    assert e.value.kind == "data" and "m.gguf" in str(e.value) and "\n" not in str(e.value)


def test_what_is_no_gguf_or_of_no_known_architecture_or_without_tokenizer_is_one_line(
    tmp_path: Path,
) -> None:
    (tmp_path / "x.gguf").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    write(tmp_path / "martian.gguf", architecture="martian")
    write(tmp_path / "rwkv.gguf", tokens=["a", "b"], add_tokenizer_model="rwkv")
    write(tmp_path / "bare.gguf", tokens=["a", "b"])
    for name, words in (
        ("x", "begin with GGUF"),
        ("martian", "martian"),
        ("rwkv", "'rwkv'"),
        ("bare", "no tokenizer"),
    ):
        with pytest.raises(ForensicsError) as e:
            gguf_file.read_file(tmp_path / f"{name}.gguf")
        assert e.value.kind == "data" and words in str(e.value) and "\n" not in str(e.value)
