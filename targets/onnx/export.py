"""One torch module to ONNX in two builds: *clean* (its outputs) and *tapped* (each tap an output as well).

Names come from the wiring's ports and from `trace_tensor`, never from an exporter. `dynamo` translates
once, without optimisation; then the taps are cut off a copy and each copy is optimised alone, so that the
optimiser works on exactly the graph that a separate clean export would give it (tested). `script` is quick
and runs twice.
"""

from __future__ import annotations

import contextlib
import logging
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor, nn
from torch.jit._trace import TracerWarning
from torch.onnx import _constants

from parity.harness.case import Segment
from parity.harness.errors import CandidateError, ParityError, UserError, did_you_mean
from parity.harness.tracer import collecting

from . import pins
from .observe import Observed
from .unprinted import unprinted

EXPORTERS = ("dynamo", "script")

#: Oldest and newest opset to ask an exporter for; dynamo converts to whatever the onnx package knows.
OPSETS = {
    "dynamo": (_constants.ONNX_MIN_OPSET, onnx.defs.onnx_opset_version()),
    "script": (_constants.ONNX_MIN_OPSET, _constants.ONNX_MAX_OPSET),
}

#: protobuf cannot hold more in one message.
LARGEST = 2**31 - 1


@dataclass(frozen=True)
class Exported:
    """Both builds, serialised, and the exporter's warnings that bear on the result."""

    clean: bytes
    tapped: bytes
    opset: int
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Job:
    """What to export: inputs are named by the segment's ports; `dynamic` are the sizes (T ...) left open."""

    segment: Segment
    module: nn.Module
    inputs: tuple[Tensor, ...]
    sizes: Mapping[str, int]
    observed: Observed
    exporter: str = "dynamo"
    opset: int | None = None
    dynamic: tuple[str, ...] = ()

    @property
    def outputs(self) -> list[str]:
        """Graph names of the outputs proper: the taps that they carry."""
        return [port.value for port in self.segment.outputs]

    @property
    def taps(self) -> list[str]:
        """Graph names of the further outputs of the tapped build."""
        return [tap.name for tap in self.observed.taps]


def check_opset(exporter: str, opset: int | None) -> None:
    """UserError for an opset that the exporter cannot write."""
    oldest, newest = OPSETS[exporter]
    if opset is not None and not oldest <= opset <= newest:
        raise UserError(
            f"opset={opset}: the {exporter} exporter writes {oldest} to {newest}; take one of these"
        )


def export(job: Job) -> Exported:
    """Make both builds and check names, order, formats and shapes. CandidateError says where they differ."""
    if job.exporter not in EXPORTERS:
        raise UserError(f"exporter={job.exporter!r}: unknown. {did_you_mean(job.exporter, EXPORTERS)}")
    check_opset(job.exporter, job.opset)
    size = sum(tensor.nbytes for tensor in job.module.state_dict().values())
    if size > LARGEST:
        raise UserError(
            f"{job.segment.name}: {size} bytes of weights do not fit into one ONNX file; cut it smaller"
        )
    with _quiet() as caught:
        clean, tapped = _translated(job)
    for model, taps in ((clean, []), (tapped, job.taps)):
        _check(job, model, taps)
    notes = tuple(dict.fromkeys(str(w.message) for w in caught if issubclass(w.category, TracerWarning)))
    return Exported(clean.SerializeToString(), tapped.SerializeToString(), pins.opset(clean), notes)


def _translated(job: Job) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    try:
        return _dynamo(job) if job.exporter == "dynamo" else _script(job)
    except ParityError:
        raise
    except Exception as error:  # whatever an exporter cannot translate, in its own words
        told = f"{type(error).__name__}: {_useful(error)}"
        raise CandidateError(f"{job.segment.name}: the {job.exporter} exporter failed: {told}") from error


class Ported(nn.Module):
    """The module called by port names; returns a flat tuple, taps after the outputs."""

    def __init__(
        self, module: nn.Module, names: Sequence[str], outputs: Sequence[str], *, tapped: bool
    ) -> None:
        super().__init__()
        self.module = module
        self._names, self._outputs, self._tapped = tuple(names), tuple(outputs), tapped

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        named = dict(zip(self._names, inputs, strict=True))
        with collecting() as taps:
            returned = self.module(**named)
        outputs = returned if isinstance(returned, tuple) else (returned,)
        inner = [value for name, value in taps.items() if name not in self._outputs]
        return (*outputs, *inner) if self._tapped else outputs


def _ported(job: Job, *, tapped: bool) -> Ported:
    names = [port.name for port in job.segment.inputs]
    return Ported(job.module, names, job.outputs, tapped=tapped).eval()


