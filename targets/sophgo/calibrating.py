"""Calibration tables for int8: thresholds of real activations of the case."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from parity.harness.case import Case, Wiring
from parity.harness.progress import Progress
from parity.harness.values import Values

from ..onnx.runtime import OnnxExecutor
from ..onnx.session import CachePlan
from .asked import Asked
from .graphs import ChipGraph

if TYPE_CHECKING:
    from .toolchain import Toolchain


def calibration_tables(
    case: Case,
    asked: Asked,
    wiring: Wiring,
    rows: CachePlan,
    made: Mapping[str, ChipGraph],
    onnx: OnnxExecutor,
    reference: Values | None,
    toolchain: Toolchain,
    cache: Path,
    progress: Progress,
) -> dict[str, Path]:
    """Segment -> table; empty for modes that need none."""
    return {}
