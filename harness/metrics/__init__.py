"""Metrics of pairs of arrays. The compiled pass is loaded when something is first measured."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .histogram import Histogram as Histogram
    from .histogram import Joint as Joint
    from .logits import LogitMetrics as LogitMetrics
    from .logits import measure_logits as measure_logits
    from .many import Kind as Kind
    from .many import Survey as Survey
    from .many import survey as survey
    from .measurer import Measurer as Measurer
    from .measurer import measure as measure
    from .metrics import Metrics as Metrics
    from .profile import RowStats as RowStats
    from .profile import SliceProfile as SliceProfile

_HOME = {
    "Histogram": "histogram",
    "Joint": "histogram",
    "LogitMetrics": "logits",
    "measure_logits": "logits",
    "Measurer": "measurer",
    "measure": "measurer",
    "Metrics": "metrics",
    "RowStats": "profile",
    "SliceProfile": "profile",
    "Kind": "many",
    "Survey": "many",
    "survey": "many",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(f".{_HOME[name]}", __name__), name)
    globals()[name] = value
    return value
