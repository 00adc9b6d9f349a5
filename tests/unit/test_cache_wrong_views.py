"""A cache that hands out a wrong view is the culprit, and what attends to that view is none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import parity
from parity.harness import cache as bookkeeping
from parity.harness import masks
from parity.targets.caches import GrowCache

SCENARIO = """
summary = "a cache that is forgotten half way"
text = "The value of the expression is "
cache = "full"
steps = 10
resets = [5]
"""


def ran(scenario: str, out: Path) -> parity.Comparison:
    made = parity.run(
        "torch", ["segmented"], model="klm-tiny", weights="random:0", scenario=scenario, cache="full", out=out
    )
    return next(iter(made))


@pytest.fixture
def never_reset(monkeypatch: pytest.MonkeyPatch) -> None:
    reset = GrowCache.reset

    def kept(self: GrowCache) -> None:
        if not getattr(self, "_rows", None):
            reset(self)

    monkeypatch.setattr(GrowCache, "reset", kept)


@pytest.mark.slow
@pytest.mark.usefixtures("never_reset")
def test_rows_that_stand_twice_are_the_fault_of_the_cache_alone(tmp_path: Path) -> None:
    (tmp_path / "reset.toml").write_text(SCENARIO)
    found = ran(str(tmp_path / "reset.toml"), tmp_path / "out")
    assert [culprit.tap for culprit in found.culprits] == ["layer0.ks"]
    rows = {(row.tap, row.step): row for row in found.records}
    assert rows["layer3.ks", 10].reason == "sequence 0: holds position 0..34 twice, which no mask hides"
    assert rows["layer3.attn", 10].local_ratio is None
    assert rows["layer3.attn", 10].local_reason.startswith("it is handed layer3.ks: sequence 0: holds")
    assert rows["layer3.q", 10].local_ratio is not None


@pytest.mark.slow
def test_a_padding_mask_that_is_ignored_is_what_brought_the_departure(tmp_path: Path, monkeypatch) -> None:
    right = masks.attendable
    monkeypatch.setattr(
        bookkeeping, "attendable", lambda query, held, window: right(query, np.maximum(held, 0), window)
    )
    found = ran("batch3", tmp_path / "out")
    assert found.onset is not None
    assert (found.onset.brought, found.onset.tap) == ("mask", "layer0.attn")
    assert "rows that hold nothing" in found.onset.detail
