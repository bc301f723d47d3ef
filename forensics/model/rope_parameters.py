"""RoPE as Hugging Face's configurations write it, in every spelling; what is not known is refused.

    rope_theta, rope_scaling {type | rope_type, …}            transformers 4
    rope_parameters {rope_type, rope_theta, …}                transformers 5
    rope_parameters {full_attention: {…}, sliding_attention: {…}}    by kind of layer (OLMo 3)
    rotary_emb_base, rotary_pct                               GPT-NeoX

Where both dictionaries are there, `rope_scaling` counts, as in transformers 5.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from forensics.errors import ForensicsError
from forensics.model.rope import yarn_magnitude

if TYPE_CHECKING:
    from forensics.model.family import Family
    from forensics.model.shape import Shape

N = TypeVar("N", int, float)
BUILT = ("default", "llama3", "yarn")
EVERY_KIND = {"rope_type", "type", "rope_theta", "partial_rotary_factor"}
LENGTH = "original_max_position_embeddings"
# keys that each kind may have beside those; anything else would change angles in a way unknown here
KEYS = {
    "default": {LENGTH},
    "llama3": {"factor", "low_freq_factor", "high_freq_factor", LENGTH},
    "yarn": {
        "factor",
        *("attention_factor", "mscale", "mscale_all_dim"),
        *("beta_fast", "beta_slow", "truncate"),
        LENGTH,
    },
}
# keys of a configuration that speak of RoPE and are read, here or by a family
READ = {
    *("rope_theta", "rope_scaling", "rope_parameters", "partial_rotary_factor"),
    *("rotary_pct", "rotary_emb_base", "no_rope_layers", "no_rope_layer_interval"),
}
LAYERS = ("full_attention", "sliding_attention")


def read_rope(config: dict[str, Any], family: Family) -> dict[str, Any]:
    """Return the knobs of RoPE that a configuration sets. Errors: config, for what is not built."""
    odd = sorted(
        key
        for key, value in config.items()
        if ("rope" in key or "rotary" in key) and key not in READ and value not in (None, False)
    )
    if odd:
        raise _not_built(f"{odd[0]} = {config[odd[0]]!r}")
    found = config.get("rope_scaling") or config.get("rope_parameters") or {}
    if not isinstance(found, dict):
        raise _not_built(repr(found))
    if family.full_every:
        return _by_layer(config, family)
    if any(isinstance(value, dict) for value in found.values()):
        raise _not_built("one for each kind of layer")
    return _one(config, family, found)


def _by_layer(config: dict[str, Any], family: Family) -> dict[str, Any]:
    """Read RoPE of a family whose sliding layers have their own, which is never scaled.

    As transformers 5 does: a theta outside the dictionaries is the full layers' alone.
    """
    stated = config.get("rope_parameters") or {}
    full, sliding = (dict(stated.get(kind) or {}) for kind in LAYERS)
    full |= config.get("rope_scaling") or {}
    if not full and not sliding:
        _one(config, family, {key: stated[key] for key in stated if key not in LAYERS})
    knobs = _one(config, family, full)
    near = _one({}, family, sliding)
    if near["rope_scaling"] != "none" or near["rope_fraction"] != knobs["rope_fraction"]:
        raise _not_built("in sliding layers other than the plain one")
    if near["rope_theta"] != knobs["rope_theta"]:
        knobs["rope_theta_sliding"] = near["rope_theta"]
    return knobs


def _one(config: dict[str, Any], family: Family, found: dict[str, Any]) -> dict[str, Any]:
    kind = _kind(found)
    extra = sorted(
        key for key, value in found.items() if key not in EVERY_KIND | KEYS[kind] and value
    )
    if extra:
        raise _not_built(f"{kind!r} with {extra[0]} = {found[extra[0]]!r}")
    knobs: dict[str, Any] = {
        "rope_theta": _theta(config, family, found),
        "rope_fraction": float(
            found.get("partial_rotary_factor")
            or config.get("partial_rotary_factor")
            or config.get("rotary_pct")
            or family.knobs["rope_fraction"]
        ),
        "rope_scaling": "none" if kind == "default" else kind,
    }
    if kind == "default":
        return knobs
    positions = config.get(LENGTH) or found.get(LENGTH) or config.get("max_position_embeddings")
    try:
        knobs["rope_original_length"] = original = _number(positions, int)
        factor = found.get("factor")
        if kind == "llama3":
            knobs["rope_factor"] = _number(factor, float)
            knobs["rope_slow"] = float(found["low_freq_factor"])
            knobs["rope_fast"] = float(found["high_freq_factor"])
        else:
            knobs["rope_factor"] = (
                float(factor) if factor else config["max_position_embeddings"] / original
            )
            knobs["rope_slow"] = float(found.get("beta_slow") or 1)
            knobs["rope_fast"] = float(found.get("beta_fast") or 32)
            knobs["rope_magnitude"] = _magnitude(found, knobs["rope_factor"])
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        raise _not_built(f"{kind!r} with its numbers left out: {found}") from None
    if knobs["rope_fast"] <= knobs["rope_slow"] or knobs["rope_factor"] < 1 or original < 1:
        raise _not_built(f"{kind!r} with numbers that exclude each other: {found}")
    if found.get("truncate") is False:
        raise _not_built("'yarn' with truncate = False")
    return knobs


def _number(stated: Any, kind: type[N]) -> N:
    """Return a number that has to be stated. Raises TypeError, ValueError."""
    return kind(stated)


def _kind(found: dict[str, Any]) -> str:
    spelled = {found[key] for key in ("rope_type", "type") if isinstance(found.get(key), str)}
    if len(spelled) > 1:
        raise _not_built(f"of two types, {' and '.join(sorted(spelled))}")
    kind = next(iter(spelled), "default")
    if kind not in BUILT:
        raise _not_built(f"of type {kind!r}")
    return kind


def _theta(config: dict[str, Any], family: Family, found: dict[str, Any]) -> float:
    """Return the base; where nothing says it, that of Hugging Face's class."""
    return float(
        found.get("rope_theta")
        or config.get("rope_theta")
        or config.get("rotary_emb_base")
        or family.unsaid.get("rope_theta", family.knobs["rope_theta"])
    )


