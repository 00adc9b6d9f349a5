"""Measures what was aligned: series many records at a time, a pair at once or streamed block by block."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import numpy as np

from .metrics import Kind, LogitMetrics, Measurer, Metrics, Survey, measure, measure_logits, survey
from .metrics.setup import ROWS, SUMS, setup
from .series import Series
from .trace import column, read_together, shelf

if TYPE_CHECKING:
    from .pairs import Pair

Item = TypeVar("Item")

#: Elements per side that are read at once; larger records are streamed in blocks of this size.
BLOCK = 4 * 1024 * 1024
#: Bytes that are read and measured together.
BATCH = 16 * 1024 * 1024


class Asked(NamedTuple):
    """What is measured: mismatches within which bound, and whether a survey has rows."""

    atol: float = 0.0
    rtol: float = 0.0
    rows: bool = True


Full = tuple[Metrics, LogitMetrics | None]


def measure_pair(pair: Pair, asked: Asked) -> Full:
    """All metrics of one pair in full detail; for logits (last axis `v`) those of the distributions too."""
    if pair.direct and _size(pair) > BLOCK:
        return _streamed(pair, asked), None
    actual, expected = _arrays(pair)
    metrics = measure(actual, expected, axes=pair.axes, atol=asked.atol, rtol=asked.rtol)
    return metrics, _logits(actual, expected) if pair.axes.endswith("v") else None


def measure_all(items: Sequence[tuple[Series | Pair, Asked]]) -> Iterator[Survey | Full]:
    """What was measured of each, in order: of a series a survey, of a pair everything."""
    found = _surveys([(item, asked) for item, asked in items if isinstance(item, Series)])
    for item, asked in items:
        yield next(found) if isinstance(item, Series) else measure_pair(item, asked)


def in_batches(items: Iterable[Item], source: Callable[[Item], Series | Pair]) -> Iterator[list[Item]]:
    """What waits to be measured, in lists of what can lie in memory at the same time."""
    batch: list[Item] = []
    held = 0
    for item in items:
        batch.append(item)
        held += _weight(source(item))
        if held >= BATCH:
            yield batch
            batch, held = [], 0
    if batch:
        yield batch


def pieces(series: Series) -> Iterator[tuple[int, int]]:
    """A series cut into what can be measured at once: start and stop of each."""
    length = max(1, BATCH // (_weight(series) // len(series)))
    for start in range(0, len(series), length):
        yield start, min(start + length, len(series))


def _weight(item: Series | Pair) -> int:
    """Bytes that both sides take, about."""
    if isinstance(item, Series):
        return len(item) * (16 * item.references[0].size + 512)
    if item.actual is not None and item.expected is not None:
        return item.actual.nbytes + item.expected.nbytes
    return 16 * _size(item)


def _surveys(items: Sequence[tuple[Series, Asked]]) -> Iterator[Survey]:
    """Those whose records lie on the same shelves are read and measured together."""
    shelves = [(shelf(series.references), shelf(series.candidates)) for series, _ in items]
    found: dict[int, Survey] = {}
    for one in dict.fromkeys(shelves):
        places = [place for place, other in enumerate(shelves) if other == one]
        found.update(zip(places, _survey([items[place] for place in places]), strict=True))
    return (found[place] for place in range(len(items)))


def _survey(items: Sequence[tuple[Series, Asked]]) -> list[Survey]:
    """Read in the order of the reference's file."""
    by = np.concatenate([column(series.references, "order") for series, _ in items]).argsort(kind="stable")
    kinds = [_kind(series, asked) for series, asked in items]
    sizes = np.repeat([kind.pair.plan.size for kind in kinds], [kind.number for kind in kinds])[by]
    begins = np.empty(len(by), np.int64)
    begins[by] = sizes.cumsum() - sizes
    actual = read_together([series.candidates for series, _ in items], by)
    return survey(actual, read_together([series.references for series, _ in items], by), begins, kinds)


def _kind(series: Series, asked: Asked) -> Kind:
    names = series.candidates[0].dtype, series.references[0].dtype
    pair = setup(series.shape, series.axes, *names, ROWS if asked.rows else SUMS)
    return Kind(pair, (asked.atol, asked.rtol), len(series))


def _arrays(pair: Pair) -> tuple[np.ndarray, np.ndarray]:
    if pair.actual is not None and pair.expected is not None:
        return pair.actual, pair.expected
    assert pair.candidate is not None
    assert pair.reference is not None
    return pair.candidate.read(), pair.reference.read()


def _size(pair: Pair) -> int:
    assert pair.reference is not None
    return pair.reference.size


def _streamed(pair: Pair, asked: Asked) -> Metrics:
    assert pair.candidate is not None
    assert pair.reference is not None
    measurer = Measurer(pair.reference.shape, axes=pair.axes, atol=asked.atol, rtol=asked.rtol)
    for start in range(0, pair.reference.size, BLOCK):
        stop = min(start + BLOCK, pair.reference.size)
        measurer.feed(pair.candidate.read_flat(start, stop), pair.reference.read_flat(start, stop))
    return measurer.finish()


def _logits(actual: np.ndarray, expected: np.ndarray) -> LogitMetrics | None:
    """None where a side is not finite or complex: there is no distribution."""
    if "c" in (actual.dtype.kind, expected.dtype.kind):
        return None
    if not all(np.isfinite(side.astype(np.float64)).all() for side in (actual, expected)):
        return None
    return measure_logits(actual, expected)
