"""The vendor's libraries, as the loader of the board or of the simulator finds them."""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import threading
from collections.abc import Sequence
from typing import Any

from .tensors import Failure


def library(folder: str, names: Sequence[str]) -> ctypes.CDLL:
    """The first of some sonames that loads, from a folder or by the loader's own search."""
    reason = ""
    for name in names:
        try:
            return ctypes.CDLL(os.path.join(folder, name) if folder else name, mode=ctypes.RTLD_GLOBAL)
        except OSError as error:
            reason = str(error)
    raise Failure(f"{names[0]}: cannot be loaded ({reason}); name its folder with --lib")


def function(runtime: ctypes.CDLL, name: str) -> Any:
    """A function of a library; Failure where a board's version lacks it."""
    try:
        return getattr(runtime, name)
    except AttributeError as error:
        raise Failure(
            f"{runtime._name}: has no {name}; the board's runtime is too old or another one"
        ) from error


def view(address: int, size: int) -> memoryview:
    """Memory of the library's as bytes that can be read and written."""
    return memoryview((ctypes.c_char * size).from_address(address)).cast("B")


def unbuffer_stdout() -> None:
    """What the C libraries printed before they abort must not be lost."""
    process = ctypes.CDLL(None)
    with contextlib.suppress(AttributeError, ValueError):
        process.setvbuf(ctypes.c_void_p.in_dll(process, "stdout"), None, 2, 0)


def end_with(pipe: int) -> None:
    """End at once when the other side of a pipe is gone, also in the middle of a long call."""

    def watch() -> None:
        poll = select.poll()
        poll.register(pipe, 0)
        poll.poll()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
