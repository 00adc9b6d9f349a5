"""`parity.capsule`: a guilty part alone in a folder, with what it was handed, made and should have made.

Everything in it is plain: npz, json, an ONNX graph or a torch program, a short runner that needs nothing of
this package. Made to be attached to a vendor's ticket, and to be run by CI until it is mended.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from parity.harness.case import Case, ModuleCase
from parity.harness.comparison import Comparison, Culprit, Row
from parity.harness.errors import UserError, did_you_mean
from parity.harness.progress import Progress, Silent
from parity.harness.target import parse_spec

from .cases import build_case
from .finished import Finished, candidates, open_result
from .recorder import Job, reference_values
from .request import Request

RUNNER = Path(__file__).with_name("capsule_run.py")


@dataclass(frozen=True)
class Parcel:
    """What goes into a capsule: arrays by name, files, and what the runner must know."""

    inputs: Mapping[str, np.ndarray]
    expected: Mapping[str, np.ndarray]
    actual: Mapping[str, np.ndarray]
    weights: Mapping[str, np.ndarray]
    files: Mapping[str, bytes]
    facts: Mapping[str, Any]


def capsule(
    result: str | Path,
    out: str | Path = "capsule",
    *,
    cand: str | None = None,
    tap: str | None = None,
    progress: Progress | None = None,
) -> Path:
    """Pack the first culprit of a finished run (or `tap`) into the folder `out`, which must not exist yet.

    UserError: no result, nothing that departs, a fault that lies between segments, a place that is taken.
    """
    folder = Path(out)
    if folder.exists():
        raise UserError(f"out={str(out)!r}: exists already; name a folder that does not")
    stored, _ = open_result(result)
    one, culprit = _chosen(list(candidates(result, cand=cand)), tap)
    request = _request(stored.provenance.get("request", {}))
    if request.own_module:
        from .capsule_modules import module_parcel

        parcel = module_parcel(one, culprit, request)
    else:
        from .capsule_segments import segment_parcel

        case = build_case(request, progress=progress or Silent(), like=one.reference)
        parcel = segment_parcel(one, culprit, job_of(one, case, request), progress or Silent())
    return _written(folder, one, culprit, parcel, stored.provenance)


def _chosen(held: list[Finished], tap: str | None) -> tuple[Finished, Culprit]:
    """The candidate and the culprit that are meant."""
    for one in held:
        if tap is not None and (row := _row(one.comparison, tap)) is not None:
            named = next((c for c in one.comparison.culprits if c.tap == tap), None)
            return one, named or Culprit(tap, row.step, row.segment or "", "named by hand", row.local_ratio)
        if tap is None and one.comparison.culprits:
            return one, one.comparison.culprits[0]
    known = [name for one in held for name in one.comparison.taps()]
    if tap is not None:
        raise UserError(f"tap={tap!r}: is in no candidate of this run. {did_you_mean(tap, known)}")
    raise UserError("result: nothing departs, so there is no culprit to pack; name a part with --tap")


def _row(comparison: Comparison, tap: str) -> Row | None:
    """The first record of a tap that departs, else its last."""
    rows = [row for row in comparison.records if row.tap == tap]
    return next((row for row in rows if row.failing), rows[-1] if rows else None)


def _request(said: Mapping[str, str]) -> Request:
    """What the run was asked for, as far as the recorded reference does not tell it."""
    kept = ("model", "inputs", "dtype", "device", "exporter", "segments")
    numbers = ("seed", "opset", "threads")
    fields: dict[str, Any] = {key: said[key] for key in kept if key in said}
    fields |= {key: int(said[key]) for key in numbers if key in said}
    return Request(**fields)


def job_of(one: Finished, case: Case | ModuleCase, request: Request) -> Job:
    """The candidate as a job that can be prepared again."""
    from parity.harness.folders import cache_folder

    spec = replace(parse_spec(one.comparison.candidate.target), label=one.comparison.label)
    values = reference_values(one.reference)
    return Job(spec, case, request.options, one.reference_path, cache_folder() / "work", reference=values)


def allowed(comparison: Comparison, step: int) -> dict[str, float]:
    """Tap -> the relative L2 error that its tolerance allows at a step, from what was found and judged."""
    found: dict[str, float] = {}
    for row in comparison.records:
        if row.step == step:
            pairs = ((row.local, row.local_ratio), (row.error, row.ratio))
            known = [error / ratio for error, ratio in pairs if error and ratio and np.isfinite(ratio)]
            if known:
                found.setdefault(row.tap, known[0])
            elif row.floor is not None:
                found.setdefault(row.tap, 8.0 * row.floor)
    return found


def plain(array: np.ndarray) -> np.ndarray:
    """As npz can hold it for anyone: formats that numpy has not, exactly in float32."""
    return array if array.dtype.kind in "fiub" else array.astype(np.float32)


def _written(
    folder: Path, one: Finished, culprit: Culprit, parcel: Parcel, provenance: Mapping[str, Any]
) -> Path:
    """The whole folder or none of it."""
    draft = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(draft, ignore_errors=True)
    facts = {
        "format": "parity-capsule",
        "version": 1,
        "candidate": one.comparison.label,
        "target": one.comparison.candidate.target,
        "tap": culprit.tap,
        "step": culprit.step,
        "segment": culprit.segment,
        "evidence": culprit.evidence,
        "causes": [f"{cause.name}: {cause.evidence}" for cause in one.comparison.causes],
        "environment": {key: provenance.get(key) for key in ("model", "libraries", "host", "python")},
        "weights": one.reference.provenance.get("weights"),
        "details": one.comparison.candidate.provenance.get("details", {}),
        **parcel.facts,
    }
    try:
        draft.mkdir(parents=True)
        for name in ("inputs", "expected", "actual", "weights"):
            arrays = {key: plain(value) for key, value in getattr(parcel, name).items()}
            np.savez(draft / f"{name}.npz", **arrays)  # type: ignore[arg-type]
        for name, data in parcel.files.items():
            (draft / name).write_bytes(data)
        (draft / "capsule.json").write_text(json.dumps(facts, indent=1, default=str) + "\n")
        (draft / "README.md").write_text(_readme(one, culprit, parcel))
        shutil.copyfile(RUNNER, draft / "run.py")
        draft.rename(folder)
    except OSError as error:
        raise UserError(f"out={str(folder)!r}: cannot be written ({error.strerror}); name another") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return folder


def _readme(one: Finished, culprit: Culprit, parcel: Parcel) -> str:
    what = ", ".join(sorted(parcel.files)) or f"nothing executable ({parcel.facts.get('not_packed')})"
    lines = [
        f"# {culprit.tap} of {one.comparison.candidate.target or one.comparison.label}",
        "",
        f"{culprit.evidence}.",
        *(f"Explained by: {cause.name} ({cause.evidence})." for cause in one.comparison.causes),
        "",
        "    python run.py                      # computes it again and says how far it is off",
        "    python run.py --actual FILE.npz    # the same for outputs that a device wrote",
        "",
        f"- {what}: the guilty part",
        "- inputs.npz: what the reference handed to it; expected.npz: what it should make of that",
        "- actual.npz: what it made; weights.npz: the reference's weights of it",
        "- capsule.json: where, how much is allowed, with which versions",
    ]
    return "\n".join(lines) + "\n"
