"""Copy a decoder into a TransformerLens bridge: that library's hooks, on the state of any step.

lens = bridge(state.params, shape, corpus.folder, corpus.eot)
logits, cache = lens.run_with_cache(tokens_BT)  # cache["blocks.0.attn.hook_pattern"]: (B, H, T, T)
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.torch import save_file

from forensics.errors import ForensicsError
from forensics.model.hugging_face import to_hf_config, to_hf_tensors
from forensics.model.shape import Shape

if TYPE_CHECKING:
    from torch import Tensor


def bridge(params: dict[str, Tensor], shape: Shape, tokenizer_folder: Path | None, eot: int) -> Any:
    """Build a `TransformerBridge` over a copy of these parameters, on the CPU, in eval mode.

    `tokenizer_folder` holds a tokenizer.json; None: tokens are read and shown as their ids. No
    beginning-of-sequence token is put in front, because none was in training. The import takes
    about 6 s. Nothing is asked of a network. Errors: config, where the architecture has no Hugging
    Face form; missing, where there is no tokenizer.json.
    """
    config = to_hf_config(shape, eot)
    tensors = {
        name: tensor.cpu().contiguous() for name, tensor in to_hf_tensors(params, shape).items()
    }
    file = None
    if tokenizer_folder is not None:
        file = Path(tokenizer_folder) / "tokenizer.json"
        if not file.is_file():
            raise ForensicsError(
                "missing",
                f"wanted a tokenizer.json in {tokenizer_folder}, found none",
                "leave it out to see ids",
            )
    with _offline(), tempfile.TemporaryDirectory(prefix="forensics-lens-") as place:
        from transformer_lens.model_bridge import TransformerBridge
        from transformers import AutoModelForCausalLM
        from transformers.utils import logging

        folder = Path(place)
        (folder / "config.json").write_text(json.dumps(config))
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        bars = logging.is_progress_bar_enabled()
        logging.disable_progress_bar()
        try:
            model = AutoModelForCausalLM.from_pretrained(
                folder, attn_implementation="eager", local_files_only=True
            )
        finally:
            if bars:
                logging.enable_progress_bar()
        tokenizer = _tokenizer(file, shape.vocabulary, eot)
        lens = TransformerBridge.boot_transformers(
            str(folder), hf_model=model.eval(), tokenizer=tokenizer, device="cpu"
        )
    lens.cfg.default_prepend_bos = False
    return lens


def _tokenizer(file: Path | None, vocabulary: int, eot: int) -> Any:
    """Return the run's tokenizer, or one that writes a token as its id.

    Its end-of-text token is id `eot`.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    if file is not None:
        backend = Tokenizer.from_file(str(file))
    else:
        backend = Tokenizer(
            models.WordLevel({str(i): i for i in range(vocabulary)}, unk_token=str(eot))
        )
        backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    # No bos_token here: with one, TransformerLens would build the tokenizer anew from a folder that
    # is gone.
    end = backend.id_to_token(eot)
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=end, pad_token=end)


@contextlib.contextmanager
def _offline() -> Iterator[None]:
    before = os.environ.get("HF_HUB_OFFLINE")
    os.environ["HF_HUB_OFFLINE"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["HF_HUB_OFFLINE"]
        else:
            os.environ["HF_HUB_OFFLINE"] = before
