"""How long compiling takes: the seven default-size KLM segments for cv181x in BF16, cold and from the cache.

    python tests/bench/bench_compile.py

Cold is a whole `parity compile` in a process of its own with an empty cache: torch, the export, the
conversion, the compiler. From the cache is the same command again.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from parity.harness.folders import cache_folder
from parity.targets.sophgo.toolchain import why_missing

WORDS = ("--model", "klm", "--weights", "random:0", "--chip", "cv181x", "--mode", "bf16")
CODE = "import sys; from parity.cli import main; main()"


def seconds(cache: Path, out: Path) -> float:
    """One `parity compile`."""
    begin = time.perf_counter()
    subprocess.run(
        [sys.executable, "-c", CODE, "compile", *WORDS, "--out", str(out)],
        env={**os.environ, "PARITY_CACHE": str(cache)},
        capture_output=True,
        check=True,
    )
    return time.perf_counter() - begin


def main() -> None:
    """Measure and print."""
    reason = why_missing()
    if reason is not None:
        print(f"compile: NOT RUN ({reason})")
        return
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder) / "cache"
        cache.mkdir()
        (cache / "toolchains").symlink_to(cache_folder().absolute() / "toolchains")
        cold = seconds(cache, Path(folder) / "out")
        again = min(seconds(cache, Path(folder) / "out") for _ in range(3))
    print(f"klm, 7 segments, cv181x bf16: cold {cold:.1f} s, from the cache {again:.2f} s (aim: 20, 1)")


if __name__ == "__main__":
    main()
