"""A format is one file: a new one is recognised, read, and named where nothing is recognised."""

import numpy as np
import pytest

from forensics import formats
from forensics.data.tokenize import train_tokenizer
from forensics.errors import ForensicsError
from forensics.tokens.findings_document import document
from forensics.tokens.target import open_target
from forensics.tokens.under_trained import find

NEW = '''
"""Matrices in an .npz beside a tokenizer."""

import numpy as np
import torch

from forensics.formats.protocol import ForeignModel, Format
from forensics.formats.tokenizer_json import tokenizer_file
from forensics.model.vocabulary_matrices import Weights


def read(path):
    """Read the two matrices."""
    E, U = (torch.from_numpy(np.load(path)[name]) for name in ("input", "output"))
    tokenizer = tokenizer_file(path.with_name("tokenizer.json"))
    return ForeignModel(tokenizer, weights=Weights(E, U, None, tied=False))


FORMAT = Format("npz", "an .npz file", lambda path: path.suffix == ".npz", read)
'''


@pytest.fixture
def with_a_new_format(tmp_path, monkeypatch):
    folder = tmp_path / "more"
    folder.mkdir()
    (folder / "npz_matrices.py").write_text(NEW)
    monkeypatch.setattr(formats, "__path__", [*formats.__path__, str(folder)])
    formats.formats.cache_clear()
    yield
    formats.formats.cache_clear()


def test_a_new_format_is_one_file(with_a_new_format, tmp_path):
    tokenizer = train_tokenizer(["the cat sat on the mat, and the other cats sang"] * 4, 280)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    size = tokenizer.get_vocab_size()
    E, U = np.random.default_rng(0).normal(size=(2, size, 8)).astype(np.float32)
    np.savez(tmp_path / "model.npz", input=E, output=U)
    target = open_target(str(tmp_path / "model.npz"), tmp_path)
    assert target.kind == "npz" and target.weights.rows == size
    assert document(find(target))["indicator"] == "input-norm"


def test_what_no_format_recognises_names_them_all(with_a_new_format, tmp_path):
    (tmp_path / "model.bin").write_bytes(b"nothing")
    with pytest.raises(ForensicsError, match=r"an \.npz file or a tokenizer\.json, found"):
        open_target(str(tmp_path / "model.bin"), tmp_path)


def test_every_format_says_what_it_is():
    models = [known.kind for known in formats.formats() if known.read is not None]
    assert models == ["gguf", "folder", "tokenizer"]
    assert all(known.read or known.read_run for known in formats.formats())
    assert all(known.title.startswith(("a ", "an ")) for known in formats.formats())
