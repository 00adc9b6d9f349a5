"""Changes that alter bits but not meaning: none of them may be flagged."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from parity.models.klm import segments
from parity.targets import caches

pytestmark = pytest.mark.slow

CANDIDATES = ["segmented", "segmented:grow", "segmented:recompute", "torch:grow", "prefilled"]


@pytest.mark.parametrize("cand", CANDIDATES)
@pytest.mark.parametrize("scenario", ["default", "batch3", "reset"])
def test_another_layout_is_no_divergence(cand: str, scenario: str, hold: Any) -> None:
    comparison = hold(cand, scenario=scenario, steps=None)
    assert comparison.verdict == "parity", comparison.first
    assert comparison.coverage.checked > 0


@pytest.mark.parametrize("threads", [1, 2])
def test_another_thread_count_is_no_divergence(threads: int, hold: Any) -> None:
    assert hold("segmented", threads=threads).verdict == "parity"


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_other_weights_are_no_divergence(seed: int, hold: Any) -> None:
    assert hold("segmented", weights=f"random:{seed}", steps=16).verdict == "parity"


def test_a_reordered_sum_is_no_divergence(hold: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    original = torch.nn.Linear.forward

    def forward(self: Any, x: Tensor) -> Tensor:
        if self.in_features < 128 or not torch.is_floating_point(x) or self.out_features == 512:
            return original(self, x)
        order = torch.arange(self.in_features - 1, -1, -1)
        half = self.in_features // 2
        mixed = (
            x[..., order[:half]] @ self.weight[:, order[:half]].T
            + x[..., order[half:]] @ self.weight[:, order[half:]].T
        )
        return mixed if self.bias is None else mixed + self.bias

    def only_segments(original_call: Any) -> Any:
        def call(self: Any, *inputs: Tensor) -> Any:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(torch.nn.Linear, "forward", forward)
                return original_call(self, *inputs)

        return call

    for owner in (segments.HeadSegment, segments.MiddleSegment, segments.TailSegment):
        monkeypatch.setattr(owner, "forward", only_segments(owner.forward))
    comparison = hold("segmented", steps=16)
    assert comparison.verdict == "parity", comparison.first
    assert comparison.worst is not None
    assert comparison.worst.error, "the sums were not reordered at all"


@pytest.mark.parametrize(
    ("cand", "garbage"),
    [
        *((cand, size) for cand in ("onnx", "segmented", "segmented:bf16") for size in (3.75, -2e4)),
        ("segmented:fp16", 3.75),  # the product with 2e4 is no finite number in fp16
    ],
)
def test_finite_garbage_in_hidden_slots_is_no_divergence(
    cand: str, garbage: float, hold: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = caches.WindowCache.view

    def view(self: Any, cache: str) -> np.ndarray:
        rows = original(self, cache).copy()
        hidden = self.positions(cache) < 0
        rows[np.nonzero(hidden)[0], :, np.nonzero(hidden)[1]] = garbage
        return rows

    monkeypatch.setattr(caches.WindowCache, "view", view)
    comparison = hold(cand, scenario="batch3")
    assert comparison.verdict == "parity", comparison.first
