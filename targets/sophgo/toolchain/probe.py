"""What of a toolchain starts on this machine: everything is executed or loaded, in children."""

from __future__ import annotations

import hashlib
import json
import mmap
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from .chips import CHIP_LIBRARIES, chip_libraries
from .choice import folder
from .toolchain import Toolchain

_SECONDS = 60
_VERSION = re.compile(rb"v(\d+\.\d+\.\d+-[0-9a-z][0-9a-z.-]*)")
#: What converting and interpreting import; the converter itself is a matter of the compile package.
_BINDINGS = """
import json, sys
sys.path.insert(0, sys.argv[1])
import numpy, onnx, onnxruntime, onnxsim, pymlir
from mlir.ir import Context
print(json.dumps({"version": getattr(pymlir, "__version__", "")}))
"""
_LOAD = "import ctypes, sys\nfor path in sys.argv[1:]:\n    ctypes.CDLL(path, ctypes.RTLD_GLOBAL)"


@dataclass(frozen=True)
class Probe:
    """`version`; why the compiler or the bindings do not start (None: they do); the same per chip."""

    version: str
    compiler: str | None
    bindings: str | None
    chips: dict[str, str | None]


def probe(toolchain: Toolchain) -> Probe:
    """Start the compiler, load the bindings and each chip's libraries; about 2 s."""
    with scratch() as work:
        compiler = _run(toolchain, [toolchain.tool("tpuc-opt"), "--version"], work)
        told, bindings = _bindings(toolchain, work)
        return Probe(
            version=told or text_version(toolchain.tool("tpuc-opt")),
            compiler=_reason(compiler),
            bindings=bindings,
            chips={chip: _chip(toolchain, chip, work) for chip in CHIP_LIBRARIES},
        )


@contextmanager
def scratch() -> Iterator[Path]:
    """A work folder in the cache, gone afterwards."""
    folder().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="probe-", dir=folder()) as name:
        yield Path(name)


def bindings_reason(toolchain: Toolchain) -> str | None:
    """Why `toolchain.python` cannot load the bindings; None when it can."""
    with scratch() as work:
        return _bindings(toolchain, work)[1]


def _bindings(toolchain: Toolchain, work: Path) -> tuple[str, str | None]:
    """The version that the bindings tell, and why they do not load."""
    if toolchain.python is None:
        return "", "no Python 3.10 goes with it"
    argv: list[str | Path] = [toolchain.python, "-c", _BINDINGS, toolchain.package / "python"]
    done = _run(toolchain, argv, work)
    if reason := _reason(done):
        return "", reason
    version = json.loads(done.stdout.splitlines()[-1])["version"]
    return str(version).removeprefix("v"), None


def _chip(toolchain: Toolchain, chip: str, work: Path) -> str | None:
    files = chip_libraries(toolchain.package, chip).values()
    if absent := [file.name for file in files if not file.is_file()]:
        return f"has no {', '.join(absent)}"
    argv = [sys.executable, "-I", "-c", _LOAD, *map(str, files)]
    return _reason(_run(toolchain, argv, work, chip=chip))


def _run(
    toolchain: Toolchain, argv: Sequence[str | Path], work: Path, *, chip: str = "cv181x"
) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            argv, env=toolchain.environment(chip, work), cwd=work, stdin=subprocess.DEVNULL,
            capture_output=True, text=True, errors="replace", timeout=_SECONDS, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        return subprocess.CompletedProcess(argv, 1, "", str(error))


def _reason(done: subprocess.CompletedProcess[str]) -> str | None:
    """None for status 0; else its last word."""
    if done.returncode == 0:
        return None
    lines = (done.stderr.strip() or done.stdout.strip()).splitlines()
    ended = f"dies of signal {-done.returncode}" if done.returncode < 0 else f"exits {done.returncode}"
    return f"{ended}: {lines[-1][:300] if lines else 'without a word'}"


def text_version(compiler: Path) -> str:
    """The version text inside the compiler's file; one made of its digest where it holds none."""
    with compiler.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        found = _VERSION.search(data)
        return found[1].decode() if found else f"unknown-{hashlib.sha256(data).hexdigest()[:12]}"
