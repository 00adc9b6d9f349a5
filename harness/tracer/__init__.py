"""The tracer: named points in a running model, recorded as they happen (DESIGN section 4).

Nothing here loads torch, numpy or h5py until a tensor is really recorded.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .compare_verb import TraceComparison as TraceComparison
    from .compare_verb import compare as compare
    from .modules import ModuleTaps as ModuleTaps
    from .modules import tap_modules as tap_modules
    from .recorder import Nowhere as Nowhere
    from .recorder import Recorder as Recorder
    from .recorder import Sink as Sink
    from .running import running as running
    from .taps import collecting as collecting
    from .taps import executing as executing
    from .taps import recording as recording
    from .taps import step as step
    from .taps import trace_tensor as trace_tensor

_HOMES = {
    "TraceComparison": "compare_verb",
    "compare": "compare_verb",
    "ModuleTaps": "modules",
    "tap_modules": "modules",
    "Nowhere": "recorder",
    "Recorder": "recorder",
    "Sink": "recorder",
    "running": "running",
    "collecting": "taps",
    "executing": "taps",
    "recording": "taps",
    "step": "taps",
    "trace_tensor": "taps",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value
