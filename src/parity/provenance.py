"""Where a comparison's sides came from, as reports show it."""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Mapping
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


def observer_findings(run: Run, reference: Run) -> list[Finding]:
    """What tapping changed: outputs of the tapped build that differ from the clean build's.

    Of the reference only what is more than rounding.
    """
    trusted = list(_disturbing(_effect(reference), f"the reference {reference.name}: "))
    effect = _effect(run)
    changed = {name: seen["max_abs"] for name, seen in effect.items() if not seen["bitwise"]}
    if not changed:
        return trusted
    worst = max(changed, key=lambda name: changed[name])
    text = f"tapping changed {len(changed)} of {len(effect)} outputs, most {worst}, by {changed[worst]:.3g}"
    note = Finding("note", f"{text}; what flows on and is judged is the clean build's")
    return [note, *_disturbing(effect), *trusted]


def _effect(run: Run) -> Mapping[str, Mapping[str, Any]]:
    found: Mapping[str, Mapping[str, Any]] = run.provenance.get("details", {}).get("observer_effect", {})
    return found


def _disturbing(effect: Mapping[str, Mapping[str, Any]], whose: str = "") -> Iterator[Finding]:
    """Which taps change outputs by more than rounding: their inner values may not be the clean build's."""
    disturbed = {name: seen for name, seen in effect.items() if "taps" in seen}
    for names in dict.fromkeys(tuple(seen["taps"]) for seen in disturbed.values()):
        outputs = {name: seen for name, seen in disturbed.items() if tuple(seen["taps"]) == names}
        worst = max(outputs, key=lambda name: outputs[name]["max_abs"])
        more = f" and {len(outputs) - 1} more outputs" if len(outputs) > 1 else ""
        size = f"{worst}{more} by {outputs[worst]['max_abs']:.3g}"
        text = f"as outputs these taps change {size}: {'; '.join(names)}"
        if not names:
            text = f"the graph exported with taps changes {size}, whichever of them are outputs"
        level = "warning" if any(seen["grave"] for seen in outputs.values()) else "note"
        yield Finding(level, f"{whose}{text}; inner values are of that build, not of the clean one")


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
