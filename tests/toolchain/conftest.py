"""The real toolchain. Without it its tests skip with the reason, or fail where it is required."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from parity.targets.sophgo.toolchain import Toolchain, installed, why_missing


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Compilers and simulators take their time: all of it belongs to the slow tests."""
    for item in items:
        if item.path.parent == Path(__file__).parent:
            item.add_marker(pytest.mark.slow)


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
