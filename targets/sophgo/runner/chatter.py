"""The one line that matters in what the vendor's libraries print before they die."""

from __future__ import annotations

import re
import signal
from pathlib import Path

_TAIL = 1 << 16
_TELLING = re.compile(
    r"assert|cannot|can't|fail|error|abort|unreachable|not support|fatal|illegal|exceed|mismatch", re.I
)
#: Lines without news: banners, stack frames, a plugin that is always absent.
_NOISE = re.compile(
    r"^\s*#\d+ 0x|PLEASE submit a bug report|^Stack dump|Cannot open libusercpu|ASSERT info: none"
)


def reason(log: Path, start: int) -> str:
    """`: <line>` with the last telling line after byte `start` of the log; empty where there is none."""
    lines = [line for line in _lines(log, start) if _TELLING.search(line) and not _NOISE.search(line)]
    first = [line for line in lines if re.search(r"assertion|assert info|cannot run", line, re.I)]
    picked = (first or lines)[-1:]
    return f": {_shorter(picked[0])}" if picked else ""


def last(log: Path, start: str) -> str:
    """What follows `start` in the last line of a log that begins with it; its last line if none does."""
    lines = _lines(log, 0) or [""]
    return next((line[len(start) :] for line in reversed(lines) if line.startswith(start)), lines[-1])


def ending(code: int) -> str:
    """How a process ended, in words."""
    return f"the runtime died ({signal.Signals(-code).name if code < 0 else f'exit status {code}'})"


def _lines(log: Path, start: int) -> list[str]:
    with log.open("rb") as file:
        file.seek(0, 2)
        file.seek(max(start, file.tell() - _TAIL))
        return file.read().decode("utf-8", "replace").splitlines()


def _shorter(line: str) -> str:
    """Build paths and C++ signatures say nothing to a person."""
    line = re.sub(r"\S*/(\w+\.(?:cpp|cc|hpp|h|c)\b)", r"\1", line.strip())
    return line if len(line) <= 300 else line[:297] + "..."
