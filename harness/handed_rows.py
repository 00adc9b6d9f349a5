"""What submodules were handed in the isolated replay, held against what the reference's were handed.

All that is computed by modules is right there: where a module is handed something wrong, the code between
the modules made it so.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

from .isolation import EXPECTED, HANDED, handed_tap

if TYPE_CHECKING:
    from .comparison import Row
    from .rows import Rules
    from .trace import Run


class _Side:
    """The isolated run seen as one side: records of what was handed, under the candidate's names."""

    def __init__(self, run: Run, *, expected: bool) -> None:
        self._run = run
        mine = [tap for tap in run.taps if is_handed(tap) and tap.endswith(EXPECTED) == expected]
        self._names = {tap.removesuffix(EXPECTED): tap for tap in mine}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._run, name)

    @property
    def taps(self) -> list[str]:
        """Names in execution order."""
        return list(self._names)

    def records(self, tap: str) -> Sequence[Any]:
        """Records of one of them."""
        return self._run.records(self._names[tap])


class _Without:
    """A run without what its submodules were handed."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self.taps = [tap for tap in run.taps if not is_handed(tap)]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._run, name)


def without_handed(run: Run) -> Run:
    """An isolated run as a candidate: what its submodules were handed, no other run records."""
    return cast("Run", _Without(run)) if any(map(is_handed, run.taps)) else run


def is_handed(tap: str) -> bool:
    """Whether a tap of an isolated run is something that a submodule was handed."""
    return tap.startswith("module:") and HANDED in tap


def handed_rows(isolated: Run, rules: Rules, rows: Sequence[Row]) -> tuple[Row, ...]:
    """The records that fail, each with the place in `rows` (sorted, numbered) before which it was handed."""
    from .rows import RowMaker

    sides = _Side(isolated, expected=True), _Side(isolated, expected=False)
    if not sides[0].taps:
        return ()
    expected, actual = cast("tuple[Run, Run]", sides)
    found = [
        row for made in RowMaker(expected, actual, None, rules, None).rows(expected.taps) for row in made
    ]
    wrong = [row for row in found if row.status == "fail"]
    for row in wrong:
        row.order = _place(row, rows)
    return tuple(sorted(wrong, key=lambda row: row.order))


def _place(row: Row, rows: Sequence[Row]) -> int:
    """The first record of the module that was handed it, or of a module inside."""
    tap = handed_tap(row.tap)
    inside = (other for other in rows if other.step == row.step and _within(other, tap, row.call))
    return next((other.order for other in inside), len(rows))


def _within(row: Row, tap: str, call: int) -> bool:
    return (row.tap == tap and row.call == call) or row.tap.startswith(tap + ".")
