"""What the toolchain's own environment holds: the least that converts, compiles, simulates and calibrates."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

VERSION = "1.30.2"
#: Package -> version. TPU-MLIR itself declares 70, with two builds of torch and OpenCV among them.
PINNED = {
    "numpy": "1.24.3",
    "onnx": "1.14.1",
    "protobuf": "3.20.3",
    "onnxruntime": "1.16.3",
    "flatbuffers": "25.12.19",
    "onnxsim": "0.4.17",
    "rich": "15.0.0",
    "markdown-it-py": "4.3.0",
    "mdurl": "0.1.2",
    "pygments": "2.21.0",
    # the stock calibrator
    "scipy": "1.11.1",
    "tqdm": "4.65.0",
    "psutil": "7.2.2",
}
#: Measured for the versions above, bytes; only bars and the check of the disk depend on them.
COMPILER_BYTES = 312_000_000
OTHERS_BYTES = 80_000_000
INSTALLED_BYTES = 1_250_000_000
UNPACKED_BYTES = 915_000_000
VENV_BYTES = 15_000_000


def requirements(version: str) -> list[str]:
    """What pip is asked for; the compiler, four fifths of the bytes, comes first."""
    return [f"tpu_mlir=={version}", *(f"{name}=={pin}" for name, pin in PINNED.items())]


def size_of(folder: Path) -> int:
    """Bytes of the files below `folder`; what vanishes while it is counted does not count."""
    total, folders = 0, [str(folder)]
    while folders:
        here, below = _level(folders)
        total, folders = total + here, below
    return total


def _level(folders: list[str]) -> tuple[int, list[str]]:
    """Bytes of the files right in these folders, and the folders below them."""
    total, below = 0, []
    for name in folders:
        with suppress(OSError), os.scandir(name) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    below.append(entry.path)
                else:
                    total += entry.stat(follow_symlinks=False).st_size
    return total, below
