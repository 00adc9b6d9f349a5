"""The same traces, judged by the published rules of other tools: what each would have said, and where first.

Every rule pairs records by name, step and call as its tool does, and keeps that tool's ways with NaN, shapes
and names that only one side has. Thresholds are the tools' defaults for float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from parity.harness.trace import Record, Run


@dataclass(frozen=True)
class Said:
    """What a rule says of a pair of runs: whether it objects, and at which tap first."""

    objects: bool
    first: str = ""


Paired = tuple[Record, Record | None]
Rule = Callable[[Run, Run], Said]
RULES: dict[str, Rule] = {}


def said(reference: Run, candidate: Run) -> dict[str, Said]:
    """Every rule's word on a candidate."""
    return {name: rule(reference, candidate) for name, rule in RULES.items()}


def paired(reference: Run, candidate: Run) -> Iterator[Paired]:
    """Records of the reference in execution order, with what has the same name, step and call."""
    known = {(record.tap, record.step, record.call): record for record in candidate.records()}
    for record in reference.records():
        yield record, known.get((record.tap, record.step, record.call))


def _per_record(name: str) -> Callable[[Callable[[Any, Any], bool]], Rule]:
    """A rule that looks at each common record; it objects to another shape and skips what is absent."""

    def register(holds: Callable[[Any, Any], bool]) -> Rule:
        def rule(reference: Run, candidate: Run) -> Said:
            for one, two in paired(reference, candidate):
                if two is None:
                    continue
                if one.shape != two.shape or not holds(_wide(two), _wide(one)):
                    return Said(True, one.tap)
            return Said(False)

        RULES[name] = rule
        return rule

    return register


def _wide(record: Record) -> np.ndarray:
    return np.asarray(record.read()).astype(np.float64)


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
    power = float((actual * actual).sum() + (expected * expected).sum())
    return power == 0.0 or 1.0 - 2.0 * float((actual * expected).sum()) / power <= 1e-3


@_per_record("Polygraphy 1e-5")
def polygraphy(actual: Any, expected: Any) -> bool:
    """Every element within atol or within rtol, both 1e-5."""
    gap = np.abs(actual - expected)
    with np.errstate(divide="ignore", invalid="ignore"):
        relative = gap / np.abs(expected)
    return bool(np.all((gap <= 1e-5) | (relative <= 1e-5)))


def tracer(reference: Run, candidate: Run) -> Said:
    """The original tracer: a name holds its last record only; common names, atol = rtol = 1e-5."""
    held = [{record.tap: record for record in run.records()} for run in (reference, candidate)]
    for tap, one in held[0].items():
        two = held[1].get(tap)
        if two is None:
            continue
        close = one.shape == two.shape and np.allclose(_wide(two), _wide(one), rtol=1e-5, atol=1e-5)
        if not close:
            return Said(True, tap)
    return Said(False)


def npz_tool(reference: Run, candidate: Run) -> Said:
    """TPU-MLIR's npz_tool at 0.99, 0.90: NaN made finite, the longer cut, cosine and Euclid similarity."""
    for one, two in paired(reference, candidate):
        if two is None:
            continue
        a, e = (np.nan_to_num(_wide(r), nan=0.0, posinf=1e4, neginf=-1e4).ravel() for r in (two, one))
        size = min(a.size, e.size)
        a, e = a[:size], e[:size]
        middle = np.sqrt((((a + e) / 2.0) ** 2).sum())
        gap = np.sqrt(((a - e) ** 2).sum())
        similar = 1.0 - gap / middle if middle else float(not gap)
        if _cosine(a, e) < 0.99 or similar < 0.90:
            return Said(True, one.tap)
    return Said(False)


def msprobe(reference: Run, candidate: Run) -> Said:
    """msprobe: an op is wrong when its inputs are good to 1 in 1000 and its output is not, or NaN is new."""
    shares: dict[tuple[str, int, int], float] = {}
    inputs = {role["taps"]: role["inputs"] for role in reference.provenance.get("roles", ())}
    for one, two in paired(reference, candidate):
        if two is None or one.shape != two.shape:
            continue
        a, e = _wide(two), _wide(one)
        if np.isfinite(e).all() and not np.isfinite(a).all():
            return Said(True, one.tap)
        with np.errstate(divide="ignore", invalid="ignore"):
            near = np.abs(a - e) <= 1e-3 * np.abs(e)
        at = (one.tap, one.step, one.call)
        shares[at] = float(near.mean()) if near.size else 1.0
        fed = [shares[tap, *at[1:]] for tap in inputs.get(one.tap, ()) if (tap, *at[1:]) in shares]
        if shares[at] < 0.1 and min(fed, default=1.0) > 0.9:
            return Said(True, one.tap)
    return Said(False)


def _cosine(actual: Any, expected: Any) -> float:
    """NaN where a side is zero or not finite, which no threshold accepts; 1 where both are zero."""
    scale = float(np.sqrt((actual * actual).sum()) * np.sqrt((expected * expected).sum()))
    if not scale:
        return 1.0 if not np.abs(actual - expected).max(initial=0.0) else 0.0
    return float((actual * expected).sum() / scale)


RULES |= {"the original tracer": tracer, "TPU-MLIR npz_tool": npz_tool, "msprobe": msprobe}
