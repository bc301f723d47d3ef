"""Blame: gradient norms, and numbers that are not finite."""

from __future__ import annotations

from replay.blame.nonfinite.result import NonFiniteResult, Place
from replay.blame.norm.result import NormBlameResult, NormCandidate, NormExcess
from replay.blame.result import BlamedStep
from replay.forks.result import ControlResult
from tests.app.forks_by_hand import HOSTILE

EXACT = ControlResult("exact", True, "equal bit for bit")


def norm_result() -> NormBlameResult:
    return NormBlameResult(
        run="demo",
        spike=BlamedStep(91, 4.0, 1.0, 0.1, "batch", 91, 92, True, ""),
        window=(91, 91),
        control=EXACT,
        excess=NormExcess(3.0, 0.0, 4.0, 1.0, 1.0, 0.1),
        verdict="data",
        reason="removal takes it away",
        sentence=f"Without 2 sequences the norm falls by 2.9. {HOSTILE}",
        p=0.05,
        proof=None,
        candidates=(NormCandidate(3, 17, 4, HOSTILE, HOSTILE, 2.5, 2.4, HOSTILE),),
        documents=(),
        sources=(),
        curve=(),
        other_data=(),
        other_state=None,
        before=None,
        notes=(HOSTILE,),
        passes=1,
        replays=1,
        interrupted=False,
        seconds=1.0,
        created="now",
    )


def broken_result() -> NonFiniteResult:
    place = Place(92, "forward", "layers.0.mlp_act", "inf", 5, 7, 65, HOSTILE, None, (1,))
    return NonFiniteResult(
        run="demo",
        spike=92,
        of="loss",
        value=float("nan"),
        start=75,
        first_step=92,
        control=EXACT,
        place=place,
        sequences=(place,),
        verdict="data",
        reason="replaced sequences make it finite",
        sentence="Without slot 5 the step is finite.",
        p=0.05,
        proof=None,
        other_data=(),
        other_state=None,
        policy=None,
        complete=True,
        interrupted=False,
        replays=3,
        steps_replayed=9,
        seconds=1.0,
        created="now",
    )


def test_what_was_kept_of_a_gradient_norm_and_of_a_nan_is_shown(forked, app_page, said) -> None:
    (forked / "demo" / "norm-91.json").write_bytes(norm_result().to_json())
    (forked / "demo" / "nonfinite-92.json").write_bytes(broken_result().to_json())
    page = app_page("blame", run="demo", spike=90)
    assert not page.exception
    text = said(page)
    assert "Without 2 sequences the norm falls by 2.9" in text
    assert "layers.0.mlp_act</code> (forward) of step 92, slot 5, position 7" in text
    assert "Without slot 5 the step is finite." in text


def test_a_run_without_them_says_nothing_of_them(forked, app_page, said) -> None:
    for kind in ("norm", "nonfinite"):
        for path in (forked / "demo").glob(f"{kind}-*.json"):
            path.unlink()
    assert "not finite" not in said(app_page("blame", run="demo", spike=90))
