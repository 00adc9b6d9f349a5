"""Child processes that end with this one: no shell, one log file, nobody left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

#: Asks the kernel to kill this process when the thread that started it is gone (kill -9 included), then
#: becomes the program that was meant; 15 ms.
_GUARD = """
import ctypes, os, sys
ctypes.CDLL(None).prctl(1, 9, 0, 0, 0)
if os.getppid() != int(sys.argv[1]):
    os._exit(137)
try:
    os.execv(sys.argv[2], sys.argv[2:])
except OSError as error:
    sys.exit(f"{sys.argv[2]}: {error.strerror}")
"""


def guarded(argv: Sequence[str | Path]) -> list[str]:
    """The command line that runs `argv` (its first word a path) and dies with the thread that starts it."""
    return [sys.executable, "-I", "-S", "-c", _GUARD, str(os.getpid()), *map(str, argv)]


def run_logged(
    argv: Sequence[str | Path],
    *,
    env: Mapping[str, str],
    log: Path,
    cwd: Path | None = None,
    tick: Callable[[], object] = lambda: None,
    every: float = 0.5,
    keep: Sequence[int] = (),
) -> int:
    """Run to the end, output appended to `log`, `tick` called each `every` seconds; the exit status.

    `keep` are file descriptors that the child inherits. Whatever interrupts the wait kills the child and what
    it started.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        output.write(f"$ {' '.join(map(str, argv))}\n".encode())
        output.flush()
        child = subprocess.Popen(
            guarded(argv), env=dict(env), cwd=cwd, pass_fds=tuple(keep), start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
        )  # fmt: skip
        try:
            return _wait(child, tick, every)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()


def _wait(child: subprocess.Popen[bytes], tick: Callable[[], object], every: float) -> int:
    while True:
        try:
            return child.wait(every)
        except subprocess.TimeoutExpired:
            tick()
