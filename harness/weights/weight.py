"""One weight tensor as a file holds it, in real numbers, with what its number format can explain."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

Floats = np.ndarray[Any, np.dtype[np.float32]]
#: Largest relative error of a value that was rounded once; twice that where it was cut off.
ROUNDING = {"float64": 0.0, "float32": 0.0, "float16": 2.0**-11, "bfloat16": 2.0**-8}
#: What a cast from float64, or one multiplication folded into a weight, changes in float32.
_FUZZ = 2.0**-22
QUANTILES = 48


@dataclass(frozen=True)
class Weight:
    """`values` in float32; `dtype` is what is stored.

    A quantized one has `step`, the distance of neighbouring levels, which broadcasts to the values, the share
    of codes at the `ends` of their range and the `used` share of that range. `turned`: stored as `[in, out]`
    for a product x W, shown as `[out, in]`. `place` is the file or segment that holds it.
    """

    name: str
    values: Floats
    dtype: str = "float32"
    step: Floats | None = None
    ends: float = 0.0
    used: float = 1.0
    turned: bool = False
    place: str = ""

    @property
    def label(self) -> str:
        """The name, with its place in front."""
        return f"{self.place}:{self.name}" if self.place else self.name

    @property
    def quantized(self) -> bool:
        """Whether codes and scales are stored."""
        return self.step is not None

    def allowed(self, expected: Floats) -> Floats:
        """How far each value may lie from the expected one, of the same shape as `values`."""
        if self.step is not None:
            return np.asarray(np.abs(self.step) * 0.505 + _FUZZ * np.abs(expected), np.float32)
        relative = 2 * ROUNDING.get(self.dtype, 2.0**-3) + _FUZZ
        return np.asarray(
            np.abs(expected) * relative + np.float32(2.0**-24 if relative > _FUZZ else 0), np.float32
        )

    @cached_property
    def sketch(self) -> Floats:
        """Quantiles of the magnitudes over their RMS: the same for any order, sign and scale."""
        return sketch(self.values)


def sketch(values: Floats) -> Floats:
    """See `Weight.sketch`; zeros for an empty or a zero tensor."""
    magnitudes = np.sort(np.abs(values), axis=None)
    if not magnitudes.size or not magnitudes[-1] or not np.isfinite(magnitudes[-1]):
        return np.zeros(QUANTILES, np.float32)
    places = np.linspace(0, magnitudes.size - 1, QUANTILES).round().astype(np.int64)
    rms = float(np.sqrt(np.mean(np.square(magnitudes, dtype=np.float64))))
    return np.asarray(magnitudes[places] / rms, np.float32)
