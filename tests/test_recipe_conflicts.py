"""A setting that changes nothing is a mistake, and said to be."""

from __future__ import annotations

import pytest

from forensics import config
from forensics.errors import ForensicsError
from forensics.recipe_conflicts import RULES


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        (["data.source=stdlib"], "data.source"),
        (["data.source=stdlib/json"], "data.source"),
        (["data.tokenizer=bytes", "data.vocabulary=300"], "data.vocabulary"),
        (["data.text_key=content"], "data.text_key"),
        (["train.schedule=constant", "train.min_lr=0"], "train.min_lr"),
        (["train.schedule=constant", "train.schedule_steps=9"], "train.schedule_steps"),
        (["train.decay_steps=9"], "train.decay_steps"),
        (["train.weight_decay=0", "train.decay_embeddings=false"], "train.decay_embeddings"),
        (["data.held_out=0", "train.held_out_every=9"], "train.held_out_every"),
        (["checkpoint.ring_every=2"], "checkpoint.ring_every"),
        (["checkpoint.steps=[100000]"], "checkpoint.steps"),
        (["record.level=off", "record.every.heads=2"], "record.every.heads"),
        (["record.level=dense", 'record.dense=["1:2"]'], "record.dense"),
        (['record.dense=["100000:100001"]'], "record.dense"),
        (["record.every.steps=2"], "record.every.steps"),
    ],
)
def test_a_setting_without_effect_is_refused_by_name(settings, key):
    with pytest.raises(ForensicsError, match=key) as e:
        config.load("demo", settings)
    assert e.value.kind == "config"


@pytest.mark.parametrize(
    "settings",
    [
        ["data.sources.clean=stdlib/json"],
        ["data.tokenizer=bytes"],  # the recipe's own vocabulary loses its use, as was asked for
        ["train.schedule=constant"],
        ["train.schedule=wsd", "train.decay_steps=9"],
        ["checkpoint.ring=4", "checkpoint.ring_every=2"],
        ["record.every.steps=1"],
        ["train.steps=10"],
    ],
)
def test_a_setting_that_has_an_effect_is_taken(settings):
    config.load("demo", settings)


def test_every_rule_names_a_key_of_a_recipe():
    keys = {
        f"{section}.{key}"
        for section, each in config.to_dict(config.Recipe()).items()
        for key in each
    }
    assert {rule.key for rule in RULES} <= keys
