"""A tiny network through the whole chain: converted, compiled, run on the simulator, held against numpy."""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np

from parity.harness.errors import ParityError, UserError
from parity.harness.progress import Progress, Silent

from .choice import choice_file, read_facts, write_facts
from .install import MARKER
from .lock import locked
from .probe import scratch
from .toolchain import Toolchain

#: Chip -> mode; one of each family of chips, runtimes and simulators.
MODES = {"cv181x": "bf16", "bm1684x": "f16"}
#: |actual - expected| over the largest |expected|: 4 times what bf16's 8 and f16's 11 bits round to at once.
BOUNDS = {"bf16": 2.0**-6, "f16": 2.0**-9}
_SHAPE = (1, 8, 32)


@dataclass(frozen=True)
class ChipTest:
    """`worst`: largest error over the largest value; `reason`: why it failed, None if it did not."""

    mode: str
    seconds: float
    worst: float | None
    reason: str | None


def selftest(toolchain: Toolchain, progress: Progress) -> dict[str, Any]:
    """Compile and simulate on each chip of MODES, and keep the result beside the choice.

    Returns {"passed", "when", "version", "chips": {chip: ChipTest as a dict}}. UserError for a toolchain that
    converts no ONNX: the test begins with that.
    """
    if toolchain.python is None:
        raise UserError(
            "self-test: cannot be run: it begins with converting ONNX, and no Python 3.10 goes with "
            f"{str(toolchain.root)!r}; `parity toolchain use {toolchain.root} --python PATH` names one"
        )
    chips = {}
    with progress.stage("self-test", len(MODES)) as bar:
        for chip, mode in MODES.items():
            chips[chip] = vars(_tested(toolchain, chip, mode))
            bar.advance()
    passed = not any(one["reason"] for one in chips.values())
    result = {
        "passed": passed,
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "version": toolchain.version,
        "chips": chips,
    }
    _keep(toolchain, result, progress)
    return result


def _keep(toolchain: Toolchain, result: dict[str, Any], progress: Progress) -> None:
    """In the choice, and with an environment of ours in its own facts, if they are still the same."""
    with locked(progress.say):
        for path in (choice_file(), *([] if toolchain.adopted else [toolchain.root / MARKER])):
            facts = read_facts(path)
            if facts and facts["root"] == str(toolchain.root):
                write_facts(path, {**facts, "selftest": result})


def _tested(toolchain: Toolchain, chip: str, mode: str) -> ChipTest:
    begin = time.perf_counter()
    worst, reason = None, None
    try:
        worst = _error(toolchain, chip, mode)
        if not worst <= BOUNDS[mode]:
            reason = f"its result is off by {worst:.2g} of the largest value, more than {BOUNDS[mode]:.2g}"
    except ParityError as error:
        reason = str(error)
    return ChipTest(mode, time.perf_counter() - begin, worst, reason)


def _error(toolchain: Toolchain, chip: str, mode: str) -> float:
    """Largest |simulated - numpy| over the largest |numpy|."""
    from ..compile import CompileJob, compile_model
    from ..runner.client import Device

    model, x, expected = network()
    name = f"selftest_{chip}"
    with scratch() as work:
        job = CompileJob(
            name=name, onnx=model, chip=chip, mode=mode, group_size=None, calibration=None, qtable=None,
            outputs=("y",), taps={"y": "y"},
        )  # fmt: skip
        artefact = compile_model(job, toolchain, work / "cache", Silent())
        with Device(chip, {name: artefact.file}, toolchain, log=work / "simulator.log") as device:
            (output,) = device.call(name, {"x": x})
    actual = output.real.reshape(expected.shape)
    return float(np.abs(actual - expected).max() / np.abs(expected).max())


def network() -> tuple[bytes, np.ndarray, np.ndarray]:
    """ONNX of y = relu(x @ w + b) @ v + x, an input, and what numpy computes of it in float64."""
    from onnx import TensorProto, helper, numpy_helper

    numbers, width = np.random.default_rng(0), _SHAPE[-1]
    shapes = (_SHAPE, (width, width), (width,), (width, width))
    x, w, b, v = (numbers.normal(size=shape).astype(np.float32) for shape in shapes)
    nodes = [
        helper.make_node(kind, taken, [given])
        for kind, taken, given in (
            ("MatMul", ["x", "w"], "p"),
            ("Add", ["p", "b"], "q"),
            ("Relu", ["q"], "r"),
            ("MatMul", ["r", "v"], "s"),
            ("Add", ["s", "x"], "y"),
        )
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, _SHAPE) for name in ("x", "y")]
    weights = [numpy_helper.from_array(array, name) for name, array in (("w", w), ("b", b), ("v", v))]
    graph = helper.make_graph(nodes, "selftest", ends[:1], ends[1:], weights)
    # What the converter's own onnx still reads: opset 17 and IR 9 at most.
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    return model.SerializeToString(), x, np.maximum(x.astype(np.float64) @ w + b, 0) @ v + x
