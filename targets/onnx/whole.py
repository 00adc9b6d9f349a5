"""The whole model as one graph: every step feeds the whole history again (layout recompute)."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from parity.harness import cache as bookkeeping
from parity.harness.case import Case, Port, Segment, Step
from parity.harness.errors import UserError
from parity.harness.isolation import TAPS, Isolation
from parity.harness.progress import Progress
from parity.harness.segmented import HIDDEN, Executor, Pinning, Recorded, Rope, last_real
from parity.harness.target import Facts, Options, Session
from parity.harness.tracer import Recorder, Sink, recording, trace_tensor
from parity.harness.tracer import step as mark_step
from parity.harness.values import Values, token_axis

from ..torch_segments import RopeTable
from .build import Recipe, build
from .executor import OnnxExecutor
from .observe import examples, observe
from .runtime import Runtime

NAME = "whole"
#: Tokens of the example that the graph is exported with; T itself stays open.
EXAMPLE = 5

ISOLATION = "one graph: no segment can be fed alone"


class Whole(nn.Module):
    """The model as a device would be given it: rotary rows and mask come in as data."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.model = module

    def forward(self, input_ids: Tensor, rotary_pos_emb: Tensor, mask: Tensor) -> Tensor:
        logits, _ = self.model(input_ids, rope_cbtd=rotary_pos_emb, mask_bts=mask)
        return cast(Tensor, logits)


def whole_segment(case: Case) -> Segment:
    """Ports of the whole graph; the mask is True where a row may be attended to."""
    head = case.model.wiring.segments[0]
    rope = next(port for port in head.inputs if port.value == "rope")
    logits = next(
        p for s in case.model.wiring.segments for p in s.outputs if p.value == case.model.wiring.output
    )
    ids = Port("input_ids", "ids", "b t", ("B", "T"), "int64")
    mask = Port("mask", "mask", "b t p", ("B", "T", "T"), "bool")
    return Segment(NAME, (ids, rope, mask), (logits,))


@dataclass
class WholeSession:
    """A `Session` over one graph. `fixed` is the number of tokens of a graph that takes no other."""

    executor: Executor
    segment: Segment
    rope: Rope
    window: int | None
    facts: Facts
    fixed: int | None = None
    _history: list[tuple[np.ndarray, np.ndarray]] = field(default_factory=list)
    _last: tuple[dict[str, np.ndarray], np.ndarray] = field(init=False)

    def step(
        self, step: Step, tokens: np.ndarray, positions: np.ndarray, isolate: Values | None
    ) -> np.ndarray | None:
        """Feed everything so far; see `Session`."""
        if step.reset:
            self._history.clear()
        self._history.append((tokens, positions))
        ids, held = (np.concatenate(part, axis=1) for part in zip(*self._history, strict=True))
        self._last = self._feed(ids, held), held
        shown = [_cut(item, ids.shape[1]) for item in self.executor.call(NAME, self._last[0])]
        for item in shown:
            self._record(item, step.index, positions, held)
        output = self.segment.outputs[0].value
        logits = next(item.array for item in shown if item.tap == output)
        return last_real(logits[:, -tokens.shape[1] :], positions)

    def isolate(self, executor: Pinning, step: Step, positions: np.ndarray, reference: Values) -> None:
        """The step that was executed last once more, every value made of the reference's."""
        feed, held = self._last

        def right(item: Recorded) -> np.ndarray | None:
            return reference.beside(item.tap, step.index, held, item.array, item.axes)

        for item in executor.pinned(NAME, feed, right):
            self._record(item, step.index, positions, held)

    def _record(self, item: Recorded, step: int, positions: np.ndarray, held: np.ndarray) -> None:
        """The rows of the new tokens; of a cache all rows, as all of them may be attended to."""
        if "p" in item.axes.split() and "t" not in item.axes.split():
            with mark_step(step):
                trace_tensor(item.tap, item.array, axes=item.axes, positions=held)
            return
        with mark_step(step, rows=positions.shape[1], positions=positions):
            trace_tensor(item.tap, item.array, axes=item.axes)

    def _feed(self, ids: np.ndarray, held: np.ndarray) -> dict[str, np.ndarray]:
        """Values of the ports; a graph of fixed width is filled up on the right, where causality hides it."""
        spare = (self.fixed or ids.shape[1]) - ids.shape[1]
        ids = np.pad(ids, ((0, 0), (0, spare)))
        held = np.pad(held, ((0, 0), (0, spare)), constant_values=-1)
        return {port.name: self._value(port, ids, held) for port in self.segment.inputs}

    def _value(self, port: Port, ids: np.ndarray, held: np.ndarray) -> np.ndarray:
        if port.value == "ids":
            return ids.astype(port.dtype)
        if port.value == "positions":
            return held.clip(min=0).astype(port.dtype)
        if port.value == "rope":
            return np.asarray(self.rope(held))
        allowed = bookkeeping.attendable(held, held, self.window)
        mask = allowed if port.dtype == "bool" else np.where(allowed, 0.0, HIDDEN).astype(port.dtype)
        return mask[:, None] if len(port.shape) == 4 else mask

    def close(self) -> None:
        """Free the graph."""
        self.executor.close()


