"""A lone .onnx that someone made of the user's module: inputs and outputs by name, the rest by scopes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from torch import Tensor, nn

from parity.harness.case import ModuleCase
from parity.harness.dtypes import logical_name
from parity.harness.errors import UserError, did_you_mean
from parity.harness.mapping import TapMap
from parity.harness.module_isolate import tensors_of
from parity.harness.module_session import prepared, tensors
from parity.harness.target import Facts, Unobserved
from parity.harness.values import Values

from .module_export import Flat
from .onnx.pinned import PinnedGraph
from .onnx.runtime import Runtime
from .onnx_module import Graph, OnnxModuleSession, arrays, plain, shown_eagerly
from .onnx_scopes import Leaving, Output, Scopes, Wanted, pair

#: protobuf cannot hold more in one message.
LARGEST = 2**31 - 1


def file_session(
    case: ModuleCase,
    path: Path,
    runtime: Runtime,
    folder: Path,
    mapping: TapMap,
    reference: Values | None = None,
) -> OnnxModuleSession:
    """Run the file as it is; a copy of it shows the values that its own metadata ties to modules."""
    model = read_model(path)
    module, _ = prepared(case.module, dtype=None, device="cpu")
    inputs = tensors(module, case.inputs, dtype=None, device="cpu")
    flat = Flat(module, inputs, tapped=True)
    calls, seen = observe(flat)
    clean = Graph(runtime, path)
    feed, said = _feed(path, clean, arrays({name: inputs[name] for name in flat.leaves}), mapping)
    outputs = _output_taps(clean.outputs, flat, seen)
    scopes = Scopes(model)
    leaving = {wanted: scopes.leaving(wanted.paths, wanted.call, _times(calls, wanted)) for wanted in calls}
    values = list(dict.fromkeys(name for found in leaving.values() for name in found.values))
    tapped = Graph(runtime, _with_outputs(model, values, folder / "tapped.onnx"))
    found = zip(values, tapped.run(feed, values) if values else (), strict=True)
    paired, hidden = _pairs(leaving, {name: _seen(array) for name, array in found})
    if not scopes.known:
        hidden = dict.fromkeys(hidden, "the file does not say which module its values come from")
    hidden |= _untold(flat, {*outputs, *hidden, *(tap for tap, _ in paired)})
    floats = [str(array.dtype) for array in feed.values() if array.dtype.kind == "f"]
    facts = Facts(
        dtype="+".join(dict.fromkeys(floats)) or "float32",
        layout="call",
        substitutions=said,
        unobserved=tuple(Unobserved(tap, reason) for tap, reason in hidden.items()),
        details={**runtime.facts(), "file": path.name, "pairing": "module scopes in the file's metadata"},
    )
    pinned = PinnedGraph(runtime, folder / "tapped.onnx", "onnx")
    return OnnxModuleSession(clean, tapped, feed, outputs, tuple(paired), facts, folder, pinned, reference)


def _pairs(
    leaving: Mapping[Wanted, Leaving], shown: Mapping[str, tuple[tuple[int, ...], str]]
) -> tuple[list[tuple[str, str]], dict[str, str]]:
    """(tap, value) in execution order, and the taps that stay hidden with the reason.

    A module of which one call is lost shows none: the calls that are left would count from 0.
    """
    paired: list[tuple[str, str]] = []
    hidden: dict[str, str] = {}
    for wanted, found in leaving.items():
        pairs = pair(wanted.outputs, {name: shown[name] for name in found.values})
        paired += [(out.tap, pairs[out.tap]) for out in wanted.outputs if out.tap in pairs]
        left = [out.tap for out in wanted.outputs if out.tap not in pairs]
        hidden |= dict.fromkeys(left, found.reason or _doubt(found.values))
    return [(tap, value) for tap, value in paired if tap not in hidden], hidden


def read_model(path: Path) -> onnx.ModelProto:
    """Parse a file; UserError for what is no ONNX."""
    try:
        model = onnx.load(str(path))
    except Exception as error:  # protobuf's and onnx's own share no base class
        line = " ".join(str(error).split())[:200]
        raise UserError(f"onnx:{path}: cannot be read as an ONNX model ({line})") from error
    if not model.graph.output:
        raise UserError(f"onnx:{path}: is empty or no ONNX model: it has no outputs")
    return model


def observe(flat: Flat) -> tuple[list[Wanted], dict[str, Tensor]]:
    """Every call of every submodule with what it returned, in order of return, and all taps by name."""
    paths = _paths(flat.module)
    counts: dict[str, int] = {}
    calls: list[Wanted] = []
    handles = []
    for first in paths:

        def after(_: nn.Module, args: Any, value: Any, first: str = first) -> None:
            outputs = tuple(
                Output(f"module:{first}{suffix}", tuple(item.shape), str(item.dtype).removeprefix("torch."))
                for suffix, item in tensors_of(value)
            )
            calls.append(Wanted(paths[first], counts.get(first, 0), outputs))
            counts[first] = counts.get(first, 0) + 1

        handles.append(flat.module.get_submodule(first).register_forward_hook(after))
    try:
        seen = shown_eagerly(flat)
    finally:
        for handle in handles:
            handle.remove()
    return calls, seen


def _paths(module: nn.Module) -> dict[str, tuple[str, ...]]:
    """First path of each submodule -> all of its paths."""
    groups: dict[int, list[str]] = {}
    for path, part in module.named_modules(remove_duplicate=False):
        if path:
            groups.setdefault(id(part), []).append(path)
    return {paths[0]: tuple(paths) for paths in groups.values()}


def _times(calls: Sequence[Wanted], wanted: Wanted) -> int:
    return sum(other.paths == wanted.paths for other in calls)


def _feed(
    path: Path, graph: Graph, given: Mapping[str, np.ndarray], mapping: TapMap
) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """The file's inputs by name or by the map, and what was not taken."""
    feed: dict[str, np.ndarray] = {}
    for name in graph.inputs:
        ours = mapping.input(name)
        if ours not in given:
            raise UserError(
                f"onnx:{path}: input {name!r} has no counterpart. {did_you_mean(ours, given)} "
                f'A map file can say: [inputs] "{name}" = "ARGUMENT"'
            )
        feed[name] = given[ours]
    used = {mapping.input(name) for name in graph.inputs}
    rest = [name for name in given if name not in used]
    return feed, tuple(f"input {name} is not taken by {path.name}" for name in rest)


