"""Recording: copies at once, runs and generations, bounds, one writer."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import h5py
import ml_dtypes
import numpy as np
import pytest

from parity.harness.errors import UserError
from parity.harness.trace import Trace, TraceWriter
from parity.harness.trace.format import BUFFER


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "t.h5"


def test_a_record_is_a_copy_made_at_once(path: Path) -> None:
    array = np.arange(4.0)
    with TraceWriter(path) as writer, writer.run("torch") as run:
        run.record("q", array)
        array += 100
    np.testing.assert_array_equal(Trace(path)["torch"]["q"], np.arange(4.0))


def test_records_repeat_under_a_name_without_overwriting(path: Path) -> None:
    with TraceWriter(path) as writer, writer.run("torch") as run:
        for step in range(3):
            for call in range(2):
                run.record("q", np.full(2, 10 * step + call), step=step, call=call)
    run_read = Trace(path)["torch"]
    assert [(r.step, r.call) for r in run_read.records("q")] == [(s, c) for s in range(3) for c in range(2)]
    np.testing.assert_array_equal(run_read["q", 2, 1], [21, 21])


def test_taps_and_records_keep_execution_order(path: Path) -> None:
    with TraceWriter(path) as writer, writer.run("torch") as run:
        for tap in ("zeta", "alpha", "mid", "zeta"):
            run.record(tap, np.zeros(1))
    assert Trace(path)["torch"].taps == ["zeta", "alpha", "mid"]
    assert [r.tap for r in Trace(path)["torch"].records()] == ["zeta", "alpha", "mid", "zeta"]


@pytest.mark.parametrize(
    "size", [BUFFER - 1, BUFFER, BUFFER + 1, 3 * BUFFER + 5], ids=["less", "one", "more", "many"]
)
def test_a_record_may_be_longer_than_a_buffer(path: Path, size: int) -> None:
    data = np.random.default_rng(0).integers(0, 255, size, dtype=np.uint8)
    with TraceWriter(path) as writer, writer.run("torch") as run:
        run.record("before", data[:3])
        run.record("long", data)
        run.record("after", data[-3:])
    run_read = Trace(path)["torch"]
    assert run_read.verify() == []
    np.testing.assert_array_equal(run_read["long"], data)
    np.testing.assert_array_equal(run_read["after"], data[-3:])


def test_a_repeated_run_name_makes_a_new_generation_and_says_so(path: Path) -> None:
    with TraceWriter(path) as writer:
        with writer.run("torch") as first:
            first.record("q", np.zeros(1))
        with writer.run("torch") as second:
            second.record("q", np.ones(1))
    assert first.notice is None
    assert second.notice is not None
    assert "torch#2" in second.notice
    with TraceWriter(path) as writer, writer.run("torch") as third:
        assert third.generation == 3
    trace = Trace(path)
    assert [run.label for run in trace.runs] == ["torch#1", "torch#2", "torch#3"]
    assert trace["torch#1"]["q"] == [0]
    assert trace["torch#2"]["q"] == [1]
    assert trace["torch"].generation == 3


def _record_and_fail(path: Path) -> None:
    with TraceWriter(path) as writer, writer.run("torch") as run:
        run.record("q", np.zeros(1))
        raise ZeroDivisionError


def test_an_exception_leaves_the_run_incomplete_and_passes_through(path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        _record_and_fail(path)
    assert not Trace(path)["torch"].complete
    assert len(Trace(path)["torch"]) == 1


def test_provenance_is_kept_and_can_be_updated(path: Path) -> None:
    with TraceWriter(path) as writer, writer.run("torch", target="torch:bf16", provenance={"seed": 3}) as run:
        run.update_provenance(digest="abc", seed=np.int64(4))
    run_read = Trace(path)["torch"]
    assert run_read.target == "torch:bf16"
    assert run_read.provenance["seed"] == 4
    assert run_read.provenance["digest"] == "abc"
    assert "numpy" in run_read.provenance["versions"]
    assert run_read.provenance["host"]
    assert run_read.created.endswith("+00:00")


@pytest.mark.parametrize(
    "positions",
    [
        np.arange(5, 8),
        np.array([[5, 6, 7]]),
        np.array([[0, 1, 2], [-1, 0, 1]]),
        np.array([7, 3, -1]),
        np.array([9, 9, 9]),
        [1, 2, 3],
    ],
    ids=["range", "one-sequence", "batch", "any", "same", "list"],
)
def test_positions_come_back_as_they_were_given(path: Path, positions: Any) -> None:
    batch = 2 if np.shape(positions)[:-1] == (2,) else 1
    with TraceWriter(path) as writer, writer.run("torch") as run:
        run.record("k", np.zeros((batch, 3, 4)), axes="b p d", positions=positions)
        run.record("q", np.zeros(1))
    record = Trace(path)["torch"].records("k")[0]
    assert record.positions is not None
    assert record.positions.dtype == np.int64
    assert record.positions.shape == np.shape(positions)
    np.testing.assert_array_equal(record.positions, positions)
    assert Trace(path)["torch"].records("q")[0].positions is None


def test_meta_and_axes_are_kept_per_record(path: Path) -> None:
    with TraceWriter(path) as writer, writer.run("torch") as run:
        run.record("q", np.zeros((2, 3)), axes="t d", meta={"scale": np.float32(0.5), "name": "ü"})
        run.record("q", np.zeros((2, 3)), step=1)
    first, second = Trace(path)["torch"].records("q")
    assert (first.axes, first.meta) == ("t d", {"scale": 0.5, "name": "ü"})
    assert (second.axes, second.meta) == ("", {})


def test_storage_bits_can_be_recorded_under_their_logical_name(path: Path) -> None:
    bits = np.array([0x3F80, 0x7FC1], np.uint16)
    with TraceWriter(path) as writer, writer.run("torch") as run:
        run.record("q", bits, dtype="bfloat16")
        with pytest.raises(UserError, match="is stored as uint16"):
            run.record("q", bits.astype(np.float32), dtype="bfloat16", step=1)
    array = Trace(path)["torch"]["q"]
    assert array.dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(array.view(np.uint16), bits)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"tap": ""}, "a tap needs a name"),
        ({"axes": "b t d"}, "names 3 dimensions, the array has 2"),
        ({"axes": "t d", "positions": np.arange(4)}, "do not fit"),
        ({"positions": np.array([0.5])}, "whole numbers"),
        ({"meta": {"x": object()}}, "cannot be written as JSON"),
        ({"array": np.zeros((1,) * 9)}, "more than 8"),
        ({"array": "text"}, "holds no numbers"),
    ],
    ids=["tap", "axes", "positions", "fractions", "meta", "dimensions", "text"],
)
def test_a_record_that_makes_no_sense_is_refused_and_nothing_is_lost(
    path: Path, arguments: dict[str, Any], words: str
) -> None:
    with TraceWriter(path) as writer, writer.run("torch") as run:
        run.record("before", np.ones(2))
        with pytest.raises(UserError, match=words):
            run.record(**{"tap": "q", "array": np.zeros((2, 3)), **arguments})
        run.record("after", np.ones(3))
    assert Trace(path)["torch"].taps == ["before", "after"]
    assert Trace(path)["torch"].verify() == []


@pytest.mark.parametrize("name", ["", "torch#2"])
def test_a_run_needs_a_name_without_a_number_sign(path: Path, name: str) -> None:
    with TraceWriter(path) as writer, pytest.raises(UserError, match="a run needs a name"):
        writer.run(name)


def _record_too_much(path: Path) -> None:
    with TraceWriter(path, max_bytes=100_000) as writer:
        run = writer.run("torch")
        for step in range(20):
            run.record("q", np.zeros(10_000, np.uint8), step=step)


def test_recording_stops_before_max_bytes_and_says_what_was_kept(path: Path) -> None:
    with pytest.raises(UserError, match=r"max_bytes=100000: .* 9 records"):
        _record_too_much(path)
    run_read = Trace(path)["torch"]
    assert len(run_read) == 9
    assert not run_read.complete
    assert run_read.verify() == []


def test_max_bytes_counts_what_the_file_holds_already(path: Path) -> None:
    with TraceWriter(path) as writer, writer.run("torch") as run:
        run.record("q", np.zeros(50_000, np.uint8))
    with TraceWriter(path, max_bytes=60_000) as writer, writer.run("torch") as run:
        with pytest.raises(UserError, match="would exceed"):
            run.record("q", np.zeros(20_000, np.uint8))
        run.record("q", np.zeros(5_000, np.uint8))


def test_a_second_writer_is_a_clear_error(path: Path) -> None:
    with TraceWriter(path), pytest.raises(UserError, match="another writer"):
        TraceWriter(path)
    TraceWriter(path).close()


def test_a_reader_does_not_break_the_writers_lock(path: Path) -> None:
    with TraceWriter(path):
        Trace(path).close()
        with pytest.raises(UserError, match="another writer"):
            TraceWriter(path)


def test_unwritable_places_are_clear_errors(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is a folder"):
        TraceWriter(tmp_path)
    with pytest.raises(UserError, match="folder does not exist"):
        TraceWriter(tmp_path / "no" / "t.h5")
    with pytest.raises(UserError, match="cannot be written"):
        TraceWriter("/proc/t.h5")
    other = tmp_path / "notes.txt"
    other.write_text("hello" * 100)
    with pytest.raises(UserError, match="not an HDF5 file"):
        TraceWriter(other)
    assert other.read_text() == "hello" * 100
    with h5py.File(tmp_path / "other.h5", "w", libver="latest") as file:
        file["x"] = 1
    with pytest.raises(UserError, match="not a trace"):
        TraceWriter(tmp_path / "other.h5")


def test_a_closed_writer_and_a_finished_run_refuse_records(path: Path) -> None:
    writer = TraceWriter(path)
    run = writer.run("torch")
    run.finish()
    run.finish()
    with pytest.raises(UserError, match="is finished"):
        run.record("q", np.zeros(1))
    writer.close()
    writer.close()
    with pytest.raises(UserError, match="is closed"):
        writer.run("again")
    with pytest.raises(UserError, match="is closed"):
        writer.flush()


def test_a_run_left_open_is_closed_as_incomplete(path: Path) -> None:
    with TraceWriter(path) as writer:
        writer.run("torch").record("q", np.zeros(1))
    assert not Trace(path)["torch"].complete


def test_two_runs_may_be_recorded_at_once_from_two_threads(path: Path) -> None:
    def work(run: Any) -> None:
        for step in range(500):
            run.record("q", np.full(300, step, np.float32), step=step)

    with TraceWriter(path) as writer:
        runs = [writer.run(name) for name in ("a", "b")]
        threads = [threading.Thread(target=work, args=(run,)) for run in runs]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for run in runs:
            run.finish()
    trace = Trace(path)
    for name in ("a", "b"):
        assert [int(r.read()[0]) for r in trace[name].records()] == list(range(500))


def test_a_pause_in_recording_does_not_hide_what_was_recorded(path: Path) -> None:
    with TraceWriter(path) as writer:
        writer.run("torch").record("q", np.arange(3))
        deadline = time.monotonic() + 20
        while not Trace(path).num_records and time.monotonic() < deadline:
            time.sleep(0.05)
        np.testing.assert_array_equal(Trace(path)["torch"]["q"], np.arange(3))


@pytest.mark.parametrize("compress", ["gzip", "gzip:9"])
def test_compression_is_lossless_smaller_and_readable_by_plain_h5py(path: Path, compress: str) -> None:
    with TraceWriter(path, compress=compress) as writer, writer.run("torch") as run:
        for step in range(4):
            run.record("q", np.arange(300_000, dtype=np.float32), step=step)
            writer.flush()
        run.record("b", np.ones(3, ml_dtypes.bfloat16))
    with TraceWriter(path) as writer, writer.run("torch") as run:
        run.record("q", np.arange(5.0))
    trace = Trace(path)
    assert all(run.verify() == [] for run in trace.runs)
    np.testing.assert_array_equal(trace["torch#1"]["q", 2], np.arange(300_000, dtype=np.float32))
    assert trace["torch#1"].records("q")[1].read_flat(299_000, 299_002).tolist() == [299_000, 299_001]
    assert path.stat().st_size < 4 * 1_200_000 / 2
    with h5py.File(path, "r") as file:
        np.testing.assert_array_equal(file["runs/torch#1/q"][3, :10], np.arange(10))
    with pytest.raises(UserError, match="made with another setting"):
        TraceWriter(path, compress="gzip:5")


def test_an_unknown_compression_is_refused(path: Path) -> None:
    with pytest.raises(UserError, match="unknown; use gzip"):
        TraceWriter(path, compress="zip")
