"""Many records read at once, and an index with room that was never used."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from parity.harness.errors import UserError
from parity.harness.trace import (
    Record,
    Records,
    Trace,
    TraceWriter,
    changes,
    column,
    index,
    read_together,
    shelf,
)
from parity.harness.trace import format as trace_format
from parity.harness.tracer.memory import MemoryRun

DTYPES = ["float32", ml_dtypes.bfloat16, "int64", ml_dtypes.float8_e4m3fn, "bool", "float64"]


def fill(run: object, steps: int = 40) -> None:
    """Records of six formats and of one size per tap, from one value to three chunks of the file."""
    rng = np.random.default_rng(0)
    for step in range(steps):
        for tap, dtype in enumerate(DTYPES * 3):
            size = 700_000 if tap == 6 else 1 + 293 * tap
            if tap == 6 and step > 3:
                continue
            run.record(f"t{tap}", (rng.standard_normal(size) * 5).astype(dtype), step=step)  # type: ignore[attr-defined]


def same(parts: Sequence[Sequence[Record]]) -> None:
    """What is read at once is what is read one by one, to the bit, in any order."""
    records = [record for part in parts for record in part]
    for by in (np.arange(len(records)), np.random.default_rng(1).permutation(len(records))):
        alone = np.concatenate([records[place].read().reshape(-1) for place in by])
        found = read_together(parts, by)
        assert found.dtype == alone.dtype
        assert found.tobytes() == alone.tobytes()


@pytest.mark.parametrize("compress", [None, "gzip"], ids=["plain", "compressed"])
def test_records_read_together_hold_what_each_holds(tmp_path: Path, compress: str | None) -> None:
    with TraceWriter(tmp_path / "t.h5", compress=compress) as writer, writer.run("a") as run:
        fill(run)
    run = Trace(tmp_path / "t.h5")["a"]
    for dtype in range(len(DTYPES)):
        parts = [run.records(f"t{tap}") for tap in range(dtype, 3 * len(DTYPES), len(DTYPES))]
        assert len({shelf(part) for part in parts}) == 1
        same(parts)
        same([parts[0][3:4], list(parts[1])])
        same([parts[2][::-2]])


def test_records_in_memory_are_read_together_too() -> None:
    run = MemoryRun("a")
    fill(run, steps=3)
    same([run.records("t1"), run.records("t7")])


def test_records_of_two_runs_or_two_formats_are_kept_apart(tmp_path: Path) -> None:
    with TraceWriter(tmp_path / "t.h5") as writer:
        for name in ("a", "b"):
            with writer.run(name) as run:
                fill(run, steps=1)
    trace = Trace(tmp_path / "t.h5")
    found = {shelf(trace[name].records(tap)) for name in ("a", "b") for tap in trace[name].taps}
    assert len(found) == 2 * len(DTYPES)


def test_one_damaged_record_among_many_is_named(tmp_path: Path) -> None:
    path = tmp_path / "t.h5"
    with TraceWriter(path) as writer, writer.run("a") as run:
        for step in range(100):
            run.record("x", np.full(64, step, np.float32), step=step)
    stream = Trace(path).layout.streams["data/float32"]
    with open(path, "r+b") as file:
        file.seek(stream.chunks[0][0] + 57 * 256 + 5)
        file.write(b"\xff")
    with pytest.raises(UserError, match=r"'x' at step 57 fails its checksum"):
        read_together([Trace(path)["a"].records("x")], np.arange(100))


def test_records_are_a_sequence_and_columns_of_the_same(tmp_path: Path) -> None:
    with TraceWriter(tmp_path / "t.h5") as writer, writer.run("a") as run:
        for step in range(5):
            run.record(
                "x", np.zeros((2, 3)), step=step, call=step % 2, axes="t d", positions=[step, step + 1]
            )
    records = Trace(tmp_path / "t.h5")["a"].records("x")
    assert isinstance(records, Records)
    assert records[-1].step == 4
    assert [r.step for r in records[1:4]] == [r.step for r in records][1:4] == [1, 2, 3]
    for name in ("step", "call", "order"):
        assert column(records, name).tolist() == column(list(records), name).tolist()
    assert records.ranges is not None
    assert records.ranges[:, 1].tolist() == [r.positions[0] for r in records if r.positions is not None]
    with pytest.raises(IndexError):
        records[5]


def test_another_shape_format_or_axes_is_a_change(tmp_path: Path) -> None:
    others = {"shape": np.zeros((3, 2)), "format": np.zeros((2, 3), np.float32), "axes": np.zeros((2, 3))}
    with TraceWriter(tmp_path / "t.h5") as writer, writer.run("a") as run:
        for tap, other in others.items():
            run.record(tap, np.zeros((2, 3)), step=0, axes="t d")
            run.record(tap, other, step=1, axes="d t" if tap == "axes" else "t d")
    kept = Trace(tmp_path / "t.h5")["a"]
    for tap in others:
        assert changes(kept.records(tap)) == changes(list(kept.records(tap))) == [1]
        assert changes(kept.records(tap)[:1]) == []
        assert kept.records(tap).ranges is None  # type: ignore[attr-defined]


def test_a_long_tail_of_rows_that_were_never_written_costs_no_time(tmp_path: Path) -> None:
    with TraceWriter(tmp_path / "t.h5") as writer, writer.run("a") as run:
        run.record("x", np.zeros(3))
    with Trace(tmp_path / "t.h5") as trace:
        rows = np.zeros(1_000_000, trace_format.ROW)
        rows[:1] = trace._rows
        kept = index.trusted(rows, trace.layout.streams, trace.layout.dtypes, "t.h5")
        assert len(kept) == 1
        rows = np.zeros(0, trace_format.ROW)
        assert len(index.trusted(rows, trace.layout.streams, trace.layout.dtypes, "t.h5")) == 0
