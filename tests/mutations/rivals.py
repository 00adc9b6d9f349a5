"""The same traces, judged by the published rules of other tools: what each would have said, and where first.

All are handed records in execution order and as we align them, by absolute position, which none of them does
itself; the original tracer alone pairs by name. Each keeps its tool's ways with NaN, shapes and names that
only one side has. Thresholds are the tools' defaults for float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from parity.harness.align import Aligner
from parity.harness.trace import Run

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Said:
    """What a rule says of a pair of runs: whether it objects, and at which tap first."""

    objects: bool
    first: str = ""


Rule = Callable[[Run, Run], Said]
RULES: dict[str, Rule] = {}


def said(reference: Run, candidate: Run) -> dict[str, Said]:
    """Every rule's word on a candidate."""
    return {name: rule(reference, candidate) for name, rule in RULES.items()}


@dataclass(frozen=True)
class Paired:
    """One tap, step and call on both sides, in float64."""

    tap: str
    step: int
    call: int
    expected: Array
    actual: Array


def paired(reference: Run, candidate: Run) -> Iterator[Paired]:
    """What both sides have, in execution order."""
    aligner = Aligner(reference, candidate)
    pairs = [(place, pair) for place, tap in enumerate(aligner.order) for pair in aligner.pairs(tap)]
    for _, pair in sorted(pairs, key=lambda item: (item[1].step, item[0], item[1].call)):
        if pair.expected is not None and pair.actual is not None:
            yield Paired(pair.tap, pair.step, pair.call, _wide(pair.expected), _wide(pair.actual))
        elif pair.reference is not None and pair.candidate is not None:
            sides = _wide(pair.reference.read()), _wide(pair.candidate.read())
            yield Paired(pair.tap, pair.step, pair.call, *sides)


def _per_record(name: str) -> Callable[[Callable[[Any, Any], bool]], Rule]:
    """A rule that looks at each common record; it objects to another shape and skips what is absent."""

    def register(holds: Callable[[Any, Any], bool]) -> Rule:
        def rule(reference: Run, candidate: Run) -> Said:
            for pair in paired(reference, candidate):
                if pair.actual.shape != pair.expected.shape or not holds(pair.actual, pair.expected):
                    return Said(True, pair.tap)
            return Said(False)

        RULES[name] = rule
        return rule

    return register


def _wide(values: Array) -> Array:
    return np.asarray(values).astype(np.float64)


@_per_record("torch.allclose")
def allclose(actual: Any, expected: Any) -> bool:
    """rtol 1e-5, atol 1e-8; NaN is never close."""
    return bool(torch.allclose(torch.from_numpy(actual), torch.from_numpy(expected)))


@_per_record("cosine 0.99")
def cosine(actual: Any, expected: Any) -> bool:
    """One cosine per tensor."""
    return _cosine(actual, expected) >= 0.99


@_per_record("1-cosine-like 1e-3")
def sglang(actual: Any, expected: Any) -> bool:
    """1 - 2<a, e> / (|a|^2 + |e|^2) <= 1e-3: SGLang's comparator."""
    with np.errstate(all="ignore"):
        power = np.float64((actual * actual).sum() + (expected * expected).sum())
        return bool(power == 0.0 or 1.0 - 2.0 * np.float64((actual * expected).sum()) / power <= 1e-3)


@_per_record("Polygraphy 1e-5")
def polygraphy(actual: Any, expected: Any) -> bool:
    """Every element within atol or within rtol, both 1e-5."""
    with np.errstate(all="ignore"):
        gap = np.abs(actual - expected)
        relative = gap / np.abs(expected)
    return bool(np.all((gap <= 1e-5) | (relative <= 1e-5)))


def tracer(reference: Run, candidate: Run) -> Said:
    """The original tracer: a name holds its last record only; common names, atol = rtol = 1e-5."""
    held = [{record.tap: record for record in run.records()} for run in (reference, candidate)]
    for tap, one in held[0].items():
        two = held[1].get(tap)
        if two is None:
            continue
        sides = _wide(two.read()), _wide(one.read())
        close = one.shape == two.shape and np.allclose(*sides, rtol=1e-5, atol=1e-5)
        if not close:
            return Said(True, tap)
    return Said(False)


def npz_tool(reference: Run, candidate: Run) -> Said:
    """TPU-MLIR's npz_tool at 0.99, 0.90: NaN made finite, the longer cut, cosine and Euclid similarity."""
    for pair in paired(reference, candidate):
        sides = pair.actual, pair.expected
        a, e = (np.nan_to_num(side, nan=0.0, posinf=1e4, neginf=-1e4).ravel() for side in sides)
        size = min(a.size, e.size)
        a, e = a[:size], e[:size]
        middle, gap = np.sqrt((((a + e) / 2.0) ** 2).sum()), np.sqrt(((a - e) ** 2).sum())
        similar = 1.0 - gap / middle if middle else float(not gap)
        if _cosine(a, e) < 0.99 or similar < 0.90:
            return Said(True, pair.tap)
    return Said(False)


def msprobe(reference: Run, candidate: Run) -> Said:
    """msprobe: an op is wrong when its inputs are good to 1 in 1000 and its output is not, or NaN is new."""
    shares: dict[tuple[str, int, int], float] = {}
    inputs = {role["taps"]: role["inputs"] for role in reference.provenance.get("roles", ())}
    for pair in paired(reference, candidate):
        a, e = pair.actual, pair.expected
        if a.shape != e.shape:
            continue
        if np.isfinite(e).all() and not np.isfinite(a).all():
            return Said(True, pair.tap)
        with np.errstate(all="ignore"):
            near = np.abs(a - e) <= 1e-3 * np.abs(e)
        at = (pair.tap, pair.step, pair.call)
        shares[at] = float(near.mean()) if near.size else 1.0
        fed = [shares[tap, *at[1:]] for tap in inputs.get(pair.tap, ()) if (tap, *at[1:]) in shares]
        if shares[at] < 0.1 and min(fed, default=1.0) > 0.9:
            return Said(True, pair.tap)
    return Said(False)


def _cosine(actual: Any, expected: Any) -> float:
    """NaN where a side is not finite, which no threshold accepts; 1 where both are zero."""
    with np.errstate(all="ignore"):
        scale = float(np.sqrt((actual * actual).sum()) * np.sqrt((expected * expected).sum()))
        if scale:
            return float(np.float64((actual * expected).sum()) / scale)
    return 1.0 if not np.abs(actual - expected).max(initial=0.0) else 0.0


RULES |= {"the original tracer": tracer, "TPU-MLIR npz_tool": npz_tool, "msprobe": msprobe}
