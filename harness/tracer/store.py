"""Where `running` puts its runs: one trace file per path, and the runs that live in memory only."""

from __future__ import annotations

import atexit
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .recorder import Sink

if TYPE_CHECKING:
    from ..trace import TraceWriter
    from .memory import MemoryRun


_LOOP = 3
_LINGER_SECONDS = 0.5


def trace_path() -> Path:
    """The trace file that the four verbs share, as of now: PARITY_TRACE, else the working folder's."""
    return Path(os.environ.get("PARITY_TRACE") or "traced_tensors.h5").absolute()


def say(line: str) -> None:
    """One line for the person at the terminal; no `warnings`, which a host program may turn into errors."""
    print(f"parity: {line}", file=sys.stderr)


@dataclass
class _Open:
    """A trace file that is open, how many runs are being recorded into it, and when it will be closed."""

    writer: TraceWriter
    users: int = 0
    timer: threading.Timer | None = None


class Store:
    """The open trace files of this process, and its runs in memory by name.

    A file is open, and locked against other processes, only while a run is being recorded. The exception
    is a loop that opens the same run again and again, once per token: opening and closing costs some
    50 ms, so from the fourth time on the file stays open until half a second has passed.
    """

    def __init__(self) -> None:
        self.memory: dict[str, MemoryRun] = {}
        self._open: dict[Path, _Open] = {}
        self._said: set[tuple[Path | None, str]] = set()
        self._last: tuple[Path, str] | None = None
        self._repeats = 0
        self._lock = threading.RLock()

    @contextmanager
    def run(self, name: str, *, save: bool) -> Iterator[Sink]:
        """A sink for one run; it is complete if the block ends without an exception."""
        if not save:
            yield from self._in_memory(name)
            return
        path = trace_path()
        with self._writer(path, name) as writer, writer.run(name, provenance=_provenance()) as run:
            if run.notice:
                self._say_once(path, name, run.notice)
            yield run

    def settle(self, path: Path) -> None:
        """Let readers see everything: close the file if no run is open, else flush."""
        with self._lock:
            entry = self._open.get(path)
            if entry is not None and entry.users:
                entry.writer.flush()
            elif entry is not None:
                self._close(path, entry)

    def settle_all(self) -> None:
        """The same for every file."""
        for path in list(self._open):
            self.settle(path)

    def _in_memory(self, name: str) -> Iterator[Sink]:
        from .memory import MemoryRun

        older = self.memory.get(name)
        run = MemoryRun(name, older.generation + 1 if older else 1, provenance=_provenance())
        if older:
            self._say_once(None, name, f"run {name!r} in memory is replaced; compare() takes the newest")
        self.memory[name] = run
        yield run
        run.complete = True

    @contextmanager
    def _writer(self, path: Path, name: str) -> Iterator[TraceWriter]:
        """The one writer of a file in this process."""
        entry = self._acquire(path, name)
        try:
            yield entry.writer
        finally:
            self._release(path, entry)

    def _acquire(self, path: Path, name: str) -> _Open:
        from ..trace import TraceWriter

        with self._lock:
            self._repeats = self._repeats + 1 if self._last == (path, name) else 0
            self._last = (path, name)
            entry = self._open.get(path) or _Open(TraceWriter(path))
            if entry.timer is not None:
                entry.timer.cancel()
            self._open[path] = entry
            entry.users += 1
            return entry

    def _release(self, path: Path, entry: _Open) -> None:
        with self._lock:
            entry.users -= 1
            if entry.users:
                return
            if self._repeats < _LOOP:
                self._close(path, entry)
                return
            entry.timer = threading.Timer(_LINGER_SECONDS, self._expire, (path, entry))
            entry.timer.daemon = True
            entry.timer.start()

    def _expire(self, path: Path, entry: _Open) -> None:
        with self._lock:
            if self._open.get(path) is entry and not entry.users:
                self._close(path, entry)

    def _close(self, path: Path, entry: _Open) -> None:
        try:
            entry.writer.close()
        finally:
            del self._open[path]

    def _say_once(self, path: Path | None, name: str, notice: str) -> None:
        """A loop that opens the same run for every token says it once, not once per token."""
        if (path, name) not in self._said:
            self._said.add((path, name))
            say(notice)


def _provenance() -> dict[str, Any]:
    """What is known of a run without asking: the script and the libraries that it has loaded."""
    versions = {
        name: str(getattr(sys.modules[name], "__version__", "?"))
        for name in ("torch", "numpy", "onnxruntime")
        if name in sys.modules
    }
    return {"script": Path(sys.argv[0]).name if sys.argv else "", "pid": os.getpid(), "libraries": versions}


store = Store()
atexit.register(store.settle_all)
