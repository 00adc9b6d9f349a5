"""Changes that alter bits but not meaning: none of them may be flagged."""

from __future__ import annotations

import pytest
from mutations import catalogue, schedule
from mutations.score import tried

SMOKE = {("sum-reversed", "segmented"), ("garbage", "segmented"), ("encoder-attention-by-hand",)}


def _case(change, cand):
    quick = (change.name, cand) in SMOKE or (change.name,) in SMOKE
    return pytest.param(
        change, cand, marks=[] if quick else [pytest.mark.slow], id=f"{change.name} on {cand}"
    )


@pytest.mark.parametrize(
    ("change", "cand"), [_case(*one) for one in schedule.harmless(catalogue.changes(), schedule.Chosen())]
)
def test_a_harmless_change_is_not_flagged(change, cand, lab):
    alarm = tried(change, cand, lab)
    assert not alarm.false, (alarm.verdict, alarm.said)
    assert alarm.worst is None or alarm.worst < 1.0
