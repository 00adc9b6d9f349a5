"""Graphs that someone else made: a folder with the original names, or one graph of the whole model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from parity.harness.case import Case, Port, Segment, Wiring
from parity.harness.errors import CandidateError, UserError, did_you_mean
from parity.harness.segmented import FAR, Recorded, Right
from parity.harness.target import Facts, Options, Session, Unobserved
from parity.harness.values import Values

from . import shipped_rope
from .foreign import Foreign
from .lone import lone_session
from .pinned import PinnedGraph
from .pins import Pin
from .runtime import Runtime
from .session import CachePlan, assemble, plan_cache
from .whole import tap_axes

#: Names that a TorchScript exporter gave inputs whose own name an output had taken -> the port.
INVENTED = {"residual.1": "residual", "q.3": "q"}


@dataclass(frozen=True)
class Names:
    """What a graph calls our values: port -> input, tap -> output; `ordered` if only order says which."""

    inputs: Mapping[str, str]
    outputs: Mapping[str, str]
    inner: Mapping[str, str]
    ignored: tuple[str, ...] = ()
    ordered: bool = False


def file_session(
    case: Case, path: Path, runtime: Runtime, reference: Values | None, options: Options
) -> Session:
    """A session over a folder of segments or a lone file; UserError says what does not fit."""
    if options.segments is not None:
        raise UserError("segments: files are run as they are; leave --segments out")
    if path.is_dir():
        return _folder_session(case, path, runtime, reference)
    return lone_session(case, Foreign.read(path), runtime)


def _folder_session(case: Case, folder: Path, runtime: Runtime, reference: Values | None) -> Session:
    files = _files(folder, case.model.wiring)
    masked = any(pin.name == "mask" for file in files.values() for pin in file.inputs)
    wiring = case.model.masked_wiring if masked else case.model.wiring
    own = _rows(files, wiring)
    rows = file_layout("onnx", case, own, masked=masked, reference=reference is not None)
    static = own is not None
    sizes = {"B": case.scenario.batch, "T": 1} | ({"W": rows.rows} if static else {})
    names = {s.name: match(s, files[s.name], sizes) for s in wiring.segments}
    inner = any(found.inner for found in names.values())
    executor = FileExecutor(wiring, files, names, runtime, tap_axes(case) if inner else {})
    ordered = [name for name, found in names.items() if found.ordered]
    said = [f"outputs of {', '.join(ordered)} taken in their declared order"] if ordered else []
    rope = _rope(folder, wiring)
    if rope is None:
        said.append(f"{folder.name} holds no {shipped_rope.NAME}: rotary rows are the checkpoint's own")
    facts = Facts(
        dtype="float32",
        layout="window" if case.scenario.policy.window else "static",
        substitutions=tuple(said),
        unobserved=_hidden(wiring, names),
        details={
            **runtime.facts(),
            "files": str(folder),
            "opset": sorted({file.opset for file in files.values()}),
            "masked": masked,
            "rows": rows.rows,
            "ignored_outputs": {name: list(n.ignored) for name, n in names.items() if n.ignored},
        },
    )
    return assemble(case, wiring, executor, rows, facts, reference, static=static, rope=rope, hidden=FAR)


def _rope(folder: Path, wiring: Wiring) -> shipped_rope.ShippedRope | None:
    """The folder's own rotary table, if there is one."""
    path = folder / shipped_rope.NAME
    sizes = [port.shape[-1] for s in wiring.segments for port in s.inputs if port.value == "rope"]
    return shipped_rope.ShippedRope(path, int(sizes[0])) if path.exists() and sizes else None


def _files(folder: Path, wiring: Wiring) -> dict[str, Foreign]:
    wanted = {segment.name: folder / f"{segment.name}.onnx" for segment in wiring.segments}
    there = sorted(path.name for path in folder.glob("*.onnx"))
    lost = [path.name for path in wanted.values() if path.name not in there]
    if lost:
        raise UserError(f"onnx={folder}: lacks {', '.join(lost)}. {did_you_mean(lost[0], there)}")
    return {name: Foreign.read(path) for name, path in wanted.items()}


