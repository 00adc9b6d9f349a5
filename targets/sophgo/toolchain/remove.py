"""`parity toolchain remove`: what `install` made; an adopted toolchain is only forgotten."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

from parity.harness.errors import UserError
from parity.harness.progress import Progress

from .choice import choice_file, folder
from .lock import locked
from .packages import size_of

#: Found by their names, never by what a file says: nothing outside the cache can be named here.
_PATTERNS = (
    "tpu-mlir-*",
    "wheels",
    "tmp",
    "views",
    "probe-*",
    "install.log",
    "tpu-mlir.json",
    "tpu-mlir.failed",
)


def removable() -> dict[Path, int]:
    """What is ours, and its bytes."""
    return {path: _bytes(path) for path in _paths()}


def _paths() -> Iterator[Path]:
    for pattern in _PATTERNS:
        yield from sorted(folder().glob(pattern))


def _bytes(path: Path) -> int:
    return size_of(path) if path.is_dir() and not path.is_symlink() else path.lstat().st_size


def remove(progress: Progress) -> int:
    """Remove it, the choice first, so that no half of it is ever taken for the whole; bytes freed."""
    if not folder().is_dir():
        return 0
    with locked(progress.say):
        found = removable()
        choice_file().unlink(missing_ok=True)
        for path in found:
            _delete(path)
    return sum(found.values())


def _delete(path: Path) -> None:
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"{path}: cannot be removed: {error.strerror}") from error
