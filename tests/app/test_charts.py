"""The templates: no data in them, every channel typed, made once; heat is blank under 3σ in both
themes.
"""

import importlib
import json
import pkgutil

import pytest

import app.views
from app import theme
from app.views.ablations import charts as ablation_charts
from app.views.attention import charts as attention_charts
from app.views.batch import charts as batch_charts
from app.views.blame import charts as blame_charts
from app.views.forks import charts as forks_charts
from app.views.forks import matrix_charts, sweep_charts
from app.views.runs import charts as runs_charts
from app.views.spikes import charts as spikes_charts
from app.views.sql import charts as sql_charts
from app.views.tokens import charts as tokens_charts
from app.views.trace import charts as trace_charts

TEMPLATES = [
    (ablation_charts.effects, (4, "nats")),
    (attention_charts.heads, (4, 8)),
    (attention_charts.heads, (24, 16)),
    (attention_charts.over_time, ("entropy",)),
    (attention_charts.weights, (128, True)),
    (attention_charts.weights, (128, False)),
    (attention_charts.lens, (4,)),
    (attention_charts.reads, (4, 128)),
    (batch_charts.sequences, ()),
    (batch_charts.tokens, ()),
    (forks_charts.distance, ("KL", True, False)),
    (forks_charts.distance, ("L2", False, True)),
    (forks_charts.gap, ()),
    (forks_charts.losses, ()),
    (forks_charts.layers, (6,)),
    (sweep_charts.sweep, (True, "× placebos")),
    (sweep_charts.sweep, (False, "steps")),
    (matrix_charts.matrix, (3, "jump")),
    (matrix_charts.matrix, (1, "jump", False, True)),
    (matrix_charts.windows, ()),
    (matrix_charts.jumps, ()),
    (blame_charts.deletion, ()),
    (trace_charts.timeline, ()),
    (trace_charts.blame, (12,)),
    (trace_charts.scan, ()),
    (runs_charts.tree, (7,)),
    (spikes_charts.overview, ()),
    (spikes_charts.loss, ()),
    (spikes_charts.grad_norm, ()),
    (spikes_charts.heat, (8, True, ("layer",))),
    (spikes_charts.heat, (4, False)),
    (spikes_charts.alarms, (5,)),
    (sql_charts.curve, ()),
    (sql_charts.bars, ()),
    (tokens_charts.legend, ()),
    (tokens_charts.scatter, ("indicator",)),
    (tokens_charts.trajectory, ()),
    (tokens_charts.exposure, ()),
]


def test_every_template_of_every_family_is_looked_at():
    families = [
        importlib.import_module(m.name)
        for m in pkgutil.walk_packages(app.views.__path__, "app.views.")
        if m.name.endswith("charts")
    ]
    made = {f for family in families for f in vars(family).values() if hasattr(f, "cache_info")}
    names = [
        {f"{f.__module__}.{f.__name__}" for f in fs}
        for fs in (made, {make for make, _ in TEMPLATES})
    ]
    assert names[0] == names[1] and len(made) > 20


def nodes(spec):
    if isinstance(spec, dict):
        yield spec
        for value in spec.values():
            yield from nodes(value)
    elif isinstance(spec, list):
        for value in spec:
            yield from nodes(value)


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize(("make", "arguments"), TEMPLATES)
def test_a_template_holds_no_data_names_all_of_it_and_types_every_field(make, arguments, dark):
    spec = make(dark, *arguments)
    assert make(dark, *arguments) is spec, "made once"
    assert "datasets" not in spec and json.dumps(spec)
    for node in nodes(spec):
        assert set(node.get("data") or {"name"}) == {"name"}, "the page gives the data, by name"
        assert "from" not in node, "no lookup of other data"
        for channel, about in (node.get("encoding") or {}).items():
            for each in about if isinstance(about, list) else [about]:
                if "field" in each and channel not in ("x2", "y2"):
                    assert each["type"] in ("quantitative", "ordinal", "nominal"), (channel, each)
                assert each.get("field") != "image", "Vega's tooltip would fetch it"


def test_the_heat_scale_has_a_colour_for_each_threshold_and_its_own_ramp_in_the_dark():
    assert theme.THRESHOLDS == (3, 6, 10, 20, 40)
    for p in (theme.LIGHT, theme.DARK):
        assert len(p.up) == len(p.down) == len(theme.THRESHOLDS)

    def brightness(colour):
        return sum(int(colour[i : i + 2], 16) for i in (1, 3, 5))

    assert brightness(theme.LIGHT.up[-1]) < brightness(theme.LIGHT.up[0])
    assert brightness(theme.DARK.up[-1]) > brightness(theme.DARK.up[0]), (
        "in the dark the brightest is the strongest"
    )


def test_filling_in_leaves_the_template_as_it_was():
    spec = spikes_charts.heat(False, 8, True, ("layer",))
    before = json.dumps(spec)
    filled = theme.filled(spec, bounds=[-1, 1], rows=["a", "b"])
    assert json.dumps(spec) == before
    assert '"domain": ["a", "b"]' in json.dumps(filled) and '"expr": "bounds"' not in json.dumps(
        filled
    )


def test_what_is_not_finite_has_a_colour_and_a_shape_of_its_own_in_the_timeline():
    for dark in (False, True):
        dots = next(
            layer
            for layer in trace_charts.timeline(dark)["layer"]
            if layer["data"]["name"] == "dots"
        )["encoding"]
        colours = dict(zip(dots["color"]["scale"]["domain"], dots["color"]["scale"]["range"]))
        assert colours[trace_charts.BROKEN] == theme.palette(dark).nonfinite
        assert set(colours) == {*range(-5, 6), trace_charts.BROKEN}, "no level is without a colour"
        assert dots["shape"]["condition"] == {
            "test": f"datum.level == {trace_charts.BROKEN}",
            "value": "cross",
        }
