"""What is asked of the compiler, and what it left."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from parity.harness.errors import UserError

from .chips import Chip, Mode, chip_named, group_size_for, mode_for


@dataclass(frozen=True)
class CompileJob:
    """One graph for one chip in one mode.

    `name` becomes the net's name in the artefact: make it unique per runtime. `outputs` are the graph's
    outputs in order (all of them; empty: as the file says), `taps` maps ONNX values to taps. `calibration`
    and `qtable` are files: thresholds for int8, and operators that are kept in another format.
    """

    name: str
    onnx: bytes | Path
    chip: str
    mode: str
    group_size: int | None = None
    calibration: Path | None = None
    qtable: Path | None = None
    outputs: tuple[str, ...] = ()
    taps: Mapping[str, str] = field(default_factory=dict)

    def graph(self) -> bytes:
        """The ONNX file's bytes; UserError if it cannot be read."""
        return self.onnx if isinstance(self.onnx, bytes) else read_onnx(self.onnx)

    def checked(self) -> tuple[Chip, Mode, int]:
        """Chip, mode and group size; UserError for what the chip has not."""
        chip = chip_named(self.chip)
        mode = mode_for(chip, self.mode)
        return chip, mode, group_size_for(mode, self.group_size)


@dataclass(frozen=True)
class Top:
    """The float graph that every chip starts from: `mlir`, with its weights beside it.

    `values` maps ONNX values to the tensors that the converter bound them to.
    """

    folder: Path
    mlir: Path
    values: Mapping[str, str]
    notes: tuple[str, ...]
    seconds: float


@dataclass(frozen=True)
class Artefact:
    """What the compiler left: `file` for the runtime, `top`, `tpu`, `final` graphs, and the manifest.

    The graphs `top` and `tpu` can be run by an `Interpreter`: their weights lie beside them.
    """

    folder: Path
    file: Path
    top: Path
    tpu: Path
    final: Path
    manifest: dict[str, Any]

    @property
    def log(self) -> Path:
        """What was executed and what it printed."""
        return self.folder / "log.txt"


def sha256(data: bytes) -> str:
    """Hex digest."""
    return hashlib.sha256(data).hexdigest()


def read_onnx(path: Path) -> bytes:
    """An ONNX file's bytes, weights that lie beside it put in; UserError if it cannot be read."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"onnx={str(path)!r}: cannot be read ({error.strerror}); name another") from error
    # A file whose weights lie elsewhere names the place; only then is it worth loading.
    return _gathered(path) if b"location" in data else data


def _gathered(path: Path) -> bytes:
    import onnx

    try:
        model = onnx.load(path)
        return bytes(model.SerializeToString())
    except Exception as error:  # protobuf raises its own kinds, a missing file others
        raise UserError(f"onnx={str(path)!r}: cannot be read whole ({error})") from error
