"""One run of a segment in eager torch: which taps it has, their axes, and what it computes on an example."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from parity.harness.arrays import to_array
from parity.harness.case import Port, Segment
from parity.harness.errors import UserError
from parity.harness.segmented import HIDDEN
from parity.harness.tracer import recording


@dataclass(frozen=True)
class Tap:
    """A tap inside a segment; `name` ends in `#n` where the tap is hit for the n-th time more."""

    name: str
    axes: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Observed:
    """The taps in execution order, and a digest of every value that the example run showed."""

    taps: tuple[Tap, ...]
    digest: str


class _Watch:
    """A sink that notes what it is shown and keeps no values."""

    def __init__(self) -> None:
        self.taps: list[Tap] = []
        self.digest = hashlib.sha256()

    def record(self, tap: str, array: Any, *, call: int = 0, axes: str = "", **_: Any) -> None:
        values = to_array(array) if isinstance(array, Tensor) else array
        name = f"{tap}#{call}" if call else tap
        self.taps.append(Tap(name, axes, str(values.dtype), tuple(values.shape)))
        self.digest.update(values.tobytes())


def observe(module: nn.Module, segment: Segment, inputs: Sequence[Tensor]) -> Observed:
    """Run the segment once on its example inputs, in port order."""
    watch = _Watch()
    names = [port.name for port in segment.inputs]
    with torch.no_grad(), recording(watch):
        returned = module(**dict(zip(names, inputs, strict=True)))
    produced = returned if isinstance(returned, tuple) else (returned,)
    if len(produced) != len(segment.outputs):
        raise UserError(
            f"{segment.name}: returns {len(produced)} values, its wiring lists {len(segment.outputs)}"
        )
    for value in produced:
        watch.digest.update(to_array(value).tobytes())
    outputs = {port.value for port in segment.outputs}
    return Observed(tuple(tap for tap in watch.taps if tap.name not in outputs), watch.digest.hexdigest())


def examples(
    ports: Sequence[Port], sizes: Mapping[str, int], *, vocab_size: int, seed: int = 0
) -> tuple[Tensor, ...]:
    """Inputs as a run would hand in, each its own object: the same one twice, dynamo takes for one input."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(_example(port, sizes, vocab_size, generator) for port in ports)


def _example(port: Port, sizes: Mapping[str, int], vocab_size: int, generator: torch.Generator) -> Tensor:
    shape = [sizes[size] if isinstance(size, str) else size for size in port.shape]
    dtype = getattr(torch, port.dtype)
    if port.value == "ids":
        return torch.randint(0, vocab_size, shape, generator=generator, dtype=dtype)
    if port.value == "mask":
        return _mask(shape, dtype)
    if port.value == "rope":
        angle = torch.rand(shape[1:], generator=generator) * torch.pi
        return torch.stack((angle.cos(), angle.sin())).to(dtype)
    return torch.randn(shape, generator=generator).to(dtype)


def _mask(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Causal over the newest rows: True where a query may look, or what is added to its scores."""
    num_new, num_rows = shape[-2:]
    allowed = torch.ones(num_new, num_rows, dtype=torch.bool).tril(num_rows - num_new).expand(shape)
    if dtype == torch.bool:
        return allowed.clone()
    return torch.zeros(shape, dtype=dtype).masked_fill(~allowed, HIDDEN)
