"""What a quantized arithmetic does by itself: the target's emulation, run on the reference's tokens.

It is run once per candidate's artefacts and kept in the cache; a copy in the run's own trace lets stored runs
be judged by it anywhere.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from parity.harness.apart import tell_apart
from parity.harness.compare import floors_from
from parity.harness.comparison import Comparison
from parity.harness.judge import Floor
from parity.harness.mapping import TapMap
from parity.harness.progress import Progress
from parity.harness.quantized import around
from parity.harness.rules import Rules
from parity.harness.trace import Run, Trace
from parity.harness.trace.tools import copy_run

from .floors import VERSION, dtypes_of, quantization, stored_floors
from .recorder import EMULATED, Job, record


def emulated_run(job: Job, candidate: Run, cache: Path, *, progress: Progress) -> Run:
    """The emulation's run; `job` executes it, `candidate` says of which artefacts."""
    assert job.reference is not None
    path = cache / "emulated" / f"{_digest(job, candidate)}.h5"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="draft-", dir=path.parent) as folder:
            draft = Path(folder) / "emulated.h5"
            replay = "free" if job.replay == "free" else "forced"
            record(replace(job, path=draft, replay=replay, max_bytes=None), progress=progress)
            os.replace(draft, path)
    return Trace(path).runs[0]


def _digest(job: Job, candidate: Run) -> str:
    assert job.reference is not None
    about = job.reference.run.provenance
    made = [job.reference.run.label, about.get("weights"), about.get("scenario_digest"), about.get("policy")]
    how = [job.spec.text, job.replay == "free", str(job.capture)]
    known = json.dumps([VERSION, *made, *how, candidate.provenance["details"]], sort_keys=True, default=str)
    return hashlib.sha256(known.encode()).hexdigest()[:32]


def emulated_floors(reference: Run, candidate: Run, emulated: Run) -> dict[str, Floor]:
    """What quantization alone does to each tap, and how much more a candidate may depart."""
    profile = quantization(candidate)
    assert profile is not None
    return around(floors_from(reference, [emulated]), profile)


def keep_emulated(run: Run, path: Path, label: str, limit: int | None, progress: Progress) -> None:
    """A copy beside the candidate in its trace, unless that would pass the limit in bytes."""
    size = sum(record.nbytes for record in run.records())
    if limit is not None and path.stat().st_size + size > limit:
        progress.say(f"{label}: its emulation is not kept in the trace, which would pass max_bytes={limit}")
        return
    copy_run(run, path, label + EMULATED)


def emulated_of(trace: Trace, name: str) -> Run | None:
    """The emulation that was kept of a stored run; None where there is none."""
    kept = [run for run in trace.runs if run.name == name + EMULATED]
    return kept[-1] if kept else None


def floors_of(path: Path | str, reference: Run, candidate: Run, emulated: Run | None) -> Mapping[str, Floor]:
    """What stored runs are judged by: a quantized one by its emulation, others by the reference's floor."""
    if emulated is not None and quantization(candidate):
        return emulated_floors(reference, candidate, emulated)
    return stored_floors(path, reference, dtypes_of(reference, candidate))


def told_apart(
    comparison: Comparison,
    runs: tuple[Run, Run, Run | None],
    rules: Rules,
    *,
    mapping: TapMap | None = None,
) -> Comparison:
    """The comparison, with errors told apart where there is an emulation: reference, candidate, emulation."""
    reference, candidate, emulated = runs
    if emulated is not None:
        tell_apart(comparison, reference, candidate, emulated, rules=rules, mapping=mapping)
    return comparison
