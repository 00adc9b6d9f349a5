"""What every test may use."""

from __future__ import annotations

import os

# Before anything loads torch: spinning threads starve each other where several processes share few cores.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("OMP_NUM_THREADS", "1")

pytest_plugins = ["pytester"]
