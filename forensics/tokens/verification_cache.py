"""What prompts told of a state's tokens, kept in the run's folder for those who look later:
`verified-<step>.json`.

    keep(run, 300, categories.ids, verification)  # by `forensics tokens RUN@300 --verify`, --census
    verified(run.folder, 300)  # ({4711: True, 4712: False}, "24 of 24 … repeated")
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from forensics.store import result_cache

if TYPE_CHECKING:
    from forensics.tokens.verification import Verification
    from forensics.train.run import Run


def path_of(folder: Path, step: int) -> Path:
    """Return where the answers at a state are kept."""
    return folder / f"verified-{step}.json"


def keep(run: Run, step: int, ids: np.ndarray, told: Verification) -> None:
    """Keep P of each token that was asked; `ids` (n,) are the categories'. Tokens asked before keep
    theirs.

    Where the model cannot copy, nothing is known of any token, and that is kept. Errors: storage.
    """
    from forensics.json_documents import dumps
    from forensics.tokens.verify import VERIFIED

    earlier = _read(path_of(run.folder, step)) if told.copies else None
    tokens: dict[int, tuple[float, bool]] = {}
    if earlier is not None and earlier["copies"]:
        tokens = {
            id: (p, least)
            for id, p, least in zip(*(earlier["tokens"][k] for k in ("id", "max_prob", "at_least")))
        }
    prompted = np.isfinite(told.max_prob)
    tokens |= {
        int(id): (float(p), bool(least))
        for id, p, least in zip(ids[prompted], told.max_prob[prompted], told.bound[prompted])
    }
    document = {
        "run": run.name,
        "step": step,
        "copies": told.copies,
        "verdict": told.verdict,
        "placeholder": told.placeholder,
        "below": VERIFIED,  # P under which a token is verified
        "tokens": {
            "id": list(tokens),
            "max_prob": [p for p, _ in tokens.values()],
            "at_least": [b for _, b in tokens.values()],
        },
    }
    content = (dumps(document, indent=None) + "\n").encode()
    result_cache.write(path_of(run.folder, step), content)


def verified(folder: Path, step: int) -> tuple[dict[int, bool], str] | None:
    """Of the tokens of a state that were asked, whether the model cannot say them; and the verdict
    on the model.

    None where none was asked, or where what was kept is damaged.
    """
    document = _read(path_of(folder, step))
    if document is None:
        return None
    prompted = zip(document["tokens"]["id"], document["tokens"]["max_prob"])
    return {id: p < document["below"] for id, p in prompted}, str(document["verdict"])


def _read(path: Path) -> dict[str, Any] | None:
    document = result_cache.read_document(path)
    if document is None or not {"copies", "verdict", "below", "tokens"} <= document.keys():
        return None
    tokens = document["tokens"]
    complete = isinstance(tokens, dict) and {"id", "max_prob", "at_least"} <= tokens.keys()
    return document if complete else None
