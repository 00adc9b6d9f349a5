"""One install, adoption or removal at a time."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from parity.harness.errors import UserError

from .choice import folder


def lock_file() -> Path:
    """Held while something is changed; holds the process id of who does."""
    return folder() / "tpu-mlir.lock"


@contextmanager
def locked(say: Callable[[str], object]) -> Iterator[int]:
    """Wait for the lock, and say for whom; yields its descriptor.

    Children that inherit the descriptor keep the lock until they are gone, so that an install that was killed
    is not begun again while its last child still writes.
    """
    path = lock_file()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise UserError(
            f"cache={str(path.parent)!r}: cannot be written to: {error.strerror}; "
            "set PARITY_CACHE to a folder that can"
        ) from error
    try:
        _wait(descriptor, say)
        os.truncate(descriptor, 0)
        os.pwrite(descriptor, str(os.getpid()).encode(), 0)
        yield descriptor
    finally:
        os.close(descriptor)


def _wait(descriptor: int, say: Callable[[str], object]) -> None:
    said = False
    while not _taken(descriptor):
        if not said:
            holder = os.pread(descriptor, 32, 0).decode(errors="replace") or "another"
            say(f"waiting for process {holder}, which is changing the toolchain")
            said = True
        time.sleep(0.2)


def _taken(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def held() -> bool:
    """Whether somebody holds it now."""
    try:
        descriptor = os.open(lock_file(), os.O_RDWR)
    except OSError:
        return False
    try:
        return not _taken(descriptor)
    finally:
        os.close(descriptor)
