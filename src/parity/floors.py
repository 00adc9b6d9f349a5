"""The measured noise floor of a case: what trusted runs of it differ by, per tap.

Causes that are measured: the number format (against fp64, and a narrower one emulated by torch), the order of
summation (another cache layout, so other shapes of the same products), the response to inputs moved by an
epsilon of the format, and whatever changes when the reference is simply run again, with other threads and
with its batch in another order. Measured once per case and format, then read from the cache.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from parity.harness.case import Case, ModuleCase
from parity.harness.errors import ParityError, UserError
from parity.harness.judge import Floor
from parity.harness.noise import AGAIN, Noise, noise_of
from parity.harness.progress import Progress
from parity.harness.quantized import CEILINGS, QUANTIZED, ceilings
from parity.harness.row_noise import RowNoise, RowShares, answering
from parity.harness.rows import Rules
from parity.harness.target import Options, parse_spec
from parity.harness.tolerance import AUTO, Tolerance
from parity.harness.trace import Run, Trace, TraceWriter
from parity.harness.values import Values

from .cases import case_provenance
from .recorder import FLOOR, Job, record, reference_values
from .twins import BITS, FORMAT, FP64, Rearranged, Twin, base_spec, steadiness_twins, twins

PARTS = ("explained", "spread")
#: Raised when the way floors are measured changes, so that cached ones are measured anew.
VERSION = 6


@dataclass(frozen=True)
class Measured:
    """Noise per tap: `explained` by the number format, and the `spread` of the reference about itself.

    Both hold the largest over their causes; `rows` how that of both is shared out among the rows of a tap.
    """

    explained: Mapping[str, Noise]
    spread: Mapping[str, Noise]
    rows: Mapping[str, RowShares] = field(default_factory=dict)

    @property
    def levels(self) -> dict[str, Noise]:
        """Both together; the spread alone says nothing of rounding and is no floor."""
        both = {
            tap: noise.merge(self.spread[tap]) for tap, noise in self.explained.items() if tap in self.spread
        }
        return {**self.explained, **both}

    @property
    def floors(self) -> dict[str, Floor]:
        """The floors of all taps, with those of their rows."""
        return {tap: replace(noise.floor, rows=self.rows.get(tap)) for tap, noise in self.levels.items()}


def noise_floor(
    case: Case | ModuleCase, dtypes: tuple[str, ...], cache: Path, *, progress: Progress
) -> dict[str, Floor]:
    """Floor per tap for runs in these number formats; empty for a format that torch cannot emulate here.

    A module of the user's that computes in one format only is measured in what it can run; that is said.
    """
    return measure_noise(case, dtypes, cache, progress=progress).floors


def measure_noise(
    case: Case | ModuleCase, dtypes: tuple[str, ...], cache: Path, *, progress: Progress
) -> Measured:
    """As `noise_floor`, with the causes and with the reference's spread about itself."""
    dtype = narrowest(dtypes)
    if dtype not in BITS or not _executable(case):
        return Measured({}, {})
    path = _path(case_digest(case), dtype, cache)
    if not path.exists():
        _store(path, _measure(case, dtype, progress))
    return _load(path)


def measure_spread(
    case: Case | ModuleCase, dtype: str, cache: Path, *, progress: Progress
) -> Mapping[str, Noise]:
    """How far the reference, computed in `dtype`, departs from itself in other circumstances."""
    if not _executable(case) or (isinstance(case, Case) and dtype not in BITS):
        return {}
    base = base_spec(dtype) if isinstance(case, ModuleCase) or dtype == "float32" else f"torch:{dtype}"
    same = [name for name in BITS if base_spec(name) == base]
    about = case_digest(case)
    paths = [_path(about, name, cache) for name in (f"spread {base}", *same)]
    known = next((path for path in paths if path.exists()), None)
    if known is None:
        known = paths[0]
        _store(known, _runs(case, base, list(steadiness_twins(case, base)), progress))
    return _load(known).spread


def narrowest(dtypes: Iterable[str]) -> str:
    """The coarsest of these number formats; one that torch does not compute in before all."""
    return min(dtypes, key=lambda name: BITS.get(name, 0))


