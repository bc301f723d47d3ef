"""Categories of arXiv 2405.05417, against its definition spelled out one token at a time."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)

from forensics.data.tokenize import bytes_tokenizer, train_tokenizer
from forensics.formats.huggingface_folder import special_ids
from forensics.tokens.categories import CATEGORIES, categorise

TEXTS = [
    "the cat sat on the mat, naïve 数学 façade 🦆 [INST] is <b>bold</b>",
    "«quoted» words, and the other cats",
] * 3


def byte_level() -> Tokenizer:
    return train_tokenizer(TEXTS, 330)


def prefixed_byte_level() -> Tokenizer:
    tokenizer = train_tokenizer(TEXTS, 330)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    return tokenizer


def fallback(prepend: bool = True, strip: bool = True) -> Tokenizer:
    """Llama 2's parts: ▁ for spaces, one in front, bytes to fall back on, the first space taken off
    again.
    """
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    spaces = normalizers.Replace(" ", "▁")
    tokenizer.normalizer = (
        normalizers.Sequence([normalizers.Prepend("▁"), spaces]) if prepend else spaces
    )
    bytes_ = [f"<0x{b:02X}>" for b in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=["<unk>", "<s>", *bytes_],
        show_progress=False,
        initial_alphabet=["«", "»"],
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    document = json.loads(tokenizer.to_str())
    document["added_tokens"] = document["added_tokens"][:2]  # bytes are the model's, not added
    tokenizer = Tokenizer.from_str(json.dumps(document))
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*parts, decoders.Strip(" ", 1, 0)] if strip else parts)
    return tokenizer


def only_stripped() -> Tokenizer:
    return fallback(prepend=False)


def kept_spaces() -> Tokenizer:
    """Gemma's parts: nothing in front, nothing taken off."""
    return fallback(prepend=False, strip=False)


def unigram() -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=110,
        special_tokens=["<unk>", "</s>"],
        unk_token="<unk>",
        show_progress=False,
        initial_alphabet=["«", "»"],
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    return tokenizer


