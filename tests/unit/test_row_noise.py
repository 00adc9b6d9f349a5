"""Noise floors per row: measured where the reference has a row, found again wherever a candidate has it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import parity
from parity.floors import rules_of, store_floors, stored_floors
from parity.harness.comparison import Comparison
from parity.harness.judge import FACTOR, Floor
from parity.harness.noise import noise_of
from parity.harness.row_noise import LEAST, WHOLE, RowNoise, RowShares, answering, mark_of
from parity.harness.tolerance import load_tolerance
from parity.harness.trace import Trace, TraceWriter
from parity.harness.tracer.memory import MemoryRun

from .run_factory import compared, new_run, noise

LENGTH = 6
#: Of sequence 1 the row at position 4 is the loud one.
LOUD, QUIET = (1, 4), (0, 2)
EPSILON = 1e-4


def run(
    name: str = "torch",
    *,
    order: np.ndarray | None = None,
    errors: dict[tuple[int, int], float] | None = None,
    steps: int = 2,
    **provenance: Any,
) -> MemoryRun:
    """Two sequences of `LENGTH` rows per step, at other positions each step; `order`: where each row lies."""
    made = new_run(name, **provenance)
    for step in range(steps):
        values = noise(2, LENGTH, 32, seed=step)
        for (sequence, position), size in (errors or {}).items():
            values[sequence, position] *= 1.0 + size
        places = np.arange(LENGTH) if order is None else order
        where = places + LENGTH * step
        made.record("x", values[:, places], step=step, axes="b t d", positions=where)
    return made


def measured(reference: MemoryRun, others: list[MemoryRun], *, narrow: bool = False) -> dict[str, Floor]:
    """Floors with those of their rows."""
    rows: dict[str, RowNoise] = {}
    floor = Floor(0.0, 0.0)
    for other in others:
        floor = floor.merge(noise_of(reference, other, "", rows=rows)["x"].floor)
    shares = rows["x"].shares(floor, narrow=narrow)
    return {"x": Floor(floor.rms, floor.peak, floor.rest, shares)}


def loud(**options: Any) -> MemoryRun:
    """A trusted run whose loud row is ten times as far off as all others."""
    every = {(sequence, at): EPSILON / 10 for sequence in range(2) for at in range(LENGTH)}
    return run("fp64", errors={**every, LOUD: EPSILON}, **options)


def judged(floors: dict[str, Floor], candidate: MemoryRun, reference: MemoryRun | None = None) -> Comparison:
    """As `parity run` judges."""
    reference = reference or run()
    return compared(
        reference, candidate, rules=rules_of(load_tolerance("auto"), floors, reference, candidate)
    )


def at(place: tuple[int, int], times: float) -> dict[tuple[int, int], float]:
    """An error so many times the tap's floor, in one row."""
    return {place: times * EPSILON}


@pytest.fixture
def floors() -> dict[str, Floor]:
    return measured(run(), [loud()])


@pytest.mark.parametrize("order", [None, np.array([3, 1, 5, 0, 4, 2])], ids=["as recorded", "shuffled"])
def test_a_quiet_row_is_held_to_its_own_noise_wherever_it_lies(floors, order):
    between = (LEAST * FACTOR + FACTOR) / 2
    assert judged(floors, run("cand", order=order, errors=at(LOUD, between))).exit_code == 0
    found = judged(floors, run("cand", order=order, errors=at(QUIET, between)))
    assert found.exit_code == 1
    assert found.first is not None
    assert judged(floors, run("cand", order=order, errors=at(QUIET, 0.9 * LEAST * FACTOR))).exit_code == 0


def test_noise_of_rows_that_a_trusted_run_has_elsewhere_is_kept_where_the_reference_has_them(floors):
    shuffled = measured(run(), [loud(order=np.array([5, 3, 0, 1, 2, 4]))])
    np.testing.assert_array_equal(shuffled["x"].rows.shares, floors["x"].rows.shares)
    shares = floors["x"].rows.shares.reshape(2, 2, LENGTH, 2)
    assert (shares[:, LOUD[0], LOUD[1]].max(axis=1) == WHOLE).any()
    assert shares[:, QUIET[0], QUIET[1]].max() < WHOLE


