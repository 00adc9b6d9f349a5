"""ONNX -> artefacts of Sophgo chips by the real compiler, with names and number formats read back.

Names are loaded when they are first used: an artefact out of the cache costs no ONNX.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .artefact import compile_model as compile_model
    from .artefact import stored_artefact as stored_artefact
    from .batch import compile_models as compile_models
    from .calibration import CALIBRATORS as CALIBRATORS
    from .calibration import calibrate as calibrate
    from .chips import CHIPS as CHIPS
    from .chips import MODES as MODES
    from .chips import Chip as Chip
    from .chips import Mode as Mode
    from .combined import combine as combine
    from .finding import Finding as Finding
    from .interpreter import Interpreter as Interpreter
    from .job import Artefact as Artefact
    from .job import CompileJob as CompileJob
    from .linter import lint as lint

_NAMES = {
    "compile_model": ".artefact",
    "stored_artefact": ".artefact",
    "compile_models": ".batch",
    "CALIBRATORS": ".calibration",
    "calibrate": ".calibration",
    "CHIPS": ".chips",
    "MODES": ".chips",
    "Chip": ".chips",
    "Mode": ".chips",
    "combine": ".combined",
    "Finding": ".finding",
    "Interpreter": ".interpreter",
    "Artefact": ".job",
    "CompileJob": ".job",
    "lint": ".linter",
}


def __getattr__(name: str) -> Any:
    if name not in _NAMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_NAMES[name], __name__), name)
