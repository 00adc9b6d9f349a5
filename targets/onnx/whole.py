"""The whole model as one graph: every step feeds the whole history again (layout recompute)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from parity.harness import cache as bookkeeping
from parity.harness.case import Case, Port, Segment, Step
from parity.harness.errors import UserError
from parity.harness.progress import Progress
from parity.harness.segmented import HIDDEN, Executor, Recorded, Rope, last_real
from parity.harness.target import Facts, Options, Session, Unobserved
from parity.harness.tracer import step as mark_step
from parity.harness.tracer import trace_tensor
from parity.harness.values import Values, token_axis

from ..torch_segments import RopeTable
from .build import Recipe, build
from .files import Foreign
from .observe import examples, observe
from .pins import Pin
from .runtime import Graph, OnnxExecutor, Runtime

NAME = "whole"
#: Tokens of the example that the graph is exported with; T itself stays open.
EXAMPLE = 5

#: Names that people give the inputs of a whole model -> what we feed.
KNOWN = {
    "input_ids": "ids",
    "ids": "ids",
    "tokens": "ids",
    "rotary_pos_emb": "rope",
    "rope": "rope",
    "position_ids": "positions",
    "positions": "positions",
    "mask": "mask",
    "attn_mask": "mask",
}
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
    logits = next(p for s in case.model.wiring.segments for p in s.outputs if p.value == case.model.wiring.output)
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

    def step(
        self, step: Step, tokens: np.ndarray, positions: np.ndarray, isolate: Values | None
    ) -> np.ndarray | None:
        """Feed everything so far; record the rows of the new tokens."""
        if step.reset:
            self._history.clear()
        self._history.append((tokens, positions))
        ids, held = (np.concatenate(part, axis=1) for part in zip(*self._history, strict=True))
        shown = [_cut(item, ids.shape[1]) for item in self.executor.call(NAME, self._feed(ids, held))]
        with mark_step(step.index, rows=tokens.shape[1], positions=positions):
            for item in shown:
                trace_tensor(item.tap, item.array, axes=item.axes)
        output = self.segment.outputs[0].value
        logits = next(item.array for item in shown if item.tap == output)
        return last_real(logits[:, -tokens.shape[1] :], positions)

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
            return np.maximum(held, 0).astype(port.dtype)
        if port.value == "rope":
            return self.rope(held)
        allowed = bookkeeping.attendable(held, held, self.window)
        mask = allowed if port.dtype == "bool" else np.where(allowed, 0.0, HIDDEN).astype(port.dtype)
        return mask[:, None] if len(port.shape) == 4 else mask

    def close(self) -> None:
        """Free the graph."""
        self.executor.close()


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
        {"B": case.scenario.batch, "T": EXAMPLE}, case.model.vocab_size, options.exporter, options.opset, ("T",)
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
            "opset": options.opset or "exporter's default",
            "masked": True,
            "isolation": ISOLATION,
            "exporter_notes": list(made.notes),
            "observer_effect": executor.observer.effect,
        },
    )
    return WholeSession(executor, segment, RopeTable(case, torch.float32), case.scenario.policy.window, facts)


def _eager(case: Case) -> Whole:
    module = case.model.build()
    module.load_state_dict(dict(case.state), strict=True)
    return Whole(module).eval()


def lone_session(case: Case, file: Foreign, runtime: Runtime) -> Session:
    """Someone else's graph of the whole model; UserError where its inputs or sizes do not fit the scenario."""
    ports = tuple(_port(file, pin) for pin in file.inputs)
    output = _logits(case, file)
    fixed = _fixed(case, file, ports)
    if not any(port.value == "mask" for port in ports):
        _check_unmasked(case, file)
    axes = _axes(case)
    inner = [pin.name for pin in file.outputs if pin.name in axes and pin.name != output]
    segment = Segment(NAME, ports, (whole_segment(case).outputs[0],))
    facts = Facts(
        dtype="float32",
        layout="recompute",
        substitutions=() if output == "logits" else (f"output {output!r} taken for the logits",),
        unobserved=tuple(
            Unobserved(tap, f"not an output of {file.path.name}") for tap in axes if tap not in [*inner, "logits"]
        ),
        details={
            **runtime.facts(),
            "files": str(file.path),
            "opset": file.opset,
            "isolation": ISOLATION,
            "ignored_outputs": [p.name for p in file.outputs if p.name not in [*inner, output]],
        },
    )
    wanted = {case.model.wiring.output: output, **{tap: tap for tap in inner}}
    executor = LoneExecutor(file.graph(runtime), wanted, axes)
    rope = RopeTable(case, torch.float32)
    return WholeSession(executor, segment, rope, case.scenario.policy.window, facts, fixed)