def file_layout(what: str, case: Case, own: int | None, *, masked: bool, reference: bool) -> CachePlan:
    """How the number of cache rows that files were made for (None: any) goes with the scenario."""
    chosen = plan_cache(case, masked=masked, reference=reference)
    needed, policy = chosen.rows, case.scenario.policy
    if own is None:
        return CachePlan(needed, masked, hosted=False)
    if masked and own >= needed:
        return CachePlan(own, True, hosted=False)
    if not masked and own == policy.window and chosen.hosted:
        return chosen
    if masked or own != policy.window:
        need = f"{needed} rows for --cache {policy}, these files take {own}"
        raise UserError(f"{what}: {need}; choose --cache window({own}) or make them for this scenario")
    why = (
        "a reference run"
        if not reference
        else f"an unpadded prompt of at least {own} tokens, and a decode step"
    )
    raise UserError(f"{what}: the files have no mask, so all {own} rows must be real: that needs {why}")


def _rows(files: Mapping[str, Foreign], wiring: Wiring) -> int | None:
    """Cache rows W that the files were made for; None where they leave it open."""
    seen = set()
    for segment in wiring.segments:
        ports = [port for port in segment.inputs if "W" in port.shape and port.value != "mask"]
        for port, pin in ((p, pin) for p in ports for pin in files[segment.name].inputs if _means(pin, p)):
            if len(pin.shape) == len(port.shape):
                seen.add(pin.shape[port.shape.index("W")])
    fixed = {size for size in seen if isinstance(size, int)}
    if len(fixed) > 1:
        raise UserError(f"onnx: the files disagree on the number of cache rows: {sorted(fixed)}")
    return fixed.pop() if fixed else None


def _means(pin: Pin, port: Port) -> bool:
    return INVENTED.get(pin.name, pin.name) in (port.name, port.value)


def match(segment: Segment, file: Foreign, sizes: Mapping[str, int]) -> Names:
    """Tie a graph's names to ports and taps, by name; outputs by declared order where no name is known."""
    inputs = {
        port.name: _fitting(file, port, [pin for pin in file.inputs if _means(pin, port)], "input", sizes)
        for port in segment.inputs
    }
    spare = [pin.name for pin in file.inputs if pin.name not in inputs.values()]
    if spare:
        known = [port.name for port in segment.inputs]
        raise UserError(f"onnx={file.path}: input {spare[0]!r} is unknown. {did_you_mean(spare[0], known)}")
    by_name = {port.value: [pin for pin in file.outputs if _carries(pin, port)] for port in segment.outputs}
    ordered = not all(by_name.values())
    if ordered:
        by_name = _by_order(segment, file)
    outputs = {
        port.value: _fitting(file, port, by_name[port.value], "output", sizes) for port in segment.outputs
    }
    rest = [pin.name for pin in file.outputs if pin.name not in outputs.values()]
    inner = {name: name for name in rest if name in segment.taps}
    return Names(inputs, outputs, inner, tuple(name for name in rest if name not in inner), ordered)


def _carries(pin: Pin, port: Port) -> bool:
    return pin.name in (port.value, port.name, f"{port.name}_o")


def _by_order(segment: Segment, file: Foreign) -> dict[str, list[Pin]]:
    wanted = [port.value for port in segment.outputs]
    if len(file.outputs) != len(wanted):
        shown = ", ".join(pin.name for pin in file.outputs)
        raise UserError(
            f"onnx={file.path}: outputs are {shown}; should be {', '.join(wanted)}, by name or in this order"
        )
    return {tap: [pin] for tap, pin in zip(wanted, file.outputs, strict=True)}


