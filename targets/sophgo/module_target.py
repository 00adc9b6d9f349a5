"""A whole module or graph of the user's on a chip: compiled as one net, called once."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import mkdtemp

import numpy as np
import onnx

from parity.harness.case import ModuleCase
from parity.harness.errors import CandidateError, UserError
from parity.harness.module_session import prepared, tensors
from parity.harness.progress import Progress
from parity.harness.target import Facts, Options, Unobserved
from parity.harness.values import Values

from ..module_export import export
from ..onnx.build import Build
from ..onnx.graph_model import OnnxGraph
from ..onnx.graph_session import WHOLE, GraphSession, graph_build, whole_segment
from ..onnx_module import arrays
from .graphs import OPSET, ChipGraph, chip_graph
from .levels import whole_level
from .target import ChipTarget, bm1684x, cvi


class ChipModuleTarget:
    """`cvi` and `bm1684x` for a `ModuleCase`."""

    def __init__(self, chip: ChipTarget) -> None:
        self._chip = chip
        self.name, self.summary = chip.name, chip.summary

    def missing(self) -> str | None:
        """What the toolchain lacks."""
        return self._chip.missing()

    def check(self, arg: str, options: Options) -> None:
        """As for a model of ours; files compiled elsewhere carry no taps of a module."""
        self._chip.check(arg, options)
        if self._chip.asked(arg).masked:
            raise UserError(f"{self.name}:{arg}: a module of your own has no mask; drop the word")

    def stages(self, arg: str) -> list[tuple[str, str]]:
        """As for a model of ours."""
        return self._chip.stages(arg)

    def failed_in(self, failure: str) -> str | None:
        """As for a model of ours."""
        return self._chip.failed_in(failure)

    def emulation(self, arg: str) -> str | None:
        """As for a model of ours."""
        return self._chip.emulation(arg)

    def prepare(
        self,
        case: ModuleCase,
        *,
        arg: str,
        options: Options,
        reference: Values | None,
        workdir: Path,
        progress: Progress,
    ) -> GraphSession:
        """Export the module, or take the graph, compile it and load it."""
        asked = self._chip.asked(arg)
        workdir.mkdir(parents=True, exist_ok=True)
        folder = Path(mkdtemp(prefix="chip-", dir=workdir))
        try:
            graph, feed = _whole(case, options, folder)
            feed, widened = (feed, ()) if asked.level == "onnx" else _taken(self.name, feed)
            level = whole_level(asked, graph, feed, options, workdir / "cache", progress)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        hidden = [tap for tap in dict.fromkeys(graph.taps.values()) if tap not in level.shown]
        facts = Facts(
            dtype=asked.computed_in,
            layout="call",
            substitutions=(*level.substitutions, *widened),
            unobserved=tuple(Unobserved(tap, level.why_hidden) for tap in hidden),
            details={
                **level.details,
                "chip": asked.chip.name,
                "mode": asked.mode.name,
                "level": asked.level,
            },
        )
        return GraphSession(level.executor, feed, facts)


def _taken(name: str, feed: Mapping[str, np.ndarray]) -> tuple[Mapping[str, np.ndarray], tuple[str, ...]]:
    """The inputs as the compiler's graphs take them, and what was widened for it, which is exact.

    UserError for those that no wider format holds: to the compiler every real number is a float32.
    """
    wide = [key for key, array in feed.items() if array.dtype == np.float64]
    if wide:
        raise UserError(
            f"{name}: input {wide[0]!r} is float64, which no chip computes in; export the graph with float32"
        )
    narrow = [key for key, array in feed.items() if array.dtype in (np.float16, np.bool_)]
    notes = (
        f"{key}: {feed[key].dtype} in the graph, float32 to the compiler; no value changes" for key in narrow
    )
    return {**feed, **{key: feed[key].astype(np.float32) for key in narrow}}, tuple(notes)


def _whole(case: ModuleCase, options: Options, folder: Path) -> tuple[ChipGraph, Mapping[str, np.ndarray]]:
    if isinstance(case.module, OnnxGraph):
        segment, build, shapes = graph_build(case.module, folder)
        axes = dict.fromkeys(shapes, "")
        clean, tapped = build.clean.read_bytes(), build.tapped.read_bytes()
        return ChipGraph(segment, build, clean, tapped, axes, shapes), dict(case.inputs)
    return _exported(case, options, folder)


def _exported(case: ModuleCase, options: Options, folder: Path) -> tuple[ChipGraph, Mapping[str, np.ndarray]]:
    """By the exporter that writes operators which the compiler's converter reads."""
    module, _ = prepared(case.module, dtype="float32", device="cpu")
    inputs = tensors(module, case.inputs, dtype="float32", device="cpu")
    builds = export(module, inputs, folder, replace(options, exporter="script", opset=OPSET))
    made = onnx.load(str(builds.tapped))
    segment = whole_segment(builds.inputs, builds.outputs, builds.taps)
    axes = dict.fromkeys(builds.taps, "")
    build = Build(WHOLE, builds.clean, builds.tapped, axes, OPSET, ())
    feed = arrays({name: inputs[name] for name in builds.inputs})
    names = [value.name for value in made.graph.output]
    if names != [*builds.outputs, *builds.taps]:
        raise CandidateError(f"model: the exporter named its outputs {names}, should be {builds.outputs}")
    return chip_graph(segment, build), feed


def cvi_module() -> ChipModuleTarget:
    """`cvi` for a module of the user's."""
    return ChipModuleTarget(cvi())


def bm1684x_module() -> ChipModuleTarget:
    """`bm1684x` for a module of the user's."""
    return ChipModuleTarget(bm1684x())
