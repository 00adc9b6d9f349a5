"""What is allowed: the one acceptance formula, bounds by number format, and a user's overrides."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np

from .dtypes import NAMES
from .errors import UserError, did_you_mean

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
    """A profile with overrides; of several that match a tap the last one holds."""

    profile: str
    overrides_list: tuple[Override, ...] = ()
    nonfinite: tuple[str, ...] = ()
    source: str = ""

    @property
    def kind(self) -> str:
        """`auto` when noise floors decide, `bound` when only the formula does."""
        return AUTO if self.profile == AUTO else "bound"

    @property
    def name(self) -> str:
        """What a report calls it."""
        return f"{self.source} ({self.profile})" if self.source else self.profile

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
    wide = dtype in ("float64", "complex128")
    return PROFILES[{True: "fp64", False: "fp32"}[wide] if profile == AUTO else profile][dtype]


def load_tolerance(spec: str) -> Tolerance:
    """A tolerance from a profile's name, `auto`, or the path of a TOML file; UserError for anything else."""
    if spec == AUTO or spec in PROFILES:
        return Tolerance(spec)
    path = Path(spec)
    if path.suffix == ".toml" or "/" in spec or path.is_file():
        return _from_file(path)
    raise UserError(f"tol={spec!r}: is no profile and no file. {did_you_mean(spec, [AUTO, *PROFILES])}")


def _from_file(path: Path) -> Tolerance:
    try:
        text = path.read_bytes().decode()
        data = tomllib.loads(text)
    except OSError as error:
        raise UserError(
            f"tol={str(path)!r}: cannot be read ({error.strerror}); give a profile or a TOML file"
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"tol={str(path)!r}: is not TOML ({error}); correct the file") from error
    return _from_data(data, path.name)


_KEYS = ("profile", "override", "allow_nonfinite")
_OVERRIDE_KEYS = ("taps", "atol", "rtol", "reason")


def _from_data(data: Mapping[str, Any], source: str) -> Tolerance:
    _only(data, _KEYS, source)
    profile = data.get("profile", AUTO)
    if profile != AUTO and profile not in PROFILES:
        raise UserError(
            f"profile={profile!r} in {source}: unknown. {did_you_mean(str(profile), [AUTO, *PROFILES])}"
        )
    rows = data.get("override", [])
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise UserError(f"override in {source}: should be tables; write [[override]] above each")
    globs = data.get("allow_nonfinite", [])
    if not isinstance(globs, list) or not all(isinstance(glob, str) for glob in globs):
        raise UserError(f"allow_nonfinite={globs!r} in {source}: should be a list of tap globs")
    return Tolerance(profile, tuple(_override(row, profile, source) for row in rows), tuple(globs), source)


def _override(row: Mapping[str, Any], profile: str, source: str) -> Override:
    _only(row, _OVERRIDE_KEYS, source)
    taps, reason = row.get("taps"), row.get("reason", "")
    if not isinstance(taps, str) or not taps:
        raise UserError(f'override taps={taps!r} in {source}: should be a tap glob such as "layer*.q"')
    if not isinstance(reason, str):
        raise UserError(f"override {taps!r} reason={reason!r} in {source}: should be a sentence")
    atol, rtol = (_number(row, key, taps, source) for key in ("atol", "rtol"))
    override = Override(taps, atol, rtol, reason)
    if override.atol is None and override.rtol is None:
        raise UserError(f"override {taps!r} in {source}: sets neither atol nor rtol; give one or drop it")
    if _loosens(override, profile) and not reason.strip():
        raise UserError(
            f"override {taps!r} in {source}: loosens the profile {profile!r} without a reason; "
            'add reason = "..." that says why this is healthy'
        )
    return override


def _loosens(override: Override, profile: str) -> bool:
    """Whether it allows more than the profile does for the format that the profile is named after."""
    named = {"fp64": "float64", "fp16": "float16", "bf16": "bfloat16"}.get(profile, "float32")
    bound = default_bound(profile, named)
    return (override.atol or 0.0) > bound.atol or (override.rtol or 0.0) > bound.rtol


def _number(row: Mapping[str, Any], key: str, taps: str, source: str) -> float | None:
    value = row.get(key)
    if value is None:
        return None
    if (
        isinstance(value, bool)
        or not isinstance(value, (int, float))
        or not math.isfinite(value)
        or value < 0
    ):
        raise UserError(f"override {taps!r} {key}={value!r} in {source}: should be a number of at least 0")
    return float(value)


def _only(data: Mapping[str, Any], known: tuple[str, ...], source: str) -> None:
    for key in data:
        if key not in known:
            raise UserError(f"{key}={data[key]!r} in {source}: unknown key. {did_you_mean(key, known)}")


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
    return "\n".join(lines)
