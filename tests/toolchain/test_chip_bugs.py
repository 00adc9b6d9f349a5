"""Bugs planted into what is compiled: found on the simulator, through int8 noise too, in their segment."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
sys.path.insert(0, str(Path(__file__).parents[1]))

BUGS = [
    ("weight-transposed", "cvi:tapped"),
    ("gate-and-up-crossed", "cvi:tapped"),
    ("cut-bottoms-exchanged", "cvi"),
    ("weight-keys-for-values", "cvi:int8"),
    ("rope-sign-on-keys", "cvi:int8"),
]


@pytest.fixture(scope="module")
def lab(toolchain, tmp_path_factory):
    from mutations.lab import Lab

    return Lab(tmp_path_factory.mktemp("lab"))


@pytest.mark.parametrize(("name", "cand"), BUGS, ids=" on ".join)
def test_a_bug_in_what_is_compiled_is_found_on_the_simulator(name, cand, lab):
    from mutations import catalogue
    from mutations.score import judge

    plant = next(plant for plant in catalogue.plants() if plant.name == name)
    assert plant.reaches(cand)
    assert lab.healthy(plant.case(cand), cand).verdict == "parity"
    outcome = judge(plant, cand, lab)
    assert outcome.detected, outcome
    assert outcome.part, (outcome.tap, outcome.expected)
    assert cand != "cvi:tapped" or outcome.exact, (outcome.tap, outcome.step, outcome.expected)
