"""Comparing stored traces: many small records, and more data than memory is allowed to hold.

    python tests/bench/bench_compare.py [--records 100000] [--gb 8]

Prints seconds for the small records and, for the large traces, the share of this machine's speed of
reading both files and the peak of memory. Peak memory is measured in a process of its own, which must not
import torch.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from parity.harness.trace import TraceWriter

STEPS = 100
CHILD = """
import json, resource, sys, time
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
begin = time.perf_counter()
import parity
comparison = parity.compare_traces(*sys.argv[1:3], ref_run="one", cand_run="two", tol="fp32", force=True)
seconds = time.perf_counter() - begin
print(json.dumps({
    "seconds": seconds,
    "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    "torch": "torch" in sys.modules,
    "records": len(comparison.records),
    "verdict": comparison.verdict,
}))
"""


def write(path: Path, run: str, *, taps: int, steps: int, shape: tuple[int, ...], noise: float) -> int:
    """A trace of `taps` x `steps` records; returns its bytes of data."""
    source = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    with TraceWriter(path) as writer, writer.run(run) as sink:
        for step in range(steps):
            source += np.float32(noise)
            for tap in range(taps):
                sink.record(f"tap{tap}", source, step=step, axes="b t d")
    return taps * steps * source.nbytes


def compare(one: Path, two: Path) -> dict[str, float]:
    """Compare in a fresh process, twice; the second time everything compiled is cached."""
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", CHILD, one, two], capture_output=True, text=True, check=True
        )
    return dict(json.loads(done.stdout))


def read_speed(*paths: Path) -> float:
    """Bytes per second of reading the files through one buffer."""
    buffer, total, begin = bytearray(8 << 20), 0, time.perf_counter()
    for path in paths:
        with path.open("rb", buffering=0) as file:
            while got := file.readinto(buffer):
                total += got
    return total / (time.perf_counter() - begin)


def main() -> None:
    """Run both parts and print ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=100_000)
    parser.add_argument("--gb", type=float, default=8.0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        one, two = Path(folder) / "one.h5", Path(folder) / "two.h5"
        taps = max(arguments.records // STEPS, 1)
        for path, name in ((one, "one"), (two, "two")):
            write(path, name, taps=taps, steps=STEPS, shape=(1, 1, 512), noise=0.0)
        small = compare(one, two)
        took = f"{small['seconds']:.2f} s, {small['peak_mb']:.0f} MB peak"
        print(f"{small['records']} records of 2 KB a side: {took}")
    with tempfile.TemporaryDirectory() as folder:
        one, two = Path(folder) / "one.h5", Path(folder) / "two.h5"
        steps = max(int(arguments.gb * 1e9 / (64 << 20)), 1)
        size = 0
        for path, name in ((one, "one"), (two, "two")):
            size += write(path, name, taps=1, steps=steps, shape=(1, 4096, 4096), noise=0.0)
        limit = read_speed(one, two)
        large = compare(one, two)
        share = size / large["seconds"] / limit
        print(
            f"{size / 2e9:.1f} GB a side: {large['seconds']:.1f} s, {share:.2f} of the speed of reading, "
            f"{large['peak_mb']:.0f} MB peak, torch imported: {large['torch']}"
        )


if __name__ == "__main__":
    main()
