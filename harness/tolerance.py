"""What is allowed: the one acceptance formula, bounds by number format, and a user's overrides."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np

from .dtypes import NAMES
from .errors import UserError, did_you_mean
from .judge import Floor
from .vendors import VENDORS, Vendor
from .vendors import describe as describe_vendors

FORMULA = "|a - e| <= atol + rtol * |e|"


@dataclass(frozen=True, slots=True)
class Bound:
    """atol and rtol of the acceptance formula."""

    atol: float
    rtol: float

    def coarser(self, other: Bound) -> Bound:
        """The larger of each."""
        return Bound(max(self.atol, other.atol), max(self.rtol, other.rtol))


def within(actual: Any, expected: Any, atol: float, rtol: float) -> np.ndarray[Any, Any]:
    """|a - e| <= atol + rtol * |e|, place by place, in float64.

    Infinities hold when they are the same; NaN never holds. The compiled pass counts by the same formula.
    """
    a, e = np.asarray(actual), np.asarray(expected)
    with np.errstate(invalid="ignore", over="ignore"):
        size = np.abs(e.astype(np.complex128 if e.dtype.kind == "c" else np.float64))
        close = _distance(a, e) <= atol + rtol * size
    return np.asarray((close & np.isfinite(size)) | (a == e))


def _distance(a: np.ndarray[Any, Any], e: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    if {a.dtype.name, e.dtype.name} & {"int64", "uint64"} and a.dtype.kind in "iu" and e.dtype.kind in "iu":
        from .metrics.widen import exact_difference

        return np.abs(exact_difference(a, e))
    wide = np.complex128 if "c" in (a.dtype.kind, e.dtype.kind) else np.float64
    return np.asarray(np.abs(a.astype(wide) - e.astype(wide)))


EXACT = Bound(0.0, 0.0)
BASE: dict[str, Bound] = {
    "float64": Bound(1e-9, 1e-9),
    "float32": Bound(1e-4, 1e-4),
    "float16": Bound(1e-2, 1e-2),
    "bfloat16": Bound(6e-2, 4e-2),
    "float8": Bound(2.5e-1, 2.5e-1),
    "w8a8": Bound(2.5e-1, 1e-1),
    "w8a16": Bound(1e-1, 5e-2),
    "w4a16": Bound(5e-1, 2e-1),
}
"""What a whole model computed in a format is allowed, at activations of order 1."""

_COMPUTED_IN = {
    "exact": None,
    "fp64": "float64",
    "fp32": "float32",
    "fp16": "float16",
    "bf16": "bfloat16",
    "fp8": "float8",
    "w8a8": "w8a8",
    "w8a16": "w8a16",
    "w4a16": "w4a16",
}
_ONE_STEP = Bound(1.0, 0.0)
"""Quantized integers may round one step apart."""


def _row(computed_in: str | None) -> dict[str, Bound]:
    """Bounds by the format of a record, for a model computed in `computed_in`."""
    if computed_in is None:
        return dict.fromkeys(NAMES, EXACT)
    return {name: _cell(name, computed_in) for name in NAMES}


def _cell(name: str, computed_in: str) -> Bound:
    if name == "bool":
        return EXACT
    if "int" in name:
        return (
            _ONE_STEP if computed_in.startswith("w") and name in ("int8", "uint8", "int4", "uint4") else EXACT
        )
    own = {"complex64": "float32", "complex128": "float64"}.get(
        name, "float8" if name.startswith("float8") else name
    )
    return BASE[own].coarser(BASE[computed_in])


PROFILES: dict[str, dict[str, Bound]] = {name: _row(computed) for name, computed in _COMPUTED_IN.items()}
"""Profile -> logical dtype of a record -> bound. Token ids, positions and masks (integers) are exact."""

AUTO = "auto"
"""The measured noise floor; where none is known, the bound of the record's own number format."""


@dataclass(frozen=True, slots=True)
class Override:
    """Another bound for taps that match a glob; None keeps the profile's. Loosening needs a reason."""

    taps: str
    atol: float | None = None
    rtol: float | None = None
    reason: str = ""

    def over(self, bound: Bound) -> Bound:
        """The bound with what this override sets."""
        return Bound(
            bound.atol if self.atol is None else self.atol, bound.rtol if self.rtol is None else self.rtol
        )


