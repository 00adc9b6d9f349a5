"""What one thread is doing: its scopes, its step, where its records go.

Everything is thread-local, so threads never mix, and torch.compile can trace reads of it (it cannot
trace a ContextVar). `live` is the one flag that a disabled tap looks at.
"""

from __future__ import annotations

import sys
import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .recorder import Recorder, StepMark


class ThreadState(threading.local):
    """One thread's tracer.

    `scopes` are the open executing() names. `traced` are those that were opened inside a function that
    torch.compile is tracing: compiled code must not depend on the scopes around it, or each layer would
    be compiled anew. At most one of the two grows at a time, `traced` always being the deeper part.
    `hooked` counts the open tap_modules().
    """

    def __init__(self) -> None:
        self.live = False
        self.scopes: list[str] = []
        self.traced: list[str] = []
        self.recorder: Recorder | None = None
        self.mark: StepMark | None = None
        self.collected: dict[str, Any] | None = None
        self.hooked = 0


local = ThreadState()


def refresh() -> None:
    """Set the flag that disabled taps look at; call after every change of recorder or collection."""
    local.live = local.recorder is not None or local.collected is not None


def in_dynamo() -> bool:
    """Whether torch.compile or a strict torch.export is tracing this very call.

    Not `is_compiling`: that is also true in non-strict export, where taps must be collected.
    """
    torch = sys.modules.get("torch")
    return torch is not None and torch.compiler.is_dynamo_compiling()


def exporting() -> bool:
    """Whether torch.export or one of the ONNX exporters is running the model on this thread."""
    torch = sys.modules.get("torch")
    if torch is None:
        return False
    return bool(torch.compiler.is_exporting() or torch.jit.is_tracing())


def full_name(name: str) -> str:
    """Open scopes and the name, joined by dots; the original tool's leading dot is not kept."""
    return ".".join([*local.scopes, *local.traced, name]).lstrip(".")
