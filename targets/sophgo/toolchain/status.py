"""What is there, as plain data: for `parity toolchain status`, `parity doctor` and scripts."""

from __future__ import annotations

import shutil
import subprocess
from typing import Any

from parity.harness.errors import UserError

from .choice import folder, read_choice, why_missing
from .hostlibs import NEEDED_GLIBCXX, host
from .install import half_made
from .lock import held
from .packages import size_of


def status() -> dict[str, Any]:
    """Facts of the chosen toolchain, of this host, and of what an interrupted install left."""
    found: dict[str, Any] = {
        "usable": why_missing() is None,
        "reason": why_missing(),
        "changing": held(),
        "half_made": [str(path) for path in half_made()],
        "downloaded_bytes": size_of(folder() / "wheels"),
        "host": host_facts(),
        "cache": str(folder()),
        "cache_free_bytes": _free(),
        "toolchain": None,
    }
    try:
        facts = read_choice()
    except UserError:
        return found
    if facts is not None:
        found["toolchain"] = {**facts, "python_version": _python_version(facts["python"])}
    return found


def host_facts() -> dict[str, Any]:
    """glibc, libstdc++ and the rest of what the programs need of this host."""
    here = host()
    libstdcxx, libtinfo = here.libraries["libstdc++.so.6"], here.libraries["libtinfo.so.6"]
    return {
        "glibc": ".".join(map(str, here.glibc)) if here.glibc else None,
        "libstdc++": str(libstdcxx) if libstdcxx else None,
        NEEDED_GLIBCXX: here.new_libstdcxx,
        "libtinfo": str(libtinfo) if libtinfo else None,
        "problems": here.problems(),
    }


def _free() -> int:
    nearest = next(path for path in (folder(), *folder().parents) if path.exists())
    return shutil.disk_usage(nearest).free


def _python_version(python: str | None) -> str | None:
    """What it says itself; None when there is none or it does not answer."""
    if python is None:
        return None
    try:
        done = subprocess.run([python, "--version"], capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip().removeprefix("Python ") or None
