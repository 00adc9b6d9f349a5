"""One graph of the whole model that someone else made, fed by the names of its inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from parity.harness.case import Case, Port, Segment
from parity.harness.errors import UserError
from parity.harness.segmented import Recorded
from parity.harness.target import Facts, Session, Unobserved

from ..torch_segments import RopeTable
from .foreign import Foreign
from .pins import Pin
from .runtime import Graph, Runtime
from .whole import ISOLATION, NAME, WholeSession, tap_axes, whole_segment

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


def lone_session(case: Case, file: Foreign, runtime: Runtime) -> Session:
    """Run someone else's graph; UserError where its inputs or sizes do not fit the scenario."""
    ports = tuple(_port(file, pin) for pin in file.inputs)
    output = _logits(case, file)
    fixed = _fixed(case, file, ports)
    if not any(port.value == "mask" for port in ports):
        _check_unmasked(case, file)
    axes = tap_axes(case)
    inner = [pin.name for pin in file.outputs if pin.name in axes and pin.name != output]
    segment = Segment(NAME, ports, (whole_segment(case).outputs[0],))
    facts = Facts(
        dtype="float32",
        layout="recompute",
        substitutions=() if output == "logits" else (f"output {output!r} taken for the logits",),
        unobserved=tuple(
            Unobserved(tap, f"not an output of {file.path.name}")
            for tap in axes
            if tap not in [*inner, "logits"]
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


def _port(file: Foreign, pin: Pin) -> Port:
    value = KNOWN.get(pin.name)
    if value is None:
        raise UserError(f"onnx={file.path}: input {pin} is unknown; name inputs {', '.join(sorted(KNOWN))}")
    if value == "mask" and (pin.dtype not in ("bool", "float32") or len(pin.shape) not in (3, 4)):
        raise UserError(f"onnx={file.path}: {pin} should be bool or float32, [B, T, T] or [B, 1, T, T]")
    return Port(
        pin.name, value, "", tuple(size if isinstance(size, int) else "?" for size in pin.shape), pin.dtype
    )


def _logits(case: Case, file: Foreign) -> str:
    """The output called logits, or the only one; its last size must be the vocabulary's."""
    names = [pin.name for pin in file.outputs]
    name = "logits" if "logits" in names else names[0] if len(names) == 1 else None
    pin = next((pin for pin in file.outputs if pin.name == name), None)
    if pin is None:
        raise UserError(f"onnx={file.path}: none of its outputs {', '.join(names)} is called logits")
    if pin.shape and isinstance(pin.shape[-1], int) and pin.shape[-1] != case.model.vocab_size:
        raise UserError(
            f"onnx={file.path}: {pin} should end in {case.model.vocab_size}, the model's vocabulary"
        )
    return str(name)


def _fixed(case: Case, file: Foreign, ports: Sequence[Port]) -> int | None:
    """Width of a graph that takes no other; batch and width must hold the scenario."""
    ids = next((port for port in ports if port.value == "ids"), None)
    if ids is None or len(ids.shape) != 2:
        raise UserError(
            f"onnx={file.path}: has no input_ids [B, T]; it has {', '.join(map(str, file.inputs))}"
        )
    batch, width = ids.shape
    if isinstance(batch, int) and batch != case.scenario.batch:
        raise UserError(f"onnx={file.path}: made for batch {batch}, the scenario has {case.scenario.batch}")
    total = case.scenario.prompt_length + case.scenario.steps
    if isinstance(width, int) and width < total:
        raise UserError(
            f"onnx={file.path}: takes {width} tokens, prompt and steps are {total}; use fewer --steps"
        )
    return width if isinstance(width, int) else None


def _check_unmasked(case: Case, file: Foreign) -> None:
    scenario = case.scenario
    total = scenario.prompt_length + scenario.steps
    if any(len(row) != scenario.prompt_length for row in scenario.ids):
        raise UserError(
            f"onnx={file.path}: has no mask input, so padding cannot be hidden; use prompts of one length"
        )
    if scenario.policy.window is not None and scenario.policy.window < total:
        raise UserError(
            f"onnx={file.path}: has no mask input, so it attends to all {total} tokens; use --cache full"
        )
