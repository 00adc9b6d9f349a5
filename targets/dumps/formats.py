"""From what a device stores to real numbers: the formats' words, and scales undone by the declared rule.

    output or intermediate   real = (q - zero_point) * scale
    input of a quantized build, as CVI states it   q = round(real * scale) + zero_point, so it is divided

Integers with a scale become float32, and the record's meta keeps format, scale and zero point. Floats keep
their bits; a scale on floats that have 16 bits or more is refused, for no device has one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from parity.harness.dtypes import NAMES
from parity.harness.errors import did_you_mean

from .core import Dumped, bad

#: What tools and runtimes call a format -> logical name.
WORDS = {
    **{name: name for name in NAMES},
    "fp32": "float32",
    "f32": "float32",
    "float": "float32",
    "fp16": "float16",
    "f16": "float16",
    "bf16": "bfloat16",
    "i8": "int8",
    "u8": "uint8",
    "si8": "int8",
    "ui8": "uint8",
    "i16": "int16",
    "u16": "uint16",
    "i32": "int32",
    "u32": "uint32",
    "i64": "int64",
}


@dataclass(frozen=True)
class Format:
    """How numbers are stored: logical type, and scale and zero point where they are quantized."""

    dtype: str
    scale: float = 1.0
    zero_point: int = 0
    inverse: bool = False
    """The scale multiplies on the way in (an input of a CVI build), so it is divided by."""

    @property
    def quantized(self) -> bool:
        """Whether the numbers are not yet real ones."""
        return (self.scale, self.zero_point) != (1.0, 0) and not self.dtype.startswith(("float", "bfloat"))

    @property
    def logical(self) -> str:
        """The type of the real numbers."""
        return "float32" if self.quantized else self.dtype

    @property
    def meta(self) -> dict[str, Any]:
        """What was undone, for the record."""
        if not self.quantized:
            return {}
        rule = "(q - zero_point) / scale" if self.inverse else "(q - zero_point) * scale"
        said = {"format": self.dtype, "scale": self.scale, "zero_point": self.zero_point}
        return {"dequantized": {**said, "rule": rule}}

    def real(self, stored: np.ndarray) -> np.ndarray:
        """The real numbers of stored ones: in float64, rounded once to float32."""
        if not self.quantized:
            return stored
        centred = stored.astype(np.int64) - self.zero_point
        exact = centred / self.scale if self.inverse else centred * self.scale
        return np.asarray(exact, np.float32)


def format_of(path: Path, what: str, word: Any, scale: Any = 1.0, zero_point: Any = 0) -> Format:
    """A format as a sidecar states it; UserError for unknown words and scales that cannot be."""
    if not isinstance(word, str) or word.lower() not in WORDS:
        raise bad(path, f"{what} has the format {str(word)[:40]!r}. {did_you_mean(str(word)[:40], WORDS)}")
    dtype = WORDS[word.lower()]
    number = type(scale) in (int, float) and np.isfinite(scale)
    if not number or type(zero_point) is not int or abs(zero_point) > 1 << 31:
        raise bad(path, f"{what} has scale {str(scale)[:40]} and zero point {str(zero_point)[:40]}")
    floating = dtype.startswith(("float", "bfloat"))
    if floating and (scale not in (0, 1) or zero_point):
        raise bad(path, f"{what} holds {dtype} with a scale of {scale}; only integers have one")
    if not floating and not 0 < scale < 1e30:
        raise bad(path, f"{what} has a scale of {scale}, which no quantization has")
    return Format(dtype, 1.0 if floating else float(scale), zero_point)


@dataclass(frozen=True)
class Where:
    """Where an entry belongs; the fields of a `Dumped` that are not its values."""

    step: int = 0
    call: int = 0
    axes: str = ""
    positions: np.ndarray | None = None
    tap: str | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)


def dumped(
    name: str, shape: tuple[int, ...], form: Format, stored: Callable[[], np.ndarray], where: Where
) -> Dumped:
    """An entry whose values are made real when they are loaded; `stored` gives the logical stored array."""
    return Dumped(
        name,
        shape,
        form.logical,
        (lambda: form.real(stored())) if form.quantized else stored,
        where.step,
        where.call,
        where.axes,
        where.positions,
        where.tap,
        {**where.meta, **form.meta},
    )
