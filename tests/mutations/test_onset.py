"""When a candidate departs, and what brought it: input, position, mask, cache, or the computation."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from parity.harness import segmented as loop
from parity.harness.tracer import trace_tensor
from parity.reports.words import onset_sentence
from parity.targets import caches
from parity.targets.torch_segments import RopeTable, TorchExecutor

pytestmark = pytest.mark.slow
PROMPT = "abcdefghijklmnopqrst"


def onset(comparison: Any) -> tuple[int, str]:
    assert comparison.onset is not None
    return comparison.onset.step, comparison.onset.brought


def test_a_window_that_rolls_wrongly_once_it_is_full(hold: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    original = caches.WindowCache.append

    def append(self: Any, cache: str, rows: np.ndarray, positions: np.ndarray) -> None:
        original(self, cache, rows, positions)
        if positions.max() >= 24 and cache == "layer2.ks":
            self._rows[cache] = np.roll(self._rows[cache], 1, axis=2)

    monkeypatch.setattr(caches.WindowCache, "append", append)
    comparison = hold(steps=9, cache="window(8)", prompt=PROMPT)
    assert onset(comparison) == (5, "cache")
    said = onset_sentence(comparison.onset)
    assert said.startswith("from step 5 on; the cache brought it: layer2.ks")


def test_positions_that_slip_after_the_prompt(hold: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    original = RopeTable.__call__
    monkeypatch.setattr(
        RopeTable, "__call__", lambda self, at: original(self, np.where(at >= 22, at + 1, at))
    )
    assert onset(hold(prompt=PROMPT)) == (3, "position")


def test_other_token_ids(hold: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    original = loop.SegmentedSession.step

    def step(self: Any, step: Any, tokens: np.ndarray, positions: np.ndarray, isolate: Any) -> Any:
        if step.index == 2:
            tokens = tokens + 1
            trace_tensor("ids", tokens, axes="b t", positions=positions)
        return original(self, step, tokens, positions, isolate)

    monkeypatch.setattr(loop.SegmentedSession, "step", step)
    assert onset(hold(prompt=PROMPT)) == (2, "input")


MASKS = {
    "one token of the future": lambda behind: behind >= -1,
    "earlier rows and not to itself": lambda behind: behind >= 1,
}


@pytest.mark.parametrize("words", MASKS)
def test_a_mask_that_is_off_by_one(words: str, hold: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    original = loop.SegmentedSession._mask

    def mask(self: Any, segment: Any, values: dict[str, np.ndarray], positions: np.ndarray) -> None:
        original(self, segment, values, positions)
        if "mask" not in values:
            return
        held = self.cache.positions(next(self.wiring.appends(segment.name)).cache)
        behind = positions[:, :, None] - held[:, None, :]
        real = (held >= 0)[:, None, :] & (positions >= 0)[:, :, None] & (behind < self.window)
        seen = real & MASKS[words](behind)
        seen = np.where(seen.any(axis=2, keepdims=True), seen, behind == behind.min(axis=2, keepdims=True))
        values["mask"] = np.where(seen, 0.0, self.hidden).astype(np.float32)[:, None]

    monkeypatch.setattr(loop.SegmentedSession, "_mask", mask)
    comparison = hold("segmented:grow", prompt=PROMPT, cache="window(8)")
    assert onset(comparison)[1] == "mask"
    assert words in comparison.onset.detail


def test_a_segment_that_computes_wrongly_from_a_step_on(hold: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    step, call = loop.SegmentedSession.step, TorchExecutor.call
    now = {"step": 0}

    def stepped(self: Any, step_: Any, *rest: Any) -> Any:
        now["step"] = step_.index
        return step(self, step_, *rest)

    def called(self: Any, segment: str, inputs: Any, *rest: Any) -> Any:
        inputs = dict(inputs)
        if segment == "seg_1" and now["step"] >= 2:
            inputs["residual"] = inputs["residual"] * np.float32(1.01)
        return call(self, segment, inputs, *rest)

    monkeypatch.setattr(loop.SegmentedSession, "step", stepped)
    monkeypatch.setattr(TorchExecutor, "call", called)
    comparison = hold("segmented:grow", prompt=PROMPT)
    assert onset(comparison) == (2, "computation")
    assert not comparison.onset.first_step
