"""The measured noise floor of a case: what trusted runs of it differ by, per tap.

Three causes are measured: the number format (against fp64), the order of summation (another cache layout,
so other shapes of the same products), and, for a candidate in a narrower format, that format emulated by
torch. Measured once per case and format, then read from the cache.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path

from parity.harness.case import Case, ModuleCase
from parity.harness.compare import floors_from
from parity.harness.errors import ParityError
from parity.harness.judge import Floor
from parity.harness.progress import Progress
from parity.harness.quantized import CEILINGS, QUANTIZED, around, ceilings
from parity.harness.rows import Rules
from parity.harness.target import Options, parse_spec
from parity.harness.tolerance import AUTO, Tolerance
from parity.harness.trace import Run, Trace, TraceWriter

from .cases import case_provenance
from .recorder import FLOOR, Job, record, reference_values

#: Raised when the way floors are measured changes, so that cached ones are measured anew.
VERSION = 3

BITS = {"float64": 64, "float32": 32, "float16": 16, "bfloat16": 15}


def noise_floor(
    case: Case | ModuleCase, dtypes: tuple[str, ...], cache: Path, *, progress: Progress
) -> dict[str, Floor]:
    """Floor per tap for runs in these number formats; empty for a format that torch cannot emulate here.

    A module of the user's that computes in one format only is measured in what it can run; that is said.
    """
    dtype = min(dtypes, key=lambda name: BITS.get(name, 0))
    if dtype not in BITS or (isinstance(case, ModuleCase) and not case.executable):
        return {}
    path = cache / "floors" / f"{_digest(case, dtype)}.json"
    if not path.exists():
        _write(path, _measure(case, dtype, progress))
    return _read(path)


def _read(path: Path) -> dict[str, Floor]:
    return {tap: Floor(**level) for tap, level in json.loads(path.read_text()).items()}


def _measure(case: Case | ModuleCase, dtype: str, progress: Progress) -> Mapping[str, Floor]:
    with tempfile.TemporaryDirectory(prefix="parity-floor-") as folder:
        path = Path(folder) / "floor.h5"
        base, *others = map(parse_spec, _specs(case, dtype))
        record(Job(base, case, Options(), path, Path(folder)), progress=progress)
        # On their own tokens the others would part from the base: a floor of the difference of two texts.
        forced = reference_values(Trace(path)[base.label]) if isinstance(case, Case) else None
        jobs = [Job(spec, case, Options(), path, Path(folder), reference=forced) for spec in others]
        done = [job.spec.label for job in jobs if _recorded(job, progress)]
        first, *runs = (Trace(path)[label] for label in (base.label, *done))
        if isinstance(case, ModuleCase):  # one that is as narrow as it was built shows no rounding at all
            runs = [run for run in runs if dtypes_of(run) != dtypes_of(first)]
        return floors_from(first, runs)


def _recorded(job: Job, progress: Progress) -> bool:
    """Whether the run could be executed: not every module of a user's runs in every number format."""
    try:
        record(job, progress=progress)
    except ParityError as error:
        if isinstance(job.case, Case):
            raise
        progress.say(f"the noise floor is measured without {job.spec.text}, which failed: {error}")
        return False
    return True


def _specs(case: Case | ModuleCase, dtype: str) -> list[str]:
    specs = ["floor-base=torch", "floor-fp64=torch:fp64"]
    if isinstance(case, Case):
        specs.append("floor-order=torch:grow")
    if dtype not in ("float32", "float64"):
        specs.append(f"floor-format=torch:{dtype}")
    return specs


def _digest(case: Case | ModuleCase, dtype: str) -> str:
    import torch

    known = {
        key: value
        for key, value in case_provenance(case).items()
        if key not in ("scenario", "wiring", "roles")
    }
    text = json.dumps(
        [VERSION, known, dtype, torch.__version__, torch.get_num_threads()], sort_keys=True, default=str
    )
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _write(path: Path, floors: Mapping[str, Floor]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(f".{os.getpid()}.tmp")
    draft.write_text(
        json.dumps({tap: {"rms": floor.rms, "peak": floor.peak} for tap, floor in floors.items()})
    )
    os.replace(draft, path)


def rules_of(tolerance: Tolerance, floors: Mapping[str, Floor], *runs: Run) -> Rules:
    """Where a tap has no floor, what its format explains at most."""
    if tolerance.kind != AUTO:
        return Rules(tolerance, {})
    narrow = next((name for name in dtypes_of(*runs) if name in CEILINGS), None)
    known = ceilings(narrow, runs) if narrow else {}
    return Rules(tolerance, known | dict(floors))


def quantization(*runs: Run) -> str | None:
    """The quantized arithmetic that a run was computed in, if one was."""
    return next((name for name in dtypes_of(*runs) if name in QUANTIZED), None)


def emulated_floor(job: Job, candidate: Run, cache: Path, *, progress: Progress) -> dict[str, Floor]:
    """What quantization alone does to each tap: the target's emulation, run on the reference's tokens."""
    assert job.reference is not None
    reference, profile = job.reference.run, quantization(candidate)
    assert profile is not None
    made = [reference.label, reference.provenance.get("weights"), reference.provenance.get("scenario_digest")]
    known = json.dumps(
        [VERSION, *made, job.spec.text, candidate.provenance["details"]], sort_keys=True, default=str
    )
    path = cache / "floors" / f"{hashlib.sha256(known.encode()).hexdigest()[:32]}.json"
    if not path.exists():
        with tempfile.TemporaryDirectory(prefix="parity-floor-") as folder:
            own = replace(
                job, path=Path(folder) / "floor.h5", replay="free" if job.replay == "free" else "forced"
            )
            label = record(own, progress=progress)
            _write(path, floors_from(reference, [Trace(own.path)[label]]))
    return around(_read(path), profile)


def dtypes_of(*runs: Run) -> tuple[str, ...]:
    """The number formats that runs say they were computed in."""
    return tuple(str(run.provenance.get("dtype", "float32")) for run in runs)


def store_floors(path: Path, reference: Run, dtypes: tuple[str, ...], floors: Mapping[str, Floor]) -> None:
    """Keep a floor beside its reference, so that stored runs can be judged anywhere."""
    levels = {tap: asdict(floor) for tap, floor in floors.items()}
    with (
        TraceWriter(path) as writer,
        writer.run(reference.name + FLOOR, provenance={"floors": levels, "dtypes": dtypes}),
    ):
        pass


def stored_floors(path: Path | str, reference: Run, dtypes: tuple[str, ...]) -> dict[str, Floor]:
    """The noise floor that lies beside a reference for these number formats; empty if none was measured."""
    for run in reversed(Trace(path).runs):
        if run.name == reference.name + FLOOR and sorted(run.provenance["dtypes"]) == sorted(dtypes):
            return {tap: Floor(**level) for tap, level in run.provenance["floors"].items()}
    return {}