def _dynamo(job: Job) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    program = torch.export.export(
        _ported(job, tapped=True), job.inputs, dynamic_shapes=_dynamic_shapes(job), strict=False
    )
    raw = torch.onnx.export(program, (), dynamo=True, optimize=False, opset_version=job.opset, verbose=False)
    assert raw is not None
    whole = raw.model
    raw.model = whole.clone()
    del raw.model.graph.outputs[len(job.outputs) :]
    clean = _finished(raw, job, [])
    raw.model = whole
    return clean, _finished(raw, job, job.taps)


def _finished(program: Any, job: Job, taps: Sequence[str]) -> onnx.ModelProto:
    """Optimise and name; one value under two names, or an input handed through, gets an Identity each."""
    _separate(program.model.graph)
    program.optimize()
    graph = program.model.graph
    names = [port.name for port in job.segment.inputs]
    wanted = [*zip(graph.inputs, names, strict=True), *zip(graph.outputs, [*job.outputs, *taps], strict=True)]
    _clear_names(graph, {name for _, name in wanted})
    for value, name in wanted:
        value.name = name
    model = program.model_proto
    assert isinstance(model, onnx.ModelProto)
    return model


def _separate(graph: Any) -> None:
    import onnx_ir

    seen = set(map(id, (*graph.inputs, *graph.initializers.values())))
    for at, value in enumerate(graph.outputs):
        if id(value) in seen:
            node = onnx_ir.node("Identity", [value])
            node.outputs[0].type, node.outputs[0].shape = value.type, value.shape
            graph.append(node)
            graph.outputs[at] = node.outputs[0]
        seen.add(id(value))


def _clear_names(graph: Any, wanted: set[str]) -> None:
    """Values that the exporter gave one of our names step aside."""
    for node in graph:
        for value in node.outputs:
            if value.name in wanted:
                value.name = f"{value.name}__inner"
    for value in [v for v in graph.initializers.values() if v.name in wanted]:
        value.name = f"{value.name}__weight"


def _dynamic_shapes(job: Job) -> Any:
    if not job.dynamic:
        return None
    dims = {letter: torch.export.Dim(letter, min=1, max=1 << 20) for letter in job.dynamic}
    return (
        tuple(
            {at: dims[size] for at, size in enumerate(port.shape) if size in dims}
            for port in job.segment.inputs
        ),
    )


def _script(job: Job) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    return _traced(job, []), _traced(job, job.taps)


def _traced(job: Job, taps: Sequence[str]) -> onnx.ModelProto:
    ports = job.segment.inputs
    axes = {
        port.name: {at: str(size) for at, size in enumerate(port.shape) if size in job.dynamic}
        for port in ports
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "traced.onnx"
        torch.onnx.export(
            _ported(job, tapped=bool(taps)),
            job.inputs,
            path,
            dynamo=False,
            input_names=[port.name for port in ports],
            output_names=[*job.outputs, *taps],
            opset_version=job.opset,
            dynamic_axes={name: sizes for name, sizes in axes.items() if sizes} or None,
        )
        return onnx.load(path)


def _check(job: Job, model: onnx.ModelProto, taps: Sequence[str]) -> None:
    where = f"{job.segment.name} ({job.exporter})"
    if job.opset is not None and pins.opset(model) != job.opset:
        raise CandidateError(
            f"{where}: asked for opset {job.opset}, the exporter gave {pins.opset(model)}; "
            "use --exporter script for old opsets"
        )
    if any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in model.graph.initializer):
        raise CandidateError(f"{where}: weights were left outside the file")
    expected = [pins.of_port(port, port.name, job.sizes, job.dynamic) for port in job.segment.inputs]
    pins.check(where, "input", pins.inputs(model), expected)
    wanted = [pins.of_port(port, port.value, job.sizes, job.dynamic) for port in job.segment.outputs]
    for tap in job.observed.taps if taps else ():
        wanted.append(pins.Pin(tap.name, tap.dtype, (None,) * len(tap.shape) if job.dynamic else tap.shape))
    pins.check(where, "output", pins.outputs(model), wanted, exact=not job.dynamic)
    onnx.checker.check_model(model)


@contextlib.contextmanager
def _quiet() -> Iterator[list[warnings.WarningMessage]]:
    """No chatter on the console, and no deprecation for callers that treat warnings as errors."""
    with silenced(), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield caught


@contextlib.contextmanager
def silenced() -> Iterator[None]:
    """The exporters' own logs are off: what fails is raised, and told in our words."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    before = [logger.level for logger in loggers]
    graphs = torch._C._jit_is_onnx_log_enabled()
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    torch._C._jit_set_onnx_log_enabled(False)
    try:
        with unprinted():
            yield
    finally:
        torch._C._jit_set_onnx_log_enabled(graphs)
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


def _useful(error: Exception) -> str:
    """The last line of an exporter's message that says something, without terminal colours."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip() and "\x1b" not in line]
    causes = [line for line in lines if line.startswith("<class")]
    return (causes or lines or [type(error).__name__])[-1][:300]
