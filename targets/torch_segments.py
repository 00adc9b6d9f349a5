"""Runs segments in eager torch: the executor behind `segmented` and `prefilled`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from parity.harness.arrays import to_array, to_tensor
from parity.harness.case import Case, Port, Wiring
from parity.harness.pinning import Pinner
from parity.harness.segmented import Recorded, Right
from parity.harness.tracer import recording

from .parcels import Flat, program


class Shown:
    """A sink that keeps records in memory, in execution order, the first of each name."""

    def __init__(self) -> None:
        self.items: dict[str, Recorded] = {}

    def record(self, tap: str, array: Any, *, axes: str = "", **_: Any) -> None:
        """Keep one record; steps and positions are the caller's business."""
        copied = to_array(array) if isinstance(array, Tensor) else np.array(array)
        self.items.setdefault(tap, Recorded(tap, np.array(copied), axes))


class Pinned(Shown):
    """The same, and each tensor goes on with the reference's value; `loose`: those of which that fails."""

    def __init__(self, pinner: Pinner, right: Right) -> None:
        super().__init__()
        self._pinner, self._right = pinner, right
        self.loose: dict[str, str] = {}

    def record(self, tap: str, array: Any, *, axes: str = "", **about: Any) -> None:
        """Keep it as it was computed, then write over it."""
        known = tap in self.items
        super().record(tap, array, axes=axes, **about)
        if known:
            self.loose[tap] = "comes twice in one segment"
            return
        right = self._right(self.items[tap])
        if right is None:
            self.loose[tap] = "the reference holds no such value"
        elif not isinstance(array, Tensor) or not self._pinner.write(array, to_tensor(right, array.device)):
            self.loose[tap] = "is no tensor of its own that could be written over"


class TorchExecutor:
    """Segments as torch modules, one number format, one device."""

    def __init__(
        self, modules: Mapping[str, nn.Module], wiring: Wiring, dtype: torch.dtype, device: str = "cpu"
    ) -> None:
        self._modules = {name: module.to(device=device, dtype=dtype) for name, module in modules.items()}
        self._ports = {segment.name: segment for segment in wiring.segments}
        self._dtype, self._device = dtype, device
        self.unpinned: dict[str, str] = {}

    def call(self, segment: str, inputs: Mapping[str, np.ndarray]) -> Sequence[Recorded]:
        """Inner taps and outputs in execution order."""
        shown = Shown()
        for port, output in self._run(segment, inputs, shown):
            # A tap inside may have kept fewer rows than flow on.
            shown.items[port.value] = Recorded(port.value, np.array(to_array(output)), port.axes)
        return tuple(shown.items.values())

    def pinned(self, segment: str, inputs: Mapping[str, np.ndarray], right: Right) -> Sequence[Recorded]:
        """The same, and after each tap the segment goes on with the reference's value."""
        pinner = Pinner(self._modules[segment])
        shown = Pinned(pinner, right)
        try:
            for port, output in self._run(segment, inputs, shown):
                if port.value not in shown.items:
                    shown.items[port.value] = Recorded(port.value, np.array(to_array(output)), port.axes)
                    shown.loose[port.value] = "leaves its segment without a tap inside"
        finally:
            pinner.restore()
        self.unpinned |= shown.loose
        return tuple(shown.items.values())

    def _run(
        self, segment: str, inputs: Mapping[str, np.ndarray], shown: Shown
    ) -> Iterator[tuple[Port, Tensor]]:
        """Output ports and what came out of them."""
        ports = self._ports[segment]
        with torch.no_grad(), recording(shown):
            returned = self._modules[segment](*(self._tensor(inputs[port.name]) for port in ports.inputs))
        outputs = returned if isinstance(returned, tuple) else (returned,)
        return zip(ports.outputs, outputs, strict=True)

    def _tensor(self, array: np.ndarray) -> Tensor:
        tensor = to_tensor(array, self._device)
        return tensor.to(self._dtype) if tensor.is_floating_point() else tensor

    def parcel(self, segment: str, inputs: Mapping[str, np.ndarray]) -> Mapping[str, bytes]:
        """The segment as a program; its outputs alone, taps inside are not in it."""
        tensors = [self._tensor(inputs[port.name]) for port in self._ports[segment].inputs]
        flat = Flat(self._modules[segment], tuple(tensors), {})
        return {"model.pt2": program(flat, tensors)}

    def close(self) -> None:
        """Let go of the modules."""
        self._modules.clear()


class RopeTable:
    """Rotary rows of the case's own table, which segments get as data."""

    def __init__(self, case: Case, dtype: torch.dtype) -> None:
        module = case.model.build()
        module.load_state_dict(dict(case.state), strict=True)
        self._model, self._module = case.model, module.to(dtype)

    def __call__(self, positions: np.ndarray) -> np.ndarray:
        """Rows `[2, B, T, D]` for positions `[B, T]`."""
        with torch.no_grad():
            return to_array(self._model.rope(self._module, torch.from_numpy(positions)))
