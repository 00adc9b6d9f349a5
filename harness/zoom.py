"""The second pass over a run that was captured cheaply: full tensors where the first one grew suspicious.

Sketches tell which row of which tap departs. The window around it is executed and recorded again in full on
both sides, so that heads, channels and values can be named; all else keeps what the sketches said.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from .comparison import Comparison, Finding, Row
from .locate import coverage_of, culprits_of, first_of

if TYPE_CHECKING:
    from .tracer import Sink

#: Taps before the first that departs, and from it on, that are recorded in full.
BEFORE, AFTER = 4, 8


@dataclass(frozen=True)
class Window:
    """Taps at one step."""

    taps: frozenset[str]
    step: int


class Through:
    """A sink that lets only a window through."""

    def __init__(self, sink: Sink, window: Window) -> None:
        self._sink, self._window = sink, window

    def record(self, tap: str, array: Any, *, step: int = 0, **about: Any) -> None:
        """Pass on what lies in the window."""
        if step == self._window.step and tap in self._window.taps:
            self._sink.record(tap, array, step=step, **about)


def window_of(comparison: Comparison) -> Window | None:
    """Where to look again: around the first record that departs; None where nothing does."""
    first = comparison.first
    if first is None:
        return None
    taps = comparison.taps()
    at = taps.index(first.tap)
    return Window(frozenset(taps[max(0, at - BEFORE) : at + AFTER]), first.step)


def zoomed(comparison: Comparison, looked: Comparison, window: Window) -> Comparison:
    """The comparison of sketches, with the rows of the window as the full tensors have them."""
    full = {(row.tap, row.step, row.call): row for row in looked.records}
    rows = tuple(_seen(row, full.get((row.tap, row.step, row.call))) for row in comparison.records)
    told = Finding(
        "note",
        f"{len(full)} records at step {window.step} were executed again and compared in full; what else is "
        "said rests on sketches",
    )
    made = replace(
        comparison, records=rows, findings=(*comparison.findings, told), coverage=coverage_of(rows)
    )
    return replace(made, first=first_of(made), culprits=culprits_of(made), causes=looked.causes)


def _seen(row: Row, full: Row | None) -> Row:
    return row if full is None else replace(full, order=row.order)
