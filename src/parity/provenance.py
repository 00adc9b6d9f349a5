"""Where a comparison's sides came from, as reports show it."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from parity.harness.comparison import Finding, Side
from parity.harness.trace import Run, Trace

from .recorder import ISOLATED

if TYPE_CHECKING:
    from .request import Request


def isolated_of(trace: Trace, name: str) -> Run | None:
    """The isolated replay that belongs to a run: it was opened right after it."""
    runs = trace.runs
    at = next(place for place, run in enumerate(runs) if run.label == trace[name].label)
    follows = runs[at + 1] if at + 1 < len(runs) else None
    return follows if follows is not None and follows.name == runs[at].name + ISOLATED else None


def side_of(run: Run, label: str, path: str) -> Side:
    shown: Mapping[str, Any] = {
        key: value for key, value in run.provenance.items() if key not in ("wiring", "roles", "seconds")
    }
    return Side(label, run.name, run.target, path, dict(shown), tuple(run.provenance.get("seconds", ())))


def observer_findings(run: Run) -> list[Finding]:
    """What tapping changed: outputs of the tapped build that differ from the clean build's."""
    effect = run.provenance.get("details", {}).get("observer_effect", {})
    changed = {name: seen["max_abs"] for name, seen in effect.items() if not seen["bitwise"]}
    if not changed:
        return []
    worst = max(changed, key=lambda name: changed[name])
    text = f"tapping changed {len(changed)} of {len(effect)} outputs, most {worst}, by {changed[worst]:.3g}"
    return [Finding("note", f"{text}; what flows on and is judged is the clean build's")]


def environment(request: Request, reference: Run) -> dict[str, Any]:
    import platform
    from dataclasses import asdict
    from importlib.metadata import version

    silent = ("None", "()", "False")
    asked = {key: str(value) for key, value in asdict(request).items() if str(value) not in silent}
    libraries = {name: version(name) for name in ("parity", "torch", "numpy", "onnxruntime", "onnx", "h5py")}
    return {
        "model": reference.provenance.get("model", "unknown"),
        "scenario": reference.provenance.get("scenario", {}).get("name", "inputs"),
        "cache policy": reference.provenance.get("policy", "none"),
        "created": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "request": asked,
        "libraries": libraries,
        "host": platform.platform(),
        "python": platform.python_version(),
    }
