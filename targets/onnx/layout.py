"""The originals' folder `klm_models/segmented`, with the names that their Makefile and board code expect.

Source: LearningOS/osbiglab-2025s-2022010776, `segmenting_klm.py`, `Makefile`, `cvi_klm/KLM.cpp`,
`inference_onnx.py`. The board finds tensors by prefix (`residual*`, `q*`, `ks*`, `k*` ...), the runner by the
whole name, and what TorchScript made of clashing names is part of it.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from parity.harness.case import Model, Segment
from parity.harness.errors import UserError
from parity.harness.progress import Progress, Silent

from . import pins
from .build import choose_segments
from .export import Job, export
from .files import INVENTED
from .observe import examples, observe

#: The newest operators that their compiler reads; newer ones it refuses (ReduceMean of 18).
COMPILER_OPSET = 17
#: Rotary rows that they ship.
ROPE_ROWS = 8192


def export_originals(
    model: Model,
    state: Mapping[str, Tensor],
    out_dir: str | Path,
    *,
    exporter: str = "script",
    opset: int | None = None,
    batch: int = 1,
    window: int | None = None,
    masked: bool = False,
    segments: str | None = None,
    progress: Progress | None = None,
) -> list[Path]:
    """Write seg_*.onnx, rope.npz, pytorch_model.bin and manifest.json; returns them.

    The default build is theirs: one sequence, one token, the model's own window of rows, no mask. Without
    `opset`, the script exporter writes what their compiler reads. `segments` is a glob of segment names.
    """
    out = Path(out_dir)
    wiring = model.masked_wiring if masked else model.wiring
    chosen = choose_segments(segments, wiring)
    modules = model.split(state, masked=masked)
    sizes = {"B": _at_least_one("batch", batch), "T": 1, "W": _at_least_one("window", window or model.window)}
    if opset is None and exporter == "script":
        opset = COMPILER_OPSET
    files: dict[Path, bytes] = {}
    manifest: dict[str, Any] = {}
    with (progress or Silent()).stage("exporting", len(chosen)) as bar:
        for segment in (s for s in wiring.segments if s.name in chosen):
            made = _clean(model, segment, modules[segment.name], sizes, exporter, opset)
            files[out / f"{segment.name}.onnx"] = made.SerializeToString()
            manifest[segment.name] = _entry(segment, made)
            bar.advance()
    facts = {
        "model": model.name,
        "batch": batch,
        "window": sizes["W"],
        "masked": masked,
        "exporter": exporter,
        "segments": manifest,
    }
    files[out / "manifest.json"] = json.dumps(facts, indent=1).encode()
    files[out / "rope.npz"] = _rope(model, state)
    files[out / "pytorch_model.bin"] = _weights(modules)
    _write(out, files)
    return list(files)


def _at_least_one(name: str, value: int) -> int:
    if value < 1:
        raise UserError(f"{name}={value}: must be at least 1")
    return value


def _clean(
    model: Model,
    segment: Segment,
    module: nn.Module,
    sizes: Mapping[str, int],
    exporter: str,
    opset: int | None,
) -> onnx.ModelProto:
    """The clean build under the originals' names."""
    inputs = examples(segment.inputs, sizes, vocab_size=model.vocab_size)
    job = Job(segment, module, inputs, sizes, observe(module, segment, inputs), exporter, opset)
    made = onnx.load_model_from_string(export(job).clean)
    rename(made, original_names(segment))
    onnx.checker.check_model(made)
    return made


def original_names(segment: Segment) -> dict[str, str]:
    """Our graph names -> theirs. Where an output takes an input's name, the input has an invented one."""
    taken = {port.name for port in segment.outputs}
    invented = {port: name for name, port in INVENTED.items()}
    names = {port.value: port.name for port in segment.outputs}
    return names | {port.name: invented[port.name] for port in segment.inputs if port.name in taken}


def rename(model: onnx.ModelProto, names: Mapping[str, str]) -> None:
    """Rename values of a graph all at once; an inner value that has one of the new names steps aside."""
    graph = model.graph
    new = set(names.values())
    table = {name: f"{name}__inner" for node in graph.node for name in node.output if name in new}
    table |= {tensor.name: f"{tensor.name}__weight" for tensor in graph.initializer if tensor.name in new}
    table |= dict(names)
    for node in graph.node:
        for side in (node.input, node.output):
            for at, name in enumerate(side):
                side[at] = table.get(name, name)
    for value in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
        value.name = table.get(value.name, value.name)


def _entry(segment: Segment, made: onnx.ModelProto) -> dict[str, Any]:
    """What is what in one file; `input_shapes` is written as their Makefile writes it."""
    ports = zip(pins.inputs(made), segment.inputs, strict=True)
    shapes = ",".join(str(list(pin.shape)).replace(" ", "") for pin in pins.inputs(made))
    return {
        "file": f"{segment.name}.onnx",
        "sha256": hashlib.sha256(made.SerializeToString()).hexdigest(),
        "opset": pins.opset(made),
        "inputs": {pin.name: port.value for pin, port in ports},
        "outputs": {
            pin.name: port.value for pin, port in zip(pins.outputs(made), segment.outputs, strict=True)
        },
        "input_shapes": f"[{shapes}]",
    }


def _write(folder: Path, files: Mapping[Path, bytes]) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path, data in files.items():
            path.write_bytes(data)
    except OSError as error:
        raise UserError(
            f"out={folder}: cannot be written ({error.strerror}); choose another folder"
        ) from error


def _rope(model: Model, state: Mapping[str, Tensor]) -> bytes:
    """An .npz: `rope` float32 `[2, 1, N, D]`, positions 0 to N - 1 of the checkpoint's own table."""
    module = model.build()
    module.load_state_dict(dict(state), strict=True)
    count = min(ROPE_ROWS, int(model.config.max_length))
    with torch.no_grad():
        rows = model.rope(module, torch.arange(count)[None]).float()
    file = io.BytesIO()
    np.savez(file, rope=rows.numpy())
    return file.getvalue()


def _weights(modules: Mapping[str, nn.Module]) -> bytes:
    """A torch file: the segments' weights under the keys of the originals' segmented model."""
    file = io.BytesIO()
    torch.save(
        {
            f"{_prefix(name)}.{key}": tensor
            for name, module in modules.items()
            for key, tensor in module.state_dict().items()
        },
        file,
    )
    return file.getvalue()


def _prefix(segment: str) -> str:
    """seg_head -> head, seg_3 -> segments.3"""
    part = segment.removeprefix("seg_")
    return f"segments.{part}" if part.isdecimal() else part
