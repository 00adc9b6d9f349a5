"""`onnx` for a module of the user's: exported here with its taps, or a lone file that someone else made."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import mkdtemp
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from parity.harness.arrays import to_array
from parity.harness.case import ModuleCase
from parity.harness.errors import CandidateError, UserError
from parity.harness.isolation import TAPS, Isolation
from parity.harness.module_session import dtype_of, prepared, tensors
from parity.harness.observer import observer_effect
from parity.harness.progress import Progress
from parity.harness.target import Facts, Options, Unobserved
from parity.harness.tracer import recording, trace_tensor
from parity.harness.tracer import step as mark_step

from .module_export import Flat, export
from .onnx.disturbing import Search, departs, grave
from .onnx.export import check_opset
from .onnx.graph_model import OnnxGraph
from .onnx.graph_session import GraphSession, graph_session
from .onnx.pinned import PinnedGraph, gap, shared_taps
from .onnx.runtime import Runtime
from .onnx.target import parse_arg

if TYPE_CHECKING:
    from parity.harness.case import Step
    from parity.harness.tracer import Sink
    from parity.harness.values import Values

DTYPES = {"fp64": "float64", "fp32": "float32", "fp16": "float16"}


class Graph:
    """A loaded graph, its outputs taken by place: one that was folded may have kept the exporter's name."""

    def __init__(self, runtime: Runtime, path: Path) -> None:
        self._session = runtime.session(path, "onnx")
        self.inputs = [item.name for item in self._session.get_inputs()]
        self.outputs = [item.name for item in self._session.get_outputs()]

    def run(self, feed: Mapping[str, np.ndarray], wanted: list[str] | None = None) -> list[np.ndarray]:
        """Outputs in order; CandidateError in ONNX Runtime's words."""
        try:
            return list(self._session.run(wanted, {name: feed[name] for name in self.inputs}))
        except Exception as error:  # its exceptions share no base class
            raise CandidateError(
                f"onnx: ONNX Runtime failed: {' '.join(str(error).split())[:400]}"
            ) from error


@dataclass
class OnnxModuleSession:
    """One call of the clean graph for the outputs, one of the tapped graph for what lies between.

    `outputs` are tap names of the clean graph's outputs by place. `taps` are (tap, graph output) of the
    tapped one in execution order; a tap that comes twice was called twice.
    """

    clean: Graph
    tapped: Graph
    feed: Mapping[str, np.ndarray]
    outputs: tuple[str, ...]
    taps: tuple[tuple[str, str], ...]
    facts: Facts
    folder: Path | None = None
    pinned: PinnedGraph | None = None
    reference: Values | None = None
    isolated_sink: Sink | None = None
    isolation: Isolation = field(default_factory=Isolation)
    _named: list[str] | None = None

    def step(
        self, step: Step, tokens: np.ndarray, positions: np.ndarray, isolate: Values | None
    ) -> np.ndarray | None:
        """Run both graphs; there are no tokens to be read and none to be returned."""
        official = dict(zip(self.outputs, self.clean.run(self.feed), strict=True))
        again = self.tapped.run(
            self.feed, [*self.tapped.outputs[: len(self.outputs)], *(out for _, out in self.taps)]
        )
        with mark_step(step.index):
            for (tap, _), array in zip(self.taps, again[len(self.outputs) :], strict=True):
                trace_tensor(tap, array)
            for tap, array in official.items():
                trace_tensor(tap, array)
        looked = dict(zip(self.outputs, again, strict=False))
        effect = observer_effect(official, looked, "with taps")
        told = {name: seen | self._disturbed(official, looked, name) for name, seen in effect.outputs.items()}
        details = {**self.facts.details, "observer": effect.text, "observer_effect": told}
        self.facts = replace(
            self.facts, details={**details, "warnings": [effect.text]} if effect.grave else details
        )
        if self.isolated_sink is not None and self.pinned is not None and self.reference is not None:
            with recording(self.isolated_sink), mark_step(step.index):
                self._isolate(self.pinned, self.reference, official, again)
        return None

    def _disturbed(
        self, official: Mapping[str, np.ndarray], looked: Mapping[str, np.ndarray], name: str
    ) -> dict[str, Any]:
        """Which taps change an output by more than rounding; nothing where none does."""
        if self.pinned is None or not departs(official[name], looked[name]):
            return {}
        if self._named is None:
            clean = dict(zip(self.tapped.outputs, official.values(), strict=False))
            taps = {output: tap for tap, output in self.taps}
            graph = self.pinned
            self._named = Search(graph.runtime, graph.path, "onnx", self.feed, clean, taps).named()
        return {"taps": self._named, "grave": grave(official[name], looked[name])}

    def _isolate(
        self,
        graph: PinnedGraph,
        reference: Values,
        official: Mapping[str, np.ndarray],
        again: Sequence[np.ndarray],
    ) -> None:
        """Once more, every value made of the reference's; to outputs is added what the clean graph does
        otherwise."""
        returned = list(zip(self.outputs, self.tapped.outputs, again, strict=False))
        inner = [
            (tap, out, array) for (tap, out), array in zip(self.taps, again[len(returned) :], strict=True)
        ]
        calls, wanted = Counter[str](), dict[str, np.ndarray | None]()
        for tap, out, array in (*inner, *returned):
            wanted[out] = reference.named(tap, calls[tap], array)
            calls[tap] += 1
        try:
            found = graph.run(self.feed, wanted)
        except CandidateError as error:
            why = f"the graph cannot be cut ({error})"
            self.isolation = Isolation(refused=dict.fromkeys([*self.outputs, *calls], why))
            return
        loose = {tap: "the reference holds no such value" for tap, out, _ in inner if wanted[out] is None}
        for tap, out, _ in inner:
            trace_tensor(tap, found[out])
        for tap, out, looked in returned:
            other = gap(official[tap], looked)
            trace_tensor(tap, found[out] if other is None else found[out] + other)
            if other is not None:
                loose[tap] = "the graph without taps computes it otherwise"
        taps = {out: tap for tap, out, _ in (*inner, *returned)}
        self.isolation = Isolation(TAPS, loose, shared=shared_taps(graph, taps))

    def close(self) -> None:
        """Remove the graphs that were written for this session."""
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)


