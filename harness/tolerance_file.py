"""A user's tolerance file: a profile, overrides per tap, noise floors that `parity calibrate` measured."""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import UserError, did_you_mean
from .judge import Floor
from .tolerance import AUTO, Override, Tolerance, default_bound, known_profiles

if TYPE_CHECKING:
    from .noise import Noise


def read_tolerance(path: Path) -> Tolerance:
    """The tolerance that a TOML file describes; UserError names what is wrong with it."""
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


_KEYS = ("profile", "override", "allow_nonfinite", "case", "floor")
_OVERRIDE_KEYS = ("taps", "atol", "rtol", "reason")
_LEVELS = ("rms", "peak", "rest")
_FLOOR_KEYS = (*_LEVELS, "cause", "rows")


def _from_data(data: Mapping[str, Any], source: str) -> Tolerance:
    _only(data, _KEYS, source)
    profile = data.get("profile", AUTO)
    if profile not in known_profiles():
        raise UserError(
            f"profile={profile!r} in {source}: unknown. {did_you_mean(str(profile), known_profiles())}"
        )
    rows = data.get("override", [])
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise UserError(f"override in {source}: should be tables; write [[override]] above each")
    globs = data.get("allow_nonfinite", [])
    if not isinstance(globs, list) or not all(isinstance(glob, str) for glob in globs):
        raise UserError(f"allow_nonfinite={globs!r} in {source}: should be a list of tap globs")
    floors, case = _floors(data, profile, source), _table(data, "case", source)
    overrides = tuple(_override(row, profile, source) for row in rows)
    return Tolerance(profile, overrides, tuple(globs), source, floors, case)


def _table(data: Mapping[str, Any], key: str, source: str) -> Mapping[str, Any]:
    table = data.get(key, {})
    if not isinstance(table, dict):
        raise UserError(f"{key}={table!r} in {source}: should be a table; write [{key}] above it")
    return table


def _floors(data: Mapping[str, Any], profile: str, source: str) -> dict[str, Floor]:
    """Noise floors by tap; they decide under `auto` alone."""
    table = _table(data, "floor", source)
    if table and profile != AUTO:
        raise UserError(
            f"profile={profile!r} in {source}: noise floors decide nothing under it; write profile = {AUTO!r}"
        )
    return {tap: _floor(tap, level, source) for tap, level in table.items()}


def _floor(tap: str, level: Any, source: str) -> Floor:
    if not isinstance(level, dict):
        raise UserError(f"floor {tap!r} in {source}: should be a table such as {{ rms = 1e-7, peak = 5e-7 }}")
    _only(level, _FLOOR_KEYS, source)
    rms, peak, rest = (_number(level, key, tap, source, of="floor") for key in _LEVELS)
    if rms is None or peak is None:
        raise UserError(f"floor {tap!r} in {source}: needs rms and peak; run parity calibrate again")
    return Floor(rms, peak, rest or 0.0)


def write_floors(path: Path, case: Mapping[str, Any], levels: Mapping[str, Noise]) -> str:
    """The text of a calibration file: one line per tap, in execution order, ready to be reviewed."""
    lines = [
        "# Noise floors per tap, relative to the RMS of a row: of its RMS error, its largest error, and of",
        "# what lies beside a dominant value. A row passes up to 8 times the floor of its tap.",
        f"# parity run --tol {path.name}",
        f'profile = "{AUTO}"',
        "",
        "[case]",
        *(f"{key} = {json.dumps(value)}" for key, value in case.items()),
        "",
        "[floor]",
    ]
    for tap, noise in levels.items():
        floor = noise.floor
        numbers = {"rms": floor.rms, "peak": floor.peak} | ({"rest": floor.rest} if floor.rest else {})
        cells = [f"{key} = {value:.4g}" for key, value in numbers.items()]
        cells += [f"cause = {json.dumps(noise.cause)}", f"rows = {noise.rows}"]
        lines.append(f"{json.dumps(tap)} = {{ {', '.join(cells)} }}")
    return "\n".join(lines) + "\n"


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


def _number(
    row: Mapping[str, Any], key: str, taps: str, source: str, *, of: str = "override"
) -> float | None:
    value = row.get(key)
    if value is None:
        return None
    if (
        isinstance(value, bool)
        or not isinstance(value, (int, float))
        or not math.isfinite(value)
        or value < 0
    ):
        raise UserError(f"{of} {taps!r} {key}={value!r} in {source}: should be a number of at least 0")
    return float(value)


def _only(data: Mapping[str, Any], known: tuple[str, ...], source: str) -> None:
    for key in data:
        if key not in known:
            raise UserError(f"{key}={data[key]!r} in {source}: unknown key. {did_you_mean(key, known)}")