def _fitting(file: Foreign, port: Port, found: Sequence[Pin], kind: str, sizes: Mapping[str, int]) -> str:
    if len(found) != 1:
        names = ", ".join(pin.name for pin in (file.inputs if kind == "input" else file.outputs))
        raise UserError(f"onnx={file.path}: needs one {kind} {port.name!r}; its {kind}s are {names}")
    shape = tuple(sizes.get(size) if isinstance(size, str) else size for size in port.shape)
    if not found[0].takes(port.dtype, shape) and not _open(found[0], port, shape):
        raise UserError(
            f"onnx={file.path}: {kind} {found[0]}, should be {Pin(found[0].name, port.dtype, shape)}"
        )
    return found[0].name


def _open(pin: Pin, port: Port, shape: Sequence[int | None]) -> bool:
    """Whether they agree but for sizes that one of them leaves open."""
    loose = tuple(None if size is None else mine for size, mine in zip(shape, pin.shape, strict=False))
    return len(pin.shape) == len(shape) and Pin(pin.name, pin.dtype, loose).takes(port.dtype, shape)


def _hidden(wiring: Wiring, names: Mapping[str, Names]) -> tuple[Unobserved, ...]:
    return tuple(
        Unobserved(tap, f"not an output of {segment.name}.onnx")
        for segment in wiring.segments
        for tap in segment.taps
        if tap not in names[segment.name].inner
    )


class FileExecutor:
    """Segments out of files, under the files' names."""

    def __init__(
        self,
        wiring: Wiring,
        files: Mapping[str, Foreign],
        names: Mapping[str, Names],
        runtime: Runtime,
        inner_axes: Mapping[str, str],
    ) -> None:
        outputs = {port.value: port.axes for segment in wiring.segments for port in segment.outputs}
        self._axes = {**inner_axes, **outputs}
        self._names = names
        self._rank = {tap: at for at, tap in enumerate(self._axes)}
        self._graphs = {name: file.graph(runtime) for name, file in files.items()}
        self.unpinned: dict[str, str] = {}
        self._files, self._runtime = files, runtime
        self._pinned: dict[str, PinnedGraph] = {}
        self._last: dict[str, Sequence[Recorded]] = {}

    def call(self, segment: str, inputs: Mapping[str, np.ndarray]) -> Sequence[Recorded]:
        """Outputs, and inner taps where the file has them."""
        names = self._names[segment]
        feed = {graph_name: inputs[port] for port, graph_name in names.inputs.items()}
        wanted = {**names.outputs, **names.inner}
        arrays = self._graphs[segment].run(feed, list(wanted.values()))
        shown = [Recorded(tap, array, self._axes[tap]) for tap, array in zip(wanted, arrays, strict=True)]
        self._last[segment] = sorted(shown, key=lambda item: self._rank[item.tap])
        return self._last[segment]

    def pinned(self, segment: str, inputs: Mapping[str, np.ndarray], right: Right) -> Sequence[Recorded]:
        """The same, each made of the reference's values; see `PinnedGraph`."""
        names = self._names[segment]
        feed = {graph_name: inputs[port] for port, graph_name in names.inputs.items()}
        called = {**names.outputs, **names.inner}
        if segment not in self._pinned:
            self._pinned[segment] = PinnedGraph(self._runtime, self._files[segment].path, segment)
        wanted = {called[item.tap]: right(item) for item in self._last[segment]}
        try:
            found = self._pinned[segment].run(feed, wanted)
        except CandidateError as error:
            self.unpinned |= dict.fromkeys(
                (item.tap for item in self._last[segment]), f"the graph cannot be cut at it ({error})"
            )
            return self.call(segment, inputs)
        lacking = [item.tap for item in self._last[segment] if wanted[called[item.tap]] is None]
        self.unpinned |= dict.fromkeys(lacking, "the reference holds no such value")
        return [Recorded(item.tap, found[called[item.tap]], item.axes) for item in self._last[segment]]

    def close(self) -> None:
        """Free the sessions."""
        self._graphs.clear()
        self._pinned.clear()