def _executable(case: Case | ModuleCase) -> bool:
    return isinstance(case, Case) or case.executable


def _measure(case: Case | ModuleCase, dtype: str, progress: Progress) -> Measured:
    return _runs(case, base_spec(dtype), twins(case, dtype), progress)


def _runs(case: Case | ModuleCase, base_text: str, others: list[Twin], progress: Progress) -> Measured:
    with tempfile.TemporaryDirectory(prefix="parity-floor-") as folder:
        path = Path(folder) / "floor.h5"
        base = parse_spec(f"floor-base={base_text}")
        record(Job(base, case, Options(handed=True), path, Path(folder)), progress=progress)
        # On their own tokens the others would part from the base: a floor of the difference of two texts.
        forced = reference_values(Trace(path)[base.label]) if isinstance(case, Case) else None
        done = [twin for twin in others if _recorded(twin, path, forced, progress)]
        runs = Trace(path)
        first = runs[base.label]
        if isinstance(case, ModuleCase):  # one that is as narrow as it was built shows no rounding at all
            same = dtypes_of(first)
            done = [t for t in done if t.cause not in (FP64, FORMAT) or dtypes_of(runs[t.label]) != same]
        explained: dict[str, Noise] = {}
        spread: dict[str, Noise] = {}
        rows: dict[str, RowNoise] = {}
        for twin in done:
            into, other = spread if twin.steadiness else explained, runs[twin.label]
            for tap, noise in noise_of(first, other, twin.cause, order=twin.order, rows=rows).items():
                into[tap] = into[tap].merge(noise) if tap in into else noise
                if twin.cause == AGAIN and noise.max_abs:  # then the other causes show nothing but that
                    into[tap] = replace(into[tap], cause=AGAIN)
        # Inputs that were moved say nothing of what is rounded on the way.
        rounded = isinstance(case, Case) or any(twin.cause in (FP64, FORMAT) for twin in done)
        measured = Measured(explained if rounded else {}, spread)
        narrow = any(twin.cause == FORMAT for twin in done)
        shares = {tap: rows[tap].shares(noise.floor, narrow=narrow) for tap, noise in measured.levels.items()}
        return replace(measured, rows=shares)


def _recorded(twin: Twin, path: Path, forced: Values | None, progress: Progress) -> bool:
    """Whether the run could be executed: not every module of a user's runs in every number format."""
    spec = parse_spec(f"{twin.label}={twin.spec}")
    values = Rearranged(forced, twin.order) if forced is not None and twin.order else forced
    try:
        options = replace(twin.options, handed=True)
        record(Job(spec, twin.case, options, path, path.parent, reference=values), progress=progress)
    except ParityError as error:
        if isinstance(twin.case, Case):
            raise
        progress.say(f"the noise floor is measured without {spec.text}, which failed: {error}")
        return False
    return True


def case_digest(case: Case | ModuleCase) -> dict[str, Any]:
    """What a floor belongs to: model, weights, inputs, cache policy; of a user's module also its code."""
    known = {
        key: value
        for key, value in case_provenance(case).items()
        if key not in ("scenario", "wiring", "roles")
    }
    return known | ({"code": _code(case)} if isinstance(case, ModuleCase) else {})


def _code(case: ModuleCase) -> str:
    """Digest of the files in which the classes of a module are written, libraries left out."""
    import sys

    names = {type(part).__module__ for part in case.module.modules()}
    files = {str(getattr(sys.modules.get(name), "__file__", None) or "") for name in names}
    own = sorted(file for file in files if file and "site-packages" not in file and Path(file).is_file())
    total = hashlib.sha256()
    for file in own:
        total.update(Path(file).read_bytes())
    return total.hexdigest()


def _path(about: Mapping[str, Any], dtype: str, cache: Path) -> Path:
    import torch

    text = json.dumps(
        [VERSION, about, dtype, torch.__version__, torch.get_num_threads()],
        sort_keys=True,
        default=str,
    )
    return cache / "floors" / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.json"


def _store(path: Path, measured: Measured) -> None:
    parts = {part: [n.to_json() for n in getattr(measured, part).values()] for part in PARTS}
    _write(path, {**parts, "rows": {tap: own.packed() for tap, own in measured.rows.items()}})


