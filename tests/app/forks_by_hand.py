"""Documents and tables of forks, sweeps, matrices and blame, made by hand."""

from __future__ import annotations

import pyarrow as pa

from replay.experiments.results import SweepResult
from replay.forks.result import ForkResult

HOSTILE = "<script>alert(1)</script> ![](http://evil.example/a.png) \u202eevil\x07"


def url_of(page):
    return {
        name: value[-1] if isinstance(value, list) else value
        for name, value in page.query_params.items()
    }


def result(altered=None, **final):
    """A ForkResult; `altered` changes its document, `final` the end of it."""
    end = {
        "loss_control": 3.14,
        "loss_fork": 3.086,
        "loss_error": 0.007,
        "probe_sequences": 64,
        "logit_kl": 0.06,
        "l2": 1.45,
        "unseen": {"loss_control": 3.3, "loss_fork": 3.24, "loss_error": 0.008, "sequences": 32},
        "measure": "logit_kl",
        "effect": 10.8,
        "p": 0.05,
        "placebos": 19,
        "finding": "beyond",
        "causal": True,
        "verdict": "beyond the placebos (N = 19)",
    }
    document = {
        "version": ForkResult.VERSION,
        "fork": "f",
        "parent": "demo",
        "from": 400,
        "to": 416,
        "does": "removes 2 documents (replace) in 400:416",
        "chaos": 1,
        "placebos": 19,
        "control": {"level": "exact", "bitwise": True, "sentence": "bit for bit"},
        "time_to_reconverge": None,
        "first_difference": None,
        "interventions": [],
        "barriers": [],
        "final": end | final,
    }
    return ForkResult.from_document(document | (altered or {}), "fork.json")


def text_of(parts):
    return "".join(p if isinstance(p, str) else p.text for p in parts)


def arms(**each):
    """Rows of `fork_arms`: arm → values of KL by step from 1."""
    rows = [
        {
            "step": i + 1,
            "arm": arm.replace("_", "-"),
            "kind": arm.split("_")[0],
            "l2": x,
            "logit_kl": x,
            "loss_gap": x,
            "unseen_gap": x,
        }
        for arm, values in each.items()
        for i, x in enumerate(values)
    ]
    schema = pa.schema(
        [
            ("step", pa.int64()),
            ("arm", pa.string()),
            ("kind", pa.string()),
            *((n, pa.float64()) for n in ("l2", "logit_kl", "loss_gap", "unseen_gap")),
        ]
    )
    return pa.Table.from_pylist(rows, schema)


def bands(kind, values):
    return pa.table(
        {
            "step": [1],
            "kind": [kind],
            "measure": ["logit_kl"],
            "low": [min(values)],
            "middle": [sum(values) / len(values)],
            "high": [max(values)],
            "forks": [len(values)],
        }
    )


def sweep_document(finding="beyond", over=(40.0, 3.0)):
    rows = [
        {
            "step": s,
            "arm": arm,
            "seeds": 1,
            "learning_rate": 1e-3,
            "l2": 1.0,
            "l2_range": [0.5, 2.0],
            "l2_over_moved": 0.2,
            "placebo_range": [0.1, 0.2],
            "over_placebos": o,
            "p": 0.25,
            "placebos": 3,
            "finding": finding,
            "verdict": f"{finding} (N = 3)",
            "time_to_reconverge": None if s == 60 else 4,
            "censored": 0,
            "bitwise": True,
        }
        for s, o in zip((60, 300), over)
        for arm in ("own", "equal")
    ]
    return {
        "version": 1,
        "run": "demo",
        "does": f"skips steps {HOSTILE}",
        "from": 60,
        "steps": [60, 300],
        "horizon": 16,
        "seeds": 1,
        "equal_learning_rate": 2e-3,
        "placebos": 3,
        "points": [],
        "summary": rows,
    }


def sweep_of(finding="beyond", over=(40.0, 3.0)):
    """A SweepResult of a fork made at states 60 and 300."""
    return SweepResult.from_document(sweep_document(finding, over), "sweep.json")