@dataclass
class PinnedWhole:
    """The same session, which also tells the errors of all values apart: see `pinned`."""

    inner: WholeSession
    executor: Pinning
    facts: Facts
    isolated_sink: Sink | None = None
    _recorder: Recorder | None = None

    @property
    def isolation(self) -> Isolation:
        """How finely local errors are separated."""
        return Isolation(TAPS, dict(self.executor.unpinned))

    def step(
        self, step: Step, tokens: np.ndarray, positions: np.ndarray, isolate: Values | None
    ) -> np.ndarray | None:
        """Execute one step; see `Session`."""
        logits = self.inner.step(step, tokens, positions, None)
        if isolate is not None and self.isolated_sink is not None:
            self._recorder = self._recorder or Recorder(self.isolated_sink)
            with recording(self._recorder):
                self.inner.isolate(self.executor, step, positions, isolate)
        return logits

    def close(self) -> None:
        """Free the graph."""
        self.inner.close()


def _cut(item: Recorded, width: int) -> Recorded:
    """Without the rows that only fill a fixed width."""
    at = token_axis(item.axes)
    if at is None or item.array.shape[at] == width:
        return item
    return Recorded(item.tap, item.array[(slice(None),) * at + (slice(0, width),)], item.axes)


def whole_session(case: Case, runtime: Runtime, options: Options, cache: Path, progress: Progress) -> Session:
    """Export the whole model with T left open, in both builds."""
    if options.segments is not None:
        raise UserError("segments: onnx:whole is one graph; leave --segments out")
    segment = whole_segment(case)
    recipe = Recipe(
        {"B": case.scenario.batch, "T": EXAMPLE},
        case.model.vocab_size,
        options.exporter,
        options.opset,
        ("T",),
    )
    with progress.stage("exporting", 1) as bar:
        made = build(_eager(case), segment, recipe, cache)
        bar.advance()
    executor = OnnxExecutor([segment], {NAME: made}, runtime, case.model.taps)
    facts = Facts(
        dtype="float32",
        layout="recompute",
        details={
            **runtime.facts(),
            "exporter": options.exporter,
            "opset": made.opset,
            "masked": True,
            "exporter_notes": list(made.notes),
            "observer_effect": executor.observer.effect,
        },
    )
    window = case.scenario.policy.window
    inner = WholeSession(executor, segment, RopeTable(case, torch.float32), window, facts)
    return PinnedWhole(inner, executor, facts)


def _eager(case: Case) -> Whole:
    module = case.model.build()
    module.load_state_dict(dict(case.state), strict=True)
    return Whole(module).eval()


def tap_axes(case: Case) -> dict[str, str]:
    """Axes of every tap of the model, in execution order, from one run on an example."""
    segment = whole_segment(case)
    inputs = examples(segment.inputs, {"B": 1, "T": EXAMPLE}, vocab_size=case.model.vocab_size)
    found = {tap.name: tap.axes for tap in observe(_eager(case), segment, inputs).taps}
    return found | {port.value: port.axes for port in segment.outputs}
