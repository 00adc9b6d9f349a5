"""What every test may use."""

from __future__ import annotations

import os
from collections import Counter
from typing import Any

# Before anything loads torch: spinning threads starve each other where several processes share few cores.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("OMP_NUM_THREADS", "1")

pytest_plugins = ["pytester"]


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Among the last lines: why the tests of real chips did not run, if they did not (tests/toolchain)."""
    reasons = Counter(
        str(report.longrepr[2]).removeprefix("Skipped: ")
        for report in terminalreporter.stats.get("skipped", [])
        if isinstance(report.longrepr, tuple) and "toolchain: NOT RUN" in report.longrepr[2]
    )
    for reason, count in reasons.items():
        terminalreporter.write_line(f"{reason}: {count} tests skipped")
