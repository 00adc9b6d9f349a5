"""What the rows of a cache really hold, where they are not the ones that were appended."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .examine import CacheFault as CacheFault
    from .examine import examine as examine
    from .examine import with_forensics as with_forensics

_HOME = {"CacheFault": "examine", "examine": "examine", "with_forensics": "examine"}


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f".{_HOME[name]}", __name__), name)
