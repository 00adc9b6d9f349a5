"""A fault planted into a cache is named by what its rows hold: stale, shifted, missing, of another place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from parity.targets import caches
from parity.targets.torch_segments import RopeTable

pytestmark = pytest.mark.slow

Change = Callable[[Any, str, np.ndarray, np.ndarray], np.ndarray]
PROMPT = "The quick brown fox jumps"


def views(change: Callable[[np.ndarray], np.ndarray], tap: str) -> Callable[[pytest.MonkeyPatch], None]:
    """Hand out something else than what is held."""

    def plant(patch: pytest.MonkeyPatch) -> None:
        for kind in (caches.WindowCache, caches.GrowCache):
            original = kind.view

            def view(self: Any, cache: str, original: Any = original) -> np.ndarray:
                seen: np.ndarray = original(self, cache)
                return change(seen.copy()) if cache == tap else seen

            patch.setattr(kind, "view", view)

    return plant


def appends(change: Change, tap: str) -> Callable[[pytest.MonkeyPatch], None]:
    """Keep something else than what was computed."""

    def plant(patch: pytest.MonkeyPatch) -> None:
        for kind in (caches.WindowCache, caches.GrowCache):
            original = kind.append

            def append(
                self: Any, cache: str, rows: np.ndarray, positions: np.ndarray, original: Any = original
            ) -> None:
                other = change(self, cache, rows.copy(), positions) if cache == tap else rows
                original(self, cache, other, positions)
                self.__dict__.setdefault("seen", {})[cache] = rows

            patch.setattr(kind, "append", append)

    return plant


def exchanged(view: np.ndarray) -> np.ndarray:
    if view.shape[2] > 8:
        view[:, :, [4, 7]] = view[:, :, [7, 4]]
    return view


def doubled(view: np.ndarray) -> np.ndarray:
    if view.shape[2] > 9:
        view[:, 0, 6:9] = view[:, 0, 4:5]
    return view


def zeroed(view: np.ndarray) -> np.ndarray:
    view[:, 1, 3:5] = 0
    return view


def narrowed(dtype: Any) -> Callable[[np.ndarray], np.ndarray]:
    return lambda view: view.astype(dtype).astype(view.dtype)


def other_cache(other: str) -> Change:
    """What was last appended to another cache, once there is something of equal width."""

    def change(self: Any, cache: str, rows: np.ndarray, positions: np.ndarray) -> np.ndarray:
        seen: np.ndarray | None = self.__dict__.get("seen", {}).get(other)
        return seen if seen is not None and seen.shape == rows.shape else rows

    return change


GROW = "segmented:grow"
#: name -> (plant, tap, candidate, what must be said)
FAULTS: dict[str, tuple[Callable[[pytest.MonkeyPatch], None], str, str, tuple[str, ...]]] = {
    "rolled": (
        views(lambda view: np.roll(view, 1, axis=2), "layer1.ks"),
        "layer1.ks",
        GROW,
        ("layer1.ks: rows 1..24 shifted: holding position p-1",),
    ),
    "zeros": (views(zeroed, "layer0.vs"), "layer0.vs", GROW, ("head 1 of layer0.vs: rows 3..4 missing",)),
    "doubled": (
        views(doubled, "layer1.vs"),
        "layer1.vs",
        GROW,
        ("head 0 of layer1.vs: rows 6..8 duplicates of position 4",),
    ),
    "exchanged": (
        views(exchanged, "layer3.vs"),
        "layer3.vs",
        GROW,
        ("layer3.vs: row 4 exchanged with position p+3",),
    ),
    "heads": (
        views(lambda view: view[:, ::-1].copy(), "layer0.ks"),
        "layer0.ks",
        GROW,
        ("head 0 of layer0.ks", "the rows of head 1"),
    ),
    "float16": (views(narrowed(np.float16), "layer2.vs"), "layer2.vs", GROW, ("rounded to float16",)),
    "bfloat16": (
        views(narrowed(ml_dtypes.bfloat16), "layer2.ks"),
        "layer2.ks",
        "segmented",
        ("rounded to bfloat16",),
    ),
    "values-as-keys": (
        appends(other_cache("layer1.ks"), "layer1.vs"),
        "layer1.vs",
        GROW,
        ("the rows of layer1.k: keys and values swapped",),
    ),
    "another-layer": (
        appends(other_cache("layer0.ks"), "layer2.ks"),
        "layer2.ks",
        GROW,
        ("layer2.ks: rows 0..24 holding the rows of layer0.k",),
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_what_wrong_rows_hold_is_named(name: str, hold: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    plant, tap, cand, said = FAULTS[name]
    plant(monkeypatch)
    comparison = hold(cand, prompt=PROMPT)
    assert comparison.culprits[0].tap == tap
    for words in said:
        assert words in comparison.culprits[0].evidence
    assert "no known origin" not in comparison.culprits[0].evidence


def test_a_head_that_is_not_written_any_more_is_stale(hold: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full window whose head 1 stays as it was at step 2."""
    original = caches.WindowCache.append

    def append(self: Any, cache: str, rows: np.ndarray, positions: np.ndarray) -> None:
        before = self._rows.get(cache)
        original(self, cache, rows, positions)
        if cache == "layer0.ks" and positions.max() >= len(PROMPT) + 2 and before is not None:
            self._rows[cache][:, 1] = before[:, 1]

    monkeypatch.setattr(caches.WindowCache, "append", append)
    comparison = hold("segmented", prompt=PROMPT, cache="window(8)", steps=6)
    culprit = comparison.culprits[0]
    assert (culprit.tap, culprit.step) == ("layer0.ks", 3)
    assert culprit.evidence.startswith("head 1 of layer0.ks: rows 20..27 stale (as of step 2)")
    assert "wrong at 3 later steps too" in culprit.evidence