@dataclass(frozen=True)
class Tolerance:
    """A profile with overrides; of several that match a tap the last one holds.

    `floors` are noise floors by tap that a calibration file holds, `case` what they were measured on.
    """

    profile: str
    overrides_list: tuple[Override, ...] = ()
    nonfinite: tuple[str, ...] = ()
    source: str = ""
    floors: Mapping[str, Floor] = field(default_factory=dict)
    case: Mapping[str, Any] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        """`auto` when noise floors decide, `bound` when only the formula does."""
        return AUTO if self.profile == AUTO else "bound"

    @property
    def name(self) -> str:
        """What a report calls it."""
        return f"{self.source} ({self.profile})" if self.source else self.profile

    @property
    def vendor(self) -> Vendor | None:
        """The rule of a vendor's, where the profile is one."""
        return VENDORS.get(self.profile)

    def bound(self, tap: str, dtype_expected: str, dtype_actual: str) -> Bound:
        """The bound of a tap; of the two number formats the coarser one decides."""
        bound = self._profile_bound(dtype_expected).coarser(self._profile_bound(dtype_actual))
        override = self._override(tap)
        return bound if override is None else override.over(bound)

    def overrides(self, tap: str) -> bool:
        """Whether a user set a bound for this tap."""
        return self._override(tap) is not None

    def reason(self, tap: str) -> str:
        """Why the tap has a bound of its own; empty when it has none or is only tightened."""
        override = self._override(tap)
        return override.reason if override else ""

    def allows_nonfinite(self, tap: str) -> bool:
        """Whether NaN on both sides at the same place is accepted."""
        return any(fnmatchcase(tap, glob) for glob in self.nonfinite)

    def unmatched(self, taps: Iterable[str]) -> list[str]:
        """Globs, of overrides and of allow_nonfinite, that match none of these taps."""
        known = list(taps)
        globs = dict.fromkeys([*(o.taps for o in self.overrides_list), *self.nonfinite])
        return [glob for glob in globs if not any(fnmatchcase(tap, glob) for tap in known)]

    def _override(self, tap: str) -> Override | None:
        return next((o for o in reversed(self.overrides_list) if fnmatchcase(tap, o.taps)), None)

    def _profile_bound(self, dtype: str) -> Bound:
        return default_bound(self.profile, dtype)


def default_bound(profile: str, dtype: str) -> Bound:
    """Bound of a profile for records of a logical dtype; `auto` takes the profile of the dtype itself."""
    if dtype not in NAMES:
        raise UserError(f"dtype={dtype!r}: unknown number format. {did_you_mean(dtype, NAMES)}")
    if profile in VENDORS:
        return Bound(*VENDORS[profile].bound(dtype))
    wide = dtype in ("float64", "complex128")
    return PROFILES[{True: "fp64", False: "fp32"}[wide] if profile == AUTO else profile][dtype]


def load_tolerance(spec: str) -> Tolerance:
    """A tolerance from a profile's name, `auto`, or the path of a TOML file; UserError for anything else."""
    if spec in known_profiles():
        return Tolerance(spec)
    path = Path(spec)
    if path.suffix == ".toml" or "/" in spec or path.is_file():
        from .tolerance_file import read_tolerance

        return read_tolerance(path)
    raise UserError(f"tol={spec!r}: is no profile and no file. {did_you_mean(spec, known_profiles())}")


def known_profiles() -> list[str]:
    """Every name that `--tol` takes."""
    return [AUTO, *PROFILES, *VENDORS]


def describe() -> str:
    """The profiles as a table: one row per profile, one column per number format of a record."""
    columns = ("float64", "float32", "float16", "bfloat16", "int8", "int64")
    lines = [
        f"{FORMULA}; cells are atol / rtol",
        "",
        f"| profile | {' | '.join(columns)} |",
        "|---" * 7 + "|",
    ]
    for name, row in PROFILES.items():
        cells = " | ".join(f"{row[c].atol:g} / {row[c].rtol:g}" for c in columns)
        lines.append(f"| {name} | {cells} |")
    lines.append("")
    lines.append("auto: the measured noise floor; without one, fp32 (fp64 for float64 records).")
    return "\n".join([*lines, "", describe_vendors()])
