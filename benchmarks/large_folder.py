"""A sharded folder of 13 billion parameters: seconds and memory to open, list and probe it.

python -m benchmarks.large_folder [--json FILE]

The files are sparse: they have the size that a model of OLMo 2 13B's shape has (bf16), and take no
room on disk but for one tensor, which is random. Each way in runs in a process of its own, whose
largest resident memory counts, everything imported included; PyTorch alone takes what `imports`
says.
"""

from __future__ import annotations

import argparse
import json
import math
import struct
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.rounds import report
from forensics.model.hugging_face import stored_parts, to_hf_config
from forensics.model.shape import Shape

SHARDS = 6
RANDOM = "model.layers.20.mlp.down_proj.weight"
OLMO2_13B = Shape(
    layers=40,
    width=5120,
    heads=40,
    kv_heads=40,
    head_width=128,
    mlp_width=13824,
    norm="post",
    norm_kind="rms",
    norm_eps=1e-6,
    qk_norm="whole",
    position="rope",
    rope_theta=5e5,
    rope_fraction=1.0,
    parallel=False,
    bias=False,
    activation="swiglu",
    tied=False,
    max_positions=4096,
    vocabulary=100352,
)
WAYS = {
    "imports": "import torch, forensics.model.knobs, forensics.formats.weights_folder",
    "open and list": """
from forensics.formats.huggingface_folder import FORMAT
run = FORMAT.read_run(folder)
listed = len(run.checkpoints[0].params)
""",
    "open, list and probe one tensor": """
from forensics.formats.huggingface_folder import FORMAT
run = FORMAT.read_run(folder)
x = run.checkpoints[0].params["layers.20.mlp.down.weight"].read()
listed = float(x.float().std())
""",
}
SCRIPT = """
import time, sys, json
from pathlib import Path
folder, listed, started = Path(sys.argv[1]), 0, time.perf_counter()
{way}
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
print(json.dumps({{
    "seconds": round(time.perf_counter() - started, 2),
    "megabytes": round(int(status["VmHWM"].split()[0]) / 1024),  # not a parent's, as rusage is
    "found": listed,
}}))
"""


def write_folder(folder: Path, shape: Shape) -> int:
    """Write sparse shards and their index; return the bytes that they seem to have."""
    names = {part.name: part.shape for part in stored_parts(shape).values()}
    every, whole, file_of = list(names), 0, {}
    per_shard = math.ceil(len(every) / SHARDS)
    for i in range(SHARDS):
        file = f"model-{i + 1:05}-of-{SHARDS:05}.safetensors"
        header: dict[str, Any] = {}
        end = 0
        for name in every[i * per_shard : (i + 1) * per_shard]:
            first, end = end, end + 2 * math.prod(names[name])
            header[name] = {
                "dtype": "BF16",
                "shape": names[name],
                "data_offsets": [first, end],
            }
            file_of[name] = file
        text = json.dumps(header).encode()
        with (folder / file).open("wb") as opened:
            opened.write(struct.pack("<Q", len(text)) + text)
            opened.truncate(8 + len(text) + end)
            if RANDOM in header:
                numbers = np.random.default_rng(0).normal(size=names[RANDOM]).astype(np.float32)
                opened.seek(8 + len(text) + header[RANDOM]["data_offsets"][0])
                opened.write((numbers.view(np.uint32) >> 16).astype(np.uint16).tobytes())
        whole += 8 + len(text) + end
    index = {"metadata": {"total_size": whole}, "weight_map": file_of}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps(to_hf_config(shape, 100257)))
    return whole


def main(path: Path | None) -> dict[str, Any]:
    """Measure each way in, in a process of its own."""
    numbers: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        numbers["gigabytes"] = round(write_folder(folder, OLMO2_13B) / 1e9, 1)
        for name, way in WAYS.items():
            done = subprocess.run(
                [sys.executable, "-c", SCRIPT.format(way=way), place],
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode:
                raise SystemExit(done.stderr)
            numbers[name] = json.loads(done.stdout)
    report("large_folder", numbers, path)
    return numbers


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--json", type=Path)
    main(parser.parse_args().json)
