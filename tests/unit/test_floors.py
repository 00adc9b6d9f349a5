"""The measured noise floor: what a number format explains, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from parity.cases import build_case
from parity.floors import noise_floor
from parity.harness.progress import Silent
from parity.request import Request

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def floors(tmp_path_factory) -> dict[str, dict]:
    """dtype -> floors of a case that is long enough for bf16 to choose other tokens than fp32."""
    case = build_case(Request(weights="random:0", scenario="default", steps=16), progress=Silent(), like=None)
    cache = Path(tmp_path_factory.mktemp("cache"))
    return {dtype: noise_floor(case, (dtype,), cache, progress=Silent()) for dtype in ("float32", "bfloat16")}


def test_a_floor_holds_one_text_and_not_the_difference_of_two(floors):
    """bf16 on its own tokens parts from fp32, and every tap is then as far off as another text's: about 1."""
    assert max(floor.rms for floor in floors["bfloat16"].values()) < 0.3


def test_each_format_has_a_floor_of_its_size(floors):
    for tap, floor in floors["bfloat16"].items():
        if tap not in ("ids", "rope"):
            assert 10 * floors["float32"][tap].rms < floor.rms, tap
            assert floors["float32"][tap].rms < 1e-4, tap


def test_a_format_that_torch_cannot_emulate_has_none(tmp_path):
    case = build_case(Request(weights="random:0", scenario="one", steps=1), progress=Silent(), like=None)
    assert noise_floor(case, ("w8a8",), tmp_path, progress=Silent()) == {}
