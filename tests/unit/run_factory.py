"""Runs in memory and comparisons of them, for the tests of alignment, comparison and diagnosis."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from zlib import crc32

import numpy as np

from parity.harness.compare import compare_runs
from parity.harness.comparison import Comparison, Side
from parity.harness.rows import Rules
from parity.harness.tolerance import load_tolerance
from parity.harness.tracer.memory import MemoryRun

CASE = {"weights": "w0", "scenario_digest": "s0", "policy": "none", "model": "m0"}


def new_run(name: str = "torch", *, complete: bool = True, **provenance: Any) -> MemoryRun:
    """An empty run of one case; keywords change or add provenance."""
    return MemoryRun(name, target=name, provenance={**CASE, **provenance}, complete=complete)


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    """Standard normal float32 values."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def simple(
    name: str = "torch",
    *,
    taps: Sequence[str] = ("a", "b", "c"),
    steps: int = 3,
    changes: Mapping[tuple[str, int], Any] | None = None,
    skip: Iterable[tuple[str, int]] = (),
    **provenance: Any,
) -> MemoryRun:
    """`[3, 4]` values per tap and step, alike in every run; `changes` map (tap, step) -> function of them."""
    run = new_run(name, **provenance)
    for step in range(steps):
        for tap in taps:
            values = noise(3, 4, seed=1000 * step + crc32(tap.encode()))
            change = (changes or {}).get((tap, step))
            if (tap, step) not in set(skip):
                run.record(tap, change(values) if change else values, step=step)
    return run


def compared(reference: Any, candidate: Any, *, tol: str = "fp32", **options: Any) -> Comparison:
    """`compare_runs` under a profile, without floors."""
    rules = options.pop("rules", None) or Rules(load_tolerance(tol), options.pop("floors", {}))
    sides = (Side("torch", reference.name, "torch", ""), Side("cand", candidate.name, "cand", ""))
    return compare_runs(reference, candidate, rules=rules, sides=sides, **options)


def statuses(comparison: Comparison) -> dict[tuple[str, int, int], str]:
    """(tap, step, call) -> status."""
    return {(row.tap, row.step, row.call): row.status for row in comparison.rows()}


def wiring(
    *segments: tuple[str, Sequence[str]], caches: Sequence[tuple[str, str, str]] = ()
) -> dict[str, Any]:
    """A wiring table as a run stores it: segments with their taps, caches as (cache, source, segment)."""
    return {
        "segments": [
            {"name": name, "taps": list(taps), "inputs": [], "outputs": []} for name, taps in segments
        ],
        "caches": [{"cache": c, "source": s, "segment": g} for c, s, g in caches],
        "output": "logits",
    }
