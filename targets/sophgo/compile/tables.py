"""Tables that the compiler reads: thresholds of tensors, and operators that keep another format.

A table of ours says in its first lines which graph it belongs to; another graph's is refused by name instead
of being matched by luck.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from parity.harness.errors import UserError

from .chips import MODES, Chip, Mode

_HEAD = re.compile(r"^#\s*(onnx|net|calibrator|samples):\s*(\S.*?)\s*$")
#: Formats that a qtable may name, in the compiler's words.
QTABLE_FORMATS = ("F32", "F16", "BF16", "INT8", "W8F16", "W8BF16", "W4F16", "W4BF16")
#: A tensor that is 0 throughout has no range; the compiler divides by it.
_NO_RANGE = 1e-5


@dataclass(frozen=True)
class Threshold:
    """Beyond +-`threshold` a tensor saturates in int8; `low` and `high` are what was seen."""

    threshold: float
    low: float
    high: float


@dataclass(frozen=True)
class Calibration:
    """Top tensor -> threshold, and whose they are: `facts` has onnx (digest), net, calibrator, samples."""

    thresholds: Mapping[str, Threshold]
    facts: Mapping[str, str]


def ranges(samples: Iterable[Mapping[str, np.ndarray]]) -> dict[str, Threshold]:
    """Thresholds from real activations: the largest magnitude of each tensor over all samples.

    UserError for a tensor that is not finite: there is no range to hold it.
    """
    low: dict[str, float] = {}
    high: dict[str, float] = {}
    for sample in samples:
        for name, array in sample.items():
            least, most = float(array.min(initial=np.inf)), float(array.max(initial=-np.inf))
            if not np.isfinite((least, most)).all():
                raise UserError(
                    f"calibration: {name} is not finite in a sample; calibrate on another scenario"
                )
            low[name], high[name] = min(low.get(name, least), least), max(high.get(name, most), most)
    if not low:
        raise UserError("calibration: there are no samples; give a scenario with at least one step")
    return {
        name: Threshold(max(abs(low[name]), abs(high[name])) or _NO_RANGE, low[name], high[name])
        for name in low
    }


def write_calibration(path: Path, calibration: Calibration) -> None:
    """Write a table as the compiler reads it, its facts as comments."""
    head = [f"# {key}: {value}" for key, value in calibration.facts.items()]
    rows = [
        f"{name} {row.threshold:.9g} {row.low:.9g} {row.high:.9g}"
        for name, row in calibration.thresholds.items()
    ]
    path.write_text("\n".join([*head, "# op_name threshold min max", *rows]) + "\n", encoding="utf-8")


def read_calibration(path: Path) -> Calibration:
    """Read a table, ours or the stock calibrator's; UserError with the line that is none."""
    thresholds: dict[str, Threshold] = {}
    facts: dict[str, str] = {}
    for number, line in _lines("calibration", path):
        if line.startswith("#"):
            if said := _HEAD.match(line):
                facts[said[1]] = said[2]
            continue
        name, *numbers = line.split()
        try:
            threshold, low, high = map(float, numbers)
        except ValueError:
            raise UserError(
                f"calibration={str(path)!r}: line {number} is {line[:80]!r}, should be "
                "`name threshold min max`"
            ) from None
        if not np.isfinite((threshold, low, high)).all() or threshold < 0:
            raise UserError(
                f"calibration={str(path)!r}: line {number} is {line[:80]!r}, whose numbers should be finite "
                "and whose threshold no less than 0; calibrate again"
            )
        thresholds[name] = Threshold(threshold, low, high)
    if not thresholds:
        raise UserError(f"calibration={str(path)!r}: holds no thresholds")
    return Calibration(thresholds, facts)


def check_calibration(path: Path, table: Calibration, onnx_digest: str, wanted: Iterable[str]) -> None:
    """UserError for a table of another graph, or one that lacks tensors: their operators would stay float."""
    said = table.facts.get("onnx")
    if said is not None and said != onnx_digest:
        raise UserError(
            f"calibration={str(path)!r}: was made for {table.facts.get('net', 'another graph')} "
            f"({said[:12]}), this graph is {onnx_digest[:12]}; calibrate this one"
        )
    names = list(wanted)
    lost = [name for name in names if name not in table.thresholds]
    if lost:
        shown = ", ".join(lost[:6]) + (f" and {len(lost) - 6} more" if len(lost) > 6 else "")
        raise UserError(
            f"calibration={str(path)!r}: has no threshold for {len(lost)} of {len(names)} tensors, whose "
            f"operators would silently stay float: {shown}; calibrate this graph"
        )


def read_qtable(path: Path) -> dict[str, str]:
    """Top tensor -> format; UserError with the line that is none."""
    table: dict[str, str] = {}
    for number, line in _lines("qtable", path):
        if line.startswith("#"):
            continue
        name, _, word = line.partition(" ")
        if word.strip().upper() not in QTABLE_FORMATS:
            raise UserError(
                f"qtable={str(path)!r}: line {number} is {line[:80]!r}, should be `name FORMAT` with one of "
                f"{', '.join(QTABLE_FORMATS)}"
            )
        table[name] = word.strip().upper()
    if not table:
        raise UserError(f"qtable={str(path)!r}: names no operator")
    return table


def write_qtable(path: Path, table: Mapping[str, str]) -> None:
    """Write a qtable as the compiler reads it."""
    path.write_text(
        "# op_name quantize_mode\n" + "".join(f"{name} {word}\n" for name, word in table.items()),
        encoding="utf-8",
    )


def check_formats(path: Path, table: Mapping[str, str], chip: Chip, mode: Mode) -> None:
    """UserError for formats that are not there: the compiler replaces them without a word."""
    has = [name for name in chip.modes if mode.calibrated or not MODES[name].calibrated]
    for name, word in table.items():
        if word.lower() not in has:
            raise UserError(
                f"qtable={str(path)!r}: asks for {name} in {word}, which a build for {chip.name} in "
                f"{mode.name} has not; it has {', '.join(has).upper()}"
            )


def check_qtable(path: Path, table: Mapping[str, str], known: Iterable[str]) -> None:
    """UserError for names that are no operator of the graph: the compiler passes over them in silence."""
    names = set(known)
    lost = [name for name in table if name not in names]
    if lost:
        raise UserError(f"qtable={str(path)!r}: the graph has no operator {', '.join(lost[:6])}")


def _lines(what: str, path: Path) -> list[tuple[int, str]]:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{what}={str(path)!r}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{what}={str(path)!r}: is no text file") from error
    return [(at, line.strip()) for at, line in enumerate(text.splitlines(), 1) if line.strip()]
