"""Default-size KLM on the CV181x simulator: a run of 16 steps, isolation on 4 of them, and the report.

Goal: under 90 s on 2 cores with an empty cache of exports and artefacts, the simulator under 2 s per step.
The weights are seeded. The toolchain must be installed; its cache is left alone, all else goes to a
temporary folder. Printed besides: the same run again, from the cache.
"""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

import parity
from parity.harness.folders import cache_folder


def main() -> None:
    """Both runs, in seconds."""
    toolchains = cache_folder() / "toolchains"
    with tempfile.TemporaryDirectory(prefix="parity-bench-") as folder:
        own = Path(folder) / "cache"
        own.mkdir()
        (own / "toolchains").symlink_to(toolchains)
        os.environ["PARITY_CACHE"] = str(own)
        for name in ("cold", "cached"):
            begin = time.perf_counter()
            result = parity.run(
                cand="cvi", model="klm", weights="random:0", steps=16, out=Path(folder) / name
            )
            took = time.perf_counter() - begin
            found = result["cvi"]
            steps = found.candidate.seconds[1:]
            isolated = found.candidate.provenance["details"]
            print(
                f"{name}: {took:.1f} s in all (goal 90), {found.verdict}, "
                f"{sorted(steps)[len(steps) // 2]:.2f} s a step in the middle (goal 2), "
                f"{isolated['effective_formats']}"
            )


if __name__ == "__main__":
    main()
