"""Segments in ONNX Runtime as an executor: a clean build that flows on, a tapped one, and a pinned one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from parity.harness.case import Segment
from parity.harness.errors import CandidateError
from parity.harness.segmented import Recorded, Right

from .build import Build
from .disturbing import Search, departs, grave
from .pinned import PinnedGraph, gap
from .runtime import Graph, Observer, Runtime


class OnnxExecutor:
    """Segments as clean and tapped sessions.

    The clean build's outputs flow on; the tapped build, run on the same inputs, adds the inner taps.
    `order` are tap names in execution order.
    """

    def __init__(
        self, segments: Sequence[Segment], builds: Mapping[str, Build], runtime: Runtime, order: Sequence[str]
    ) -> None:
        self._segments = {segment.name: segment for segment in segments}
        self._axes = {name: made.axes for name, made in builds.items()}
        self._rank = {tap: at for at, tap in enumerate(order)}
        self._clean = {name: Graph(runtime, made.clean, name) for name, made in builds.items()}
        self._tapped = {name: Graph(runtime, made.tapped, f"{name} tapped") for name, made in builds.items()}
        self._graphs = {name: made.tapped for name, made in builds.items()}
        self.observer = Observer()
        self.unpinned: dict[str, str] = {}
        self._runtime = runtime
        self._pinned: dict[str, PinnedGraph] = {}
        #: Segments of which it is known which taps disturb them.
        self._searched: set[str] = set()
        #: Of the last call of a segment: what the tapped build showed, and of outputs what the clean one did.
        self._last: dict[str, tuple[dict[str, np.ndarray], dict[str, np.ndarray]]] = {}

    def call(self, segment: str, inputs: Mapping[str, np.ndarray]) -> Sequence[Recorded]:
        """Outputs of the clean build and inner taps, in execution order."""
        ports = self._segments[segment].outputs
        names = [port.value for port in ports]
        axes = self._axes[segment]
        official = self._clean[segment].run(inputs, names)
        again = self._tapped[segment].run(inputs, [*names, *axes])
        changed = [self.observer.note(*pair) for pair in zip(names, official, again, strict=False)]
        if any(changed) and segment not in self._searched:
            self._search(segment, inputs, dict(zip(names, official, strict=True)), again)
        looked = dict(zip([*names, *axes], again, strict=True))
        self._last[segment] = looked, dict(zip(names, official, strict=True))
        shown = [Recorded(port.value, array, port.axes) for port, array in zip(ports, official, strict=True)]
        inner = zip(axes.items(), again[len(names) :], strict=True)
        shown += [Recorded(plain(name), array, letters) for (name, letters), array in inner]
        return self._sorted(shown)

    def _search(
        self,
        segment: str,
        inputs: Mapping[str, np.ndarray],
        clean: Mapping[str, np.ndarray],
        again: Sequence[np.ndarray],
    ) -> None:
        """Name the taps that change outputs by more than rounding: once, where it is first seen."""
        pairs = {name: (array, other) for (name, array), other in zip(clean.items(), again, strict=False)}
        changed = [name for name, pair in pairs.items() if departs(*pair)]
        if not changed:
            return
        self._searched.add(segment)
        taps = {value: plain(value) for value in self._axes[segment]}
        named = Search(self._runtime, self._graphs[segment], segment, inputs, clean, taps).named()
        for name in changed:
            self.observer.effect[name] |= {"taps": named, "grave": grave(*pairs[name])}

    def pinned(self, segment: str, inputs: Mapping[str, np.ndarray], right: Right) -> Sequence[Recorded]:
        """The same taps, each made of the reference's values; see `PinnedGraph`.

        To an output is added what the clean build does otherwise than the tapped one.
        """
        looked, clean = self._last[segment]
        axes = {port.value: port.axes for port in self._segments[segment].outputs} | dict(self._axes[segment])
        like = self._sorted(Recorded(value, array, axes[value]) for value, array in looked.items())
        wanted = {item.tap: right(item) for item in like}
        lacking = [plain(value) for value, array in wanted.items() if array is None]
        self.unpinned |= dict.fromkeys(lacking, "the reference holds no such value")
        try:
            found = self._graph(segment).run(inputs, wanted)
        except CandidateError as error:
            self.unpinned |= dict.fromkeys(map(plain, wanted), f"the graph cannot be cut at it ({error})")
            return self.call(segment, inputs)
        shown = []
        for value, array in found.items():
            other = gap(clean[value], looked[value]) if value in clean else None
            if other is not None:
                self.unpinned[value] = "the build that flows on computes it otherwise than the tapped one"
            shown.append(Recorded(plain(value), array if other is None else array + other, axes[value]))
        return shown

    def _graph(self, segment: str) -> PinnedGraph:
        if segment not in self._pinned:
            self._pinned[segment] = PinnedGraph(self._runtime, self._graphs[segment], segment)
        return self._pinned[segment]

    def _sorted(self, shown: Iterable[Recorded]) -> list[Recorded]:
        """In execution order."""
        return sorted(shown, key=lambda item: self._rank.get(plain(item.tap), len(self._rank)))

    def parcel(self, segment: str, inputs: Mapping[str, np.ndarray]) -> Mapping[str, bytes]:
        """The graph with its taps as outputs."""
        return {"model.onnx": self._graphs[segment].read_bytes()}

    def close(self) -> None:
        """Free the sessions."""
        self._clean.clear()
        self._tapped.clear()
        self._pinned.clear()


def plain(value: str) -> str:
    """The tap of a value: `q#1` is the second call of `q`."""
    return value.partition("#")[0]