def matrix_of(data=0.5, state=0.01, scale=0.01, named=("data",), blame=None):
    """A matrix of batches 10 and 11 from states 5, 10 and 12, of which 12 is judged."""
    cells = [
        {
            "state": s,
            "step": b,
            "jump": None,
            "loss": 3.0 + data * (b == 11) + state * (s == 12),
            "grad_norm": None,
            "consumed": b < s,
            "loss_placebo": 3.0,
            "grad_norm_placebo": None,
        }
        for s in (5, 10, 12)
        for b in (10, 11, 12)
    ]
    part = {
        "mean_square": 1.0,
        "freedom": 1,
        "over_noise": 2.0,
        "step": None,
        "p_at_best": 0.0001,
        "scales": 50.0,
    }
    parts = [
        part | {"part": "data", "rise": data, "step": 11, "p": 0.0004},
        part | {"part": "state", "rise": state, "p": 0.6, "p_at_best": 0.5},
        part | {"part": "interaction", "rise": 0.0, "step": 12, "p": 0.5},
    ]
    effects = {
        "judged": 12,
        "mean": 3.0,
        "data": [{"step": b, "effect": data * (b == 11)} for b in (10, 11, 12)],
        "state": [{"state": s, "effect": state * (s == 12)} for s in (5, 10, 12)],
        "interaction": [
            {"state": c["state"], "step": c["step"], "effect": 0.0}
            for c in cells
            if not c["consumed"]
        ],
        "parts": [each | {"present": each["part"] in named} for each in parts],
        "noise": 0.001,
        "placebo_scale": scale,
    }
    verdict = named[0] if len(named) == 1 else "several" if named else "cannot tell"
    reason = "shown" if named else "no p is small enough"
    return {
        "version": 2,
        "run": "demo",
        "batches": [10, 13],
        "states": [5, 10, 12],
        "jump_states": [12],
        "placebos": 19,
        "probe_sequences": 4,
        "consumed": 2,
        "cells": cells,
        "effects": {"loss": effects, "jump": None, "grad_norm": None},
        "conclusion": {
            "verdict": verdict,
            "measure": "loss",
            "parts": list(named),
            "reason": reason,
        },
        "blame": blame,
    }


def blame_of():
    candidate = {
        "step": 90,
        "slot": 1,
        "sequence": 7,
        "document": 3,
        "source": HOSTILE,
        "path": HOSTILE,
        "part": "data",
        "influence": 0.3,
        "replayed_effect": 0.2,
        "text": HOSTILE,
        "documents": [],
    }
    return {
        "version": 2,
        "run": "demo",
        "spike": {"step": 90, "value": 5.0, "sigma": 31.0},
        "window": [80, 90],
        "method": "metagradient",
        "control": {
            "level": "exact",
            "bitwise": False,
            "sentence": "tolerance only: step 81 differs first",
        },
        "probes": "4 held-out sequences",
        "excess": {"data": 1.0, "state": 0.5, "total": 1.5},
        "verdict": "data",
        "sentence": f"Without 2 sequences it goes. {HOSTILE}",
        "p": 0.05,
        "proof": {
            "sequences": 2,
            "taken": 1.2,
            "random": [0.1, 0.2],
            "p": 0.05,
            "null": {"windows": [{"step": 70, "taken": 0.1, "complete": True}]},
        },
        "candidates": [candidate],
        "documents": [
            {"document": 3, "source": HOSTILE, "path": HOSTILE, "influence": 0.3, "sequences": 1}
        ],
        "deletion_curve": [
            {"removed": 1, "taken": 0.5, "random": 0.1},
            {"removed": 4, "taken": 1.4, "random": None},
        ],
        "trials": {
            "other_data": [{"what": HOSTILE, "left": 0.1, "spikes": False}],
            "other_states": [],
            "up_to_date": None,
            "policy": [],
            "policy_as_before": None,
            "neither": None,
            "earlier": [],
        },
        "tensors": None,
        "notes": [HOSTILE],
        "replays": 3,
        "steps_replayed": 30,
        "seconds": 1.0,
    }
