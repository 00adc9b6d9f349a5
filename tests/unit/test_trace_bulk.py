"""Many records read at once, and an index with room that was never used."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from parity.harness.errors import UserError
from parity.harness.trace import Record, Trace, TraceWriter, index, read_together, shelf
from parity.harness.trace import format as trace_format
from parity.harness.tracer.memory import MemoryRun

DTYPES = ["float32", ml_dtypes.bfloat16, "int64", ml_dtypes.float8_e4m3fn, "bool", "float64"]


def fill(run: object, steps: int = 40) -> None:
    """Records of six formats and of sizes from one value to three chunks, in turn."""
    rng = np.random.default_rng(0)
    for step in range(steps):
        for tap, dtype in enumerate(DTYPES):
            size = 700_000 if step == 7 and tap == 0 else int(rng.integers(1, 4000))
            run.record(f"t{tap}", (rng.standard_normal(size) * 5).astype(dtype), step=step)  # type: ignore[attr-defined]


def same(records: list[Record]) -> None:
    """What is read at once is what is read one by one, to the bit."""
    alone = np.concatenate([record.read().reshape(-1) for record in records])
    found = read_together(records)
    assert found.dtype == alone.dtype
    assert found.tobytes() == alone.tobytes()


@pytest.mark.parametrize("compress", [None, "gzip"], ids=["plain", "compressed"])
def test_records_read_together_hold_what_each_holds(tmp_path: Path, compress: str | None) -> None:
    with TraceWriter(tmp_path / "t.h5", compress=compress) as writer, writer.run("a") as run:
        fill(run)
    records = list(Trace(tmp_path / "t.h5")["a"].records())
    for tap in range(len(DTYPES)):
        mine = [record for record in records if record.tap == f"t{tap}"]
        assert len({shelf(record) for record in mine}) == 1
        same(mine)
        same(mine[::-1])
        same(mine[3:4])
        same(mine[::3] + mine[:2])


def test_records_in_memory_are_read_together_too() -> None:
    run = MemoryRun("a")
    fill(run, steps=3)
    same([record for record in run.records() if record.tap == "t1"])  # type: ignore[misc]


def test_records_of_two_runs_or_two_formats_are_kept_apart(tmp_path: Path) -> None:
    with TraceWriter(tmp_path / "t.h5") as writer:
        for name in ("a", "b"):
            with writer.run(name) as run:
                fill(run, steps=1)
    trace = Trace(tmp_path / "t.h5")
    assert len({shelf(record) for name in ("a", "b") for record in trace[name].records()}) == 2 * len(DTYPES)


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
        read_together(list(Trace(path)["a"].records("x")))


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
