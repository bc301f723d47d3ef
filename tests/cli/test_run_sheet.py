"""`forensics show`: a header as sections of settings, without Python's own spelling."""

from __future__ import annotations

from forensics.cli.run_sheet import headline, readable, sheet
from forensics.train.header import Header

HEADER = Header(
    name="demo",
    recipe="demo",
    config={
        "model": {"family": "llama", "layers": 4, "kv_heads": None},
        "data": {"phases": [{"mix": {"clean": 1.0}, "until": 400}, {"mix": {"clean": 0.5}}]},
        "train": {"betas": [0.9, 0.999], "compile": False},
        "checkpoint": {"every": 50, "steps": []},
        "record": {},
    },
    first_step=0,
    steps=460,
    corpus="c0",
    corpus_sources=[{"source": "clean", "first_sequence": 0, "sequences": 3, "tokens": 1234}],
    order="o0",
    shape={"layers": 4, "qk_norm": "none"},
    parameters=935040,
    eot=0,
    device="cpu",
    precision="fp32",
    threads=2,
    fingerprint={"dispatch": {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}, "driver": None},
    arguments=["demo", "--quick"],
    created="2026-11-28T10:43:06Z",
    status="finished",
)


def test_a_header_is_a_sentence_and_sections_of_what_was_set():
    assert headline(HEADER).startswith(
        "demo is a run of the recipe demo: steps 0 to 460, 935,040 parameters, finished"
    )
    rows = {section.title: dict(section.rows) for section in sheet(HEADER, [0, 50])}
    assert list(rows) == ["Model", "Data", "Training", "Checkpoints", "Machine", "Command"]
    assert rows["Model"] == {"family": "llama", "layers": "4", "qk norm": "none"}
    assert rows["Data"]["phases"] == "mix (clean 1), until 400; mix (clean 0.5)"
    assert rows["Data"]["sources"] == "clean (1,234 tokens in 3 sequences)"
    assert rows["Training"] == {"betas": "0.9, 0.999", "compile": "no"}
    assert rows["Checkpoints"]["saved"] == "0, 50"
    assert rows["Machine"]["dispatch"] == "CUBLAS_WORKSPACE_CONFIG :4096:8"
    assert rows["Command"] == {"arguments": "demo --quick"}


def test_a_missing_value_inside_a_list_is_a_dash():
    assert readable([None, True, 0.25, "x"]) == "–, yes, 0.25, x"
