"""The trace file against plain `write()` on the same disk in the same run, and small records by count.

    python tests/bench/bench_trace.py --gb 4 --folder /where/the/disk/is

Figures are ratios of one run; rounds alternate and the best of each side counts, since page cache and
neighbours disturb both alike.
"""

from __future__ import annotations

import argparse
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "src"))

from parity.harness.trace import Trace, TraceWriter

MB = 1 << 20
GOAL_RATIO, GOAL_SMALL_SECONDS, GOAL_MEMORY_MB = 0.75, 5.0, 500


def pool() -> list[np.ndarray]:
    """Different 1 MB float32 records, in memory."""
    return [np.random.default_rng(i).standard_normal(MB // 4).astype(np.float32) for i in range(16)]


def plain_write(path: Path, records: list[np.ndarray], count: int) -> None:
    """The same bytes by write(), one call a record, then fsync."""
    descriptor = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
    for i in range(count):
        os.write(descriptor, records[i % len(records)].data)
    os.fsync(descriptor)
    os.close(descriptor)


def record(path: Path, records: list[np.ndarray], count: int) -> None:
    """The same bytes as records with checksums; closing brings them to the disk."""
    with TraceWriter(path) as writer, writer.run("torch") as run:
        for i in range(count):
            run.record(f"tap{i % 64}", records[i % len(records)], step=i // 64)


def timed(work: Callable[[], None]) -> tuple[float, float]:
    """Seconds of wall clock, and of CPU in all threads of this process."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - cpu


def large(folder: Path, gigabytes: float, rounds: int) -> float:
    """Seconds of both sides; the ratio of recording speed to plain writing."""
    records, count = pool(), int(gigabytes * 1024)
    path, plain, ours = folder / "bench", [], []
    for _ in range(rounds):
        plain.append(timed(lambda: plain_write(path, records, count)))
        path.unlink()
        ours.append(timed(lambda: record(path, records, count)))
        path.unlink()
        (wall, cpu), (our_wall, our_cpu) = plain[-1], ours[-1]
        print(
            f"  {gigabytes:g} GB: write {wall:.2f} s ({cpu:.2f} CPU), "
            f"record {our_wall:.2f} s ({our_cpu:.2f} CPU), ratio {wall / our_wall:.2f}"
        )
    best, our_best = min(plain)[0], min(ours)[0]
    speeds = f"{gigabytes / best:.2f} and {gigabytes / our_best:.2f} GB/s"
    print(f"recording / write(): {best / our_best:.2f} (goal {GOAL_RATIO}); {speeds}")
    return best / our_best


def small(folder: Path, count: int) -> float:
    """Record, list and read many small records."""
    path, array = folder / "small.h5", np.arange(512, dtype=np.float32).reshape(1, 4, 128)

    def work() -> None:
        with TraceWriter(path) as writer, writer.run("torch") as run:
            for i in range(count):
                run.record(f"tap{i % 100}", array, step=i // 100, axes="b t d")

    wall, cpu = timed(work)
    print(f"{count} records of 2 KB: {wall:.2f} s, {cpu:.2f} s of CPU (goal {GOAL_SMALL_SECONDS} s)")
    start = time.perf_counter()
    run = Trace(path)["torch"]
    records = run.records()
    listed = time.perf_counter()
    for item in records:
        item.read_flat(0, item.size)
    read = time.perf_counter()
    start_of_tap = time.perf_counter()
    for item in run.records("tap7"):
        item.read()
    one = time.perf_counter() - start_of_tap
    print(f"  listed in {listed - start:.2f} s, read in {read - listed:.2f} s, one tap of 100 in {one:.3f} s")
    path.unlink()
    return wall


def memory(folder: Path, gigabytes: float) -> float:
    """Megabytes that reading two traces side by side adds to the process."""
    records, paths = pool(), [folder / "a.h5", folder / "b.h5"]
    for path in paths:
        record(path, records, int(gigabytes * 1024))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    left, right = (Trace(path)["torch"].records() for path in paths)
    start = time.perf_counter()
    for a, b in zip(left, right, strict=True):
        for at in range(0, a.size, 65_536):
            np.subtract(a.read_flat(at, at + 65_536), b.read_flat(at, at + 65_536))
    seconds = time.perf_counter() - start
    added = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(f"reading two traces of {gigabytes:g} GB: {added:.0f} MB more, {2 * gigabytes / seconds:.2f} GB/s")
    for path in paths:
        path.unlink()
    return added


def main() -> None:
    """Print every ratio; exit status 1 when a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gb", type=float, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--small", type=int, default=200_000)
    parser.add_argument("--folder", type=Path, default=None)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        seconds = small(folder, options.small)
        added = memory(folder, options.gb / 4)
        ratio = large(folder, options.gb, options.rounds)
    print("kills: PARITY_KILLS=200 pytest tests/properties/test_trace_kill.py")
    missed = seconds > GOAL_SMALL_SECONDS or ratio < GOAL_RATIO or added > GOAL_MEMORY_MB
    raise SystemExit(1 if missed else 0)


if __name__ == "__main__":
    main()
