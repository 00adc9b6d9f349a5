"""Speed of measuring, as ratios to numpy and to the machine's read speed, all in one run.

    python tests/bench/bench_metrics.py --mb 256 --check

Targets: plain reductions >= 4 x numpy.allclose; the full set (histograms and slices included) >= 1.5 x
numpy.allclose and >= 8 x the plain numpy formulas of that same set; 100,000 pairs of 2 KB in <= 1.3 s (judged
by processor time of the one thread that they need). Contenders take turns; the best turn of each counts.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "src"))

from parity.harness.metrics import measure

ATOL, RTOL = 1e-4, 1e-3
SHAPE = (8, -1, 128)
AXES = "h t d"


def naive(a: np.ndarray, e: np.ndarray) -> dict[str, Any]:
    """The full set as one writes it in numpy: float64, one formula after the other."""
    a64, e64 = a.astype(np.float64), e.astype(np.float64)
    d, size = np.abs(a64 - e64), np.abs(e64)
    wrong = ~(d <= ATOL + RTOL * size)
    out: dict[str, Any] = {
        "nan": (np.isnan(a).sum(), np.isnan(e).sum()),
        "inf": (np.isposinf(a).sum(), np.isneginf(a).sum(), np.isposinf(e).sum(), np.isneginf(e).sum()),
        "structural": ((a == e) & (e <= -1e4)).sum(),
        "max_abs": (d.max(), d.argmax()),
        "mean_abs": d.mean(),
        "rmse": np.sqrt((d**2).mean()),
        "cosine": (a64 * e64).sum() / np.sqrt((a64**2).sum() * (e64**2).sum()),
        "mismatched": wrong.sum(),
    }
    relative = d / np.maximum(size, 0.01 * np.sqrt((e64**2).mean()))
    out["max_rel"] = (relative.max(), relative.argmax())
    bits_a, bits_e = (x.view(np.int32).astype(np.int64) for x in (a, e))
    key_a, key_e = (np.where(b < 0, -(2**31) - b, b) for b in (bits_a, bits_e))
    out["ulp"] = np.abs(key_a - key_e).max()
    some = d > 0
    cell = (np.frexp(d[some])[1] + 160) * 320 + np.frexp(size[some])[1] + 160
    out["joint"] = np.bincount(cell, minlength=320 * 320)
    out["peaks"] = np.zeros(320 * 320)
    np.maximum.at(out["peaks"], cell, d[some])
    for axis in range(a.ndim):
        others = tuple(i for i in range(a.ndim) if i != axis)
        out[f"axis {axis}"] = _slices(d, e64, wrong, others)
    out["rows"] = _slices(d, e64, wrong, (a.ndim - 1,))
    return out


def _slices(d: np.ndarray, e: np.ndarray, wrong: np.ndarray, over: tuple[int, ...]) -> tuple[np.ndarray, ...]:
    return (
        np.sqrt((d**2).mean(axis=over)),
        np.sqrt((e**2).mean(axis=over)),
        d.max(axis=over),
        np.abs(e).max(axis=over),
        wrong.sum(axis=over),
    )


def seconds(call: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> float:
    """Time of one call."""
    start = clock()
    call()
    return clock() - start


def pair(count: int, dtype: str = "float32") -> tuple[np.ndarray, np.ndarray]:
    """Values of order 1 with errors of order 1e-4."""
    rng = np.random.default_rng(0)
    e = rng.standard_normal(count, dtype=np.float32)
    a = e + 1e-4 * rng.standard_normal(count, dtype=np.float32)
    return a.astype(dtype), e.astype(dtype)


def speeds(mb: int, repeats: int) -> dict[str, float]:
    """GB/s of bytes read from both sides, per contender."""
    a, e = pair(mb * 2**18)
    a3, e3 = a.reshape(SHAPE), e.reshape(SHAPE)
    part = min(mb, 64) * 2**18
    an, en = a[:part].reshape(SHAPE), e[:part].reshape(SHAPE)
    full = {"axes": AXES, "atol": ATOL, "rtol": RTOL}
    contenders: dict[str, tuple[Callable[[], object], int]] = {
        "read (np.dot)": (lambda: np.dot(a, e), a.nbytes),
        "plain, 1 thread": (lambda: measure(a3, e3, profiles=False, threads=1, **full), a.nbytes),
        "plain, 2 threads": (lambda: measure(a3, e3, profiles=False, threads=2, **full), a.nbytes),
        "full, 1 thread": (lambda: measure(a3, e3, threads=1, **full), a.nbytes),
        "full, 2 threads": (lambda: measure(a3, e3, threads=2, **full), a.nbytes),
        "numpy.allclose": (lambda: np.allclose(a3, e3, rtol=RTOL, atol=ATOL), a.nbytes),
        "numpy formulas": (lambda: naive(an, en), an.nbytes),
    }
    measure(a3[:, :64], e3[:, :64], **full)
    times: dict[str, float] = dict.fromkeys(contenders, float("inf"))
    for turn in range(repeats):
        for name, (call, _) in contenders.items():
            if turn == 0 or name != "numpy formulas":
                times[name] = min(times[name], seconds(call))
    return {name: 2 * size / 1e9 / times[name] for name, (_, size) in contenders.items()}


def small(calls: int = 100_000) -> tuple[float, float]:
    """Seconds for pairs of 2 KB, one `measure` each: of the clock, and of this thread's processor time."""
    a, e = pair(512)
    a, e = a.reshape(8, 64), e.reshape(8, 64)

    def run() -> None:
        for _ in range(calls // 10):
            measure(a, e, axes="t d", atol=ATOL, rtol=RTOL)

    clocks = (time.perf_counter, time.thread_time)
    wall, processor = (10 * min(seconds(run, clock) for _ in range(5)) for clock in clocks)
    return wall, processor


def main() -> int:
    """Print the table; with --check, 1 when a target is missed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--mb", type=int, default=256, help="size of each side")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--check", action="store_true", help="exit 1 when a target is missed")
    options = parser.parse_args()
    found = speeds(options.mb, options.repeats)
    for name, speed in found.items():
        print(f"{name:18} {speed:6.2f} GB/s   {speed / found['read (np.dot)']:.3f} of the read speed")
    wall, processor = small()
    plain, full = found["plain, 2 threads"], found["full, 2 threads"]
    goals = [
        ("plain / numpy.allclose", plain / found["numpy.allclose"], 4.0),
        ("full / numpy.allclose", full / found["numpy.allclose"], 1.5),
        ("full / numpy formulas", full / found["numpy formulas"], 8.0),
        ("1.3 s / 100,000 pairs of 2 KB", 1.3 / processor, 1.0),
    ]
    print(f"100,000 pairs of 2 KB: {wall:.2f} s of the clock, {processor:.2f} s of processor time")
    for name, ratio, goal in goals:
        print(f"{name:30} {ratio:6.2f}   target {goal:g}   {'reached' if ratio >= goal else 'MISSED'}")
    return int(options.check and any(ratio < goal for _, ratio, goal in goals))


if __name__ == "__main__":
    sys.exit(main())