@dataclass
class OnnxModuleTarget:
    """`onnx[:FILE][,opt=LEVEL][@DEVICE]` for a `ModuleCase`.

    Exports anew each time: nothing tells whether a user's code behaves as it did when a cached file was made.
    """

    name: str = "onnx"
    summary: str = "any module exported and run by ONNX Runtime; onnx:FILE.onnx for a file made elsewhere"

    def missing(self) -> str | None:
        """Always there: ONNX Runtime is part of the base install."""
        return None

    def check(self, arg: str, options: Options) -> None:
        """Unknown words, number formats, devices and opsets."""
        asked = parse_arg(arg)
        check_opset(options.exporter, options.opset)
        if asked.masked or asked.whole:
            raise UserError(
                f"onnx:{arg}: a module of your own is exported whole, and has no mask; drop the words"
            )
        _wanted_dtype(options)
        Runtime(options.threads, asked.level, options.device or "cpu")

    def prepare(
        self,
        case: ModuleCase,
        *,
        arg: str,
        options: Options,
        reference: Values | None,
        workdir: Path,
        progress: Progress,
    ) -> OnnxModuleSession | GraphSession:
        """Export or read, load, and find out which taps the graph can show."""
        asked = parse_arg(arg)
        runtime = Runtime(options.threads, asked.level, options.device or "cpu")
        workdir.mkdir(parents=True, exist_ok=True)
        # Two runs may share the workdir, so each session writes into a folder of its own.
        folder = Path(mkdtemp(prefix="module-", dir=workdir))
        try:
            if isinstance(case.module, OnnxGraph):
                return graph_session(case, runtime, folder)
            if asked.path is not None:
                from .onnx_file import file_session

                return file_session(case, asked.path, runtime, folder, options.mapping, reference)
            return _exported(case, options, runtime, folder, progress, reference)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise


def _exported(
    case: ModuleCase,
    options: Options,
    runtime: Runtime,
    folder: Path,
    progress: Progress,
    reference: Values | None,
) -> OnnxModuleSession:
    dtype = _wanted_dtype(options)
    module, said = prepared(case.module, dtype=dtype, device="cpu")
    inputs = tensors(module, case.inputs, dtype=dtype, device="cpu")
    seen = shown_eagerly(Flat(module, inputs, tapped=True))
    with progress.stage("exporting", 1) as bar:
        builds = export(module, inputs, folder, options)
        bar.advance()
    clean, tapped = Graph(runtime, builds.clean), Graph(runtime, builds.tapped)
    names = [*builds.outputs, *builds.taps]
    if len(tapped.outputs) != len(names) or len(clean.outputs) != len(builds.outputs):
        raise CandidateError(
            f"onnx: the exporter kept {len(tapped.outputs)} of {len(names)} outputs and taps"
        )
    taps = zip(builds.taps, tapped.outputs[len(builds.outputs) :], strict=True)
    lost = [name for name in seen if name not in names]
    facts = Facts(
        dtype=dtype or dtype_of(module),
        layout="call",
        substitutions=(*said, f"exported for these input shapes by the {options.exporter} exporter"),
        unobserved=tuple(Unobserved(plain(name), "did not run while the exporter traced") for name in lost),
        details={
            **runtime.facts(),
            "exporter": options.exporter,
            "pairing": "taps put into the graph by hooks",
        },
    )
    feed = arrays({name: inputs[name] for name in builds.inputs})
    return OnnxModuleSession(
        clean,
        tapped,
        feed,
        builds.outputs,
        tuple((plain(tap), output) for tap, output in taps),
        facts,
        folder,
        PinnedGraph(runtime, builds.tapped, "onnx"),
        reference,
    )


def shown_eagerly(flat: Flat) -> dict[str, Tensor]:
    """Outputs and taps of one eager call, second calls as `name#1`."""
    with torch.no_grad(), flat.hooks():
        values = flat(*flat.example())
    return dict(zip(flat.returned.names, values, strict=True))


def plain(tap: str) -> str:
    """`module:fc#1` -> `module:fc`: the tracer counts calls itself, in the same order."""
    name, mark, number = tap.rpartition("#")
    return name if mark and number.isdecimal() else tap


def arrays(inputs: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Tensors as ONNX Runtime takes them."""
    return {name: np.require(to_array(value), requirements="C") for name, value in inputs.items()}


def _wanted_dtype(options: Options) -> str | None:
    word = options.dtype
    if word is None or word in DTYPES.values():
        return word
    if word not in DTYPES:
        raise UserError(f"dtype={word!r}: ONNX Runtime computes in {', '.join(DTYPES)} on this target")
    return DTYPES[word]
