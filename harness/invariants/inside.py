"""Invariants inside one run: rotations keep norms, attention averages, caches keep what they were given."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from ..cache import attendable, spans
from ..case import CachePolicy
from ..forensics.rows import by_heads, view_of
from ..values import batch_positions, positional, records_of
from .kinds import ROUNDING, Invariant

if TYPE_CHECKING:
    from ..trace import Record, Run

Array = np.ndarray[Any, Any]

ROTATION = "a rotation keeps the norm"
SOFTMAX = "softmax rows sum to one"
AVERAGE = "attention stays within its values"
KEPT = "older cache rows never change"
UNTOUCHED = "cache rows beyond t stay untouched"

#: Scores `[B, T, W]` times channels beyond which a record is not looked at.
LARGEST = 1 << 24

Broken = tuple[str, int, str, float, str]
"""Tap, step, where, error and reason."""


def rotations(run: Run, weights: Mapping[str, Array]) -> Invariant:
    """Every rotated pair has the norm that its projection has, which is made anew in float64."""
    noise = ROUNDING.get(str(run.provenance.get("dtype", "float32")))
    roles = [role for role in _roles(run) if role["role"] == "rotated_projection"]
    usable = [role for role in roles if all(key in weights for key in role["weights"])]
    if noise is None or not usable:
        why = "its number format is quantized" if noise is None else "no tap is known to be a rotation"
        return Invariant(ROTATION, "skipped", reason=why)
    return _judged(ROTATION, (_turned(run, role, weights, noise) for role in usable))


def _turned(
    run: Run, role: Mapping[str, Any], weights: Mapping[str, Array], noise: float
) -> Iterator[int | Broken]:
    matrix, *bias = (np.asarray(weights[key], np.float64) for key in role["weights"])
    inputs = {(record.step, record.call): record for record in records_of(run, role["inputs"][0])}
    for record in records_of(run, role["taps"]):
        source = inputs.get((record.step, record.call))
        if source is None or not positional(record):
            continue
        rows = by_heads(record.read(), record.axes)
        made = source.read().astype(np.float64) @ matrix.T + (bias[0] if bias else 0.0)
        gap = np.abs(_pairs(rows) - _pairs(made.reshape(rows.shape)))
        scale = np.linalg.norm(rows, axis=-1, keepdims=True)
        real = (batch_positions(record) >= 0)[:, :, None, None]
        share = np.where(real, gap / np.maximum(scale, 1e-30), 0.0)
        yield from _worst(record, share.max(axis=-1), noise, "another norm than the projection's")


def _pairs(rows: Array) -> Array:
    half = rows.shape[-1] // 2
    return np.hypot(rows[..., :half], rows[..., half:])


def softmaxes(run: Run) -> Invariant:
    """Every row of a tap whose role is softmax sums to one."""
    taps = [role["taps"] for role in _roles(run) if role["role"] == "softmax"]
    noise = ROUNDING.get(str(run.provenance.get("dtype", "float32")), 6e-2)
    if not taps:
        return Invariant(SOFTMAX, "skipped", reason="no tap shows the weights of an attention")

    def sums() -> Iterator[int | Broken]:
        for record in (record for tap in taps for record in records_of(run, tap)):
            gap = np.abs(record.read().astype(np.float64).sum(axis=-1) - 1.0)
            worst = float(np.nan_to_num(gap, nan=np.inf).max(initial=0.0))
            yield (
                gap.size if worst <= noise else (record.tap, record.step, "", worst, "sums to something else")
            )

    return _judged(SOFTMAX, [sums()])


def averages(run: Run) -> Invariant:
    """Each channel of an attention's output lies between the least and the largest value it may attend to."""
    roles = [role for role in _roles(run) if role["role"] == "attention"]
    noise = ROUNDING.get(str(run.provenance.get("dtype", "float32")))
    if noise is None or not roles or run.provenance.get("policy", "none") == "none":
        why = "its number format is quantized" if noise is None else "no tap is known to be an attention"
        return Invariant(AVERAGE, "skipped", reason=why)
    window = CachePolicy.parse(run.provenance["policy"]).window
    return _judged(AVERAGE, (_averaged(run, role, window, noise) for role in roles))


