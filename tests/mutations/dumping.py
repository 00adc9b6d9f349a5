"""A dump as a device would write it: the records of a healthy run of the segments, through one hook."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

import parity
from parity.targets.dumps import parity_dump

Steps = list[dict[str, Any]]


def finished(steps: Steps) -> Steps:
    """What is written; a planted bug stands in the place of this function."""
    return steps


def written(folder: Path, trace: str, run: str) -> Path:
    """The dump of a stored run."""
    steps: dict[int, dict[str, Any]] = {}
    for record in parity.Trace(trace)[run].records():
        step = steps.setdefault(record.step, {"index": record.step, "tokens": None, "records": []})
        if record.tap == "ids":
            step["tokens"] = record.read().tolist()
            continue
        positions = None if record.positions is None else np.atleast_2d(record.positions).tolist()
        said = {"tap": record.tap, "call": record.call, "axes": record.axes, "positions": positions}
        step["records"].append({**said, "array": record.read()})
    parity_dump.write(folder, finished(list(steps.values())))
    return folder
