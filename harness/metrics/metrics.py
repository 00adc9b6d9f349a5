"""What was measured between two arrays: raw sums of one pass, and everything that follows from them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from .histogram import Histogram, Joint
from .layout import Layout, layout
from .profile import MAX_LISTED, Floats, RowStats, SliceProfile, row_stats, slice_profiles

_FLOAT_SLOTS = (
    *("err_sq", "ref_sq", "act_sq", "dot", "err_abs", "max_abs", "actual_at_max", "expected_at_max"),
    *("max_rel", "rel_guard", "max_expected", "max_actual", "worst_ratio"),
)
_INT_SLOTS = (
    *("max_abs_index", "max_rel_index", "ulp", "mismatched", "nan_actual", "nan_expected", "nan_both"),
    *("posinf_actual", "neginf_actual", "posinf_expected", "neginf_expected", "inf_mismatch"),
    *("structural", "respelled", "excluded"),
)
SLOT = {name: place for place, name in enumerate(_FLOAT_SLOTS + _INT_SLOTS)}
_NO_ROWS, _NO_COLUMNS = np.empty((0, 7)), np.empty((7, 0))
_ROW_FIELDS = ("err_rms", "ref_rms", "err_max", "ref_max", "mismatched", "nonfinite", "excluded")


def _float_slot(name: str, doc: str) -> property:
    place = SLOT[name]
    return property(lambda self: self._sums.item(place), doc=doc)


def _int_slot(name: str, doc: str) -> property:
    place = SLOT[name]
    return property(lambda self: self._counts.item(place), doc=doc)


class Metrics:
    """Metrics of one pair of arrays; all derived values are properties.

    Places with NaN or Inf on a side, and mask fills, are counted and left out of sums, maxima and histogram.
    """

    __slots__ = (
        "_cells", "_columns", "_counts", "_joint", "_profiles", "_rows", "_sums",
        "atol", "count", "dtype_actual", "dtype_expected", "full", "plan", "rtol",
    )  # fmt: skip

    def __init__(
        self,
        plan: Layout,
        bound: tuple[float, float],
        names: tuple[str, str],
        sums: Floats,
        rows: Floats,
        columns: Floats,
        cells: Floats | None,
        full: bool,
    ) -> None:
        self.plan, self.count, self.full = plan, plan.size, full
        self.atol, self.rtol = bound
        self.dtype_actual, self.dtype_expected = names
        self._sums, self._counts = sums, sums.view(np.int64)
        self._rows, self._columns, self._cells = rows, columns, cells
        self._joint: Joint | None = None
        self._profiles: dict[str, SliceProfile] | None = None

    max_abs = _float_slot("max_abs", "Largest |a - e|.")
    actual_at_max = _float_slot("actual_at_max", "The candidate's value at the largest error.")
    expected_at_max = _float_slot("expected_at_max", "The reference's value at the largest error.")
    max_rel = _float_slot("max_rel", "Largest |a - e| / max(|e|, guard).")
    rel_guard = _float_slot(
        "rel_guard", "The guard at the largest relative error: 1 % of the RMS of its block."
    )
    max_expected = _float_slot("max_expected", "Largest |e|.")
    max_actual = _float_slot("max_actual", "Largest |a|.")
    worst_ratio = _float_slot(
        "worst_ratio", "Largest |a - e| / (atol + rtol * |e|): above 1 where the formula fails."
    )
    max_abs_index = _int_slot("max_abs_index", "Flat place of the largest error, -1 when there is none.")
    max_rel_index = _int_slot(
        "max_rel_index", "Flat place of the largest relative error, -1 when there is none."
    )
    mismatched = _int_slot("mismatched", "Places where |a - e| <= atol + rtol * |e| does not hold.")
    nan_actual = _int_slot("nan_actual", "NaN in the candidate.")
    nan_expected = _int_slot("nan_expected", "NaN in the reference.")
    nan_both = _int_slot("nan_both", "NaN on both sides at one place.")
    posinf_actual = _int_slot("posinf_actual", "+Inf in the candidate.")
    neginf_actual = _int_slot("neginf_actual", "-Inf in the candidate.")
    posinf_expected = _int_slot("posinf_expected", "+Inf in the reference.")
    neginf_expected = _int_slot("neginf_expected", "-Inf in the reference.")
    inf_mismatch = _int_slot("inf_mismatch", "Inf on one side, or of opposite sign; NaN not counted.")
    structural = _int_slot("structural", "Mask fills, alike on both sides.")
    respelled = _int_slot(
        "respelled", "Of these, -Inf or a type's minimum on one side and another such on the other."
    )
    excluded = _int_slot("excluded", "Places left out of all sums: not finite, or mask fills.")

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of both arrays; a complex array has one more axis of 2."""
        return self.plan.shape

    @property
    def axes(self) -> str:
        """Axis names, empty when none were given."""
        return "" if self.plan.axes and self.plan.axes[0].isdigit() else " ".join(self.plan.axes)

    @property
    def used(self) -> int:
        """Places that take part in sums: finite on both sides and no mask fills."""
        return int(self.count - self.excluded)

    @property
    def nan_mismatch(self) -> int:
        """NaN on exactly one side."""
        return int(self.nan_actual + self.nan_expected - 2 * self.nan_both)

    @property
    def structural_share(self) -> float:
        """Share of places that are mask fills."""
        return self.structural / self.count if self.count else 0.0

    @property
    def exact_zero(self) -> bool:
        """Whether every place is equal: no error, nothing one-sided, no NaN."""
        return not (
            self.max_abs or self.nan_actual or self.nan_expected or self.inf_mismatch or self.respelled
        )

    @property
    def mean_abs(self) -> float:
        """Mean |a - e|."""
        return self._sum("err_abs") / max(self.used, 1)

    @property
    def rmse(self) -> float:
        """Root of the mean squared error."""
        return math.sqrt(self._sum("err_sq") / max(self.used, 1))

    @property
    def rms_expected(self) -> float:
        """Root of the mean square of the reference."""
        return math.sqrt(self._sum("ref_sq") / max(self.used, 1))

    @property
    def rms_actual(self) -> float:
        """Root of the mean square of the candidate."""
        return math.sqrt(self._sum("act_sq") / max(self.used, 1))

    @property
    def rel_l2(self) -> float:
        """||a - e|| / ||e||; 0 when equal, inf when only the reference is zero."""
        return _ratio(math.sqrt(self._sum("err_sq")), math.sqrt(self._sum("ref_sq")))

    @property
    def cosine(self) -> float:
        """Signed cosine; 1 when both sides are zero, 0 when one is."""
        norm = math.sqrt(self._sum("ref_sq")) * math.sqrt(self._sum("act_sq"))
        if norm == 0.0:
            return 1.0 if self._sum("ref_sq") == self._sum("act_sq") else 0.0
        return max(-1.0, min(1.0, self._sum("dot") / norm))

    @property
    def sqnr_db(self) -> float:
        """Signal to error ratio in decibels; inf when equal, -inf when only the reference is zero."""
        ratio = self.rel_l2
        if ratio == 0.0:
            return math.inf
        return -20.0 * math.log10(ratio) if ratio < math.inf else -math.inf

    @property
    def ulp_max(self) -> int | None:
        """Largest distance on the common float grid; None when the formats differ or are no floats."""
        if not self.full or self.dtype_actual != self.dtype_expected or "float" not in self.dtype_actual:
            return None
        steps = int(self._sums.view(np.uint64)[SLOT["ulp"]])
        return steps >> (16 if self.dtype_actual == "bfloat16" else 0)

    @property
    def joint(self) -> Joint:
        """Counts and largest errors by binades of |error| x |expected|."""
        if self._joint is None:
            self._joint = Joint.from_cells(self._cells if self._cells is not None else np.empty((0, 3)))
        return self._joint

    @property
    def hist(self) -> Histogram:
        """Errors by binade."""
        joint = self.joint
        return Histogram.from_joint(joint, self.used - int(joint.count.sum()))

    @property
    def detailed(self) -> bool:
        """Whether it holds columns and histogram, not only what a survey or `slim` leaves."""
        return self._cells is not None

    @property
    def nbytes(self) -> int:
        """Memory of what `slim` would drop, profiles included: they take as much as rows and columns."""
        return 2 * (self._rows.nbytes + self._columns.nbytes) + int(getattr(self._cells, "nbytes", 0))

    @property
    def raw_rows(self) -> Floats:
        """Sums of squares, maxima and counts per row, `[R, 7]`; what the judge reads."""
        return self._rows

    @property
    def rows(self) -> RowStats:
        """Statistics per row."""
        return row_stats(self._rows, self.plan)

    @property
    def profiles(self) -> dict[str, SliceProfile]:
        """Statistics per index of each axis, in the order of the axes."""
        if self._profiles is None:
            self._profiles = slice_profiles(self._rows, self._columns, self.plan) if self._rows.size else {}
        return self._profiles

    def slim(self) -> Metrics:
        """The same numbers without rows, histogram and slices: a few hundred bytes whatever was measured."""
        if self._cells is None and not len(self._rows):
            return self
        bound, names = (self.atol, self.rtol), (self.dtype_actual, self.dtype_expected)
        return Metrics(self.plan, bound, names, self._sums, _NO_ROWS, _NO_COLUMNS, None, self.full)

    def unravel(self, index: int | None = None) -> tuple[int, ...]:
        """A flat place (default: that of the largest error) as one index per axis; empty for no place."""
        place = self.max_abs_index if index is None else index
        return tuple(int(i) for i in np.unravel_index(place, self.shape)) if place >= 0 and self.count else ()

    def _sum(self, name: str) -> float:
        return self._sums.item(SLOT[name])

    def to_json(self) -> dict[str, Any]:
        """Plain data; infinities are strings. Long profiles and many rows are left out."""
        data: dict[str, Any] = {
            "shape": list(self.shape),
            "axes": self.axes,
            "count": self.count,
            "atol": self.atol,
            "rtol": self.rtol,
            "dtype_actual": self.dtype_actual,
            "dtype_expected": self.dtype_expected,
            "full": self.full,
            "ulp_max": self.ulp_max,
            "exact_zero": self.exact_zero,
        }
        data |= {name: _plain(self._sum(name)) for name in _FLOAT_SLOTS}
        data |= {name: self._counts.item(SLOT[name]) for name in _INT_SLOTS}
        for name in ("mean_abs", "rmse", "rms_expected", "rms_actual", "rel_l2", "cosine", "sqnr_db"):
            data[name] = _plain(getattr(self, name))
        if self.full:
            data["hist"], data["joint"] = self.hist.to_json(), self.joint.to_json()
            short = {name: p for name, p in self.profiles.items() if p.err_rms.size <= MAX_LISTED}
            data["profiles"] = {name: profile.to_json() for name, profile in short.items()}
            if 0 < len(self._rows) <= MAX_LISTED:
                data["rows"] = _rows_to_json(self._rows, self.plan)
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Metrics:
        """Read back what `to_json` wrote, also without `hist`, `joint`, `profiles` and `rows`."""
        plan = layout(tuple(data["shape"]), data["axes"])
        sums = np.zeros(len(SLOT) + 1)
        for name in _FLOAT_SLOTS:
            sums[SLOT[name]] = float(data[name])
        for name in _INT_SLOTS:
            sums.view(np.int64)[SLOT[name]] = data[name]
        rows = _rows_from_json(data["rows"], plan) if "rows" in data else np.empty((0, 7))
        bound, names = (data["atol"], data["rtol"]), (data["dtype_actual"], data["dtype_expected"])
        found = cls(plan, bound, names, sums, rows, np.empty((7, 0)), None, data["full"])
        if "joint" in data:
            found._joint = Joint.from_json(data["joint"])
        found._profiles = {name: SliceProfile.from_json(p) for name, p in data.get("profiles", {}).items()}
        return found


def _ratio(part: float, whole: float) -> float:
    if part == 0.0:
        return 0.0
    return part / whole if whole and whole < math.inf else math.inf


def _plain(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)


def _rows_to_json(raw: Floats, plan: Layout) -> dict[str, list[float]]:
    stats = row_stats(raw, plan)
    columns = {name: getattr(stats, name).tolist() for name in _ROW_FIELDS[:-1]}
    return columns | {"excluded": raw[:, 6].tolist()}


def _rows_from_json(data: Mapping[str, list[float]], plan: Layout) -> Floats:
    raw = np.array([data[name] for name in _ROW_FIELDS], np.float64).T.copy()
    used = np.maximum(plan.row_size - raw[:, 6], 1.0)
    raw[:, :2] = raw[:, :2] ** 2 * used[:, None]
    return raw
