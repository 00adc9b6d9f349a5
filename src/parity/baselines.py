"""`parity.baseline_save` and `parity.baseline_check`: a result that is kept, and what got worse since.

A port may get worse and stay within its tolerance: a compiler's new version, another flag. The baseline is a
small reviewable file, made to be committed: per candidate and tap the worst error over what is allowed.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from parity.harness.comparison import COMPARED, Comparison, Result
from parity.harness.errors import UserError

from .finished import open_result

FORMAT, VERSION = "parity-baseline", 1
#: A tap got worse when its error is so many times what it was ...
FACTOR = 2.0
#: ... and no longer deep in the noise: this share of what is allowed, half of a noise floor.
SHARE = 1.0 / 16.0
#: A candidate that looks at so much less of the reference got worse as well.
LESS = 0.001
#: What must be the same for two results to be comparable.
CASE = ("model", "weights", "scenario_digest", "policy")


@dataclass(frozen=True)
class Regression:
    """One thing that got worse: a tap's error over what is allowed, or what is no longer looked at."""

    label: str
    tap: str
    was: float | None
    now: float | None
    text: str


@dataclass(frozen=True)
class Check:
    """What got worse since a baseline; `exit_code` is the result's own, or 5."""

    regressions: tuple[Regression, ...]
    result: Result
    compared: int

    @property
    def exit_code(self) -> int:
        """The result's own status unless it is at parity; then 5 for a regression, else 0."""
        return self.result.exit_code or (5 if self.regressions else 0)

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "exit_code": self.exit_code,
            "compared": self.compared,
            "regressions": [vars(item) for item in self.regressions],
        }


def baseline_save(result: str | Path, out: str | Path, *, force: bool = False) -> Path:
    """Write the baseline of a finished run's folder or report.json.

    UserError for a result that is not at parity (`force` keeps it nevertheless) or a place that cannot be
    written.
    """
    from parity.reports.json_report import write_text

    found, _ = open_result(result)
    if found.exit_code and not force:
        raise UserError(
            f"result={str(result)!r}: is not at parity (exit status {found.exit_code}); mend it, or keep "
            "it as it is with --force"
        )
    data = {
        "format": FORMAT,
        "version": VERSION,
        "created": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "libraries": found.provenance.get("libraries", {}),
        "candidates": {comparison.label: _candidate(comparison) for comparison in found},
    }
    return write_text(json.dumps(data, indent=1) + "\n", out)


def _candidate(comparison: Comparison) -> dict[str, Any]:
    return {
        "case": _case(comparison),
        "tolerance": comparison.tolerance,
        "coverage": comparison.coverage.share,
        "taps": {tap: float(f"{ratio:.4g}") for tap, ratio in _worst(comparison).items()},
    }


def _case(comparison: Comparison) -> dict[str, Any]:
    return {key: comparison.reference.provenance.get(key) for key in CASE}


def _worst(comparison: Comparison) -> dict[str, float]:
    """Tap -> worst error over what is allowed, of what was compared."""
    worst: dict[str, float] = {}
    for row in comparison.records:
        if row.status in COMPARED:
            worst[row.tap] = max(worst.get(row.tap, 0.0), row.ratio or 0.0)
    return worst


def baseline_check(result: str | Path, baseline: str | Path, *, factor: float = FACTOR) -> Check:
    """What of a finished run is worse than in a baseline, though it may be within tolerance.

    UserError for a file that is no baseline, a run of another case, or judged by other tolerances.
    """
    if not factor >= 1.0:
        raise UserError(
            f"factor={factor}: is below 1; give by how many times an error may grow, for example 2"
        )
    found, _ = open_result(result)
    held = _read(Path(baseline))
    common = [comparison for comparison in found if comparison.label in held["candidates"]]
    if not common:
        raise UserError(
            f"baseline={str(baseline)!r}: knows {', '.join(held['candidates']) or 'no candidate'}, the "
            f"result {', '.join(comparison.label for comparison in found)}; save a baseline of this run"
        )
    worse: list[Regression] = []
    for comparison in common:
        before = held["candidates"][comparison.label]
        _same(comparison, before, baseline)
        worse += _worse(comparison, before, factor)
    worse += [
        Regression(label, "", None, None, f"{label}: is in the baseline and was not run")
        for label in held["candidates"]
        if label not in {comparison.label for comparison in common}
    ]
    return Check(tuple(worse), found, sum(len(_worst(comparison)) for comparison in common))


def _same(comparison: Comparison, before: Mapping[str, Any], path: str | Path) -> None:
    for key, was in before["case"].items():
        now = _case(comparison).get(key)
        if now != was:
            raise UserError(
                f"baseline={str(path)!r}: is of {key}={was!r}, the result of {now!r}: errors of different "
                "cases do not compare; save a baseline of this case"
            )
    if before["tolerance"] != comparison.tolerance:
        raise UserError(
            f"baseline={str(path)!r}: was judged by tol={before['tolerance']!r}, the result by "
            f"{comparison.tolerance!r}; judge it by the same"
        )


def _worse(comparison: Comparison, before: Mapping[str, Any], factor: float) -> Iterator[Regression]:
    label, now = comparison.label, _worst(comparison)
    for tap, was in before["taps"].items():
        if tap not in now:
            yield Regression(label, tap, was, None, f"{label}: {tap} is no longer compared")
        elif now[tap] > SHARE and now[tap] > factor * was:
            text = f"{label}: {tap} is at {now[tap]:.2g}× of what is allowed, was {was:.2g}×"
            yield Regression(label, tap, was, now[tap], text)
    share, had = comparison.coverage.share, before["coverage"]
    if share < had - LESS:
        text = f"{label}: {100 * share:.3g} % of the reference was checked, was {100 * had:.3g} %"
        yield Regression(label, "", had, share, text)


def _read(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(
            f"baseline={str(path)!r}: cannot be read ({error.strerror}); write it with parity baseline save"
        ) from None
    except ValueError as error:
        raise UserError(f"baseline={str(path)!r}: is not JSON ({error}); save it again") from None
    if not isinstance(data, dict) or (data.get("format"), data.get("version")) != (FORMAT, VERSION):
        raise UserError(f"baseline={str(path)!r}: is no baseline of version {VERSION}; save it again")
    if not _sound(data.get("candidates")):
        raise UserError(f"baseline={str(path)!r}: is damaged; save it again")
    return data


def _sound(candidates: Any) -> bool:
    fields = {"case": dict, "tolerance": str, "coverage": float, "taps": dict}
    return isinstance(candidates, dict) and all(
        isinstance(one, dict)
        and all(isinstance(one.get(name), kind) for name, kind in fields.items())
        and all(isinstance(ratio, (int, float)) for ratio in one["taps"].values())
        for one in candidates.values()
    )
