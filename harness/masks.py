"""Which rows an attention really looked at, told from its queries, its cache and its output."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from .cache import attendable
from .case import CachePolicy
from .values import batch_positions, positional, records_of, rows_first

if TYPE_CHECKING:
    from .trace import Record, Run

Array = np.ndarray[Any, Any]

#: A mask explains an output that it leaves with this share of the error of the right one.
SHARE = 0.05
#: Scores `[B, H, T, W]` beyond which nothing is tried.
LARGEST = 1 << 22


def other_mask(run: Run, role: Mapping[str, Any], tap: str, step: int) -> str:
    """The mask, in words, that explains an attention's output; empty when the right one or none does.

    `role` names queries, keys and values as its inputs, and `num_kv_heads` and `scale` as its parameters.
    """
    records = [_last(run, name, step) for name in (*role["inputs"][:3], tap)]
    if any(record is None for record in records) or run.provenance.get("policy", "none") == "none":
        return ""
    q, ks, vs, out = (record for record in records if record is not None)
    if q.size // q.shape[-1] * ks.shape[ks.axes.split().index("p")] > LARGEST:
        return ""
    query, held = batch_positions(q), batch_positions(ks)
    window = CachePolicy.parse(run.provenance["policy"]).window
    attend = _Attention(_heads(q), _heads(ks), _heads(vs), float(role["parameters"]["scale"]))
    right, seen = attend(attendable(query, held, window)), _heads(out)
    seen[query < 0] = np.nan  # what padding attends to reaches nobody
    shares = ((_share(seen, right, attend(mask)), words) for words, mask in _masks(query, held, window))
    best, words = min(shares)
    return words if best <= SHARE else ""


def _masks(query: Array, held: Array, window: int | None) -> Iterator[tuple[str, Array]]:
    real = (held >= 0)[:, None, :] & (query >= 0)[:, :, None]
    behind = query[:, :, None] - held[:, None, :]
    yield "one token of the future", real & (behind >= -1) & (behind < (window or np.inf))
    yield "every row, the future too", real & np.ones(behind.shape, np.bool_)
    yield "earlier rows and not to itself", real & (behind >= 1) & (behind < (window or np.inf))
    yield (
        "rows that hold nothing (padding, unfilled slots)",
        attendable(query, held, window) | ((held < 0)[:, None, :] & (query >= 0)[:, :, None]),
    )
    if window is not None:
        yield "one row more than the window", real & (behind >= 0) & (behind < window + 1)
        yield "one row less than the window", real & (behind >= 0) & (behind < window - 1)
        yield "every earlier row, as if there were no window", real & (behind >= 0)
    yield "one row less than it may: the oldest is left out", _without_oldest(attendable(query, held, window))


def _without_oldest(allowed: Array) -> Array:
    first = allowed.cumsum(axis=2) == 1
    return np.asarray(allowed & ~(first & allowed))


class _Attention:
    """Softmax attention in float64; query heads share key heads in groups."""

    def __init__(self, q: Array, ks: Array, vs: Array, scale: float) -> None:
        group = q.shape[2] // ks.shape[2]
        ks, self._vs = (np.repeat(rows, group, axis=2) for rows in (ks, vs))
        self._scores = np.einsum("bthd,bwhd->bhtw", q, ks) * scale

    def __call__(self, allowed: Array) -> Array:
        """`[B, T, H, D]` under a mask `[B, T, W]`; NaN where nothing may be attended to."""
        scores = np.where(allowed[:, None], self._scores, -np.inf)
        with np.errstate(invalid="ignore"):
            weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
            weights /= weights.sum(axis=-1, keepdims=True)
        return np.asarray(np.einsum("bhtw,bwhd->bthd", weights, self._vs))


def _share(seen: Array, right: Array, other: Array) -> float:
    """The error that another mask leaves over that of the right one, where both attend to something."""
    rows = np.logical_and.reduce([np.isfinite(one).all(axis=(2, 3)) for one in (seen, right, other)])
    scale = float(np.linalg.norm((seen - right)[rows]))
    return float(np.linalg.norm((seen - other)[rows])) / scale if scale > 0 else np.inf


def _last(run: Run, tap: str, step: int) -> Record | None:
    """The last record of a tap at a step: of a step fed token by token, the newest token's."""
    found = [record for record in records_of(run, tap) if record.step == step and positional(record)]
    return found[-1] if found else None


def _heads(record: Record) -> Array:
    """`[B, T, H, D]` in float64."""
    rows = rows_first(record.read(), record.axes).astype(np.float64)
    rest = [letter for letter in record.axes.split() if letter not in ("b", "t", "p")]
    return np.moveaxis(rows, 2 + rest.index("h"), 2)