def test_a_row_is_as_loud_as_the_loudest_of_the_trusted_runs_shows_it():
    both = measured(run(), [loud(), run("order", errors=at(QUIET, 1.0))])
    assert (both["x"].rows.shares.reshape(2, 2, LENGTH, 2)[:, QUIET[0], QUIET[1]] > 0.7 * WHOLE).all()


def test_what_one_run_alone_rounds_leaves_more_to_a_row(floors):
    narrow = measured(run(), [loud()], narrow=True)["x"].rows.shares
    assert narrow.min() > floors["x"].rows.shares.min()


def test_a_row_that_no_trusted_run_answers_has_the_floor_of_its_tap():
    reference = run()
    rows = RowNoise(reference.records("x"))
    assert (rows.shares(Floor(1.0, 1.0)).shares == WHOLE).all()


@pytest.mark.parametrize("changed", [{"steps": 3}, {"order": np.array([1, 0, 2, 3, 4, 5])}])
def test_of_a_reference_with_other_records_the_tap_alone_decides(floors, changed):
    """Longer, or laid out otherwise: nothing is known of its rows."""
    candidate = run("cand", errors=at(QUIET, 0.75 * FACTOR), **changed)
    assert judged(floors, candidate, run(**changed)).exit_code == 0
    assert mark_of(run(**changed).records("x")) != floors["x"].rows.mark


def test_a_floor_beside_its_reference_keeps_those_of_the_rows(tmp_path, floors):
    path = tmp_path / "t.h5"
    with TraceWriter(path) as writer, writer.run("torch") as sink:
        for record in run().records():
            sink.record("x", record.array, step=record.step, axes=record.axes, positions=record.positions)
    store_floors(path, Trace(path)["torch"], ("float32", "float32"), floors)
    held = Trace(path)["torch"]
    read = stored_floors(path, held, ("float32", "float32"))
    np.testing.assert_array_equal(read["x"].rows.shares, floors["x"].rows.shares)
    assert mark_of(held.records("x")) == read["x"].rows.mark
    worse = run("cand", errors=at(QUIET, 0.75 * FACTOR))
    rules = rules_of(load_tolerance("auto"), read, held, worse)
    assert compared(held, worse, rules=rules).exit_code == 1


def test_a_floor_without_rows_decides_as_ever(floors):
    plain = {"x": Floor(**floors["x"].numbers)}
    assert judged(plain, run("cand", errors=at(QUIET, 0.75 * FACTOR))).exit_code == 0


def test_a_zero_floor_has_whole_shares():
    same = measured(run(), [run("again")])
    assert isinstance(same["x"].rows, RowShares)
    assert (same["x"].rows.shares == WHOLE).all()


@pytest.mark.slow
def test_a_run_and_its_stored_trace_are_held_to_the_same_rows(tmp_path):
    """Measured, read from the cache or stored beside the reference: the same floors, of every tap's rows."""
    case = {"weights": "random:0", "scenario": "one", "steps": 4}
    found = next(iter(parity.run("torch", ["port=segmented:grow"], out=tmp_path, report=False, **case)))
    path = tmp_path / "trace.h5"
    reference = Trace(path)["torch"]
    read = answering(stored_floors(path, reference, ("float32", "float32")), reference)
    assert {tap for tap, floor in read.items() if floor.rows is None} == set()
    again = parity.compare_traces(path, path, ref_run="torch", cand_run="port")
    assert [row.ratio for row in again.records] == [row.ratio for row in found.records]
    every = np.concatenate([floor.rows._shares for floor in read.values()])
    assert (every < WHOLE).mean() > 0.3
    assert every.min() == np.ceil(LEAST * WHOLE)