def _output_taps(names: Sequence[str], flat: Flat, seen: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Tap of each graph output: its own name where the reference knows it, `output.NAME`, or the only one."""
    ours = flat.returned.outputs
    if len(ours) == len(names) == 1:
        return (ours[0],)
    return tuple(name if name in seen or f"output.{name}" not in ours else f"output.{name}" for name in names)


def _with_outputs(model: onnx.ModelProto, values: Sequence[str], path: Path) -> Path:
    """A copy of the model that also returns these values."""
    tapped = onnx.ModelProto()
    tapped.CopyFrom(model)
    have = {item.name for item in tapped.graph.output}
    tapped.graph.output.extend(onnx.ValueInfoProto(name=name) for name in values if name not in have)
    onnx.save(
        tapped, str(path), save_as_external_data=tapped.ByteSize() > LARGEST, location=f"{path.name}.data"
    )
    return path


def _seen(array: np.ndarray) -> tuple[tuple[int, ...], str]:
    return tuple(array.shape), logical_name(array)


def _doubt(values: Sequence[str]) -> str:
    return f"{len(values)} values leave its scope, none of which is its output without a doubt"


def _untold(flat: Flat, known: set[str]) -> dict[str, str]:
    """Taps of `trace_tensor` that the file does not return under their names; outputs are always promised."""
    taps = dict.fromkeys(map(plain, flat.returned.taps))
    return {tap: "the file has no output of that name" for tap in taps if tap not in known}
