"""The measured noise floor: what a number format explains, and nothing else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import parity.floors
from parity.cases import build_case
from parity.floors import noise_floor
from parity.harness.case import ModuleCase
from parity.harness.errors import UserError
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


class Fixed(nn.Module):
    """Casts its input to the number format that its weights were built in; None: takes any."""

    def __init__(self, kind: torch.dtype | None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.kind, self.fc = kind, nn.Linear(4, 4).to(kind)

    def forward(self, x: Tensor) -> Tensor:
        """[B, 4] -> [B, 4]."""
        return self.fc(x if self.kind is None else x.to(self.kind))


class Told(Silent):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        """Remember it."""
        self.lines.append(line)


def module_case(module: nn.Module) -> ModuleCase:
    x = np.linspace(-1, 1, 8, dtype=np.float32).reshape(2, 4)
    return ModuleCase("theirs:build", module, {"x": x}, "digest")


def break_fp64(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let only runs in fp64 fail."""
    kept = parity.floors.record

    def record(job, *, progress):
        if job.spec.arg == "fp64":
            raise UserError("fp64: broken")
        return kept(job, progress=progress)

    monkeypatch.setattr(parity.floors, "record", record)


@pytest.mark.parametrize(("kind", "dtype"), [(torch.float32, "float32"), (torch.bfloat16, "bfloat16")])
def test_a_module_that_fixes_its_format_has_no_floor_and_that_is_said_once(tmp_path, kind, dtype):
    """bf16 emulated is what the bf16 module computes anyway: a floor of 0 would be no measurement."""
    told = Told()
    assert noise_floor(module_case(Fixed(kind)), (dtype,), tmp_path, progress=told) == {}
    assert len(told.lines) == 1
    assert "without torch:fp64" in told.lines[0]
    assert "same dtype" in told.lines[0]
    assert noise_floor(module_case(Fixed(kind)), (dtype,), tmp_path, progress=told) == {}


def test_the_floors_that_could_be_measured_count(tmp_path, monkeypatch):
    break_fp64(monkeypatch)
    floors = noise_floor(module_case(Fixed(None)), ("bfloat16",), tmp_path, progress=Told())
    assert 1e-4 < floors["output"].rms < 0.1


def test_a_model_of_ours_that_fails_in_a_format_is_an_error(tmp_path, monkeypatch):
    break_fp64(monkeypatch)
    case = build_case(Request(weights="random:0", scenario="one", steps=1), progress=Silent(), like=None)
    with pytest.raises(UserError, match="broken"):
        noise_floor(case, ("float32",), tmp_path, progress=Silent())
