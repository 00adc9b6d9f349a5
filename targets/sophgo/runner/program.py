"""The device program as one file: a zip of its modules that any Python runs.

Stored, not packed: a board's Python may lack zlib. The bytes depend on the sources alone.
"""

from __future__ import annotations

import io
import os
import threading
import zipfile
from pathlib import Path

NAME = "runner.pyz"
_FOLDER = Path(__file__).with_name("device")
_START = "import sys\nfrom parity_device.main import main\nsys.exit(main(sys.argv[1:]))\n"


def program() -> bytes:
    """The file's bytes."""
    sources = {f"parity_device/{path.name}": path.read_text("utf-8") for path in sorted(_FOLDER.glob("*.py"))}
    packed = io.BytesIO()
    packed.write(b"#!/usr/bin/env python3\n")
    with zipfile.ZipFile(packed, "a") as archive:
        for name, text in {"__main__.py": _START, **sources}.items():
            archive.writestr(zipfile.ZipInfo(name), text)
    return packed.getvalue()


def write_program(folder: Path) -> Path:
    """Write it into a folder, beside and then renamed as others may be starting it; returns its path."""
    path = folder / NAME
    beside = path.with_name(f".{NAME}.{os.getpid()}.{threading.get_ident()}")
    beside.write_bytes(program())
    beside.chmod(0o755)
    beside.replace(path)
    return path
