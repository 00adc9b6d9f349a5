"""The original demo's device module, or anything with its interface, as an `Executor` of segments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from parity.harness.case import Wiring
from parity.harness.errors import CandidateError
from parity.harness.segmented import Recorded
from parity.harness.tracer import executing, trace_tensor

from .device.live import live_models
from .device.tensors import Failure


class DeviceObject:
    """A live object (see `device.live` for what it must answer) behind the harness's loop.

    What the object itself traces goes to the recording that is under way. CandidateError for one that lacks
    a call, or returns something else than the wiring says.
    """

    def __init__(self, device: Any, wiring: Wiring, sizes: Mapping[str, int]) -> None:
        self._ports = {segment.name: segment for segment in wiring.segments}
        try:
            self._models = live_models(device, wiring.to_json(), sizes, trace_tensor, executing)
        except Failure as error:
            raise CandidateError(str(error)) from error

    def call(self, segment: str, inputs: Mapping[str, np.ndarray]) -> Sequence[Recorded]:
        """Outputs of a segment; inputs by port name, ids as whole numbers, everything else float32."""
        model, ports = self._models[segment], self._ports[segment]
        for slot in model.inputs:
            array = inputs[slot.name]
            if array.shape != slot.shape:
                raise CandidateError(f"{segment}: {slot.name} has shape {array.shape}, not {slot.shape}")
            slot.memory[:] = np.ascontiguousarray(array, slot.format).data.cast("B")
        try:
            model.forward()
        except Failure as error:
            raise CandidateError(str(error)) from error
        return [
            Recorded(port.value, np.frombuffer(slot.memory, np.float32).reshape(slot.shape).copy(), port.axes)
            for port, slot in zip(ports.outputs, model.outputs, strict=True)
        ]

    def close(self) -> None:
        """The object belongs to its maker."""
