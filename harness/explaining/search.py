"""Holds every hypothesis against what the candidate made, and says which of them explain it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from .catalogue import CATALOGUE
from .gather import wide
from .layouts import layouts
from .op import Hypothesis, Op, Values, Variant

#: A hypothesis must leave at most this share of the error, and a residue that is small in itself.
SHARE, RESIDUE = 0.05, 0.02
#: Relative residues below this are rounding of float32, and tell nothing apart.
NOISE = 2e-6
#: Rows whose error is at least this share of the worst row's speak for themselves.
WORST = 0.25
#: Numbers fitted at two steps are the same within this share.
SAME = 5e-3
#: A reference so many times larger than what was seen is no measure of what explains that.
LARGER = 1e3
#: So many kinds may explain equally well; more explain nothing.
TIES = 4


@dataclass(frozen=True)
class Tried:
    """One hypothesis at its best: what it says, and the relative error that it leaves.

    `fit` are numbers with too few samples each, see `Variant`; `also` says other words for the same values.
    """

    name: str
    words: str
    residual: float
    rank: int = 0
    fit: tuple[float, ...] = ()
    also: tuple[str, ...] = ()

    @property
    def told(self) -> str:
        """All that it may be."""
        return ", or ".join((self.words, *self.also))

    def confirms(self, other: Tried) -> bool:
        """Whether this, at another step, was fitted by the same numbers."""
        alike = self.name == other.name and len(self.fit) == len(other.fit)
        return alike and bool(np.allclose(self.fit, other.fit, rtol=SAME))


@dataclass(frozen=True)
class Found:
    """What a search came to. `error` is the candidate's relative error, `noise` what tells nothing apart.

    `tried` are all kinds, the best first; `best` those that explain, several if nothing tells them apart:
    their residues are within `limit`. `failed` says which could not be computed, and why.
    """

    error: float
    noise: float
    tried: tuple[Tried, ...]
    best: tuple[Tried, ...] = ()
    limit: float = 0.0
    failed: tuple[str, ...] = ()

    @property
    def next_best(self) -> Tried | None:
        """The best of those that do not explain; what only says the same in other words is passed over."""
        names = {item.name for item in self.best}
        return next(
            (item for item in self.tried if item.name not in names and item.residual > self.limit), None
        )


class Scale:
    """Relative errors of rows `[N, ...]`, by all of them and by the worst, whichever is larger."""

    def __init__(self, expected: Values, seen: Values) -> None:
        self.seen = _flat(seen)
        self.expected = _flat(expected)
        gap = ((self.seen - self.expected) ** 2).sum(1)
        right, own = (self.expected**2).sum(1), (self.seen**2).sum(1)
        # against a mask's -3e38 whatever is bounded would be right
        size = np.maximum(np.minimum(right, np.where(own > 0.0, LARGER**2 * own, np.inf)), own)
        relative = gap / np.maximum(size, 1e-2 * size.mean() + 1e-300)
        self.worst = relative >= WORST**2 * relative.max(initial=0.0)
        self._size = size
        self.error = self.of(expected)

    def of(self, values: Values, where: Values | None = None) -> float:
        """What is left of the error if `values` is what happened; inf where it cannot be said."""
        rows = np.ones(len(self.seen), np.bool_) if where is None else where
        worst = rows & self.worst
        if worst.sum() * 2 < self.worst.sum() or not self._size.any():
            return np.inf
        gap = ((self.seen - _flat(values)) ** 2).sum(1)
        left = max(float(gap[at].sum() / max(self._size[at].sum(), 1e-300)) for at in (rows, worst))
        return float(np.sqrt(left)) if np.isfinite(left) else np.inf


def _flat(values: Values) -> Values:
    return values.reshape(len(values), -1).astype(np.float64, copy=False)


def search(
    op: Op, *, base: float, floor: float, declared: str = "", catalogue: Iterable[Hypothesis] = CATALOGUE
) -> Found:
    """Every hypothesis that fits the op; `base` is how well the unchanged op gives the reference's output.

    `floor` is the relative noise level of the tap; `declared` is the format that the candidate says it
    computes in: that is no mistake.
    """
    scale = Scale(op.expected, op.seen)
    noise = max(NOISE, 2.0 * base, 2.0 * floor)
    tried, failed = [], []
    for hypothesis in catalogue:
        try:
            made = attempt(hypothesis, op, scale, declared) if hypothesis.fits(op) else None
        except Exception as error:  # whatever it is, it must not cost the verdict
            failed.append(failure(error, f"whether it is '{hypothesis.name}'"))
        else:
            tried += [made] if made is not None else []
    ordered = tuple(sorted(tried, key=lambda item: item.residual))
    return settled(Found(scale.error, noise, ordered, failed=tuple(failed)))


def failure(error: Exception, what: str) -> str:
    """A note on what could not be computed; `PARITY_DEBUG` raises the error instead."""
    if os.environ.get("PARITY_DEBUG"):
        raise error
    return f"{what} cannot be computed ({type(error).__name__}: {error})"


def attempt(hypothesis: Hypothesis, op: Op, scale: Scale, declared: str = "") -> Tried | None:
    """The best variant of one hypothesis, and others that give its values; None where it has none."""
    best: tuple[Tried, Values] | None = None
    for variant in variants(hypothesis, op):
        if declared and declared in variant.words:
            continue
        residual = scale.of(variant.values, variant.where)
        made = Tried(hypothesis.name, variant.words, residual, hypothesis.rank, variant.fit)
        if best is None or residual < best[0].residual - NOISE:
            best = made, variant.values
        elif len(best[0].also) + 1 < TIES and _same(best[1], variant, residual - best[0].residual):
            best = replace(best[0], also=(*best[0].also, variant.words)), best[1]
    return None if best is None else best[0]


def _same(best: Values, variant: Variant, worse: float) -> bool:
    """Whether a variant is no worse than the best and gives its values."""
    return worse <= NOISE and distance(variant.values, best, variant.where) <= NOISE


def variants(hypothesis: Hypothesis, op: Op) -> Iterator[Variant]:
    """What a hypothesis makes of an op, in the op's shape."""
    with np.errstate(all="ignore"):
        for variant in hypothesis.make(op):
            if variant.values.size == op.expected.size:
                yield replace(variant, values=op.shaped(variant.values))


