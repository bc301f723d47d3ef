"""A statistic is one entry: a new one of each kind is recorded, rolled up and documented."""

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = """
import json, sys
from forensics.statistics import heads, layers, tensors

heads.STATISTICS += (
    heads.HeadStatistic(
        "key_count_max", "count", "most keys that a query saw",
        measure=lambda query: query.keys.amax((0, 2)), merge="largest",
    ),
)
layers.STATISTICS += (
    layers.LayerStatistic(
        "attn_out_max", "", "largest |x| that attention adds", "attn_out",
        measure=lambda tap: tap.tensor.abs().amax(), merge="largest",
    ),
)
tensors.STATISTICS += (
    tensors.TensorStatistic("elements", "count", "numbers of it", lambda tensor: tensor.elements),
)

from pathlib import Path
import duckdb
from docs import generate
from forensics import config
from forensics.store.reader import connect
from forensics.train.loop import train

recipe = config.from_dict(json.loads(sys.argv[1]))
train(recipe, name="tiny", recipe_name="tiny", runs=Path(sys.argv[2]))
con = connect(Path(sys.argv[2]))
one = lambda sql: con.execute(sql).fetchone()
print(json.dumps({
    "heads": one("select count(*), min(key_count_max), max(key_count_max) from heads"),
    "layers": one(
        "select count(*), min(attn_out_max), max(attn_out_max / attn_out_rms) from layers"
    ),
    "tensors": one("select sum(elements) from tensors where step = 0"),
    "parameters": one("select parameters from runs"),
    "rolled up": one("select max(key_count_max_max) from heads_by100"),
    "documented": [name in generate.tables() for name in
                   ("`key_count_max`", "`attn_out_max`", "`elements`", "`elements_max`")],
}))
"""


def test_a_new_statistic_of_each_kind_is_one_entry(recipe_of, tmp_path):
    from forensics import config

    recipe = recipe_of(**{"train.steps": 4, "checkpoint.every": 0})
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(config.to_dict(recipe)), str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["heads"] == [4 * 2 * 2, 32.0, 32.0], "causal attention over 32 positions"
    rows, least, most = answer["layers"]
    assert rows == 4 * 2 and least > 0 and 1 < most < 32**2
    assert answer["tensors"] == answer["parameters"] and answer["rolled up"] == [32.0]
    assert all(answer["documented"])
