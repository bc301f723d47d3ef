"""The next token's logits after a prompt, with what was read before kept, for verification.

logits_1V, past = forward.read(prefix_1T, None)
logits_BV, more = forward.read(suffix_BT, forward.spread(past, B))
"""

from __future__ import annotations

import contextlib
import copy
import functools
import inspect
import io
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from forensics.errors import ForensicsError, first_line
from forensics.model.decoder import Decoder, unembedding
from forensics.model.shape import Shape


class Forward(Protocol):
    """A causal language model. `past` is what it keeps of the tokens read so far, of B rows."""

    context: int  # positions it was made for

    def read(self, tokens_BT: Tensor, past: Any) -> tuple[Tensor, Any]:
        """Logits (B, V) after the last of the tokens, and the past that now holds them."""
        ...

    def spread(self, past: Any, rows: int) -> Any:
        """Return a past of one row as one of many; the given one stays as it is."""
        ...

    def take(self, past: Any, rows: Tensor) -> Any:
        """Return the past of some rows only; the given one may be used up."""
        ...


class Recomputed:
    """Read the tokens themselves again each time: a past that holds no keys and values."""

    def __init__(self, logits: Callable[[Tensor], Tensor], context: int) -> None:
        self._logits = logits  # (B, T) → (B, V)
        self.context = context

    @torch.no_grad()
    def read(self, tokens_BT: Tensor, past: Any) -> tuple[Tensor, Any]:
        """Return logits (B, V) after the last of the tokens, and all tokens read so far."""
        sequence = tokens_BT if past is None else torch.cat([past, tokens_BT], dim=1)
        return self._logits(sequence), sequence

    def spread(self, past: Any, rows: int) -> Any:
        """Repeat the tokens of one row for many."""
        return None if past is None else past.expand(rows, -1)

    def take(self, past: Any, rows: Tensor) -> Any:
        """Select the tokens of some rows."""
        return past[rows]


class Cached:
    """A transformers model with its cache of keys and values."""

    def __init__(self, model: Any, context: int) -> None:
        self._model, self.context = model, context
        takes = inspect.signature(model.forward).parameters
        self._last_only = {"logits_to_keep": 1} if "logits_to_keep" in takes else {}

    @torch.no_grad()
    def read(self, tokens_BT: Tensor, past: Any) -> tuple[Tensor, Any]:
        """Return logits (B, V) after the last of the tokens, and the cache that now holds them."""
        out = self._model(
            input_ids=tokens_BT.to(self._model.device),
            past_key_values=past,
            use_cache=True,
            **self._last_only,
        )
        return out.logits[:, -1].float().cpu(), getattr(out, "past_key_values", None)

    def spread(self, past: Any, rows: int) -> Any:
        """Copy the cache of one row for many."""
        if past is None:
            return None
        spread = copy.deepcopy(past)  # reading writes into it
        spread.batch_repeat_interleave(rows)
        return spread

    def take(self, past: Any, rows: Tensor) -> Any:
        """Select some rows of the cache, in place."""
        past.batch_select_indices(rows.to(self._model.device))
        return past


def of_decoder(params: dict[str, Tensor], shape: Shape, context: int, device: str) -> Forward:
    """Build a forward of our own decoder over a state's parameters."""
    decoder = Decoder(shape, device)
    unembed_VD = unembedding(params)

    def logits(tokens_BT: Tensor) -> Tensor:
        tokens = tokens_BT.to(device)
        documents = torch.zeros_like(tokens) if shape.document_mask else None
        return (
            (decoder.hidden(params, tokens, documents_BT=documents)[:, -1] @ unembed_VD.T)
            .float()
            .cpu()
        )

    return Recomputed(logits, context)


def of_folder(folder: Path, gguf_file: str | None = None) -> Forward:
    """Load a Hugging Face folder, or a GGUF file in it, through transformers, in float32.

    Errors: data, memory.
    """
    model = load_in_transformers(folder / gguf_file if gguf_file else folder)
    model = model.to("cuda" if torch.cuda.is_available() else "cpu")
    context = int(
        getattr(model.config.get_text_config(), "max_position_embeddings", None) or 1 << 20
    )
    cached = Cached(model, context)
    if (
        cached.read(torch.zeros(1, 1, dtype=torch.int64), None)[1] is None
    ):  # an architecture that keeps no keys and values
        return Recomputed(lambda tokens: cached.read(tokens, None)[0], context)
    return cached


def load_in_transformers(source: Path, **options: Any) -> Any:
    """Let transformers read a folder or a GGUF file, in float32 and for reading alone.

    Weights that it does not find it would draw: that is refused. Errors: data.
    """
    with quiet(), _gguf_read_once() if source.is_file() else contextlib.nullcontext():
        from transformers import AutoModelForCausalLM

        gguf = {"gguf_file": source.name} if source.is_file() else {}
        folder = source.parent if source.is_file() else source
        try:
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                str(folder.absolute()),
                dtype=torch.float32,
                local_files_only=True,
                trust_remote_code=False,
                output_loading_info=True,
                **gguf,
                **options,
            )
            model, found = loaded
        except MemoryError:
            raise
        except Exception as e:  # transformers raises what the architecture's own code raises
            raise ForensicsError(
                "data",
                f"transformers cannot load {source}: {first_line(e)}",
                "leave out --verify: indicators need no forward pass",
            ) from None
    missing = sorted(found["missing_keys"])
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise ForensicsError(
            "data",
            f"{source}: wanted {missing[0]}{more}, found none: transformers would draw them at"
            " random",
            "is it complete, and in Hugging Face's layout?",
        )
    return model.eval()


@contextlib.contextmanager
def _gguf_read_once() -> Iterator[None]:
    """Let transformers read a GGUF file's head once instead of twice, and make the map of its
    tensors' names once instead of once a tensor: most of the time that loading a small model takes.
    """
    import gguf

    read, name_map = gguf.GGUFReader, gguf.get_tensor_name_map
    gguf.GGUFReader = functools.lru_cache(1)(read)  # type: ignore[misc, assignment]
    gguf.get_tensor_name_map = functools.lru_cache(1)(name_map)
    try:
        yield
    finally:
        gguf.GGUFReader, gguf.get_tensor_name_map = read, name_map  # type: ignore[misc]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence transformers' bars and remarks while it loads; errors still rise."""
    from transformers.utils import logging

    bars, level, offline = (
        logging.is_progress_bar_enabled(),
        logging.get_verbosity(),
        os.environ.get("HF_HUB_OFFLINE"),
    )
    os.environ["HF_HUB_OFFLINE"] = "1"
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # a bar of its own while it dequantises
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
        if offline is None:
            del os.environ["HF_HUB_OFFLINE"]
        else:
            os.environ["HF_HUB_OFFLINE"] = offline
