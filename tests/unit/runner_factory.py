"""A board in torch: an object with the original device module's calls, and packages for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from parity.cases import build_case
from parity.harness.case import Case, Port, Segment, Wiring
from parity.harness.progress import Silent
from parity.request import Request
from parity.targets.sophgo.runner.device.files import Package
from parity.targets.sophgo.runner.device.live import live_models
from parity.targets.sophgo.runner.device.loop import Loop
from parity.targets.sophgo.runner.device.tensors import Model, Slot
from parity.targets.sophgo.runner.package import BoardModel, Build, Shown, write_package


def make_case(**options: Any) -> Case:
    """klm-tiny on seeded weights that are alive."""
    return build_case(Request(weights="random:3", **options), progress=Silent())


class TorchBoard:
    """What the original's extension module answers, computed by the case's own segments."""

    def __init__(self, case: Case) -> None:
        self._segments = list(case.model.split(case.state).values())
        self.calls = 0

    def call_head(self, ids: np.ndarray, rope: np.ndarray) -> Any:
        assert ids.dtype == np.int64
        return self._call(0, ids, rope)

    def call_segment(self, layer: int, *arrays: np.ndarray) -> Any:
        return self._call(layer + 1, *arrays)

    def call_tail(self, *arrays: np.ndarray) -> Any:
        return self._call(-1, *arrays)

    def _call(self, at: int, *arrays: np.ndarray) -> Any:
        self.calls += 1
        with torch.no_grad():
            returned = self._segments[at](*map(torch.from_numpy, arrays))
        tensors = returned if isinstance(returned, tuple) else (returned,)
        # The extension pads its shapes to four dimensions.
        padded = [np.asarray(tensor).reshape((*tensor.shape, 1)[:4]) for tensor in tensors]
        return padded[0] if len(padded) == 1 else tuple(padded)


def shown(wiring: Wiring, rows: int) -> dict[str, BoardModel]:
    """Models without files whose outputs are the segments' ports."""
    sizes = {"B": 1, "T": 1, "W": rows}
    return {
        segment.name: BoardModel(
            None,
            [
                Shown(port.value, port.axes, tuple(sizes.get(s, s) for s in port.shape))  # type: ignore[call-overload]
                for port in segment.outputs
            ],
        )
        for segment in wiring.segments
    }


def board_package(folder: Path, case: Case, *, rows: int | None = None, **options: Any) -> Package:
    """A package for a live object."""
    rows = rows or case.model.window
    wiring = options.pop("wiring", case.model.wiring)
    build = Build("cv181x", wiring, rows, shown(wiring, rows))
    return Package(str(write_package(folder, case, build, **options)))


def board_loop(package: Package, board: Any) -> Loop:
    """The device program's loop over a live object."""
    return Loop(package, live_models(board, package.wiring, package.facts["sizes"]))


class TorchModel(Model):
    """A segment as a model of the device program, computed by torch: also with a mask."""

    def __init__(self, module: Any, segment: Segment, rows: int) -> None:
        sizes = {"B": 1, "T": 1, "W": rows}
        self._module = module
        self.inputs = [_slot(port, port.name, sizes) for port in segment.inputs]
        self.outputs = [_slot(port, port.value, sizes) for port in segment.outputs]
        self.inner = []

    def forward(self) -> None:
        given = [np.frombuffer(slot.memory, slot.format).reshape(slot.shape).copy() for slot in self.inputs]
        with torch.no_grad():
            returned = self._module(*map(torch.from_numpy, given))
        tensors = returned if isinstance(returned, tuple) else (returned,)
        for slot, tensor in zip(self.outputs, tensors, strict=True):
            slot.memory[:] = np.ascontiguousarray(tensor).data.cast("B")

    def close(self) -> None: ...


def _slot(port: Port, name: str, sizes: dict[str, int]) -> Slot:
    shape = [sizes[size] if isinstance(size, str) else size for size in port.shape]
    return Slot(name, shape, "int32" if port.dtype == "int64" else "float32")


def torch_models(case: Case, rows: int, *, masked: bool = True) -> dict[str, Model]:
    """Every segment of a case."""
    wiring = case.model.masked_wiring if masked else case.model.wiring
    modules = case.model.split(case.state, masked=masked)
    return {item.name: TorchModel(modules[item.name], item, rows) for item in wiring.segments}
