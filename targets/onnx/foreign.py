"""A graph file as we find it, before it is tied to any model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from parity.harness.errors import CandidateError, UserError

from . import pins
from .pins import Pin
from .runtime import Graph, Runtime


@dataclass(frozen=True)
class Foreign:
    """One file and what it offers."""

    path: Path
    inputs: tuple[Pin, ...]
    outputs: tuple[Pin, ...]
    opset: int

    @classmethod
    def read(cls, path: Path) -> Foreign:
        """UserError for what is not ONNX."""
        model = pins.load(path)
        return cls(path, tuple(pins.inputs(model)), tuple(pins.outputs(model)), pins.opset(model))

    def graph(self, runtime: Runtime) -> Graph:
        """Load it; a file that ONNX Runtime refuses is the user's to mend."""
        try:
            return Graph(runtime, self.path, self.path.name)
        except CandidateError as error:
            raise UserError(f"onnx={self.path}: {error}; its opset is {self.opset}") from error