def _load(path: Path) -> Measured:
    data = json.loads(path.read_text())
    parts = (
        {row["tap"]: Noise(**{**row, "floor": Floor(**row["floor"])}) for row in data[part]} for part in PARTS
    )
    rows = {tap: RowShares.unpacked(*held) for tap, held in data["rows"].items()}
    return Measured(next(parts), next(parts), rows)


def _write(path: Path, data: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(f".{os.getpid()}.tmp")
    draft.write_text(json.dumps(data))
    os.replace(draft, path)


def rules_of(tolerance: Tolerance, floors: Mapping[str, Floor], *runs: Run) -> Rules:
    """Where a tap has no floor, what its format explains at most; a calibration file goes before all.

    UserError for a file of another model or number format.
    """
    narrow = next((name for name in dtypes_of(*runs) if name in CEILINGS), "")
    if tolerance.kind != AUTO:
        return Rules(tolerance, {}, narrow)
    if tolerance.floors:
        return Rules(tolerance, tolerance.floors, narrow, warnings_of(tolerance, runs))
    known = ceilings(narrow, runs) if narrow else {}
    return Rules(tolerance, known | answering(floors, runs[0]), narrow)


def warnings_of(tolerance: Tolerance, runs: Sequence[Run]) -> tuple[str, ...]:
    """What differs between the case of a calibration file and that of the runs."""
    held, about = tolerance.case, runs[0].provenance
    for key in ("model", "weights"):
        if key in held and key in about and held[key] != about[key]:
            raise UserError(
                f"tol={tolerance.source!r}: was calibrated with {key}={_short(held[key])}, but the reference "
                f"has {_short(about[key])}; calibrate again, or use --tol auto"
            )
    formats, now = held.get("formats", []), narrowest(dtypes_of(*runs))
    if formats and now not in formats:
        raise UserError(
            f"tol={tolerance.source!r}: was calibrated for {', '.join(formats)}, but a side was computed in "
            f"{now}; calibrate with --dtype, or use --tol auto"
        )
    other = [key for key in ("scenario_digest", "policy") if key in held and held[key] != about.get(key)]
    said = f"{tolerance.source} was calibrated on another {{}}: its noise floors may be too low or too high"
    words = {"scenario_digest": "scenario", "policy": "cache policy"}
    return tuple(said.format(words[key]) for key in other)


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) < 40 else f"{text[:12]}..."


def quantization(*runs: Run) -> str | None:
    """The quantized arithmetic that a run was computed in, if one was."""
    return next((name for name in dtypes_of(*runs) if name in QUANTIZED), None)


def dtypes_of(*runs: Run) -> tuple[str, ...]:
    """The number formats that runs say they were computed in."""
    return tuple(str(run.provenance.get("dtype", "float32")) for run in runs)


def store_floors(path: Path, reference: Run, dtypes: tuple[str, ...], floors: Mapping[str, Floor]) -> None:
    """Keep a floor beside its reference, so that stored runs can be judged anywhere.

    How a tap's is shared out among its rows is a record of that name.
    """
    levels = {tap: floor.numbers for tap, floor in floors.items()}
    rows = {tap: floor.rows for tap, floor in floors.items() if isinstance(floor.rows, RowShares)}
    said = {"floors": levels, "dtypes": dtypes, "marks": {tap: own.mark for tap, own in rows.items()}}
    with TraceWriter(path) as writer, writer.run(reference.name + FLOOR, provenance=said) as sink:
        for tap, own in rows.items():
            sink.record(tap, own.shares)


def stored_floors(path: Path | str, reference: Run, dtypes: tuple[str, ...]) -> dict[str, Floor]:
    """The noise floor that lies beside a reference for these number formats; empty if none was measured."""
    for run in reversed(Trace(path).runs):
        if run.name == reference.name + FLOOR and sorted(run.provenance["dtypes"]) == sorted(dtypes):
            marks = run.provenance.get("marks", {})
            rows = {tap: RowShares(mark, run.records(tap)[0].read().tobytes()) for tap, mark in marks.items()}
            levels = run.provenance["floors"].items()
            return {tap: Floor(**level, rows=rows.get(tap)) for tap, level in levels}
    return {}
