"""Measures aligned pairs: small records many at a time, others at once or streamed block by block."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np

from .metrics import LogitMetrics, Measurer, Metrics, measure, measure_logits, survey
from .metrics.setup import ROWS, SUMS, setup
from .trace import read_together, shelf

if TYPE_CHECKING:
    from .pairs import Pair

Item = TypeVar("Item")

#: Elements per side that are read at once; larger records are streamed in blocks of this size.
BLOCK = 4 * 1024 * 1024
#: Bytes that are read and measured together.
BATCH = 16 * 1024 * 1024
#: Elements of a record up to which it is read and measured together with others.
SMALL = 16 * 1024


class Asked(NamedTuple):
    """What is measured of a pair: mismatches within which bound, and whether small records need rows."""

    atol: float = 0.0
    rtol: float = 0.0
    rows: bool = True


def measure_pair(pair: Pair, asked: Asked) -> tuple[Metrics, LogitMetrics | None]:
    """All metrics of one pair in full detail; for logits (last axis `v`) those of the distributions too."""
    if pair.direct and _size(pair) > BLOCK:
        return _streamed(pair, asked), None
    actual, expected = _arrays(pair)
    metrics = measure(actual, expected, axes=pair.axes, atol=asked.atol, rtol=asked.rtol)
    return metrics, _logits(actual, expected) if pair.axes.endswith("v") else None


def measure_pairs(pairs: Sequence[tuple[Pair, Asked]]) -> Iterator[tuple[Metrics, LogitMetrics | None]]:
    """Metrics of each pair, in order; of small records without columns and histogram (`Metrics.detailed`)."""
    surveyed = _surveyed(pairs)
    for place, (pair, asked) in enumerate(pairs):
        found = surveyed.get(place)
        yield (found, None) if found is not None else measure_pair(pair, asked)


def in_batches(waiting: Iterable[Item], pair_of: Callable[[Item], Pair]) -> Iterator[list[Item]]:
    """What waits to be measured, in lists whose pairs can lie in memory at the same time."""
    batch: list[Item] = []
    held = 0
    for item in waiting:
        batch.append(item)
        held += _weight(pair_of(item))
        if held >= BATCH:
            yield batch
            batch, held = [], 0
    if batch:
        yield batch


def _weight(pair: Pair) -> int:
    """Bytes that both sides of a pair take, about."""
    if pair.actual is not None and pair.expected is not None:
        return pair.actual.nbytes + pair.expected.nbytes
    return 16 * _size(pair) + 512


def _small(pair: Pair) -> bool:
    """Whether a pair is measured together with others: short, as it lies in the files, and no logits."""
    one, two = pair.reference, pair.candidate
    if one is None or two is None or pair.actual is not None or not 0 < one.size <= SMALL:
        return False
    return not pair.axes.endswith("v") and not (one.dtype + two.dtype).count("complex")


def _surveyed(pairs: Sequence[tuple[Pair, Asked]]) -> dict[int, Metrics]:
    """Metrics of the small ones, by their place."""
    groups: dict[object, list[int]] = {}
    for place, (pair, _) in enumerate(pairs):
        if _small(pair):
            groups.setdefault((shelf(pair.reference), shelf(pair.candidate)), []).append(place)
    found: dict[int, Metrics] = {}
    for places in groups.values():
        places.sort(key=lambda place: pairs[place][0].reference.order)  # type: ignore[union-attr]
        found.update(zip(places, _survey([pairs[place] for place in places]), strict=True))
    return found


def _survey(pairs: Sequence[tuple[Pair, Asked]]) -> list[Metrics]:
    """One group, in the order of the reference's file."""
    references: list[Any] = [pair.reference for pair, _ in pairs]
    candidates: list[Any] = [pair.candidate for pair, _ in pairs]
    names = candidates[0].dtype, references[0].dtype
    known: dict[tuple[tuple[int, ...], str, Asked], int] = {}
    kinds = [
        known.setdefault((reference.shape, pair.axes, asked), len(known))
        for reference, (pair, asked) in zip(references, pairs, strict=True)
    ]
    setups = [setup(shape, axes, *names, ROWS if asked.rows else SUMS) for shape, axes, asked in known]
    bounds = [(asked.atol, asked.rtol) for _, _, asked in known]
    return survey(read_together(candidates), read_together(references), setups, bounds, kinds)


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
