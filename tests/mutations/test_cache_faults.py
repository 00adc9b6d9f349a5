"""One fault planted into the cache or the positions, outside every graph: caught, located, named."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from parity.targets import caches, segmented
from parity.targets.torch_segments import RopeTable

pytestmark = pytest.mark.slow


def _views(change: Callable[[str, np.ndarray], np.ndarray]) -> Callable[[pytest.MonkeyPatch], None]:
    """Hand out something else than what is held."""

    def plant(patch: pytest.MonkeyPatch) -> None:
        original = caches.WindowCache.view
        patch.setattr(caches.WindowCache, "view", lambda self, cache: change(cache, original(self, cache)))

    return plant


def _only(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[str, np.ndarray], np.ndarray]:
    return lambda cache, view: change(view.copy()) if cache == name else view


def _stale_head(view: np.ndarray) -> np.ndarray:
    view[:, 1, :-4] = view[:, 1, -4:].mean()
    return view


def _fp16(view: np.ndarray) -> np.ndarray:
    return view.astype(np.float16).astype(view.dtype)


def _swapped_rows(view: np.ndarray) -> np.ndarray:
    if view.shape[2] > 4:
        view[:, :, [2, 3]] = view[:, :, [3, 2]]
    return view


FAULTS = {
    "M45-rolled-too-far": (_views(_only("layer1.ks", lambda view: np.roll(view, 1, axis=2))), "layer1.ks"),
    "M43-stale-head": (_views(_only("layer0.ks", _stale_head)), "layer0.ks"),
    "M69-cache-in-fp16": (_views(_only("layer2.vs", _fp16)), "layer2.vs"),
    "two-rows-swapped": (_views(_only("layer3.vs", _swapped_rows)), "layer3.vs"),
    "newest-row-missing": (
        _views(_only("layer0.vs", lambda view: np.concatenate([view[:, :, :1], view[:, :, :-1]], 2))),
        "layer0.vs",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_in_the_cache_is_caught_and_located(
    name: str, hold: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant, tap = FAULTS[name]
    plant(monkeypatch)
    comparison = hold()
    assert comparison.verdict == "divergence"
    assert comparison.culprits[0].tap == tap
    assert comparison.culprits[0].segment == "cache"


def test_keys_and_values_in_each_others_place_are_found(hold: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """M55."""
    original = segmented.torch_session

    def session(*arguments: Any) -> Any:
        built = original(*arguments)
        rows = [
            replace(row, source=row.source[:-1] + {"k": "v", "v": "k"}[row.source[-1]])
            if row.cache.startswith("layer1")
            else row
            for row in built.wiring.caches
        ]
        built.wiring = replace(built.wiring, caches=tuple(rows))
        return built

    monkeypatch.setattr(segmented, "torch_session", session)
    comparison = hold()
    assert comparison.verdict == "divergence"
    assert [culprit.tap for culprit in comparison.culprits] == ["layer1.ks"]


def test_a_fault_that_begins_late_is_located_at_its_step(hold: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A window that rolls wrongly only once it is full."""
    original = caches.WindowCache.append

    def append(self: Any, cache: str, rows: np.ndarray, positions: np.ndarray) -> None:
        original(self, cache, rows, positions)
        if positions.max() >= 24 and cache == "layer2.ks":
            self._rows[cache] = np.roll(self._rows[cache], 1, axis=2)

    monkeypatch.setattr(caches.WindowCache, "append", append)
    comparison = hold(scenario="wrap", steps=40, cache="window(8)", prompt="abcdefghijklmnopqrst")
    assert comparison.first is not None
    assert (comparison.first.tap, comparison.first.step) == ("layer2.ks", 5)
    assert comparison.culprits[0].segment == "cache"


def test_a_window_that_leaves_out_the_current_token_is_found(
    hold: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """M39: one row too few, so a position that may be attended to is not there."""
    monkeypatch.setattr(
        segmented, "new_cache", lambda case, layout: caches.WindowCache(case.scenario.batch, 7)
    )
    comparison = hold(cache="window(8)", prompt="abcdefghijklmnopqrst")
    assert comparison.verdict == "divergence"
    assert comparison.culprits[0].tap == "layer0.ks"
    assert "position" in comparison.culprits[0].evidence


@pytest.mark.parametrize("offset", [-1, 1])
def test_positions_off_by_one_after_the_prompt_are_found(
    offset: int, hold: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """M11."""
    original = RopeTable.__call__
    prompt = 20

    def rows(self: Any, positions: np.ndarray) -> np.ndarray:
        return original(self, np.where(positions >= prompt, positions + offset, positions))

    monkeypatch.setattr(RopeTable, "__call__", rows)
    comparison = hold(prompt="abcdefghijklmnopqrst")
    assert comparison.first is not None
    assert (comparison.first.tap, comparison.first.step) == ("rope", 1)
    assert comparison.culprits[0].tap == "rope"


def test_a_stale_position_after_a_reset_is_found(hold: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """M13."""
    original = RopeTable.__call__
    seen = {"newest": -1, "reset": 0}

    def rows(self: Any, positions: np.ndarray) -> np.ndarray:
        if positions.max() < seen["newest"]:
            seen["reset"] = 1
        seen["newest"] = int(positions.max())
        return original(self, positions + seen["reset"])

    monkeypatch.setattr(RopeTable, "__call__", rows)
    comparison = hold(scenario="reset", steps=16)
    assert comparison.first is not None
    assert comparison.first.tap == "rope"
    assert comparison.first.step > 0
