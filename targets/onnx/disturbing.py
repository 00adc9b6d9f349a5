"""Which taps change what a graph computes: builds with some of them as outputs, halved until it is known.

A value that is an output cannot be fused away, so a runtime may compute what comes after it by another path.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from parity.harness.errors import CandidateError
from parity.harness.observer import ROUNDING

from .runtime import Graph, Runtime

#: Builds that are made at most; what is left then is named as one of several.
MOST = 48
#: Steps of the number format, at the largest output, that another order of sums reaches.
STEPS = 64.0
#: Taps of a group that are named.
SHOWN = 6


def departs(clean: np.ndarray, tapped: np.ndarray, steps: float = STEPS) -> bool:
    """Whether an output differs by more than rounding; `steps` of the format at the largest finite value."""
    if clean.tobytes() == tapped.tobytes():
        return False
    if clean.dtype.kind != "f" or clean.shape != tapped.shape:
        return True
    finite = np.isfinite(clean)
    if not np.array_equal(finite, np.isfinite(tapped)):
        return True
    one, two = clean[finite].astype(np.float64), tapped[finite].astype(np.float64)
    noise = steps * float(np.finfo(clean.dtype).eps) * np.abs(one).max(initial=0.0)
    return bool(np.abs(one - two).max(initial=0.0) > noise)


def grave(clean: np.ndarray, tapped: np.ndarray) -> bool:
    """Whether no rounding of a common format explains the difference."""
    if clean.dtype.kind != "f":
        return departs(clean, tapped)
    return departs(clean, tapped, ROUNDING / float(np.finfo(clean.dtype).eps))


@dataclass
class Search:
    """The taps of one tapped graph that change its outputs on one feed.

    `clean` are the outputs of the build without taps, by their names in the tapped graph; `taps` map graph
    outputs to taps, in execution order.
    """

    runtime: Runtime
    path: Path
    where: str
    feed: Mapping[str, np.ndarray]
    clean: Mapping[str, np.ndarray]
    taps: Mapping[str, str]
    _seen: dict[tuple[str, ...], bool] = field(default_factory=dict)

    def named(self) -> list[str]:
        """What changes the outputs, in words: single taps, or several that do it only together.

        Empty where the graph that was exported with taps differs without any of them as an output.
        """
        try:
            self._model: Any = onnx.load(self.path)
            if self._changed(()):
                return []
            return [self._words(group) for group in self._guilty(tuple(self.taps))]
        except (CandidateError, ValueError) as error:
            return [f"unknown: the graph cannot be built with some of its taps ({error})"]

    def _guilty(self, values: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
        """Groups of values that, as outputs, change what is computed."""
        middle = len(values) // 2
        halves = (values[:middle], values[middle:]) if middle and len(self._seen) < MOST else ()
        found = [half for half in halves if self._changed(half)]
        if not found:
            yield values
        for half in found:
            yield from self._guilty(half)

    def _changed(self, values: tuple[str, ...]) -> bool:
        if values not in self._seen:
            graph = Graph(self.runtime, self._built(values), f"{self.where} with some taps")
            feed = {name: self.feed[name] for name in graph.inputs}
            arrays = zip(self.clean.values(), graph.run(feed, list(self.clean)), strict=True)
            self._seen[values] = any(departs(clean, array) for clean, array in arrays)
        return self._seen[values]

    def _built(self, values: Sequence[str]) -> bytes:
        """The graph with these taps alone as outputs."""
        made = onnx.ModelProto()
        made.CopyFrom(self._model)
        kept = [item for item in made.graph.output if item.name in self.clean or item.name in values]
        del made.graph.output[:]
        made.graph.output.extend(kept)
        return bytes(made.SerializeToString())

    def _words(self, group: Sequence[str]) -> str:
        names = list(dict.fromkeys(self.taps[value] for value in group))
        shown = ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
        if len(names) == 1:
            return shown
        return f"{shown} ({'one or more of them' if len(self._seen) >= MOST else 'together'})"
