"""Which C libraries this host's own loader loads: found by loading them, in a child process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from parity.harness.errors import UserError

#: Without these no program of the toolchain starts.
REQUIRED = ("libc.so.6", "libm.so.6", "libpthread.so.0", "libdl.so.2", "librt.so.1", "libtinfo.so.6")
#: The package brings its own of these.
OPTIONAL = ("libgcc_s.so.1", "libstdc++.so.6", "libz.so.1")
#: GCC 12, with which the package was built.
NEEDED_GLIBCXX = "GLIBCXX_3.4.30"
OLDEST_GLIBC = (2, 34)

#: Loads each name, then asks the kernel which file that was. Isolated: nothing of ours is on its path.
_PROBE = """
import ctypes, json, os, sys
found = {}
for name in sys.argv[1:]:
    try:
        ctypes.CDLL(name)
    except OSError as error:
        found[name] = [None, str(error)]
with open("/proc/self/maps") as maps:
    files = {line.split(None, 5)[5].strip() for line in maps if ".so" in line}
for name in sys.argv[1:]:
    if name not in found:
        stem = name.split(".so")[0]
        same = [file for file in files if os.path.basename(file) == name]
        near = [file for file in files if os.path.basename(file).split(".so")[0].split("-")[0] == stem]
        found[name] = [(same or near or [None])[0], "it was loaded from no file"]
try:
    glibc = os.confstr("CS_GNU_LIBC_VERSION")
except (ValueError, OSError):
    glibc = None
print(json.dumps({"libraries": found, "glibc": glibc}))
"""


@dataclass(frozen=True)
class Host:
    """`libraries`: soname -> file, or None; `reasons`: why not; `glibc`: (2, 36), or None without one."""

    libraries: dict[str, Path | None]
    reasons: dict[str, str]
    glibc: tuple[int, ...] | None

    @property
    def new_libstdcxx(self) -> bool:
        """Whether this host's libstdc++ is new enough for the package."""
        file = self.libraries["libstdc++.so.6"]
        return file is not None and NEEDED_GLIBCXX.encode() in file.read_bytes()

    def problems(self) -> list[str]:
        """What keeps the toolchain's programs from starting here; empty when nothing does."""
        if sys.platform != "linux" or os.uname().machine != "x86_64":
            machine = f"{sys.platform} {os.uname().machine}"
            return [f"machine={machine}: TPU-MLIR is built for Linux on x86-64 only"]
        if self.glibc is None:
            return ["libc: this system has no glibc; TPU-MLIR needs glibc 2.34 or newer (no musl)"]
        if self.glibc < OLDEST_GLIBC:
            return [
                f"glibc={'.'.join(map(str, self.glibc))}: TPU-MLIR needs 2.34 or newer "
                "(Debian 12, Ubuntu 22.04, RHEL 9)"
            ]
        return [
            f"{name}: {self.reasons[name]}; install the system package that holds it"
            + (" (libtinfo6, or ncurses-libs)" if "tinfo" in name else "")
            for name in REQUIRED
            if self.libraries[name] is None
        ]


@cache
def host() -> Host:
    """What was found, once per process (40 ms)."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("LD_")}
    done = subprocess.run(
        [sys.executable, "-I", "-c", _PROBE, *REQUIRED, *OPTIONAL],
        capture_output=True, text=True, check=False, env=clean,
    )  # fmt: skip
    if done.returncode:
        raise UserError(f"host libraries: the probe died ({done.returncode}): {done.stderr.strip()[-200:]}")
    found = json.loads(done.stdout)
    words = (found["glibc"] or "").split()
    return Host(
        libraries={name: Path(file) if file else None for name, (file, _) in found["libraries"].items()},
        reasons={name: reason for name, (_, reason) in found["libraries"].items()},
        glibc=tuple(map(int, words[1].split(".")[:2])) if words[:1] == ["glibc"] else None,
    )
