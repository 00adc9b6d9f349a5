"""Where `running` puts its runs: one trace file per path, and the runs that live in memory only."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .recorder import Sink

if TYPE_CHECKING:
    from ..trace import TraceWriter
    from .memory import MemoryRun


def trace_path() -> Path:
    """The trace file that the four verbs share, as of now: PARITY_TRACE, else the working folder's."""
    return Path(os.environ.get("PARITY_TRACE") or "traced_tensors.h5").absolute()


def say(line: str) -> None:
    """One line for the person at the terminal; no `warnings`, which a host program may turn into errors."""
    print(f"parity: {line}", file=sys.stderr)


class Store:
    """The open trace files of this process, and its runs in memory by name.

    A file is open, and locked against other processes, only while a run is being recorded.
    """

    def __init__(self) -> None:
        self.memory: dict[str, MemoryRun] = {}
        self._open: dict[Path, tuple[TraceWriter, int]] = {}
        self._said: set[tuple[Path | None, str]] = set()
        self._lock = threading.RLock()

    @contextmanager
    def run(self, name: str, *, save: bool) -> Iterator[Sink]:
        """A sink for one run; it is complete if the block ends without an exception."""
        if not save:
            yield from self._in_memory(name)
            return
        path = trace_path()
        with self._writer(path) as writer, writer.run(name, provenance=_provenance()) as run:
            if run.notice:
                self._say_once(path, name, run.notice)
            yield run

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
    def _writer(self, path: Path) -> Iterator[TraceWriter]:
        """The one writer of a file in this process, closed when its last run ends."""
        writer = self._acquire(path)
        try:
            yield writer
        finally:
            self._release(path)

    def _acquire(self, path: Path) -> TraceWriter:
        from ..trace import TraceWriter

        with self._lock:
            writer, users = self._open.get(path) or (TraceWriter(path), 0)
            self._open[path] = (writer, users + 1)
            return writer

    def _release(self, path: Path) -> None:
        with self._lock:
            writer, users = self._open.pop(path)
            if users > 1:
                self._open[path] = (writer, users - 1)
            else:
                writer.close()

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
