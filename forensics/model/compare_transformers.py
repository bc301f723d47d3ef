"""Our logits beside transformers' on a few random tokens: does an import say what it said there?

    compared = compare_with_transformers(params, shape, config, source=Path("OLMo-2-0425-1B"))
    compared.agrees, compared.first_difference        # True, None; or False, "block 3"

`source`, a Hugging Face folder or a GGUF file, lets transformers read the weights by itself: only
so are names, layouts and rows of the reader checked too. Without it (formats that transformers
does not read) our parameters are handed to its class: that checks the decoder, and not the reader.
To be called once at the end of an import, on one state; with `source` it needs memory for the
model twice over, of a GGUF file three times.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from forensics.errors import ForensicsError, first_line
from forensics.model.decoder import Decoder, unembedding
from forensics.model.forward import load_in_transformers, quiet
from forensics.model.hugging_face import exported_family, to_hf_config, to_hf_tensors
from forensics.model.shape import Shape
from forensics.step.observer import Site

SEQUENCES, POSITIONS = 2, 24  # few: the model is read once for them
# of the largest number of theirs: fp32 sums in another order differ by about 1e-6 in small models,
# by about 1e-5 over 32 blocks; an error of layout by more than 1e-2
TOLERANCE = 1e-4
# parameters that transformers stores under another name than it gives them
NAMED_IN_MEMORY = {"embed_out.weight": "lm_head.weight"}


@dataclass(frozen=True)
class LogitComparison:
    """How far two forwards of the same weights are apart; `why_not` where none was made."""

    agrees: bool | None  # None: not compared
    largest_difference: float | None = None  # of a logit
    largest_logit: float | None = None
    first_difference: str | None = None  # embedding | block N | logits
    own_weights: bool = False  # transformers read the weights by itself
    why_not: str = ""

    def sentence(self) -> str:
        """Say it in one line."""
        if self.agrees is None:
            return f"logits were not compared with transformers': {self.why_not}"
        by = "reading the same files" if self.own_weights else "given the same parameters"
        apart = f"{self.largest_difference:.1e} apart, the largest is {self.largest_logit:.1f}"
        if self.agrees:
            return f"logits equal transformers', {by}: at most {apart}"
        return (
            f"logits are not transformers', {by}: {apart}; first to differ: {self.first_difference}"
        )


class _Streams:
    """Keeps the residual stream after each block."""

    wants = frozenset({"resid_in", "resid_out"})

    def __init__(self) -> None:
        self.streams: list[Tensor] = []

    def tap(self, site: Site, x: Tensor) -> None:
        if site.kind == "resid_out" or site.layer == 0:
            self.streams.append(x)


def compare_with_transformers(
    params: Mapping[str, Tensor],
    shape: Shape,
    config: Mapping[str, Any] | None = None,
    source: Path | None = None,
) -> LogitComparison:
    """Compare logits on random tokens, and name the first block that differs.

    `config` is the model's own config.json, where it has one of a class that transformers knows;
    None: it is made of the shape. `source` as above. Where transformers has no such class, or
    cannot read the files, that is the answer.
    """
    if exported_family(shape) is None and source is None:
        return LogitComparison(None, why_not="transformers has no class with this decoder")
    try:
        theirs = (
            load_in_transformers(source, attn_implementation="eager")
            if source is not None
            else _filled(params, shape, config)
        )
    except ImportError:
        return LogitComparison(None, why_not="transformers is not installed")
    except ForensicsError as e:
        return LogitComparison(None, why_not=f"{e.message}")
    generator = torch.Generator().manual_seed(0)
    T = min(POSITIONS, shape.max_positions)
    tokens = torch.randint(0, shape.vocabulary, (SEQUENCES, T), generator=generator)
    return _compared(dict(params), shape, theirs, tokens, source is not None)


def _filled(params: Mapping[str, Tensor], shape: Shape, config: Mapping[str, Any] | None) -> Any:
    """Give our parameters to transformers' class, where they lie. Errors: data."""
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    known = config is not None and config.get("model_type") in CONFIG_MAPPING
    chosen = dict(config) if config is not None and known else to_hf_config(shape, 0)
    tensors = to_hf_tensors({name: params[name].cpu() for name in params}, shape)
    try:
        with quiet(), _without_weights():
            model = AutoModelForCausalLM.from_config(
                AutoConfig.for_model(**chosen), attn_implementation="eager", dtype=torch.float32
            )
        wanted = set(model.state_dict())
        named = {
            NAMED_IN_MEMORY.get(name, name) if name not in wanted else name: tensor
            for name, tensor in tensors.items()
        }
        found = model.load_state_dict(named, strict=False, assign=True)
        with quiet():
            model.tie_weights()
    except MemoryError:
        raise
    except Exception as e:  # what transformers and torch raise of parameters that do not fit
        raise ForensicsError(
            "data", f"transformers' class does not take the parameters: {first_line(e)}", ""
        ) from None
    drawn = sorted(name for name, p in model.named_parameters() if p.is_meta)
    if drawn or found.unexpected_keys:
        other = (drawn or sorted(found.unexpected_keys))[0]
        raise ForensicsError("data", f"transformers' class has other tensors: {other}", "")
    return model.eval()


@contextlib.contextmanager
def _without_weights() -> Iterator[None]:
    """Leave the parameters of modules that are made without memory; their buffers are computed."""
    register = nn.Module.register_parameter

    def without(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        register(module, name, parameter)
        if parameter is not None:
            module._parameters[name] = nn.Parameter(parameter.to("meta"), requires_grad=False)

    nn.Module.register_parameter = without  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]


@torch.no_grad()
def _compared(
    params: dict[str, Tensor], shape: Shape, theirs: Any, tokens: Tensor, own: bool
) -> LogitComparison:
    watch = _Streams()
    documents = torch.zeros_like(tokens) if shape.document_mask else None
    ours = Decoder(shape).hidden(params, tokens, watch, documents) @ unembedding(params).T
    out = theirs(tokens, output_hidden_states=True, use_cache=False)
    wanted = out.logits.float()
    if wanted.shape != ours.shape:
        return LogitComparison(
            False,
            first_difference=f"logits have {wanted.shape[-1]} ids there, {ours.shape[-1]} here",
            largest_difference=float("inf"),
            largest_logit=float(wanted.abs().amax()),
            own_weights=own,
        )
    far = float((ours - wanted).abs().amax())
    largest = float(wanted.abs().amax())
    agrees = far <= TOLERANCE * max(largest, 1e-30)
    first = None if agrees else _first_difference(watch.streams, out.hidden_states)
    return LogitComparison(agrees, far, largest, first, own)


def _first_difference(ours: list[Tensor], theirs: Any) -> str:
    """Name the first stream that differs. transformers gives its last one after the final norm."""
    for layer, (mine, other) in enumerate(zip(ours[:-1], theirs[:-1])):
        if not (mine - other).abs().amax() <= TOLERANCE * other.abs().amax():
            return "embedding" if layer == 0 else f"block {layer - 1}"
    return f"block {len(ours) - 2}, the final norm or the unembedding"
