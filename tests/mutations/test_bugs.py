"""Every planted bug is detected, and located at the tap and the step where it is born."""

from __future__ import annotations

import os

import pytest
from mutations import catalogue, known, schedule
from mutations.score import judge

#: One of a family each, quick enough for every change.
SMOKE = {
    ("rope-interleaved", "segmented"),
    ("attention-without-scale", "segmented"),
    ("mask-off-by-one", "segmented"),
    ("cache-rolled", "prefilled"),
    ("weight-transposed", "segmented"),
    ("format-weight-cut", "segmented"),
    ("file-keys-for-values", "prefilled"),
    ("dump-of-another-step", "dump"),
    ("encoder-not-causal", "module:mutations.zoo:encoder_port"),
}
CHOSEN = schedule.Chosen(seed=int(os.environ.get("PARITY_SEED", "0")))
FULL = schedule.Chosen(full=True)
SCHEDULED = schedule.planted(catalogue.plants(), CHOSEN)


def _case(plant, cand):
    marks = [] if (plant.name, cand) in SMOKE else [pytest.mark.slow]
    return pytest.param(plant, cand, marks=marks, id=f"{plant.name} on {cand}")


@pytest.mark.parametrize(("plant", "cand"), [_case(*one) for one in SCHEDULED])
def test_a_planted_bug_is_detected_and_located(plant, cand, lab):
    outcome = judge(plant, cand, lab)
    if (plant.name, cand) in known.MISSED:
        assert not outcome.detected, "it is detected now: take it off the list of what is missed"
        return
    if cand in plant.on:
        assert not outcome.idle, "the patch changes nothing here"
    assert outcome.detected or outcome.undetectable or outcome.idle, (
        outcome.verdict,
        outcome.size,
        outcome.error,
    )
    if outcome.detected and (plant.name, cand) not in known.ELSEWHERE:
        assert f"{outcome.tap}@{outcome.step}" == outcome.expected
        assert outcome.part
    if outcome.detected and cand == plant.on[0] and plant.name not in known.UNEXPLAINED:
        assert outcome.explained, outcome.why or "nothing was said"


def test_what_is_known_to_be_wrong_is_little():
    """`parity selftest` holds the score against its aims; these lists may only become shorter."""
    pairs = {(plant.name, cand) for plant, cand in schedule.planted(catalogue.plants(), FULL)}
    names = {plant.name for plant in catalogue.plants()}
    assert set(known.ELSEWHERE) | set(known.MISSED) <= pairs
    assert not known.MISSED
    assert len(known.ELSEWHERE) <= 0.01 * len(pairs)
    assert names >= known.UNEXPLAINED
    assert len(known.UNEXPLAINED) <= 0.30 * len(names)


def test_every_smoke_case_is_in_the_catalogue():
    assert {(plant.name, cand) for plant, cand in SCHEDULED} >= SMOKE
