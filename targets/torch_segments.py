"""Runs segments in eager torch: the executor behind `segmented` and `prefilled`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from parity.harness.arrays import to_array, to_tensor
from parity.harness.case import Case, Wiring
from parity.harness.segmented import Recorded
from parity.harness.tracer import recording


class Shown:
    """A sink that keeps records in memory, in execution order, the first of each name."""

    def __init__(self) -> None:
        self.items: dict[str, Recorded] = {}

    def record(self, tap: str, array: Any, *, axes: str = "", **_: Any) -> None:
        """Keep one record; steps and positions are the caller's business."""
        copied = to_array(array) if isinstance(array, Tensor) else np.array(array)
        self.items.setdefault(tap, Recorded(tap, np.array(copied), axes))


class TorchExecutor:
    """Segments as torch modules, one number format, one device."""

    def __init__(
        self, modules: Mapping[str, nn.Module], wiring: Wiring, dtype: torch.dtype, device: str = "cpu"
    ) -> None:
        self._modules = {name: module.to(device=device, dtype=dtype) for name, module in modules.items()}
        self._ports = {segment.name: segment for segment in wiring.segments}
        self._dtype, self._device = dtype, device

    def call(self, segment: str, inputs: Mapping[str, np.ndarray]) -> Sequence[Recorded]:
        """Inner taps and outputs in execution order."""
        shown = Shown()
        ports = self._ports[segment]
        with torch.no_grad(), recording(shown):
            returned = self._modules[segment](*(self._tensor(inputs[port.name]) for port in ports.inputs))
        outputs = returned if isinstance(returned, tuple) else (returned,)
        for port, output in zip(ports.outputs, outputs, strict=True):
            shown.record(port.value, output, axes=port.axes)
        return tuple(shown.items.values())

    def _tensor(self, array: np.ndarray) -> Tensor:
        tensor = to_tensor(array, self._device)
        return tensor.to(self._dtype) if tensor.is_floating_point() else tensor

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