@dataclass
class LoneExecutor:
    """One graph of someone else's; `wanted` maps taps to its outputs."""

    graph: Graph
    wanted: Mapping[str, str]
    axes: Mapping[str, str]

    def call(self, segment: str, inputs: Mapping[str, np.ndarray]) -> Sequence[Recorded]:
        """The logits and whatever else carries a tap's name, in execution order."""
        arrays = self.graph.run(inputs, list(self.wanted.values()))
        found = dict(zip(self.wanted, arrays, strict=True))
        return [Recorded(tap, found[tap], self.axes[tap]) for tap in self.axes if tap in found]

    def close(self) -> None:
        """Nothing but the session, which goes with this."""


def _axes(case: Case) -> dict[str, str]:
    """Axes of every tap of the model, in execution order, from one run on an example."""
    segment = whole_segment(case)
    inputs = examples(segment.inputs, {"B": 1, "T": EXAMPLE}, vocab_size=case.model.vocab_size)
    found = {tap.name: tap.axes for tap in observe(_eager(case), segment, inputs).taps}
    return found | {port.value: port.axes for port in segment.outputs}


def _port(file: Foreign, pin: Pin) -> Port:
    value = KNOWN.get(pin.name)
    if value is None:
        raise UserError(f"onnx={file.path}: input {pin} is unknown; name inputs {', '.join(sorted(KNOWN))}")
    if value == "mask" and (pin.dtype not in ("bool", "float32") or len(pin.shape) not in (3, 4)):
        raise UserError(f"onnx={file.path}: {pin} should be bool or float32, [B, T, T] or [B, 1, T, T]")
    return Port(pin.name, value, "", tuple(size if isinstance(size, int) else "?" for size in pin.shape), pin.dtype)


def _logits(case: Case, file: Foreign) -> str:
    """The output called logits, or the only one; its last size must be the vocabulary's."""
    names = [pin.name for pin in file.outputs]
    name = "logits" if "logits" in names else names[0] if len(names) == 1 else None
    pin = next((pin for pin in file.outputs if pin.name == name), None)
    if pin is None:
        raise UserError(f"onnx={file.path}: none of its outputs {', '.join(names)} is called logits")
    if pin.shape and isinstance(pin.shape[-1], int) and pin.shape[-1] != case.model.vocab_size:
        raise UserError(f"onnx={file.path}: {pin} should end in {case.model.vocab_size}, the model's vocabulary")
    return str(name)


def _fixed(case: Case, file: Foreign, ports: Sequence[Port]) -> int | None:
    """Width of a graph that takes no other; batch and width must hold the scenario."""
    ids = next((port for port in ports if port.value == "ids"), None)
    if ids is None or len(ids.shape) != 2:
        raise UserError(f"onnx={file.path}: has no input_ids [B, T]; it has {', '.join(map(str, file.inputs))}")
    batch, width = ids.shape
    if isinstance(batch, int) and batch != case.scenario.batch:
        raise UserError(f"onnx={file.path}: made for batch {batch}, the scenario has {case.scenario.batch}")
    total = case.scenario.prompt_length + case.scenario.steps
    if isinstance(width, int) and width < total:
        raise UserError(f"onnx={file.path}: takes {width} tokens, prompt and steps are {total}; use fewer --steps")
    return width if isinstance(width, int) else None


def _check_unmasked(case: Case, file: Foreign) -> None:
    scenario = case.scenario
    total = scenario.prompt_length + scenario.steps
    if any(len(row) != scenario.prompt_length for row in scenario.ids):
        raise UserError(f"onnx={file.path}: has no mask input, so padding cannot be hidden; use prompts of one length")
    if scenario.policy.window is not None and scenario.policy.window < total:
        raise UserError(
            f"onnx={file.path}: has no mask input and attends to all {total} tokens; compare with --cache full"
        )
