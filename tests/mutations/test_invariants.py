"""Faults that are found without any reference: each breaks one invariant, and healthy targets break none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import parity
from parity.harness.invariants import between, inside
from parity.harness.invariants.inside import softmaxes
from parity.harness.segmented import SegmentedSession
from parity.harness.tracer.memory import MemoryRun
from parity.models.klm.segments import LayerBottom
from parity.targets import caches
from parity.targets.torch_segments import RopeTable

pytestmark = pytest.mark.slow
PROMPT = "The quick brown fox jumps"


@pytest.fixture
def check(shared_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("PARITY_CACHE", str(shared_cache))

    def run(cand: str = "segmented:grow", **options: Any) -> Any:
        chosen = {"weights": "random:0", "prompt": PROMPT, "steps": 4, **options}
        return parity.invariants([cand], **chosen).reports[0]

    return run


def broken(report: Any) -> list[str]:
    assert report.exit_code == 1
    return [one.name for one in report.found if one.status == "violated"]


@pytest.mark.parametrize(
    ("cand", "options"),
    [
        ("segmented:grow", {}),
        ("segmented", {"cache": "window(9)", "steps": 12}),
        ("segmented:recompute", {}),
        ("segmented:grow+bf16", {}),
        ("segmented", {"scenario": "batch3", "prompt": None}),
        ("segmented", {"scenario": "reset", "steps": 16}),
        ("torch:fp64", {}),
        ("onnx", {}),
    ],
)
def test_healthy_targets_break_none(cand: str, options: Any, check: Any) -> None:
    report = check(cand, **options)
    assert report.verdict == "parity", [one.sentence for one in report.found]
    assert sum(one.status == "holds" for one in report.found) >= 4
    assert all(one.reason for one in report.found if one.status == "skipped")


def test_a_rotation_that_stretches_is_found(check: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    original = RopeTable.__call__
    monkeypatch.setattr(
        RopeTable, "__call__", lambda self, at: original(self, at) * np.where(at > 20, 1.01, 1)[..., None]
    )
    report = check()
    assert broken(report) == [inside.ROTATION]
    assert "position 2" in report[inside.ROTATION].sentence


def test_an_attention_whose_weights_sum_to_more_is_found(check: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    original = LayerBottom._attention
    monkeypatch.setattr(LayerBottom, "_attention", lambda self, *a: original(self, *a) * 1.5)
    assert broken(check()) == [inside.AVERAGE]


def test_older_rows_that_change_are_found(check: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    original = caches.GrowCache.append

    def append(self: Any, cache: str, rows: np.ndarray, positions: np.ndarray) -> None:
        original(self, cache, rows, positions)
        if cache == "layer1.ks" and positions.max() == len(PROMPT) + 1:
            self._rows[cache][:, 1, 3] *= 2

    monkeypatch.setattr(caches.GrowCache, "append", append)
    report = check()
    assert broken(report) == [inside.KEPT]
    assert "layer1.ks, step 2, sequence 0, rows 3" in report[inside.KEPT].sentence


def test_slots_that_nobody_filled_and_that_change_are_found(
    check: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = caches.WindowCache.view

    def view(self: Any, cache: str) -> np.ndarray:
        seen = original(self, cache).copy()
        if cache == "layer0.vs" and self._held[cache][0, 0] < 0:
            seen[:, :, 0] = self._held[cache].max()
        return seen

    monkeypatch.setattr(caches.WindowCache, "view", view)
    assert broken(check("onnx")) == [inside.UNTOUCHED]


def test_a_mask_that_shows_the_future_is_found(check: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    original = SegmentedSession._mask

    def mask(self: Any, segment: Any, values: dict[str, np.ndarray], positions: np.ndarray) -> None:
        original(self, segment, values, positions)
        if "mask" in values:
            values["mask"] = np.zeros_like(values["mask"])

    monkeypatch.setattr(SegmentedSession, "_mask", mask)
    report = check()
    assert between.CAUSAL in broken(report)
    assert report[between.CAUSAL].tap == "layer0.attn"


def test_sequences_that_mix_are_found(check: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    original = caches.GrowCache.append

    def append(self: Any, cache: str, rows: np.ndarray, positions: np.ndarray) -> None:
        if len(rows) > 1 and cache == "layer2.vs":
            rows = rows + np.float32(0.001) * rows[::-1]
        original(self, cache, rows, positions)

    monkeypatch.setattr(caches.GrowCache, "append", append)
    report = check()
    assert broken(report) == [between.APART, between.ALONE]
    assert report[between.APART].tap == "layer2.vs"


def test_softmax_rows_that_sum_to_more_are_found_where_a_tap_shows_them() -> None:
    roles = [{"taps": "weights", "role": "softmax", "inputs": ()}]
    run = MemoryRun("r", provenance={"roles": roles, "dtype": "float32"})
    run.record("weights", np.full((2, 4), 0.25, np.float32))
    assert softmaxes(run).status == "holds"
    run.record("weights", np.full((2, 4), 0.26, np.float32), step=1)
    found = softmaxes(run)
    assert (found.status, found.step) == ("violated", 1)


MODULES = """
import torch
from torch import nn

class Fine(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(8, 8)
    def forward(self, x):
        return self.inner(x).cumsum(1)

class Mixing(Fine):
    def forward(self, x):
        y = self.inner(x)
        return y - y.mean(0)

class Seeing(Fine):
    def forward(self, x):
        return self.inner(x).flip(1)
"""


@pytest.mark.parametrize(
    ("name", "causal", "found"),
    [
        ("Fine", True, []),
        ("Mixing", False, [between.APART]),
        ("Seeing", True, [between.CAUSAL]),
        ("Seeing", False, []),
    ],
)
def test_a_module_of_anyones_is_checked(
    name: str, causal: bool, found: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("checked_nets.py").write_text(MODULES)
    x = np.random.default_rng(0).standard_normal((3, 5, 8)).astype(np.float32)
    result = parity.invariants(model=f"checked_nets:{name}", inputs={"x": x}, causal=causal)
    assert [one.name for one in result.reports[0].found if one.status == "violated"] == found
    assert result.exit_code == (1 if found else 0)


def test_the_command_prints_sentences_and_strict_json(
    shared_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from parity.cli import cli

    monkeypatch.setenv("PARITY_CACHE", str(shared_cache))
    asked = ["invariants", "--cand", "torch", "--weights", "random:0", "--prompt", PROMPT]
    told = CliRunner().invoke(cli, asked)
    assert told.exit_code == 0, told.output
    assert "a rotation keeps the norm: holds in" in told.output
    data = json.loads(CliRunner().invoke(cli, [*asked, "--json"]).stdout)
    assert data["candidates"][0]["verdict"] == "parity"