def test_keys_that_were_kept_unrotated_are_named(hold: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    tables: list[RopeTable] = []
    built = RopeTable.__init__

    def remember(self: Any, *arguments: Any) -> None:
        built(self, *arguments)
        tables.append(self)

    def unrotated(self: Any, cache: str, rows: np.ndarray, positions: np.ndarray) -> np.ndarray:
        cos, sin = tables[-1](positions)[:, :, None]
        half = rows.shape[-1] // 2
        turned = np.concatenate([-rows[..., half:], rows[..., :half]], axis=-1)
        return np.asarray(rows * cos - turned * sin)

    monkeypatch.setattr(RopeTable, "__init__", remember)
    appends(unrotated, "layer1.ks")(monkeypatch)
    comparison = hold(GROW, prompt=PROMPT)
    assert "unrotated keys" in comparison.culprits[0].evidence


def test_one_sequence_of_a_batch_that_holds_anothers_rows_is_named(
    hold: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def mixed(self: Any, cache: str, rows: np.ndarray, positions: np.ndarray) -> np.ndarray:
        rows[2] = rows[0]
        return rows

    appends(mixed, "layer2.ks")(monkeypatch)
    comparison = hold("segmented:recompute", scenario="batch3-right")
    assert "sequence 2" in comparison.culprits[0].evidence
    assert "of sequence 0" in comparison.culprits[0].evidence


HEALTHY = [
    ("segmented", {"scenario": "wrap", "steps": 20}),
    ("segmented", {"scenario": "batch3"}),
    ("segmented:grow", {"scenario": "batch3-right"}),
    ("segmented:recompute", {"scenario": "reset", "steps": 16}),
    ("segmented", {"scenario": "reset", "steps": 16}),
    ("prefilled", {"scenario": "default"}),
    ("onnx", {"scenario": "wrap", "steps": 20}),
]


@pytest.mark.parametrize(("cand", "options"), HEALTHY, ids=lambda value: str(value))
def test_healthy_caches_are_not_accused(cand: str, options: dict[str, Any], hold: Any) -> None:
    comparison = hold(cand, **options)
    assert comparison.verdict == "parity"
    assert not [finding for finding in comparison.findings if finding.level == "error"]
    assert comparison.onset is None


def test_what_a_wrong_projection_writes_is_not_the_caches_fault(
    hold: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keys that are computed wrongly lie where they belong: the cache is not accused."""
    original = RopeTable.__call__
    monkeypatch.setattr(
        RopeTable, "__call__", lambda self, positions: original(self, np.maximum(positions + 1, 0))
    )
    comparison = hold("segmented", prompt=PROMPT)
    assert comparison.verdict == "divergence"
    assert not [finding for finding in comparison.findings if finding.level == "error"]
