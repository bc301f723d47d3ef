"""A family is one file: a new one is known to configuration, documents, import and export."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import forensics
from forensics import config
from forensics.model.families import FAMILIES

FAMILY = '''
"""A Llama with LayerNorm on the outputs, whose names are its own."""

from forensics.model.families.llama import CONFIG, NAMES, FAMILY as LLAMA
from dataclasses import replace

FAMILY = replace(
    LLAMA,
    knobs=LLAMA.knobs | {"norm": "post", "activation": "swiglu"},
    architecture="HaikuForCausalLM",
    names={ours: theirs.replace("model.", "haiku.") for ours, theirs in NAMES.items()},
)
'''
SCRIPT = """
import json, sys
from pathlib import Path
import torch
from docs import generate
from forensics import config
from forensics.model.decoder import Decoder, unembedding
from forensics.model.hugging_face import from_hf_config, to_hf_config
from forensics.model.initialize import initialize
from forensics.train import checkpoint
from forensics.train.loop import train
from forensics.train.run import open_run

recipe = config.from_dict(json.loads(sys.argv[1]))
runs = Path(sys.argv[2])
train(recipe, name="tiny", recipe_name="tiny", runs=runs)
run = open_run(runs, "tiny")
folder = runs / "tiny" / "checkpoints" / "step-000003"
params, shape, _ = checkpoint.load_hf_folder(folder)
state = run.load(3)
print(json.dumps({
    "exported": json.loads((folder / "config.json").read_bytes())["architectures"],
    "shape": shape == run.shape and from_hf_config(to_hf_config(run.shape, 3)) == run.shape,
    "equal": all(torch.equal(params[name], state.params[name]) for name in state.params),
    "documented": "haiku" in generate.recipes(),
}))
"""


def test_the_families_that_configuration_offers_are_the_files():
    assert tuple(FAMILIES) == config.FAMILIES and len(FAMILIES) >= 6


def test_a_new_family_is_one_file(recipe_of, tmp_path):
    root = Path(forensics.__file__).parents[1]
    for package in ("forensics", "docs", "replay", "queries", "benchmarks"):
        shutil.copytree(
            root / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__")
        )
    (tmp_path / "forensics" / "model" / "families" / "haiku.py").write_text(FAMILY)
    recipe = config.to_dict(recipe_of(**{"train.steps": 3, "checkpoint.every": 0}))
    recipe["model"]["family"] = "haiku"
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(recipe), str(tmp_path / "runs")],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(tmp_path)},
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        "exported": ["HaikuForCausalLM"],
        "shape": True,
        "equal": True,
        "documented": True,
    }
