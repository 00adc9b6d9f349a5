"""The same rows in another layout are always paired exactly; one wrong row is always found where it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from parity.harness.cache import empty, grown, rolled
from parity.harness.case import Scenario, Step, plan
from parity.harness.compare import compare_runs
from parity.harness.comparison import Comparison, Side
from parity.harness.rows import Rules
from parity.harness.tolerance import load_tolerance
from parity.harness.tracer.memory import MemoryRun

RULES = Rules(load_tolerance("fp32"), {})
SIDES = (Side("torch", "torch", "", ""), Side("cand", "cand", "", ""))
TABLE = {
    "segments": [{"name": "s", "taps": ["k"], "inputs": [], "outputs": []}],
    "caches": [{"cache": "ks", "source": "k", "segment": "s"}],
}
HEADS, DIM = 2, 3
#: (tap, step, rows `[B, h, T, d]`, positions `[B, T]`) -> the same, or None to record nothing.
Plant = Callable[[str, int, np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray] | None]


@dataclass(frozen=True)
class Layout:
    """How a run lays out the same history."""

    kind: str
    slots: int
    chunk: int
    padding: str
    pad_to: int
    records: str

    @property
    def rolls(self) -> bool:
        return self.kind == "window"


@dataclass(frozen=True)
class History:
    """What is computed, whoever computes it: prompts, decode steps, resets, a window."""

    lengths: tuple[int, ...]
    steps: int
    resets: tuple[int, ...]
    window: int | None
    seed: int = field(default=0)

    def scenario(self, layout: Layout) -> Scenario:
        return Scenario(
            "s",
            tuple(tuple(range(1, length + 1)) for length in self.lengths),
            steps=self.steps,
            padding=layout.padding,
            pad_to=layout.pad_to,
            resets=self.resets,
        )

    def rows(self, step: int, positions: np.ndarray, tap: int = 0) -> np.ndarray:
        """Values `[B, h, T, d]` of new tokens; garbage that differs by layout stands at padding."""
        out = np.empty((len(positions), HEADS, positions.shape[1], DIM), np.float32)
        for b, t in np.ndindex(*positions.shape):
            key = (self.seed, tap, step, b, int(positions[b, t]) + 1)
            out[b, :, t] = np.random.default_rng(key).standard_normal((HEADS, DIM))
        out[np.nonzero(positions < 0)[0], :, np.nonzero(positions < 0)[1]] = 77.0 + positions.shape[1]
        return out


@st.composite
def histories(draw: st.DrawFn) -> History:
    lengths = draw(st.lists(st.integers(1, 5), min_size=1, max_size=3), label="prompt lengths")
    steps = draw(st.integers(0, 6), label="steps")
    resets = draw(st.sets(st.integers(1, steps), max_size=2), label="resets") if steps else set()
    window = draw(st.none() | st.integers(1, 6), label="window")
    return History(
        tuple(lengths), steps, tuple(sorted(resets)), window, draw(st.integers(0, 9), label="seed")
    )


@st.composite
def layouts(draw: st.DrawFn, history: History, label: str, records: str = "") -> Layout:
    kind = draw(st.sampled_from(["grow", "window"]), label=f"{label} layout")
    longest = max(history.lengths)
    whole = longest + history.steps
    chunk = draw(st.integers(1, 4), label=f"{label} chunk")
    padding = draw(st.sampled_from(["left", "right"]), label=f"{label} padding")
    pad_to = longest + draw(st.integers(0, 2), label=f"{label} extra padding")
    # A slot per padding column too: they roll through the window like tokens.
    least = min(history.window or whole, whole) + pad_to
    records = records or draw(st.sampled_from(["views", "rows"]), label=f"{label} caches")
    return Layout(
        kind, least + draw(st.integers(0, 2), label=f"{label} slots"), chunk, padding, pad_to, records
    )


def executed(name: str, history: History, layout: Layout, plant: Plant | None = None) -> MemoryRun:
    """A run of the history: ids, k (new rows), ks (as the last token is handed it), n (no tokens)."""
    scenario = history.scenario(layout)
    policy = "full" if history.window is None else f"window({history.window})"
    provenance = {
        "cache_records": layout.records,
        "policy": policy,
        "wiring": TABLE,
        "scenario": {"resets": list(history.resets)},
    }
    run = MemoryRun(name, provenance={**provenance, "weights": "w", "scenario_digest": "s"}, complete=True)
    cache: tuple[np.ndarray, np.ndarray] | None = None
    for step in plan(scenario):
        if step.reset or cache is None:
            slots = layout.slots if layout.rolls else 0
            cache = (
                np.full((scenario.batch, HEADS, slots, DIM), 55.0, np.float32),
                empty(scenario.batch, slots),
            )
        cache = _step(run, history, layout, step, cache, plant or (lambda tap, step, rows, at: (rows, at)))
    return run


def _step(run: MemoryRun, history: History, layout: Layout, step: Step, cache: Any, plant: Plant) -> Any:
    everywhere = np.array(step.positions, np.int64)
    run.record("ids", everywhere + 100, step=step.index, axes="b t", positions=everywhere)
    fresh, (held, at) = history.rows(step.index, everywhere), cache
    for call, start in enumerate(range(0, step.width, layout.chunk)):
        part = slice(start, start + layout.chunk)
        new, here = fresh[:, :, part], everywhere[:, part]
        shown = plant("k", step.index, new.copy(), here)
        if shown is not None:
            run.record("k", shown[0], step=step.index, call=call, axes="b h t d", positions=shown[1])
        held = np.concatenate([held, new], axis=2)[:, :, -held.shape[2] if layout.rolls else None :]
        at = rolled(at, here) if layout.rolls else grown(at, here)
    last = slice(None if layout.records == "views" or step.last else -step.width, None)
    shown = plant("ks", step.index, held[:, :, last].copy(), at[:, last])
    if shown is not None:
        run.record("ks", shown[0], step=step.index, axes="b h p d", positions=shown[1])
    state = np.random.default_rng((history.seed, step.index)).standard_normal(4).astype(np.float32)
    shown = plant("n", step.index, state, everywhere)
    if shown is not None:
        run.record("n", shown[0], step=step.index)
    return held, at


def compared(reference: MemoryRun, candidate: MemoryRun) -> Comparison:
    return compare_runs(reference, candidate, rules=RULES, sides=SIDES)


@settings(max_examples=120, deadline=None)
@given(st.data())
def test_the_same_rows_in_another_layout_are_always_paired_exactly(data: st.DataObject) -> None:
    history = data.draw(histories(), label="history")
    one = executed("torch", history, data.draw(layouts(history, "reference")))
    two = executed("cand", history, data.draw(layouts(history, "candidate")))
    found = compared(one, two)
    assert found.verdict == "parity", [(r.tap, r.step, r.status, r.reason) for r in found.rows() if r.failing]
    assert set(found.counts) == {"equal"}
    assert found.coverage.share == 1.0
    assert found.coverage.blind_spot is None
    assert {(row.tap, row.step) for row in found.rows()} == {
        (tap, step) for tap in ("ids", "k", "ks", "n") for step in range(history.steps + 1)
    }


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_every_real_row_that_was_recorded_is_checked(data: st.DataObject) -> None:
    history = data.draw(histories(), label="history")
    layout = data.draw(layouts(history, "reference"))
    one, two = executed("torch", history, layout), executed("cand", history, layout)
    k = [row for row in compared(one, two).rows() if row.tap == "k"]
    real = sum(int((record.positions >= 0).sum()) for record in two.records("k"))
    assert sum(int(np.prod(row.shape)) for row in k) >= real * HEADS * DIM


@dataclass(frozen=True)
class Place:
    """Where a fault is planted: the rows of one token at one tap and step."""

    tap: str
    step: int
    sequence: int
    position: int


@st.composite
def places(draw: st.DrawFn, history: History, taps: tuple[str, ...] = ("k", "ks")) -> Place:
    """A token that is new at the step (k), or that the newest may attend to (ks)."""
    tap = draw(st.sampled_from(taps), label="tap")
    step = draw(st.integers(0, history.steps), label="step")
    sequence = draw(st.integers(0, len(history.lengths) - 1), label="sequence")
    since = max((reset for reset in history.resets if reset <= step), default=0)
    length = history.lengths[sequence]
    newest = length + step - since - 1
    oldest = 0 if step == since else newest
    if tap == "ks":
        oldest = 0 if history.window is None else max(0, newest - history.window + 1)
    return Place(tap, step, sequence, draw(st.integers(oldest, newest), label="position"))


def at_place(place: Place, change: Callable[[np.ndarray, np.ndarray, int], Any]) -> Plant:
    """Apply `change(rows of the sequence, its positions, column)` where the place's token lies."""

    def plant(tap: str, step: int, rows: np.ndarray, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if (tap, step) == (place.tap, place.step):
            positions = positions.copy()
            for column in np.flatnonzero(positions[place.sequence] == place.position):
                change(rows[place.sequence], positions[place.sequence], int(column))
        return rows, positions

    return plant


def held(
    data: st.DataObject, change: Callable[[np.ndarray, np.ndarray, int], Any]
) -> tuple[Comparison, Place]:
    history = data.draw(histories(), label="history")
    place = data.draw(places(history), label="place")
    one = executed("torch", history, data.draw(layouts(history, "reference")))
    two = executed(
        "cand", history, data.draw(layouts(history, "candidate", "views")), at_place(place, change)
    )
    return compared(one, two), place


def assert_found(found: Comparison, place: Place) -> None:
    wrong = {(row.tap, row.step) for row in found.rows() if row.failing}
    assert wrong == {(place.tap, place.step)}
    assert found.exit_code == 1
    assert found.first is not None
    assert (found.first.tap, found.first.step) == (place.tap, place.step)
    if place.tap == "ks":
        assert [(c.tap, c.step, c.segment) for c in found.culprits] == [("ks", place.step, "cache")]


def one_value(rows: np.ndarray, positions: np.ndarray, column: int) -> None:
    rows[1, column, 2] += 0.01


def another_row(rows: np.ndarray, positions: np.ndarray, column: int) -> None:
    rows[:, column] = np.roll(rows[:, column], 1, axis=-1)


def swapped_heads(rows: np.ndarray, positions: np.ndarray, column: int) -> None:
    rows[:, column] = rows[::-1, column]


def zeroed(rows: np.ndarray, positions: np.ndarray, column: int) -> None:
    rows[:, column] = 0.0


def not_a_number(rows: np.ndarray, positions: np.ndarray, column: int) -> None:
    rows[0, column, 0] = np.nan


@pytest.mark.parametrize("change", [one_value, another_row, swapped_heads, zeroed, not_a_number])
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_one_wrong_row_is_always_found_at_its_tap_and_step(change: Any, data: st.DataObject) -> None:
    assert_found(*held(data, change))


def swapped_with_a_neighbour(rows: np.ndarray, positions: np.ndarray, column: int) -> None:
    others = [c for c in np.flatnonzero(positions >= 0) if c != column]
    assume(others)
    rows[:, [column, others[0]]] = rows[:, [others[0], column]]


def stale(rows: np.ndarray, positions: np.ndarray, column: int) -> None:
    """The row of another token stands where this one should."""
    others = [c for c in np.flatnonzero(positions >= 0) if c != column]
    assume(others)
    rows[:, column] = rows[:, others[-1]]


def said_to_be_another(rows: np.ndarray, positions: np.ndarray, column: int) -> None:
    """Rows are right, positions are exchanged."""
    others = [c for c in np.flatnonzero(positions >= 0) if c != column]
    assume(others)
    positions[[column, others[0]]] = positions[[others[0], column]]


@pytest.mark.parametrize("change", [swapped_with_a_neighbour, stale, said_to_be_another])
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_rows_that_stand_in_each_others_place_are_always_found(change: Any, data: st.DataObject) -> None:
    assert_found(*held(data, change))


def hidden(rows: np.ndarray, positions: np.ndarray, column: int) -> None:
    positions[column] = -1


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_cache_row_that_is_hidden_though_it_may_be_attended_to_is_always_found(data: st.DataObject) -> None:
    history = data.draw(histories(), label="history")
    place = data.draw(places(history, ("ks",)), label="place")
    one = executed("torch", history, data.draw(layouts(history, "reference")))
    two = executed(
        "cand", history, data.draw(layouts(history, "candidate", "views")), at_place(place, hidden)
    )
    assert_found(compared(one, two), place)


def without(place: Place) -> Plant:
    """Every column in which the place's token lies is not recorded at all."""

    def plant(tap: str, step: int, rows: np.ndarray, at: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
        if (tap, step) != (place.tap, place.step):
            return rows, at
        keep = at[place.sequence] != place.position
        return (rows[:, :, keep], at[:, keep]) if keep.any() else None

    return plant


MISSING = "align.gathered: a row that the candidate lacks is not missed where the step has another record"


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_row_that_was_not_recorded_is_always_found(data: st.DataObject) -> None:
    history = data.draw(histories(), label="history")
    place = data.draw(places(history, ("k",)), label="place")
    one = executed("torch", history, data.draw(layouts(history, "reference")))
    two = executed("cand", history, data.draw(layouts(history, "candidate", "views")), without(place))
    assert_found(compared(one, two), place)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_cache_row_that_was_not_recorded_is_always_found(data: st.DataObject) -> None:
    history = data.draw(histories(), label="history")
    place = data.draw(places(history, ("ks",)), label="place")
    one = executed("torch", history, data.draw(layouts(history, "reference")))
    two = executed("cand", history, data.draw(layouts(history, "candidate", "views")), without(place))
    assert_found(compared(one, two), place)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_record_that_is_absent_is_always_missing(data: st.DataObject) -> None:
    history = data.draw(histories(), label="history")
    tap = data.draw(st.sampled_from(["k", "ks", "n"]), label="tap")
    step = data.draw(st.integers(0, history.steps), label="step")
    one = executed("torch", history, data.draw(layouts(history, "reference")))
    two = executed(
        "cand",
        history,
        data.draw(layouts(history, "candidate")),
        lambda name, at, rows, positions: None if (name, at) == (tap, step) else (rows, positions),
    )
    found = compared(one, two)
    assert {(row.tap, row.step, row.status) for row in found.rows() if row.failing} == {
        (tap, step, "missing")
    }
    assert found.coverage.share < 1.0


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_a_fault_in_a_tap_without_tokens_is_always_found_at_its_step(data: st.DataObject) -> None:
    history = data.draw(histories(), label="history")
    place = Place("n", data.draw(st.integers(0, history.steps), label="step"), 0, 0)
    one = executed("torch", history, data.draw(layouts(history, "reference")))
    two = executed(
        "cand",
        history,
        data.draw(layouts(history, "candidate")),
        lambda tap, step, rows, at: (rows + (tap == "n" and step == place.step), at),
    )
    assert_found(compared(one, two), place)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_a_shorter_history_is_never_cut_to_fit(data: st.DataObject) -> None:
    history = data.draw(histories().filter(lambda drawn: drawn.steps > 0), label="history")
    layout = data.draw(layouts(history, "reference"))
    one, two = executed("torch", history, layout), executed("cand", history, layout)
    stop = data.draw(st.integers(1, history.steps), label="first step that is absent")
    two._records = [record for record in two._records if record.step < stop]
    found = compared(one, two)
    wrong = {(row.tap, row.step) for row in found.rows() if row.failing}
    assert wrong == {
        (tap, step) for tap in ("ids", "k", "ks", "n") for step in range(stop, history.steps + 1)
    }