def wordpiece() -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(
        vocab_size=150, special_tokens=["[UNK]", "[CLS]", "[SEP]"], show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    return tokenizer


MADE = [
    byte_level,
    prefixed_byte_level,
    fallback,
    only_stripped,
    kept_spaces,
    unigram,
    wordpiece,
    bytes_tokenizer,
]
BEHIND_A_SIGN = {prefixed_byte_level, fallback, only_stripped, unigram}


def by_definition(tokenizer: Tokenizer, behind_a_sign: bool) -> dict[int, str]:
    """Steps 1 to 4 of the paper's definition, with transformers' own encode and decode."""
    from transformers import PreTrainedTokenizerFast

    loaded = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(tokenizer.to_str()), clean_up_tokenization_spaces=False
    )
    special = {id for id, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    found = {}
    for id in tokenizer.get_vocab().values():
        if behind_a_sign:
            for sign in "«»":
                (*prefix,) = loaded.encode(sign, add_special_tokens=False)
                s = loaded.decode([*prefix, id], skip_special_tokens=False)
                s = s[1:] if s[:1] == " " else s
                assert s.startswith(sign)
                s = s[1:]
                t = loaded.encode(sign + s, add_special_tokens=False)
                if t[: len(prefix)] == prefix:
                    t = t[len(prefix) :]
                    break
        else:
            s = loaded.decode([id], skip_special_tokens=False)
            t = loaded.encode(s, add_special_tokens=False)
        if t == [id]:
            found[id] = "OK_SPECIAL" if id in special else "OK"
        elif len(s) >= 3 and s[0] in "[<" and s[-1] in "]>" and any(map(str.isalpha, s)):
            found[id] = "UNREACHABLE_SPECIAL"
        elif "�" in s:
            found[id] = "UNDECODEABLE"
        else:
            found[id] = f"UNREACHABLE_{'SINGLE' if len(t) == 1 else 'MULTI'}_TOKEN"
    return found


@pytest.mark.parametrize("make", MADE, ids=lambda f: f.__name__)
def test_every_token_is_in_the_category_of_the_papers_definition(
    make: Callable[[], Tokenizer],
) -> None:
    tokenizer = make()
    categories = categorise(tokenizer)
    found = dict(zip(categories.ids.tolist(), categories.category))
    wanted = by_definition(tokenizer, make in BEHIND_A_SIGN)
    if make is wordpiece:  # the paper has no word for what stands inside words only
        inside = {id for token, id in tokenizer.get_vocab().items() if token.startswith("##")}
        assert {found[id] for id in inside} == {"OK"}
        wanted |= dict.fromkeys(inside, "OK")
    assert found == wanted
    assert sum(categories.counts().values()) == len(tokenizer.get_vocab())


def test_words_are_reachable_where_the_tokenizer_puts_or_takes_a_space_in_front() -> None:
    for make in BEHIND_A_SIGN:
        categories = categorise(make())
        spaced = [
            c
            for raw, c in zip(categories.raw, categories.category)
            if raw[0] in "▁Ġ" and len(raw) > 2
        ]
        assert "OK" in spaced and set(spaced) <= {"OK", "UNDECODEABLE"}, make.__name__


def odd() -> Tokenizer:
    """A vocabulary with one token of each kind."""
    tokens = ["h", "a", "b", "A", "hab", "<", ">", "â", "<ab>", "[9]", "9", "[", "]"]
    tokenizer = Tokenizer(models.BPE({t: i for i, t in enumerate(tokens)}, []))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|end|>"])
    tokenizer.add_tokens([AddedToken("xyz", normalized=False)])
    return tokenizer


def test_each_category_is_told_from_the_others() -> None:
    categories = categorise(odd())
    found = dict(zip(categories.raw, categories.category))
    assert found == {
        **dict.fromkeys("hab<>9[]", "OK"),
        "xyz": "OK",
        "<|end|>": "OK_SPECIAL",
        "A": "UNREACHABLE_SINGLE_TOKEN",
        "hab": "UNREACHABLE_MULTI_TOKEN",
        "<ab>": "UNREACHABLE_SPECIAL",
        "[9]": "UNREACHABLE_MULTI_TOKEN",
        "â": "UNDECODEABLE",
    }
    assert set(found.values()) == set(CATEGORIES)
    assert categories.again[categories.raw.index("hab")] == [0, 1, 2]


def test_special_ids_may_be_named_from_outside() -> None:
    tokenizer = odd()
    xyz = tokenizer.token_to_id("xyz")
    assert categorise(tokenizer, {xyz}).category[xyz] == "OK_SPECIAL"


def test_summary_counts_leave_out_bytes_and_specials() -> None:
    summary = categorise(odd()).summary()
    # unreachable: hab and [9]; A is a byte, <ab> is spelled like a special token, â is a byte
    assert summary == {
        "unreachable": 2,
        "partial_utf8": 0,
        "special": 2,
        "bytes_ascii": 9,
        "bytes_utf8": 1,
        "bytes_unused_utf8": 0,
    }


@pytest.mark.parametrize("make", [byte_level, fallback, bytes_tokenizer], ids=lambda f: f.__name__)
def test_bytes_are_tagged_by_their_part_in_utf8(make: Callable[[], Tokenizer]) -> None:
    summary = categorise(make()).summary()
    assert summary["bytes_unused_utf8"] == 13 and summary["bytes_utf8"] == 115
    assert summary["bytes_ascii"] >= 128  # beside <0x41> a fallback vocabulary may hold A itself


def test_the_tokenizer_that_was_given_keeps_its_switches_and_its_truncation_does_not_count() -> (
    None
):
    tokenizer = byte_level()
    plain = categorise(tokenizer).category
    tokenizer.encode_special_tokens = True
    tokenizer.enable_truncation(1)
    tokenizer.enable_padding(length=9)
    assert categorise(tokenizer).category == plain
    assert tokenizer.encode_special_tokens and tokenizer.truncation["max_length"] == 1


def test_a_tokenizer_without_the_usual_letters_is_no_reason_to_fail() -> None:
    tokenizer = Tokenizer(models.BPE({"x": 0, "y": 1, "xy": 2}, [("x", "y")]))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("z"), "isolated")
    assert categorise(tokenizer).category == ["OK", "OK", "OK"]


def test_continuations_of_a_wordpiece_are_reached_inside_words():
    spelled = ["[UNK]", "a", "i", "n", "g", "##i", "##n", "##g", "##ing", "play", "##", "a##b"]
    tokenizer = Tokenizer(
        models.WordPiece({token: id for id, token in enumerate(spelled)}, unk_token="[UNK]")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    found = categorise(tokenizer)
    by_token = dict(zip(found.raw, zip(found.text, found.category)))
    assert by_token["##ing"] == ("ing", "OK") and by_token["##i"] == ("i", "OK")
    assert by_token["play"] == ("play", "OK")
    assert by_token["a##b"][1].startswith("UNREACHABLE")


def test_a_metaspace_tokenizer_without_quotation_marks_is_read_behind_its_own_letters():
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.BpeTrainer(
        vocab_size=60, special_tokens=["<unk>", "</s>"], show_progress=False
    )
    tokenizer.train_from_iterator(["hello world abc def hell worl"] * 20, trainer)
    assert set(categorise(tokenizer).category) == {"OK", "OK_SPECIAL"}


@pytest.mark.parametrize(
    "declared",
    [
        {"extra_special_tokens": ["A", "B"]},
        {"extra_special_tokens": {"image_token": "A", "sound_token": {"content": "B"}}},
        {"additional_special_tokens": ["A"], "extra_special_tokens": {"x": "B"}},
    ],
)
def test_special_tokens_of_a_folder_are_declared_as_a_list_or_by_name(
    tmp_path: Path, declared: dict[str, Any]
) -> None:
    tokenizer = bytes_tokenizer()
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(declared))
    assert special_ids(tmp_path, tokenizer) == {ord("A"), ord("B")}
