"""What looking at a model did to its outputs: the untouched call against the observed one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .dtypes import from_any

#: Largest share of the largest output by which another order of sums, or an unfused path, may move outputs.
ROUNDING = 1e-3


@dataclass(frozen=True)
class Effect:
    """How outputs changed, in words and per output; `grave` where rounding cannot be the reason."""

    text: str
    grave: bool = False
    outputs: Mapping[str, dict[str, Any]] = field(default_factory=dict)


def observer_effect(plain: Mapping[str, Any], tapped: Mapping[str, Any], how: str) -> Effect:
    """Compare outputs (arrays or tensors) by name; `how` says in words what the observed call had."""
    changes = {name: _change(_numbers(value), _numbers(tapped[name])) for name, value in plain.items()}
    outputs = {name: {"bitwise": not c.text, "max_abs": c.gap} for name, c in changes.items()}
    said = [f"{name} {change.text}" for name, change in changes.items() if change.text]
    if not said:
        return Effect(f"outputs are the same bit for bit {how} and without", outputs=outputs)
    text = f"outputs change {how}: {'; '.join(said)}; those without are the recorded ones"
    return Effect(text, any(change.grave for change in changes.values()), outputs)


@dataclass(frozen=True)
class _Change:
    """What changed in one output, empty if nothing."""

    text: str
    gap: float = 0.0
    grave: bool = False


def _change(plain: np.ndarray, tapped: np.ndarray) -> _Change:
    if plain.shape != tapped.shape:
        text = f"has shape {list(tapped.shape)} instead of {list(plain.shape)}"
        return _Change(text, float("inf"), grave=True)
    finite = np.isfinite(plain) & np.isfinite(tapped)
    same = (plain == tapped) | (np.isnan(plain) & np.isnan(tapped))
    odd = int((~same & ~finite).sum())
    gap = float(np.abs(plain[finite] - tapped[finite]).max(initial=0.0))
    texts = [f"by up to {gap:.3g}" if gap else "", f"in {odd} values that are not finite" if odd else ""]
    largest = float(np.abs(plain[finite]).max(initial=0.0))
    return _Change(" and ".join(filter(None, texts)), gap, odd > 0 or gap > ROUNDING * largest)


def _numbers(value: Any) -> np.ndarray:
    array = from_any(value)[0]
    return array.astype(np.complex128 if array.dtype.kind == "c" else np.float64)
