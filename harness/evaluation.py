"""What a candidate is worth at the end: accuracy, perplexity, KL and flips over a text."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from .errors import InconclusiveError, UserError

Floats = np.ndarray[Any, np.dtype[np.float64]]
#: Nats between two tokens below which a side finds them equally likely: odds of 1.05 to 1.
TIE = 0.05
#: Of a normal distribution, the half width that holds 95 %.
Z = 1.959963985


@dataclass(frozen=True, slots=True)
class Flip:
    """A place where the best token differs; margins in nats, each in its own side's distribution."""

    place: int
    expected: int
    actual: int
    expected_margin: float
    actual_margin: float

    @property
    def tie(self) -> bool:
        """Whether both sides found the two tokens equally likely."""
        return max(self.expected_margin, self.actual_margin) < TIE


@dataclass(frozen=True)
class Quality:
    """One side alone over `count` tokens."""

    count: int
    correct: int
    loss: float

    @property
    def accuracy(self) -> float:
        """Share of next tokens predicted."""
        return self.correct / self.count if self.count else math.nan

    @property
    def perplexity(self) -> float:
        """Exponential of the mean loss in nats."""
        return math.exp(min(self.loss / self.count, 700.0)) if self.count else math.nan


@dataclass(frozen=True)
class Against:
    """A candidate beside the reference on the same tokens; KL in nats, of it from the reference."""

    own: Quality
    reference: Quality
    kl_mean: float
    kl_error: float
    kl_max: float
    kl_place: int
    flips: tuple[Flip, ...] = ()
    nonfinite: int = 0

    @property
    def ties(self) -> int:
        """Flips between tokens that both sides find equally likely."""
        return sum(flip.tie for flip in self.flips)

    @property
    def flips_per_1000(self) -> float:
        """Flips of the best token, ties included."""
        return 1000 * len(self.flips) / self.own.count if self.own.count else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """95 % confidence interval of `flips_per_1000` (Wilson)."""
        low, high = wilson(len(self.flips), self.own.count)
        return 1000 * low, 1000 * high

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "tokens": self.own.count,
            "accuracy": self.own.accuracy,
            "perplexity": self.own.perplexity,
            "reference_accuracy": self.reference.accuracy,
            "reference_perplexity": self.reference.perplexity,
            "kl_mean": self.kl_mean,
            "kl_standard_error": self.kl_error,
            "kl_max": self.kl_max,
            "kl_max_place": self.kl_place,
            "flips": [{**asdict(flip), "tie": flip.tie} for flip in self.flips],
            "flips_per_1000": self.flips_per_1000,
            "flips_per_1000_interval": list(self.interval),
            "ties": self.ties,
            "nonfinite": self.nonfinite,
        }


@dataclass
class Tally:
    """Sums over pieces of a text, so that no more than one piece is held."""

    quality: dict[str, list[float]] = field(default_factory=lambda: {"own": [0, 0, 0.0], "ref": [0, 0, 0.0]})
    kl: list[Floats] = field(default_factory=list)
    flips: list[Flip] = field(default_factory=list)
    nonfinite: int = 0

    def add(self, actual: np.ndarray, expected: np.ndarray, targets: np.ndarray, first: int = 0) -> None:
        """Logits `[N, V]` of both sides and the tokens `[N]` that came; `first` is the first row's place.

        Rows that are not finite on the candidate's side are counted and left out of everything else.
        InconclusiveError where the reference's are not.
        """
        if actual.shape != expected.shape or len(targets) != len(expected):
            shapes = f"{list(actual.shape)}, should be {list(expected.shape)}"
            raise UserError(f"logits={shapes} with one target a row")
        if not np.isfinite(expected).all():
            raise InconclusiveError("logits: the reference's are not finite; nothing can be held to them")
        good = np.isfinite(actual).all(axis=1)
        self.nonfinite += int((~good).sum())
        places = first + np.flatnonzero(good)
        own, ref = log_softmax(actual[good]), log_softmax(expected[good])
        kept = np.asarray(targets)[good]
        for side, rows in (("own", own), ("ref", ref)):
            score = self.quality[side]
            score[0] += len(rows)
            score[1] += int((rows.argmax(axis=1) == kept).sum())
            score[2] -= float(rows[np.arange(len(rows)), kept].sum())
        self.kl.append(kl_rows(own, ref))
        for row in np.flatnonzero(own.argmax(axis=1) != ref.argmax(axis=1)):
            p, q = int(ref[row].argmax()), int(own[row].argmax())
            margins = float(ref[row, p] - ref[row, q]), float(own[row, q] - own[row, p])
            self.flips.append(Flip(int(places[row]), p, q, *margins))

    def result(self) -> Against:
        """What it comes to."""
        kl = np.concatenate(self.kl) if self.kl else np.zeros(0)
        error = float(kl.std(ddof=1) / math.sqrt(len(kl))) if len(kl) > 1 else math.nan
        own, ref = (Quality(int(n), int(hits), float(loss)) for n, hits, loss in self.quality.values())
        return Against(
            own,
            ref,
            float(kl.mean()) if len(kl) else math.nan,
            error,
            float(kl.max(initial=0.0)),
            int(kl.argmax()) if len(kl) else -1,
            tuple(self.flips),
            self.nonfinite,
        )


def kl_rows(actual: Floats, expected: Floats) -> Floats:
    """KL in nats of each row of log probabilities `[N, V]` from the expected one, `[N]`."""
    out: Floats = np.maximum((np.exp(expected) * (expected - actual)).sum(axis=1), 0.0)
    return out


def log_softmax(logits: np.ndarray) -> Floats:
    """Log probabilities in float64 `[N, V]`."""
    x = np.asarray(logits, np.float64)
    shifted = x - x.max(axis=1, keepdims=True, initial=-np.inf) if x.size else x
    out: Floats = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return out


def wilson(hits: int, count: int) -> tuple[float, float]:
    """95 % confidence interval of a share; all of 0..1 where nothing was counted."""
    if not count:
        return 0.0, 1.0
    share, square = hits / count, Z * Z / count
    middle = (share + square / 2) / (1 + square)
    half = Z / (1 + square) * math.sqrt(share * (1 - share) / count + square / (4 * count))
    return max(0.0, middle - half), min(1.0, middle + half)


def budget_exceeded(found: Against, limits: Mapping[str, float | None]) -> list[str]:
    """Which limits (`kl`, `flips`) a candidate is beyond, in words."""
    told = []
    kl, flips = limits.get("kl"), limits.get("flips")
    if kl is not None and not found.kl_mean <= kl:
        told.append(f"KL {found.kl_mean:.3g} is above {kl:g}")
    if flips is not None and not found.flips_per_1000 <= flips:
        told.append(f"{found.flips_per_1000:.3g} flips per 1000 tokens are above {flips:g}")
    if found.nonfinite:
        told.append(f"{found.nonfinite} tokens have logits that are not finite")
    return told