def _averaged(run: Run, role: Mapping[str, Any], window: int | None, noise: float) -> Iterator[int | Broken]:
    cached = _by_step(run, role["inputs"][2])
    for record in records_of(run, role["taps"]):
        held = cached.get(record.step, ())
        if not held or not positional(record) or len(_by_step(run, role["taps"])[record.step]) > 1:
            continue
        view = view_of(held)
        out, query = by_heads(record.read(), record.axes), batch_positions(record)
        seen = attendable(query, view.positions, window)
        if seen.size * view.rows.shape[2] * view.rows.shape[3] > LARGEST or _lacking(query, seen, window):
            continue
        values = np.repeat(view.rows, out.shape[2] // view.rows.shape[2], axis=2)
        low, high = _hull(values, seen)
        beyond = np.maximum(low - out, out - high).max(axis=-1)
        scale = np.maximum(np.maximum(np.abs(low), np.abs(high)).max(axis=-1), 1e-30)
        share = np.where((query >= 0)[:, :, None], np.maximum(beyond, 0.0) / scale, 0.0)
        yield from _worst(record, share, noise, "beyond every value that it may attend to")


def _lacking(query: Array, seen: Array, window: int | None) -> bool:
    """Whether rows that may be attended to are not in the record, so that nothing can be said."""
    wanted = np.minimum(query + 1, window if window is not None else query + 1)
    return bool((seen.sum(axis=2) < wanted)[query >= 0].any())


def _hull(values: Array, seen: Array) -> tuple[Array, Array]:
    """Least and largest value `[B, T, H, D]` over the rows that each token sees."""
    mask = seen[:, :, :, None, None]
    low = np.where(mask, values[:, None], np.inf).min(axis=2)
    high = np.where(mask, values[:, None], -np.inf).max(axis=2)
    return low, high


def kept(run: Run) -> Invariant:
    """A row that two views of a cache both hold is the same in both, to the bit."""
    return _caches(run, KEPT, _changed)


def untouched(run: Run) -> Invariant:
    """A slot that holds nothing in two views that follow each other is the same in both, to the bit."""
    return _caches(run, UNTOUCHED, _touched)


Between = Callable[["Record", "Record"], Iterator["int | Broken"]]


def _caches(run: Run, name: str, between: Between) -> Invariant:
    caches = [row["cache"] for row in run.provenance.get("wiring", {}).get("caches", ())]
    if run.provenance.get("cache_records") != "views":
        return Invariant(name, "skipped", reason="it keeps no rows from step to step")

    def found(tap: str) -> Iterator[int | Broken]:
        resets = run.provenance.get("scenario", {}).get("resets", ())
        views = [records[-1] for _, records in sorted(_by_step(run, tap).items())]
        for before, after in pairwise(views):
            if not any(before.step < reset <= after.step for reset in resets):
                yield from between(before, after)

    return _judged(name, map(found, caches))


def _changed(before: Record, after: Record) -> Iterator[int | Broken]:
    old, new = (by_heads(record.read(), record.axes) for record in (before, after))
    there, here = batch_positions(before), batch_positions(after)
    for sequence in range(len(here)):
        known = there[sequence] >= 0
        both, at, to = np.intersect1d(there[sequence][known], here[sequence], return_indices=True)
        same = (old[sequence][known][at] == new[sequence][to]).all(axis=(1, 2))
        if same.all():
            yield int(same.size)
            continue
        rows = spans(both[~same].tolist())
        yield after.tap, after.step, f"sequence {sequence}, rows {rows}", np.inf, _since(before)


def _touched(before: Record, after: Record) -> Iterator[int | Broken]:
    old, new = (by_heads(record.read(), record.axes) for record in (before, after))
    width = min(old.shape[1], new.shape[1])
    empty = (batch_positions(before)[:, :width] < 0) & (batch_positions(after)[:, :width] < 0)
    same = (old[:, :width] == new[:, :width]).all(axis=(2, 3)) | ~empty
    if same.all():
        yield int(empty.sum())
        return
    sequence, slot = (int(i) for i in np.argwhere(~same)[0])
    yield after.tap, after.step, f"sequence {sequence}, slot {slot}", np.inf, _since(before)


def _since(before: Record) -> str:
    return f"it was something else at step {before.step}"


def _by_step(run: Run, tap: str) -> dict[int, list[Record]]:
    groups: dict[int, list[Record]] = {}
    for record in filter(positional, records_of(run, tap)):
        groups.setdefault(record.step, []).append(record)
    return groups


def _roles(run: Run) -> list[Mapping[str, Any]]:
    return list(run.provenance.get("roles", ()))


def _worst(record: Record, share: Array, noise: float, reason: str) -> Iterator[int | Broken]:
    """`share` `[B, T, H]` is the error of each row over its size."""
    share = np.nan_to_num(share, nan=np.inf)
    worst = float(share.max(initial=0.0))
    if worst <= noise:
        yield int(share.size)
        return
    sequence, token, head = (int(i) for i in np.unravel_index(share.argmax(), share.shape))
    position = int(batch_positions(record)[sequence, token])
    where = f"head {head}, position {position}" + (f" of sequence {sequence}" if len(share) > 1 else "")
    yield record.tap, record.step, where, worst, reason


def _judged(name: str, parts: Any) -> Invariant:
    """Holds while every part counts rows; broken at the first that is none. Nothing looked at is skipped."""
    checked = 0
    for part in parts:
        for one in part:
            if not isinstance(one, int):
                tap, step, where, error, reason = one
                size = error if np.isfinite(error) else None
                return Invariant(name, "violated", checked, reason, tap, step, where, size)
            checked += one
    if not checked:
        return Invariant(name, "skipped", reason="no record shows it")
    return Invariant(name, "holds", checked)
