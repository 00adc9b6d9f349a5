"""Children: never a shell, output to a log, gone when this process goes."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import shlex
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from parity.harness.errors import UserError
from parity.harness.room import said_no_room

if TYPE_CHECKING:
    from ..toolchain import Toolchain

#: Loader view of the children that belong to no chip.
ANY_CHIP = "cv181x"
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Ended:
    """How a child ended: exit status (negative: the signal that killed it), what it printed, seconds."""

    status: int
    output: str
    seconds: float


def run(
    command: Sequence[str | Path],
    *,
    env: Mapping[str, str],
    cwd: Path,
    log: Path,
    beat: Callable[[], None] = lambda: None,
) -> Ended:
    """Run a child to its end and append what it was called with and what it printed to `log`.

    `beat` is called ten times a second while it runs; whatever it raises ends the child, as Ctrl-C does.
    UserError where it ended because there was no room for what it wrote.
    """
    begin = time.perf_counter()
    words = [str(word) for word in command]
    with log.open("ab") as file:
        file.write(f"$ {shlex.join(words)}\n".encode())
        file.flush()
        start = file.tell()
        child = subprocess.Popen(
            words,
            env=dict(env),
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=_die_with_parent,
        )
        try:
            while _running(child):
                beat()
        finally:
            kill(child)
    with log.open("rb") as told:
        told.seek(start)
        output = told.read().decode(errors="replace")
    if child.returncode:
        _check_room(cwd, child.returncode, output)
    return Ended(child.returncode, output, time.perf_counter() - begin)


def _check_room(cwd: Path, status: int, output: str) -> None:
    if status == -signal.SIGXFSZ:
        output = os.strerror(errno.EFBIG)
    if (said := said_no_room(output)) is not None:
        raise UserError(f"cache={str(cwd.parent)!r}: {said}")


def worker(toolchain: Toolchain, name: str, *arguments: str) -> list[str]:
    """The command of a script of `worker/`, for the toolchain's own Python."""
    return [str(toolchain.python), "-s", "-m", "worker", name, str(toolchain.package), *arguments]


def worker_environment(toolchain: Toolchain, workdir: Path) -> dict[str, str]:
    """The child's environment: the toolchain's, and the folder in which `worker` is found."""
    return {
        **toolchain.environment(ANY_CHIP, workdir),
        "PYTHONPATH": str(Path(__file__).resolve().parent.parent),
        "PYTHONDONTWRITEBYTECODE": "1",
    }


def ending(status: int) -> str:
    """An exit status in words."""
    if status >= 0:
        return f"exit status {status}"
    with contextlib.suppress(ValueError):
        return f"killed by {signal.Signals(-status).name}"
    return f"killed by signal {-status}"


def kill(child: subprocess.Popen[Any]) -> None:
    """End a child and whatever it started; nothing to do if it has ended by itself."""
    if child.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def _running(child: subprocess.Popen[Any]) -> bool:
    try:
        child.wait(0.1)
    except subprocess.TimeoutExpired:
        return True
    return False


def _die_with_parent() -> None:
    """In the child, before it becomes the compiler: Linux kills it when this process goes, however."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


_LIBC = ctypes.CDLL(None)