def settled(found: Found) -> Found:
    """With those named that explain the error away and that nothing tells apart.

    A mistake of the op goes before what merely describes its output.
    """
    allowed = min(max(SHARE * found.error, min(found.noise, found.error / 3)), max(RESIDUE, found.noise))
    able = [item for item in found.tried if item.residual <= allowed]
    if not able or found.error <= NOISE:
        return replace(found, best=())
    least = min(item.rank for item in able)
    able = [item for item in able if item.rank == least]
    limit = max(3.0 * able[0].residual, min(found.noise, found.error / 3))
    tied = tuple(item for item in able if item.residual <= limit)
    return replace(found, best=tied if len(tied) <= TIES else (), limit=limit)


def constant(expected: Values, seen: Values) -> Found | None:
    """The candidate has one value everywhere: that is said, whatever else would make it so."""
    value = float(seen.flat[0])
    if seen.size < 4 or (seen != value).any() or (expected == expected.flat[0]).all():
        return None
    words = "zeros" if value == 0.0 else f"a constant, {value:.4g}"
    tried = (Tried("constant", words, 0.0, 2),)
    return Found(distance(seen, expected, None), NOISE, tried, tried)


def search_layouts(expected: Values, seen: Values, axes: tuple[str, ...], *, floor: float) -> Found:
    """Transformations of the right output that give what was seen."""
    error = distance(seen, expected, None)
    with np.errstate(all="ignore"):
        tried = [
            Tried(
                layout.kind or layout.name,
                layout.name,
                distance(seen, layout.values, layout.where),
                2 + layout.fitted,
                layout.fit,
            )
            for layout in layouts(expected, seen, axes)
        ]
    noise = max(NOISE, 2.0 * floor)
    found = Found(error, noise, tuple(sorted(tried, key=lambda item: item.residual)))
    return settled(found)


def distance(seen: Values, values: Values, where: Values | None) -> float:
    """Relative L2 distance over the places spoken of."""
    if where is not None:
        seen, values = seen[where], values[where]
    seen, values = wide(seen), wide(values)
    size = max(_power(values), _power(seen))
    gap = _power(seen - values)
    if not np.isfinite(gap):
        return np.inf
    return float(np.sqrt(gap / size)) if size else 0.0


def _power(values: Values) -> float:
    return float((values * values.conj()).real.sum())


def narrowed(first: Found, second: Found) -> Found:
    """What explains both steps equally: the larger residue of each hypothesis that was tried at both."""
    both = [
        replace(item, residual=max(item.residual, other.residual), words=words[0], also=words[1:])
        for item in first.tried
        for other in second.tried
        if item.name == other.name
        if (words := tuple(word for word in (item.words, *item.also) if word in (other.words, *other.also)))
    ]
    noise = max(first.noise, second.noise)
    merged = Found(min(first.error, second.error), noise, tuple(sorted(both, key=lambda item: item.residual)))
    return settled(merged)
