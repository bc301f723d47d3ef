"""The templates: no data in them, every channel typed, made once; heat is blank under 3σ in both themes."""

import json

import pytest

from app.charts import runs, spikes, sql, theme

TEMPLATES = [
    (spikes.overview, ()), (spikes.loss, ()), (spikes.grad_norm, ()), (spikes.heat, (8, True, ("layer",))), (spikes.heat, (4, False)),
    (spikes.alarms, (5,)), (runs.tree, (7,)), (sql.curve, ()), (sql.bars, ()),
]  # fmt: skip


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
        assert "values" not in node or "type" in node
        for channel, about in (node.get("encoding") or {}).items():
            for each in about if isinstance(about, list) else [about]:
                if "field" in each and channel not in ("x2", "y2"):
                    assert each["type"] in ("quantitative", "ordinal", "nominal"), (channel, each)


def test_the_heat_scale_has_a_colour_for_each_threshold_and_its_own_ramp_in_the_dark():
    assert theme.THRESHOLDS == (3, 6, 10, 20, 40)
    for p in (theme.LIGHT, theme.DARK):
        assert len(p.up) == len(p.down) == len(theme.THRESHOLDS)

    def brightness(colour):
        return sum(int(colour[i : i + 2], 16) for i in (1, 3, 5))

    assert brightness(theme.LIGHT.up[-1]) < brightness(theme.LIGHT.up[0])
    assert brightness(theme.DARK.up[-1]) > brightness(theme.DARK.up[0]), "in the dark the brightest is the strongest"


def test_filling_in_leaves_the_template_as_it_was():
    spec = spikes.heat(False, 8, True, ("layer",))
    before = json.dumps(spec)
    filled = theme.filled(spec, bounds=[-1, 1], rows=["a", "b"])
    assert json.dumps(spec) == before
    assert '"domain": ["a", "b"]' in json.dumps(filled) and '"expr": "bounds"' not in json.dumps(filled)
