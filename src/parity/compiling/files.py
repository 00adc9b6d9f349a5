"""ONNX files of the user's as graphs to compile."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from parity.harness.errors import UserError
from parity.harness.progress import Progress
from parity.targets.sophgo.compile.job import read_onnx, sha256

from .exports import Graph
from .order import Order

Inputs = Mapping[str, np.ndarray]


@dataclass
class FileGraphs:
    """One graph per file; a net is called like its file, with _ for what a net's name cannot hold."""

    order: Order
    progress: Progress

    @cached_property
    def graphs(self) -> dict[str, Graph]:
        """Name -> digest; outputs as the file says, no taps but the names of its outputs."""
        found = {}
        for path in self.order.files:
            name = re.sub(r"\W", "_", path.stem)
            name = f"_{name}" if name[:1].isdecimal() else name
            if name in found:
                raise UserError(f"files: two of them are called {name}; rename one")
            if name != path.stem:
                self.progress.say(f"{path.name}: its net is called {name}")
            data = self._read(path)
            found[name] = Graph(name, sha256(data), len(data), (), {})
        return found

    def content(self, name: str) -> bytes:
        """The file's bytes, weights beside it included."""
        return self._bytes[name]

    def samples(self) -> dict[str, Sequence[Inputs]]:
        """The `--samples` files, for the only graph."""
        if len(self.order.files) != 1:
            raise UserError("samples: calibrate one ONNX file at a time, or name tables by --calibration")
        if not self.order.samples:
            raise UserError(
                "samples: int8 needs activations; give --samples FILE.npz, one array per input, or a table"
            )
        name = next(iter(self.graphs))
        return {name: [self._sample(path) for path in self.order.samples]}

    @cached_property
    def _bytes(self) -> dict[str, bytes]:
        names = list(self.graphs)
        return {name: self._read(path) for name, path in zip(names, self.order.files, strict=True)}

    def _read(self, path: Path) -> bytes:
        return read_onnx(path)

    def _sample(self, path: Path) -> Inputs:
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as data:
                return {key: data[key] for key in data.files}
        except (OSError, ValueError, EOFError, AttributeError, zipfile.BadZipFile) as error:
            raise UserError(f"samples={str(path)!r}: is no .npz of plain arrays ({error})") from error
