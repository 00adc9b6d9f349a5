"""`parity.power`: the smallest error that a finished run's tolerances would have caught, tap by tap.

Nothing is estimated: errors of known size are planted into what the candidate recorded, and the whole is
compared and judged again, until the smallest one that fails is known to within a factor of two.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np

from parity.harness.compare import compare_runs
from parity.harness.comparison import COMPARED, FAILING, Comparison
from parity.harness.errors import UserError, did_you_mean
from parity.harness.progress import Progress, Silent
from parity.harness.rows import Rules
from parity.harness.tolerance import load_tolerance
from parity.harness.trace import Record, Trace, TraceWriter

from .finished import Finished, candidates
from .floors import dtypes_of, rules_of, stored_floors

#: Sizes that are tried: powers of two. What the largest does not make fail is called undetectable.
SMALLEST, LARGEST = -30, 6


def _scale(values: np.ndarray, size: float) -> None:
    values *= 1.0 + size


def _row(values: np.ndarray, size: float) -> None:
    """The middle row by size: neither padding nor an outlier."""
    rows = values.reshape(-1, values.shape[-1]) if values.ndim else values.reshape(1, 1)
    norms = np.sqrt((rows * rows).sum(-1))
    rows[np.argsort(norms)[len(norms) // 2]] *= 1.0 + size


def _channel(values: np.ndarray, size: float) -> None:
    """The middle channel by size, in every row."""
    columns = values.reshape(-1, values.shape[-1]) if values.ndim else values.reshape(1, 1)
    norms = np.sqrt((columns * columns).sum(0))
    columns[:, np.argsort(norms)[len(norms) // 2]] *= 1.0 + size


def _value(values: np.ndarray, size: float) -> None:
    """One value, by a share of the tensor's RMS."""
    flat = values.reshape(-1)
    at = np.argsort(np.abs(flat))[len(flat) // 2]
    flat[at] += size * float(np.sqrt((flat * flat).mean()))


#: What is planted. Sizes are relative: to the values, for `value` to the RMS of the tensor.
KINDS: dict[str, Callable[[np.ndarray, float], None]] = {
    "scale": _scale,
    "channel": _channel,
    "row": _row,
    "value": _value,
}


@dataclass(frozen=True)
class Power:
    """One tap: kind of error -> smallest size that is caught, None for not even the largest."""

    tap: str
    step: int
    caught: Mapping[str, float | None]
    floor: float | None
    reason: str = ""

    @property
    def undetectable(self) -> bool:
        """Whether not even a doubling of all its values would be noticed."""
        size = self.caught.get("scale")
        return size is None or size > 1.0


def power(
    result: str | Path,
    *,
    cand: str | None = None,
    taps: str | None = None,
    tol: str | None = None,
    progress: Progress | None = None,
) -> dict[str, tuple[Power, ...]]:
    """Candidate -> the smallest caught error per tap, of a finished run's folder or report.json.

    Errors are planted at each tap's last record. `taps` is a glob of those that are looked at. `tol` judges
    by other tolerances than the run's own. Raises UserError when the folder holds no result, its traces are
    gone or no tap matches.
    """
    held = list(candidates(result, cand=cand))
    wanted = [_matching(taps, [row.tap for row in one.comparison.records]) for one in held]
    return {
        one.comparison.label: tuple(_of(one, own, tol, progress or Silent()))
        for one, own in zip(held, wanted, strict=True)
    }


def _of(one: Finished, wanted: Collection[str], tol: str | None, progress: Progress) -> Iterator[Power]:
    rules = _rules(one, tol)
    last = {record.tap: record for record in one.candidate.records()}
    rows = {row.tap: row for row in one.comparison.records if row.tap in wanted}
    open_ = {tap for tap, row in rows.items() if row.status in COMPARED and tap in last}
    floating = {tap for tap in open_ if "float" in last[tap].dtype}
    found = {kind: _searched(one, rules, kind, floating, progress) for kind in KINDS} if floating else {}
    for tap, row in rows.items():
        if tap in floating:
            sizes = {kind: found[kind][tap] for kind in KINDS}
            yield Power(tap, last[tap].step, sizes, row.floor)
        elif tap in open_:
            yield Power(tap, last[tap].step, {"scale": 0.0}, row.floor, "whole numbers are held exactly")
        else:
            yield Power(tap, row.step, {}, row.floor, row.reason or row.status)


def _rules(one: Finished, tol: str | None) -> Rules:
    tolerance = load_tolerance(tol or _asked(one.comparison))
    floors = stored_floors(one.reference_path, one.reference, dtypes_of(one.reference, one.candidate))
    return rules_of(tolerance, floors if tolerance.kind == "auto" else {}, one.reference, one.candidate)


def _asked(comparison: Comparison) -> str:
    """The run's own tolerance; one from a file must be named again."""
    name = comparison.tolerance
    if " " in name:
        raise UserError(f"tol: the run was judged by {name}; name that file again with --tol")
    return name


def _searched(
    one: Finished, rules: Rules, kind: str, taps: set[str], progress: Progress
) -> dict[str, float | None]:
    """Bisect all taps at once: each round plants another size at every tap and compares the whole again."""
    low, high = dict.fromkeys(taps, SMALLEST), dict.fromkeys(taps, LARGEST + 1)
    rounds = int(np.ceil(np.log2(LARGEST + 1 - SMALLEST)))
    with progress.stage(f"planting errors: {kind}", rounds) as bar:
        for _ in range(rounds):
            middle = {tap: (low[tap] + high[tap]) // 2 for tap in taps}
            caught = _caught(one, rules, kind, middle)
            for tap in taps:
                if tap in caught:
                    high[tap] = middle[tap]
                else:
                    low[tap] = middle[tap] + 1
            bar.advance()
    return {tap: 2.0 ** high[tap] if high[tap] <= LARGEST else None for tap in taps}


def _caught(one: Finished, rules: Rules, kind: str, sizes: Mapping[str, int]) -> set[str]:
    """Taps that fail when each holds an error of 2 to the power of its size."""
    with tempfile.TemporaryDirectory(prefix="parity-power-") as folder:
        path = Path(folder) / "planted.h5"
        last = {record.tap: record.order for record in one.candidate.records()}
        with (
            TraceWriter(path) as writer,
            writer.run("planted", provenance=dict(one.candidate.provenance)) as run,
        ):
            for record in one.candidate.records():
                planted = record.order == last[record.tap] and record.tap in sizes
                values = _planted(record, kind, sizes[record.tap]) if planted else record.read()
                _copy(run, record, values)
        comparison = compare_runs(
            one.reference,
            Trace(path)["planted"],
            rules=rules,
            sides=(one.comparison.reference, one.comparison.candidate),
            force=True,
        )
    return {row.tap for row in comparison.records if row.status in FAILING}


def _planted(record: Record, kind: str, size: int) -> np.ndarray:
    """The record with an error in it, in its own number format; hidden and padded rows hold it as well."""
    values = np.array(record.read())
    wide = values.astype(np.float64)
    finite = np.where(np.isfinite(wide), wide, 0.0)
    before = finite.copy()
    KINDS[kind](finite, 2.0**size)
    wide += finite - before
    return np.asarray(wide.astype(values.dtype))


def _copy(run: Any, record: Record, values: np.ndarray) -> None:
    run.record(
        record.tap,
        values,
        step=record.step,
        call=record.call,
        axes=record.axes,
        positions=record.positions,
        dtype=record.dtype,
    )


def weakest(powers: tuple[Power, ...]) -> Power | None:
    """The tap at which the largest scale error passes."""
    looked = [one for one in powers if one.caught.get("scale") is not None]
    return max(looked, key=lambda one: one.caught["scale"] or 0.0, default=None)


def _matching(glob: str | None, known: Sequence[str]) -> set[str]:
    """Those of a tap glob; UserError when it matches none."""
    found = {tap for tap in known if glob is None or fnmatchcase(tap, glob)}
    if glob is not None and not found:
        raise UserError(f"taps={glob!r}: matches no tap. {did_you_mean(glob, known)}")
    return found
