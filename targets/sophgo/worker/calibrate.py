"""The toolchain's own calibrator, run as it is run by hand."""

from __future__ import annotations

import os
import runpy
import sys
from collections.abc import Sequence


def calibrate(arguments: Sequence[str]) -> None:
    """Arguments: those of `run_calibration.py`, in the current folder."""
    (package,) = sys.modules["tpu_mlir"].__path__
    sys.argv = ["run_calibration.py", *arguments]
    runpy.run_path(os.path.join(package, "python", "tools", sys.argv[0]), run_name="__main__")
