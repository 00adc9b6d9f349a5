"""Cache forensics on runs in memory: layouts, resets, tables of positions, and silence without a fault."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from parity.harness.comparison import Comparison, Row, Side
from parity.harness.forensics import examine as forensics
from parity.harness.forensics.examine import examine, with_forensics
from parity.harness.pages import page_of, places_in_words
from parity.harness.tracer.memory import MemoryRun

WIRING = {
    "caches": [
        {"cache": "a.ks", "source": "a.k", "segment": "s0"},
        {"cache": "a.vs", "source": "a.v", "segment": "s0"},
    ],
    "segments": [],
}
Change = Callable[[np.ndarray, int], np.ndarray]


def rows(tap: str, step: int, count: int, batch: int = 1) -> np.ndarray:
    seed = [ord(letter) for letter in tap] + [step]
    return np.random.default_rng(seed).standard_normal((batch, 2, count, 8)).astype(np.float32)


def run(
    change: Change, *, layout: str = "grow", steps: int = 6, size: int = 4, resets: tuple[int, ...] = ()
) -> MemoryRun:
    """Four rows, then one a step; the view of a.ks is `change`d, its table of positions is not."""
    made = MemoryRun("r", provenance={"wiring": WIRING, "scenario": {"resets": resets}}, complete=True)
    held: dict[int, np.ndarray] = {}
    newest = -1
    for step in range(steps):
        if step in resets:
            held, newest = {}, -1
        new = rows("a.k", step, 4 if step == 0 else 1)
        at = np.arange(newest + 1, newest + 1 + new.shape[2])
        newest = int(at[-1])
        made.record("a.k", new, step=step, axes="b h t d", positions=at)
        made.record("a.v", rows("a.v", step, len(at)), step=step, axes="b h t d", positions=at)
        held |= {int(p): new[:, :, i] for i, p in enumerate(at)}
        table = LAYOUTS[layout](newest, size)
        blank = np.zeros((1, 2, 8), np.float32)
        view = np.stack([held[p] if p >= 0 else blank for p in table], axis=2)
        made.record("a.ks", change(view, step), step=step, axes="b h p d", positions=np.array([table]))
    return made


def ring(newest: int, size: int) -> list[int]:
    return [max((p for p in range(newest + 1) if p % size == slot), default=-1) for slot in range(size)]


def paged(newest: int, size: int) -> list[int]:
    """Pages of two rows, the later page first."""
    pages = [[p, p + 1] for p in range(0, newest + 1, 2)]
    return [p if p <= newest else -1 for page in reversed(pages) for p in page]


LAYOUTS: dict[str, Callable[[int, int], list[int]]] = {
    "grow": lambda newest, size: list(range(newest + 1)),
    "window": lambda newest, size: list(range(max(0, newest - size + 1), newest + 1)),
    "static": lambda newest, size: [p if p <= newest else -1 for p in range(12)],
    "ring": ring,
    "paged": paged,
}


def suspect(step: int, **fields: Any) -> Row:
    known: dict[str, Any] = {"axes": "b h p d", "segment": "cache", "local_ratio": 9.0, "ratio": 9.0}
    return Row(0, "a.ks", step, 0, "fail", **{**known, **fields})


def said(change: Change, step: int, **options: Any) -> list[str]:
    reference, candidate = run(lambda view, _: view, **options), run(change, **options)
    return [fault.sentence() for fault in examine(suspect(step), reference, candidate)]  # type: ignore[arg-type]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_healthy_rows_of_every_layout_are_not_accused(layout: str) -> None:
    for step in range(6):
        assert said(lambda view, _: view, step, layout=layout) == []


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_hole_is_named_by_absolute_position_in_every_layout(layout: str) -> None:
    table = LAYOUTS[layout](8, 4)

    def change(view: np.ndarray, step: int) -> np.ndarray:
        view = view.copy()
        if step == 5:
            view[:, 1, table.index(7)] = 0
        return view

    assert said(change, 5, layout=layout) == ["head 1 of a.ks: row 7 missing (zero, never written)"]


def test_a_ring_slot_that_was_not_overwritten_is_stale() -> None:
    last: dict[str, np.ndarray] = {}

    def change(view: np.ndarray, step: int) -> np.ndarray:
        view = view.copy()
        if step == 5:
            view[:, :, 8 % 4] = last["view"][:, :, 8 % 4]
        last["view"] = view
        return view

    assert said(change, 5, layout="ring") == ["a.ks: row 8 stale (as of step 4)"]


def test_rows_of_before_a_reset_are_stale() -> None:
    old = np.concatenate([rows("a.k", 0, 4)[:, :, :1], rows("a.k", 0, 4)[:, :, 1:2]], axis=2)

    def change(view: np.ndarray, step: int) -> np.ndarray:
        view = view.copy()
        if step == 5:
            view[:, :, :2] = old
        return view

    told = said(change, 5, layout="grow", resets=(4,))
    assert told == ["a.ks: rows 0..1 stale (from before the reset at step 4)"]


def test_rows_that_were_scaled_are_named_with_the_factor() -> None:
    told = said(lambda view, step: view * np.float32(1.02) if step == 5 else view, 5)
    assert told == ["a.ks: rows 0..8 scaled by 1.02"]


def test_several_origins_are_each_named() -> None:
    def change(view: np.ndarray, step: int) -> np.ndarray:
        view = view.copy()
        if step == 5:
            view[:, 0, 1:4] = 0
            view[:, 1, 5:8] = view[:, 1, 4:7]
            view[:, 0, 6] = 77
        return view

    assert sorted(said(change, 5)) == [
        "head 0 of a.ks: row 6 of no known origin",
        "head 0 of a.ks: rows 1..3 missing (zero, never written)",
        "head 1 of a.ks: rows 5..7 shifted: holding position p-1",
    ]


def test_a_position_that_stands_in_two_slots_is_named() -> None:
    reference, candidate = run(lambda view, _: view), run(lambda view, _: view)
    record = candidate.records("a.ks")[5]
    assert record.positions is not None
    record.positions[0, 3] = 2
    told = [fault.sentence() for fault in examine(suspect(5), reference, candidate)]  # type: ignore[arg-type]
    assert told[0] == "a.ks: row 2 in more than one slot"
    assert "shifted" in told[1] or "duplicate" in told[1]


def test_a_trace_without_wiring_is_held_against_the_references_rows() -> None:
    """As a dump has it: cache rows alone, noise on all of them, one shifted block."""
    sides = []
    for shifted in (False, True):
        made = MemoryRun("r", complete=True)
        values = rows("c", 0, 64)
        if shifted:
            values[:, :, 10:20] = values[:, :, 11:21].copy()
            values = values + np.float32(1e-3) * rows("noise", 0, 64)
        made.record("c", values, axes="b h p d", positions=np.arange(64))
        sides.append(made)
    row = Row(0, "c", 0, 0, "fail", axes="b h p d", ratio=9.0, floor=1e-3)
    told = [fault.sentence() for fault in examine(row, *sides)]  # type: ignore[arg-type]
    assert told == ["c: rows 10..19 shifted: holding position p+1"]


def test_twenty_thousand_rows_take_milliseconds() -> None:
    """Of processor time; the figure is generous for a machine that is busy."""
    sides = []
    for shifted in (False, True):
        made = MemoryRun("r", provenance={"wiring": WIRING}, complete=True)
        values = np.random.default_rng(0).standard_normal((1, 8, 2500, 64)).astype(np.float32)
        made.record("a.k", values, axes="b h t d", positions=np.arange(2500))
        if shifted:
            values[:, 1, 16:511] = values[:, 1, 15:510].copy()
        made.record("a.ks", values, axes="b h p d", positions=np.arange(2500))
        sides.append(made)
    spent = []
    for _ in range(3):
        begin = time.process_time()
        told = [fault.sentence() for fault in examine(suspect(0), *sides)]  # type: ignore[arg-type]
        spent.append(time.process_time() - begin)
    assert told == ["head 1 of a.ks: rows 16..510 shifted: holding position p-1"]
    assert min(spent) < 0.2


def test_pages_are_named_where_they_are_filled() -> None:
    assert places_in_words(np.arange(256, 512), 128, one="row", many="rows") == "pages 2..3 (rows 256..511)"
    assert places_in_words(np.arange(128), 128, one="row", many="rows") == "page 0 (rows 0..127)"
    assert places_in_words(np.arange(1, 129), 128, one="row", many="rows") == "rows 1..128"
    assert places_in_words(np.arange(16, 32), 16, one="row", many="rows") == "page 1 (rows 16..31)"
    assert page_of({"details": {"page": 16}}) == 16
    assert page_of({}) == 128


def test_a_cache_that_is_too_large_to_look_into_is_said_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forensics, "LARGEST", 100)
    reference, candidate = run(lambda view, _: view), run(lambda view, _: np.roll(view, 1, axis=2))
    side = Side("x", "r", "", "")
    wrong = Comparison("x", side, side, records=(suspect(5, shape=(1, 2, 9, 8)),))
    found = with_forensics(wrong, reference, candidate)
    assert any("a.ks: more than 100 values" in finding.text for finding in found.findings)
