"""`parity import` of a large dump: megabytes a second and peak memory, in a process of its own.

    python tests/bench/bench_import.py --gb 2 --files 20000 --folder /where/the/disk/is

The dump is a folder of .npy files, made here and removed again. Its digest is read too, so each byte is read
twice and written once; the plain copy of the folder in the same run is what it is held against.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "src"))

MB = 1 << 20
GOAL_MEMORY_MB = 500
CHILD = """
import resource, sys, time
from parity.importing import import_dump
begin = time.perf_counter()
done = import_dump(sys.argv[1], out=sys.argv[2])
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
print(done.records, done.bytes, time.perf_counter() - begin, peak)
"""


def make(folder: Path, gigabytes: float, files: int) -> None:
    """A dump of `files` tensors, 64 to a step, as `OP.INDEX.TIME.npy`."""
    size = max(int(gigabytes * 1024 * MB / files / 4), 1)
    values = np.random.default_rng(0).standard_normal(size).astype(np.float32)
    for number in range(files):
        tap, step = number % 64, number // 64
        values[0] = number
        np.save(folder / f"layer{tap}.q.0.{1_700_000_000_000_000 + step * 64 + tap}.npy", values)


def imported(dump: Path, out: Path) -> tuple[int, int, float, int]:
    """Records, bytes, seconds and the peak of megabytes in memory of one import, in a child."""
    code = f"import sys; sys.path.insert(0, {sys.path[0]!r})\n{CHILD}"
    call = [sys.executable, "-c", code, str(dump), str(out)]
    done = subprocess.run(call, capture_output=True, text=True, check=True)
    records, size, seconds, peak = done.stdout.split()
    return int(records), int(size), float(seconds), int(peak)


def main() -> int:
    """Print the figures; exit status 1 when memory is above its goal."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--gb", type=float, default=2.0)
    parser.add_argument("--files", type=int, default=20_000)
    parser.add_argument("--folder", default=None)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="parity-bench-", dir=asked.folder) as folder:
        dump = Path(folder, "dump")
        dump.mkdir()
        make(dump, asked.gb, asked.files)
        begin = time.perf_counter()
        shutil.copytree(dump, Path(folder, "copy"))
        copied = time.perf_counter() - begin
        shutil.rmtree(Path(folder, "copy"))
        records, size, seconds, peak = imported(dump, Path(folder, "trace.h5"))
    print(f"{records} files, {size / MB:.0f} MB: {seconds:.1f} s, {size / MB / seconds:.0f} MB/s")
    print(f"copying the folder: {copied:.1f} s; importing takes {seconds / copied:.1f} times as long")
    print(f"peak memory: {peak} MB (goal: below {GOAL_MEMORY_MB})")
    return int(peak >= GOAL_MEMORY_MB)


if __name__ == "__main__":
    sys.exit(main())
