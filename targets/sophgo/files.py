"""Artefacts that were compiled elsewhere: a folder with one per segment, or one .bmodel with a net each.

They carry no names of taps: inputs are known by name, outputs by their position, what lies between is hidden.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np

from parity.harness.case import Case, Port, Segment, Wiring
from parity.harness.errors import UserError, did_you_mean
from parity.harness.segmented import Recorded
from parity.harness.target import Facts, Options, Session, Unobserved
from parity.harness.values import Values

from ..onnx.files import INVENTED, file_layout
from ..onnx.session import assemble
from .asked import Asked
from .beside import read_beside, sha256
from .levels import isolated_steps
from .runner.arrays import folds
from .runner.client import Device, Tensor
from .toolchain import installed

#: Number format of inner tensors -> the arithmetic that it means.
SHOWN = {"int8": "w8a8", "bfloat16": "bfloat16"}
HIDDEN = "files compiled elsewhere do not say which tensor is which tap"


def file_session(
    name: str, case: Case, asked: Asked, options: Options, reference: Values | None, cache: Path
) -> Session:
    """Load the files and say how they are run; UserError for what does not fit the model or the scenario."""
    assert asked.path is not None
    wiring = case.model.wiring
    files = _files(name, asked, wiring)
    log = (cache / "sophgo" / "logs" / f"{asked.chip.name}-files.log").resolve()
    toolchain = installed()
    beside = read_beside(name, asked, files, case, toolchain.version)
    device = Device(asked.chip.name, files, toolchain, log=log, all_tensors=asked.chip.family == "cvi")
    try:
        masked = any(t.name == "mask" for segment in files for t in device.inputs(segment))
        wiring = case.model.masked_wiring if masked else wiring
        own = _rows(name, case, device, wiring)
        rows = file_layout(name, case, own, masked=masked, reference=reference is not None)
        sizes = {"B": case.scenario.batch, "T": 1, "W": rows.rows}
        names = {s.name: _inputs(name, s, device.inputs(s.name), sizes) for s in wiring.segments}
        for segment in wiring.segments:
            _check_outputs(name, segment, device.outputs(segment.name), sizes)
    except BaseException:
        device.close()
        raise
    computed, warnings = (
        (beside.computed_in, beside.warnings) if beside else _computed_in(asked, device, files)
    )
    facts = Facts(
        dtype=computed,
        layout="window" if case.scenario.policy.window else "static",
        unobserved=tuple(Unobserved(tap, HIDDEN) for segment in wiring.segments for tap in segment.taps),
        details={
            "chip": asked.chip.name,
            "files": str(asked.path),
            "combined": asked.path.is_file(),
            "artefacts": {segment: sha256(path) for segment, path in files.items()},
            "warnings": list(warnings),
            "masked": masked,
            "rows": rows.rows,
        },
        isolated_steps=isolated_steps(case),
    )
    return assemble(case, wiring, FileSimExecutor(wiring, device, names, sizes), rows, facts, reference)


def _files(name: str, asked: Asked, wiring: Wiring) -> dict[str, Path]:
    """Segment -> artefact; a single file holds a net for every segment."""
    path, suffix = asked.path, asked.chip.suffix
    assert path is not None
    segments = [segment.name for segment in wiring.segments]
    if path.is_file():
        if path.suffix != suffix:
            raise UserError(f"{name}={str(path)!r}: {asked.chip.name} runs {suffix} files")
        if asked.chip.family == "cvi":
            raise UserError(f"{name}={str(path)!r}: is one segment; name the folder that holds all of them")
        return dict.fromkeys(segments, path)
    there = sorted(file.name for file in path.glob(f"*{suffix}"))
    lost = [f"{segment}{suffix}" for segment in segments if f"{segment}{suffix}" not in there]
    if lost:
        raise UserError(f"{name}={str(path)!r}: lacks {', '.join(lost)}. {did_you_mean(lost[0], there)}")
    return {segment: path / f"{segment}{suffix}" for segment in segments}


def _rows(name: str, case: Case, device: Device, wiring: Wiring) -> int:
    """Cache rows W that the artefacts were compiled for."""
    seen = set()
    for segment in wiring.segments:
        for port in segment.inputs:
            if "W" in port.shape and port.value != "mask":
                tensor = _tensor(name, segment, port, device.inputs(segment.name))
                rest = prod(s for s in port.shape if isinstance(s, int)) * case.scenario.batch
                seen.add(prod(tensor.shape) // rest)
    if len(seen) != 1:
        raise UserError(f"{name}: the files disagree on the number of cache rows: {sorted(seen)}")
    return seen.pop()


def _inputs(
    name: str, segment: Segment, tensors: Sequence[Tensor], sizes: Mapping[str, int]
) -> dict[str, str]:
    """Port -> the artefact's input."""
    names = {}
    for port in segment.inputs:
        tensor = _tensor(name, segment, port, tensors)
        _check(name, segment, port, tensor, sizes)
        names[port.name] = tensor.name
    spare = [tensor.name for tensor in tensors if tensor.name not in names.values()]
    if spare:
        known = [port.name for port in segment.inputs]
        near = did_you_mean(spare[0], known)
        raise UserError(f"{name}: {segment.name} has an input {spare[0]!r} that is unknown. {near}")
    return names


