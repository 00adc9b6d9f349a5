"""What matters of logits: the distributions they stand for and the token they pick."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ..dtypes import from_any
from ..errors import UserError

Floats = np.ndarray[Any, np.dtype[np.float64]]
MAX_LISTED = 64
"""At most this many disagreements are listed with their margins; the count is always whole."""


@dataclass(frozen=True, slots=True)
class Flip:
    """A place where the best token differs: both tokens, and how clear each side's choice was."""

    place: int
    expected: int
    actual: int
    expected_margin: float
    actual_margin: float


@dataclass(frozen=True, slots=True)
class LogitMetrics:
    """Over `count` distributions of a vocabulary; KL in nats, of the candidate from the reference."""

    count: int
    k: int
    kl_mean: float
    kl_max: float
    kl_max_place: int
    top1_agreement: float
    topk_overlap: float
    disagreements: int
    flips: tuple[Flip, ...] = ()
    perplexity_expected: float | None = None
    perplexity_actual: float | None = None

    @property
    def perplexity_difference(self) -> float | None:
        """Candidate minus reference; None when no targets were given."""
        if self.perplexity_expected is None or self.perplexity_actual is None:
            return None
        return self.perplexity_actual - self.perplexity_expected

    def to_json(self) -> dict[str, Any]:
        """Plain data; infinities are strings."""
        data = asdict(self)
        plain = {key: _plain(value) for key, value in data.items() if isinstance(value, float)}
        flips = [{key: _plain(value) for key, value in flip.items()} for flip in data["flips"]]
        return {**data, **plain, "flips": flips}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> LogitMetrics:
        """Read back what `to_json` wrote."""
        fields: dict[str, Any] = {key: _number(value) for key, value in data.items()}
        fields["flips"] = tuple(
            Flip(**{key: _number(v) for key, v in flip.items()}) for flip in data["flips"]
        )
        return cls(**fields)


def measure_logits(actual: Any, expected: Any, k: int = 5, *, targets: Any = None) -> LogitMetrics:
    """Logits `[..., V]` of any number format against the reference's, distribution by distribution.

    -inf is a token that cannot be picked: where the reference allows a token that the candidate forbids, KL
    is inf. NaN and +inf have no distribution: UserError. `targets` `[...]` are token ids, -1 for none.
    """
    a, e = from_any(actual)[0], from_any(expected)[0]
    if a.shape != e.shape or a.ndim == 0 or not a.shape[-1]:
        raise UserError(f"shape={list(a.shape)}, but should be {list(e.shape)} and end in a vocabulary axis")
    width = a.shape[-1]
    rows_a, rows_e = a.reshape(-1, width), e.reshape(-1, width)
    wanted = None if targets is None else np.asarray(targets).reshape(-1)
    if wanted is not None and wanted.size != len(rows_a):
        raise UserError(f"targets={wanted.size} token ids, but should be {len(rows_a)}: one per distribution")
    return _Tally(min(k, width), wanted).over(rows_a, rows_e)


class _Tally:
    """Sums over blocks of distributions, so that memory stays that of one block."""

    def __init__(self, k: int, targets: np.ndarray[Any, Any] | None) -> None:
        self._k, self._targets = k, targets
        self._kl_sum, self._kl_max, self._kl_place = 0.0, 0.0, -1
        self._same, self._overlap = 0, 0
        self._flips: list[Flip] = []
        self._loss = [0.0, 0.0]
        self._scored = 0

    def over(self, rows_a: np.ndarray[Any, Any], rows_e: np.ndarray[Any, Any]) -> LogitMetrics:
        """The metrics of all rows `[N, V]`."""
        count, width = rows_a.shape
        block = max(1, (1 << 18) // width)
        for start in range(0, count, block):
            stop = min(start + block, count)
            self._add(_log_softmax(rows_a[start:stop]), _log_softmax(rows_e[start:stop]), start)
        perplexity = [
            math.exp(min(loss / self._scored, 700.0)) if self._scored else None for loss in self._loss
        ]
        return LogitMetrics(
            count=count,
            k=self._k,
            kl_mean=self._kl_sum / max(count, 1),
            kl_max=self._kl_max,
            kl_max_place=self._kl_place,
            top1_agreement=self._same / count if count else 1.0,
            topk_overlap=self._overlap / (count * self._k) if count else 1.0,
            disagreements=count - self._same,
            flips=tuple(self._flips),
            perplexity_expected=perplexity[1],
            perplexity_actual=perplexity[0],
        )

    def _add(self, a: Floats, e: Floats, start: int) -> None:
        self._add_kl(a, e, start)
        self._add_tokens(a, e, start)
        if self._targets is not None:
            self._add_loss(a, e, self._targets[start : start + len(a)])

    def _add_kl(self, a: Floats, e: Floats, start: int) -> None:
        with np.errstate(invalid="ignore"):
            terms = np.where(np.isneginf(e), 0.0, np.exp(e) * (e - a))
        kl = np.maximum(terms.sum(axis=1), 0.0)
        worst = int(kl.argmax())
        self._kl_sum += float(kl.sum())
        if self._kl_place < 0 or kl[worst] > self._kl_max:
            self._kl_max, self._kl_place = float(kl[worst]), start + worst

    def _add_tokens(self, a: Floats, e: Floats, start: int) -> None:
        best_a, best_e = a.argmax(axis=1), e.argmax(axis=1)
        self._same += int((best_a == best_e).sum())
        tops = (np.argsort(-x, axis=1, kind="stable")[:, : self._k] for x in (a, e))
        self._overlap += sum(len(set(p) & set(q)) for p, q in zip(*(t.tolist() for t in tops), strict=True))
        for row in np.flatnonzero(best_a != best_e)[: MAX_LISTED - len(self._flips)]:
            p, q = int(best_e[row]), int(best_a[row])
            flip = Flip(start + int(row), p, q, float(e[row, p] - e[row, q]), float(a[row, q] - a[row, p]))
            self._flips.append(flip)

    def _add_loss(self, a: Floats, e: Floats, targets: np.ndarray[Any, Any]) -> None:
        known = np.flatnonzero(targets >= 0)
        for side, x in enumerate((a, e)):
            self._loss[side] -= float(x[known, targets[known]].sum())
        self._scored += known.size


def _log_softmax(logits: np.ndarray[Any, Any]) -> Floats:
    """Log probabilities in float64 `[N, V]`; UserError for NaN, +inf and rows without any token."""
    x = logits.astype(np.float64)
    peak = x.max(axis=1, keepdims=True)
    if not np.isfinite(peak).all():
        raise UserError(
            "logits: NaN or +inf, or a row of -inf only, has no distribution; look at the values first"
        )
    shifted = x - peak
    out: Floats = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return out


def _number(value: Any) -> Any:
    return float(value) if isinstance(value, str) else value


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
