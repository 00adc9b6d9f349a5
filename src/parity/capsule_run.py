"""Runs this capsule again, alone: `python run.py`, or `python run.py --actual FILE.npz` of a device.

Needs numpy, and onnxruntime (model.onnx) or torch (model.pt2). Prints, per output, how far it is from what
the reference computed: as recorded when the fault was found, and now. Exit status: 0 now within what is
allowed, 1 still departs, 2 cannot run.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Arrays = Mapping[str, npt.NDArray[Any]]

HERE = Path(__file__).resolve().parent


def by_onnxruntime(inputs: Arrays, facts: Mapping[str, Any]) -> Arrays:
    """Outputs of model.onnx by name."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(HERE / "model.onnx"), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    feed = {item.name: inputs[item.name] for item in session.get_inputs()}
    return dict(zip(names, session.run(names, feed), strict=True))


def by_torch(inputs: Arrays, facts: Mapping[str, Any]) -> Arrays:
    """Outputs of model.pt2 in order, under the names that capsule.json gives."""
    import torch

    program = torch.export.load(str(HERE / "model.pt2")).module()
    given = [
        torch.from_numpy(inputs[name]).to(getattr(torch, dtype)) for name, dtype in facts["inputs"].items()
    ]
    with torch.no_grad():
        made = program(*given)
    shown = [value.float().numpy() if value.is_floating_point() else value.numpy() for value in made]
    return dict(zip(facts["outputs"], shown, strict=True))


def error(actual: npt.NDArray[Any], expected: npt.NDArray[Any]) -> float:
    """Relative L2 error, infinite where the shapes differ or something is not finite on one side only."""
    if actual.size != expected.size:
        return float("inf")
    a, e = (part.astype(np.float64).ravel() for part in (actual, expected))
    if not np.array_equal(np.isfinite(a), np.isfinite(e)):
        return float("inf")
    held = np.isfinite(e)
    scale = np.sqrt((e[held] ** 2).sum())
    gap = np.sqrt(((a[held] - e[held]) ** 2).sum())
    return float(gap / scale) if scale else (0.0 if not gap else float("inf"))


def main(arguments: list[str]) -> int:
    """Compute, compare, print."""
    facts = json.loads((HERE / "capsule.json").read_text())
    inputs, expected, recorded = (
        dict(np.load(HERE / f"{name}.npz")) for name in ("inputs", "expected", "actual")
    )
    now: Arrays = {}
    if arguments[:1] == ["--actual"] and len(arguments) == 2:
        now = dict(np.load(arguments[1]))
    elif arguments:
        print(__doc__)
        return 2
    elif (HERE / "model.onnx").exists():
        now = by_onnxruntime(inputs, facts)
    elif (HERE / "model.pt2").exists():
        now = by_torch(inputs, facts)
    else:
        print(f"nothing to run: {facts['not_packed']}")
        return 2
    wrong = compared = 0
    print(f"{facts['candidate']}: {facts['tap']} at step {facts['step']}: {facts['evidence']}")
    print(f"{'tap':<28}{'allowed':>12}{'recorded':>12}{'now':>12}")
    for tap, right in expected.items():
        if tap not in now:
            continue
        allowed, is_now = facts["allowed"].get(tap), error(now[tap], right)
        was = error(recorded[tap], right) if tap in recorded else float("nan")
        compared += 1
        wrong += is_now > (0.0 if allowed is None else allowed)
        print(f"{tap:<28}{allowed if allowed is not None else 0.0:>12.2e}{was:>12.2e}{is_now:>12.2e}")
    if not compared:
        print("nothing was compared: no output has the name of a tap")
        return 2
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