def _tensor(name: str, segment: Segment, port: Port, tensors: Sequence[Tensor]) -> Tensor:
    found = [t for t in tensors if INVENTED.get(t.name, t.name) in (port.name, port.value)]
    if len(found) != 1:
        shown = ", ".join(t.name for t in tensors)
        raise UserError(f"{name}: {segment.name} needs one input {port.name!r}; its inputs are {shown}")
    return found[0]


def _check_outputs(name: str, segment: Segment, tensors: Sequence[Tensor], sizes: Mapping[str, int]) -> None:
    if len(tensors) != len(segment.outputs):
        shown, wanted = ", ".join(t.name for t in tensors), ", ".join(p.value for p in segment.outputs)
        raise UserError(f"{name}: {segment.name} gives {shown}; should be {wanted}, in this order")
    for port, tensor in zip(segment.outputs, tensors, strict=True):
        _check(name, segment, port, tensor, sizes)


def _check(name: str, segment: Segment, port: Port, tensor: Tensor, sizes: Mapping[str, int]) -> None:
    shape = _shape(port, sizes)
    if not folds(shape, tensor.shape) and not folds(tensor.shape, shape):
        raise UserError(
            f"{name}: {segment.name} has {tensor.name} {list(tensor.shape)}, this model and scenario need "
            f"{list(shape)}; compile it for them"
        )


def _shape(port: Port, sizes: Mapping[str, int]) -> tuple[int, ...]:
    return tuple(sizes[size] if isinstance(size, str) else size for size in port.shape)


def _computed_in(asked: Asked, device: Device, segments: Iterable[str]) -> tuple[str, tuple[str, ...]]:
    """The arithmetic that the surviving tensors show; where they do not, the mode that was named."""
    formats = {tensor.format for segment in segments for tensor in device.inner(segment)}
    shown = next((name for kind, name in SHOWN.items() if kind in formats), None)
    if shown is None:
        told = f"nothing says how {asked.path} was compiled; it is judged as {asked.mode.name}"
        return asked.computed_in, () if asked.mode_said else (f"{told}; a word does, for example +int8",)
    if asked.mode_said and asked.computed_in != shown:
        raise UserError(
            f"{asked.path}: {asked.mode.name} was said, its tensors are {', '.join(sorted(formats))}; "
            "leave the word out"
        )
    return shown, ()


@dataclass
class FileSimExecutor:
    """Segments out of files, under the files' own input names."""

    wiring: Wiring
    device: Device
    names: Mapping[str, Mapping[str, str]]
    sizes: Mapping[str, int]

    def call(self, segment: str, inputs: Mapping[str, np.ndarray]) -> Sequence[Recorded]:
        """Outputs, by position."""
        ports = next(s.outputs for s in self.wiring.segments if s.name == segment)
        found = self.device.call(segment, {self.names[segment][port]: a for port, a in inputs.items()})
        pairs = zip(ports, found, strict=False)
        return [Recorded(p.value, out.real.reshape(_shape(p, self.sizes)), p.axes) for p, out in pairs]

    def close(self) -> None:
        """End the device."""
        self.device.close()
