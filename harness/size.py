"""How many bytes a run will take, told before it starts."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from .case import plan
from .errors import UserError

if TYPE_CHECKING:
    from .case import Case
    from .sketch import Sketching
    from .target import Facts

#: One row of the index; token ids are int64.
PER_RECORD, PER_TOKEN = 128, 8
UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def estimate(
    case: Case, facts: Facts, *, isolate: bool, itemsize: int = 4, capture: Sketching | None = None
) -> int:
    """Bytes of one run of a case by a session of these facts, its isolated replay included (`isolate`).

    Exact but for names and provenance when every tap of the model is recorded; a target that shows fewer
    records less.
    """
    widths, wiring, window = case.model.widths, case.model.wiring, case.scenario.policy.window
    if capture is not None:
        widths = {tap: min(width, capture.numbers) for tap, width in widths.items()}
    caches = {row.cache: widths[row.cache] for row in wiring.caches}
    shown = sum(width for tap, width in widths.items() if tap not in caches)
    again = sum(width for tap, width in widths.items() if wiring.producer(tap)) if isolate else 0
    records = len(widths) + 1 + isolate * (len(widths) - len(caches))
    views, total, held = facts.cache_records == "views", 0, 0
    for step in plan(case.scenario):
        calls = step.width if facts.single else 1
        held = step.width + (0 if step.reset else held)
        rows = step.width
        if views or step.last:
            rows = calls - 1 + (min(held, window or held) if views else held)
        values = step.width * (shown + again) + rows * sum(caches.values())
        total += case.scenario.batch * (values * itemsize + step.width * PER_TOKEN)
        total += calls * records * PER_RECORD
    return total


def parse_size(name: str, text: str | int) -> int:
    """`500M`, `2G`, `1000000` -> bytes; UserError for anything else."""
    match = re.fullmatch(r"(\d+)\s*([KMGT]?)i?B?", str(text).strip(), re.IGNORECASE)
    if not match or not int(match[1]):
        raise UserError(f"{name}={text!r}: is no size; write for example 500M or 2G")
    return int(match[1]) * UNITS[match[2].upper()]


def in_words(size: int) -> str:
    """`3.2 GB`."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= factor:
            return f"{size / factor:.3g} {unit}"
    return f"{size} bytes"


def admit(label: str, size: int, path: Path, max_bytes: int | None) -> None:
    """UserError when a run of `size` bytes cannot go into the file at `path`."""
    less = "record fewer steps or sequences"
    held = path.stat().st_size if path.exists() else 0
    if max_bytes is not None and held + size > max_bytes:
        raise UserError(
            f"max_bytes={max_bytes}: {label} will record about {in_words(size)}"
            + (f" on top of {in_words(held)}" if held else "")
            + f"; allow more, or {less}"
        )
    free = shutil.disk_usage(path.parent).free
    if size > free:
        raise UserError(
            f"out={str(path)!r}: {label} will record about {in_words(size)} and only {in_words(free)} are "
            f"free; name another place, or {less}"
        )
