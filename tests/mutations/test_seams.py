"""A fault that shows at one seam alone: the seam is named, with layer, head and position."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import parity
from parity.harness.segmented import SegmentedSession
from parity.targets import caches

pytestmark = pytest.mark.slow
PROMPT = "The quick brown fox jumps over"


@pytest.fixture
def seams(shared_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("PARITY_CACHE", str(shared_cache))

    def run(cand: str = "segmented:grow", **options: Any) -> Any:
        chosen = {"weights": "random:0", "prompt": PROMPT, **options}
        return parity.seams(cand=[cand], **chosen).reports[0]

    return run


def appended(patch: pytest.MonkeyPatch, change: Any) -> None:
    """`change(tap, rows held, new rows, positions)` in place of the rows that a growing cache takes."""
    original = caches.GrowCache.append

    def append(self: Any, cache: str, rows: np.ndarray, positions: np.ndarray) -> None:
        held = self._rows[cache].shape[2] if cache in self._rows else 0
        original(self, cache, change(cache, held, rows.copy(), positions), positions)

    patch.setattr(caches.GrowCache, "append", append)


@pytest.mark.parametrize(
    ("cand", "options"),
    [
        ("segmented:grow", {}),
        ("segmented", {"cache": "window(9)"}),
        ("segmented:recompute", {}),
        ("torch:grow", {}),
        ("onnx", {"ways": "*1[567]*"}),
        ("segmented:grow+bf16", {}),
    ],
)
def test_healthy_targets_have_no_seam(cand: str, options: Any, seams: Any) -> None:
    report = seams(cand, **options)
    assert report.verdict == "parity", report.sentence
    assert len(report.ran) > 2
    assert all(way.reason for way in report.ways if way.status == "skipped")


def test_a_fault_at_one_chunk_boundary_is_named(seams: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def change(tap: str, held: int, rows: np.ndarray, positions: np.ndarray) -> np.ndarray:
        if tap == "layer0.vs" and held and positions[0, 0] == 16:
            rows[:, 1, 0] = 0
        return rows

    appended(monkeypatch, change)
    report = seams()
    assert report.exit_code == 1
    assert report.sentence.startswith("chunk boundary 15|16: layer0.vs, head 1, position 16")
    assert "that begin a piece there, and no other" in report.sentence
    wrong = {way.name for way in report.ways if way.status == "fail"}
    assert {"chunks of 16", "chunks of 8", "token by token"} <= wrong
    assert not {"one prefill", "chunks of 15", "chunks of 17"} & wrong


def test_rows_that_a_handover_loses_are_named(seams: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """More than one row at once into an empty cache that then goes on with its keys of layer 2 shifted."""
    original = caches.GrowCache.view

    def view(self: Any, cache: str) -> np.ndarray:
        seen = original(self, cache)
        firsts = self._held[cache][0, 0] if cache in self._held else 0
        grown = seen.shape[2] == 16 and firsts == 0
        return np.roll(seen, 1, axis=2) if cache == "layer2.ks" and grown else seen

    monkeypatch.setattr(caches.GrowCache, "view", view)
    report = seams(ways="*15*")
    assert report.verdict == "divergence"
    assert "15" in report.sentence


def test_a_batch_that_counts_padding_on_the_left_is_named(
    seams: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = SegmentedSession.__post_init__

    def counted(self: Any) -> None:
        original(self)
        rope = self.rope
        self.rope = lambda at: rope(np.where((at >= 0) & (at.min() < 0) & (at[:, :1] < 0), at + 5, at))

    monkeypatch.setattr(SegmentedSession, "__post_init__", counted)
    report = seams()
    assert report.verdict == "divergence"
    assert {way.name for way in report.ways if way.status == "fail"} == {
        "padded on the left",
        "padded on the left, chunks of 7",
    }
    assert report.sentence.startswith("padded on the left")
    assert "of sequence 1" in report.sentence


def test_a_window_that_wraps_too_early_is_named(seams: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    original = caches.WindowCache.append

    def append(self: Any, cache: str, rows: np.ndarray, positions: np.ndarray) -> None:
        original(self, cache, rows, positions)
        if cache == "layer1.vs" and positions.max() >= 9:
            self._rows[cache] = np.roll(self._rows[cache], 1, axis=2)

    monkeypatch.setattr(caches.WindowCache, "append", append)
    report = seams("segmented", cache="window(9)")
    assert report.verdict == "divergence"
    assert "layer1" in report.sentence


def test_a_fault_of_every_way_is_no_seam(seams: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    appended(monkeypatch, lambda tap, held, rows, at: rows * np.float32(1.1) if tap == "layer1.ks" else rows)
    report = seams(ways="chunks of 16")
    assert report.sentence.startswith("no seam: one prefill departs already, at layer1.ks")


def test_what_a_target_cannot_do_is_skipped_with_the_reason(seams: Any) -> None:
    ways = {way.name: way for way in seams("segmented:recompute").ways}
    restored = ways["cache restored after 15 tokens"]
    assert restored.status == "skipped"
    assert "keeps no cache" in restored.reason


def test_ways_that_match_nothing_are_refused(seams: Any) -> None:
    with pytest.raises(parity.UserError, match="ways='chunk of 16'"):
        seams(ways="chunk of 16")


def test_the_command_prints_the_verdict_and_strict_json(
    shared_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from parity.cli import cli

    monkeypatch.setenv("PARITY_CACHE", str(shared_cache))
    asked = ["seams", "--cand", "segmented:grow", "--weights", "random:0", "--prompt", PROMPT]
    done = CliRunner().invoke(cli, [*asked, "--ways", "chunks of 1*", "--json"])
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert told["candidates"][0]["verdict"] == "parity"
    assert [way["name"] for way in told["candidates"][0]["ways"]][:2] == ["one prefill", "chunks of 15"]
