"""The real toolchain. Without it its tests skip with the reason, or fail where it is required."""

from __future__ import annotations

import os

import pytest

from parity.targets.sophgo.toolchain import Toolchain, installed, why_missing


@pytest.fixture(scope="session")
def toolchain() -> Toolchain:
    """The installed TPU-MLIR (`make toolchain`); PARITY_REQUIRE_TOOLCHAIN=1 makes its lack a failure."""
    reason = why_missing()
    if reason is None and installed().python is None:
        reason = "toolchain=tpu-mlir: is there without a Python 3.10, so that it converts no ONNX"
    if reason is None:
        return installed()
    if os.environ.get("PARITY_REQUIRE_TOOLCHAIN") == "1":
        pytest.fail(f"PARITY_REQUIRE_TOOLCHAIN=1, but {reason}", pytrace=False)
    pytest.skip(f"toolchain: NOT RUN ({reason})")