def _magnitude(found: dict[str, Any], factor: float) -> float:
    if found.get("attention_factor") is not None:
        return float(found["attention_factor"])
    weight, whole = found.get("mscale"), found.get("mscale_all_dim")
    if weight and whole:
        return yarn_magnitude(factor, weight) / yarn_magnitude(factor, whole)
    return yarn_magnitude(factor)


def written_rope(shape: Shape, family: Family) -> dict[str, Any]:
    """Return the keys of a configuration that say a shape's RoPE, for transformers 4 and 5."""
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": shape.rope_theta}
    if family.knobs["rope_fraction"] != 1.0:
        rope["partial_rotary_factor"] = shape.rope_fraction
    plain = dict(rope)
    if shape.rope_scaling != "none":
        slow, fast = (
            ("low_freq_factor", "high_freq_factor")
            if shape.rope_scaling == "llama3"
            else ("beta_slow", "beta_fast")
        )
        rope |= {
            "rope_type": shape.rope_scaling,
            "factor": shape.rope_factor,
            slow: shape.rope_slow,
            fast: shape.rope_fast,
            LENGTH: shape.rope_original_length,
        }
        if shape.rope_scaling == "yarn":
            rope["attention_factor"] = shape.rope_magnitude
    keys = {"rope_theta": shape.rope_theta, "rope_parameters": rope}
    if family.full_every:
        plain["rope_theta"] = shape.rope_theta_sliding or shape.rope_theta
        keys["rope_parameters"] = {"full_attention": rope, "sliding_attention": plain}
    if shape.rope_scaling != "none":
        keys["rope_scaling"] = rope
    return keys


def _not_built(what: str) -> ForensicsError:
    return ForensicsError(
        "config",
        f"RoPE {what} is not built here",
        f"built: {', '.join(BUILT)}; in other models angles would be wrong without a word",
    )
