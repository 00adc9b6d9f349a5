"""A recorder that is killed, or runs out of room, leaves a file that opens and holds what was flushed."""

from __future__ import annotations

import os
import random
import resource
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from parity.harness.errors import UserError
from parity.harness.trace import RunWriter, Trace, TraceWriter, repair

KILLS = int(os.environ.get("PARITY_KILLS", "20"))
DTYPES = ("float32", "uint8", "int64", "complex64")


def values(number: int) -> np.ndarray:
    """The array that record `number` must hold: some small, some longer than a staging buffer."""
    rng = np.random.default_rng(number)
    size = int(rng.choice([0, 7, 500, 40_000, 3_000_000], p=[0.05, 0.25, 0.4, 0.29, 0.01]))
    return rng.integers(0, 100, size).astype(DTYPES[number % len(DTYPES)])


def record_forever(path: str, told: int) -> None:
    """Open, record, flush now and then, close, append again; tell each count that is safe."""
    number = 0
    while True:
        with TraceWriter(path) as writer:
            number = max(number, writer.num_records)
            for _ in range(3):
                with writer.run("torch", target="torch") as run:
                    for _ in range(random.randrange(1, 60)):
                        run.record(f"tap{number % 5}", values(number), step=number)
                        number += 1
                        if random.random() < 0.1:
                            writer.flush()
                            os.write(told, number.to_bytes(8, "little"))
                os.write(told, number.to_bytes(8, "little"))


def in_child(work: Callable[[int], None]) -> tuple[int, int]:
    """Run `work(pipe)` in a forked process; its id and the pipe's other end."""
    seen, told = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(seen)
        try:
            work(told)
        except BaseException as error:
            os.write(2, f"{type(error).__name__}: {error}\n".encode())
        os._exit(1)
    os.close(told)
    return pid, seen


def last_told(seen: int) -> int:
    """The last count that the child told before it ended."""
    text = b""
    while piece := os.read(seen, 1 << 16):
        text += piece
    os.close(seen)
    return int.from_bytes(text[-8:], "little")


def check_left_behind(path: Path, safe: int, kills: int) -> None:
    """Everything that was flushed is there, right and verified; only cut-off runs are incomplete."""
    with h5py.File(path, "r", swmr=True, locking=False) as file:
        assert file["index"].shape[0] >= safe
    with Trace(path) as trace:
        assert trace.num_records >= safe
        assert sum(not run.complete for run in trace.runs) <= kills
        for run in trace.runs:
            assert run.verify() == []
            for record in run.records():
                assert record.order == record.step
                np.testing.assert_array_equal(record.read(), values(record.step))


def kill_once(path: Path, rng: random.Random, longest: float, kills: int = 1) -> bool:
    """Kill a recorder somewhere; whether the file was there."""
    random.seed(rng.random())
    pid, seen = in_child(lambda told: record_forever(str(path), told))
    time.sleep(rng.random() * longest)
    os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    assert os.WIFSIGNALED(status), "the recorder failed by itself"
    safe = last_told(seen)
    if not path.exists():
        assert safe == 0
        return False
    check_left_behind(path, safe, kills)
    return True


@pytest.mark.skipif(sys.platform != "linux", reason="kills a forked process")
def test_a_killed_recorder_always_leaves_a_file_that_opens_and_verifies(tmp_path: Path) -> None:
    rng = random.Random(0)
    there = [kill_once(tmp_path / f"{i}.h5", rng, 0.25) for i in range(KILLS)]
    assert sum(there) >= KILLS // 2, "most kills must hit a recorder at work"


def test_one_file_survives_kill_after_kill_with_appending_in_between(tmp_path: Path) -> None:
    rng, path = random.Random(1), tmp_path / "one.h5"
    for before in range(max(5, KILLS // 4)):
        kill_once(path, rng, 0.4, before + 1)
    with TraceWriter(path) as writer, writer.run("torch") as run:
        run.record("tap", values(writer.num_records), step=writer.num_records)
    report = repair(path)
    assert report.failures == ()
    assert report.records > 1, "no recorder ever came to flush something"
    with h5py.File(path, "r") as file:
        assert "torch" in file["runs"]


def test_an_unfinished_run_says_incomplete_and_a_new_one_can_follow(tmp_path: Path) -> None:
    path = tmp_path / "t.h5"

    def work(told: int) -> None:
        writer = TraceWriter(path)
        run = writer.run("torch")
        run.record("q", np.arange(5))
        writer.flush()
        os.write(told, b"\1" * 8)
        time.sleep(60)

    pid, seen = in_child(work)
    os.read(seen, 8)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    os.close(seen)
    assert not Trace(path)["torch"].complete
    with TraceWriter(path) as writer, writer.run("torch") as run:
        assert run.generation == 2
        run.record("q", np.arange(3))
    trace = Trace(path)
    assert [run.complete for run in trace.runs] == [False, True]
    np.testing.assert_array_equal(trace["torch#1"]["q"], np.arange(5))
    np.testing.assert_array_equal(trace["torch"]["q"], np.arange(3))


def record_many(writer: TraceWriter, run: RunWriter, size: int, told: int) -> None:
    """Record until it fails, flushing every seventh record."""
    for number in range(100_000):
        run.record("q", np.full(size, number, np.float32), step=number)
        if number % 7 == 0:
            writer.flush()
            os.write(told, (number + 1).to_bytes(8, "little"))


@pytest.mark.parametrize("limit_mb", [0.02, 1.2, 1.5, 3.3, 12.7])
@pytest.mark.parametrize("size", [500, 300_000], ids=["small-records", "large-records"])
def test_a_full_disk_ends_in_a_clear_error_with_what_was_flushed_intact(
    tmp_path: Path, limit_mb: float, size: int
) -> None:
    path = tmp_path / "full.h5"

    def work(told: int) -> None:
        writer = TraceWriter(path)
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit_mb * 2**20), resource.RLIM_INFINITY))
        run = writer.run("torch")
        with pytest.raises(UserError, match=r"full\.h5: .* cannot grow \(File too large\)"):
            record_many(writer, run, size, told)
        with pytest.raises(UserError, match="cannot grow"):
            writer.close()
        os._exit(0)

    pid, seen = in_child(work)
    _, status = os.waitpid(pid, 0)
    safe = last_told(seen)
    assert os.waitstatus_to_exitcode(status) == 0
    trace = Trace(path)
    run = trace["torch"]
    assert not run.complete
    assert len(run) >= safe
    assert run.verify() == []
    assert all(np.all(record.read() == record.step) for record in run.records())
    trace.close()
    with TraceWriter(path) as writer, writer.run("after") as again:
        again.record("q", np.arange(4))
    trace = Trace(path)
    assert trace["torch"].verify() == []
    np.testing.assert_array_equal(trace["after"]["q"], np.arange(4))
