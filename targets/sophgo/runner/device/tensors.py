"""What a loaded model's tensors are, and the one kind of error."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

#: Number format -> code of `array` and `struct` for what is stored, little-endian on every chip here.
STORED = {
    "float32": "f", "float16": "e", "bfloat16": "H", "int32": "i", "uint32": "I",
    "int16": "h", "uint16": "H", "int8": "b", "uint8": "B",
}  # fmt: skip


class Failure(Exception):  # noqa: N818 (it is what happened, as a person reads it)
    """What went wrong, in one sentence for a person."""


class Slot:
    """One tensor of a loaded model and the memory that the runtime reads or fills.

    `scale` and `zero_point` mean real = (q - zero_point) * scale for what a model gives, and
    q = real * scale + zero_point for what it takes: both runtimes store the inverse for inputs.
    """

    def __init__(
        self,
        name: str,
        shape: Sequence[int],
        format: str,
        scale: float = 1.0,
        zero_point: int = 0,
        memory: memoryview | None = None,
    ) -> None:
        self.name, self.shape, self.format = name, tuple(shape), format
        self.scale, self.zero_point = scale, zero_point
        self.count = 1
        for size in self.shape:
            self.count *= size
        self.nbytes = self.count * struct.calcsize(STORED[format])
        self.memory = memoryview(bytearray(self.nbytes)) if memory is None else memory

    def facts(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "name": self.name,
            "shape": list(self.shape),
            "format": self.format,
            "scale": self.scale,
            "zero_point": self.zero_point,
        }


class Model:
    """A loaded model: inputs and outputs in its own order, `inner` what else can be seen after a call."""

    inputs: list[Slot]
    outputs: list[Slot]
    inner: list[Slot]

    def forward(self) -> None:
        """From the inputs' memory to the outputs'."""
        raise NotImplementedError

    def close(self) -> None:
        """Free what the model holds."""
        raise NotImplementedError
