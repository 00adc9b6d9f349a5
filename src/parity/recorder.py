"""Executes one side of a comparison and records it into the trace file."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from parity.harness.case import Case, ModuleCase, Step, plan
from parity.harness.errors import CandidateError, ParityError, UserError
from parity.harness.progress import Progress
from parity.harness.replay import Replayed, replay
from parity.harness.room import no_room
from parity.harness.size import admit, estimate
from parity.harness.sketch import Sketcher, Sketching, capture_of
from parity.harness.target import Options, Spec, Unobserved
from parity.harness.trace import Run, RunWriter, Trace, TraceWriter
from parity.harness.tracer import recording
from parity.harness.tracer import step as mark_step
from parity.harness.values import Values
from parity.harness.zoom import Through, Window

from . import registry
from .cases import case_provenance

if TYPE_CHECKING:
    from parity.harness.target import Session, Target
    from parity.harness.tracer import Sink

#: Suffixes of runs that belong to another: a candidate's isolated replay and its arithmetic emulated, a
#: reference's noise floor.
ISOLATED = "@isolated"
EMULATED = "@emulated"
FLOOR = "@floor"
ZOOM = "@zoom"


@dataclass(frozen=True)
class Job:
    """One execution: which target, on what case, how replayed, into which file."""

    spec: Spec
    case: Case | ModuleCase
    options: Options
    path: Path
    workdir: Path
    replay: str = "forced"
    reference: Values | None = None
    max_bytes: int | None = None
    capture: Sketching | None = None
    window: Window | None = None


def record(job: Job, *, progress: Progress) -> str:
    """Run the job and return the name of the run that it left in the trace file."""
    with ExitStack() as stack:
        stack.enter_context(_threads(job.options.threads))
        session = prepared(job, progress)
        stack.callback(session.close)
        isolate = _isolates(job) and hasattr(session, "isolated_sink")
        if isinstance(job.case, Case) and job.window is None:
            size = estimate(job.case, session.facts, isolate=isolate, capture=job.capture)
            admit(job.spec.label, size, job.path, job.max_bytes)
        writer = stack.enter_context(TraceWriter(job.path, max_bytes=job.max_bytes))
        run = stack.enter_context(_run(writer, job.spec.label, job, session))
        if run.notice:
            progress.say(run.notice)
        if isolate:
            isolated = stack.enter_context(_run(writer, job.spec.label + ISOLATED, job, session))
            isolated.update_provenance(unobserved=_fed(job, session))
            session.isolated_sink = isolated  # type: ignore[attr-defined]
        try:
            done = _execute(session, job, _sink(job, run), isolate=isolate, progress=progress)
        except (ParityError, KeyboardInterrupt):
            raise
        except Exception as error:
            raise _broken(job, "failed while running", error) from error
        run.update_provenance(seconds=done.seconds, ties=done.ties, **_after(session))
        if isolate:
            isolated.update_provenance(isolation=session.isolation.to_json())  # type: ignore[attr-defined]
    return job.spec.label


def _isolates(job: Job) -> bool:
    """Whether segments are also fed the reference's values: there must be values, in full."""
    full = job.capture is None and job.window is None
    return full and job.replay != "free" and job.reference is not None and not capture_of(job.reference.run)


def _sink(job: Job, run: RunWriter) -> Sink:
    """Where taps go: into the run in full, only those of a window, or as sketches."""
    if job.window is not None:
        return Through(run, job.window)
    return run if job.capture is None else Sketcher(run, job.capture)


def _execute(session: Session, job: Job, run: Sink, *, isolate: bool, progress: Progress) -> Replayed:
    title = f"{'recording' if job.reference is None else 'replaying'} {job.spec.label}"
    if isinstance(job.case, ModuleCase):
        return _call_once(session, run, progress, title)
    return replay(
        session,
        job.case.scenario,
        sink=run,
        progress=progress,
        title=title,
        reference=job.reference,
        free=job.replay == "free",
        isolate=isolate,
    )


def _call_once(session: Session, run: Sink, progress: Progress, title: str) -> Replayed:
    """A module of the user's has one step and takes its inputs by name."""
    import time

    nothing = np.zeros((0, 0), np.int64)
    begin = time.perf_counter()
    with progress.stage(title, 1) as bar, recording(run), mark_step(0):
        session.step(Step(0, "call", ((),), None), nothing, nothing, None)
        bar.advance()
    return Replayed((time.perf_counter() - begin,), ())


def check_spec(spec: Spec, options: Options, *, own_module: bool) -> None:
    """UserError, before anything runs, for a side that cannot be executed or read here."""
    if spec.kind == "stored":
        trace, name = stored(spec)
        trace[name]
    else:
        _target(spec, options, own_module=own_module)


def prepared(job: Job, progress: Progress) -> Session:
    """A job's session, ready to execute; the caller closes it."""
    return _prepared(
        _target(job.spec, job.options, own_module=isinstance(job.case, ModuleCase)), job, progress
    )


def _target(spec: Spec, options: Options, *, own_module: bool) -> Target:
    target: Target = registry.target(spec.name, own_module=own_module)
    reason = target.missing()
    if reason:
        raise UserError(f"target={spec.name!r}: cannot run here: {reason}")
    target.check(spec.arg, _options(spec, options))
    return target


def _prepared(target: Target, job: Job, progress: Progress) -> Session:
    job.workdir.mkdir(parents=True, exist_ok=True)
    try:
        return target.prepare(
            job.case,  # type: ignore[arg-type]
            arg=job.spec.arg,
            options=_options(job.spec, job.options),
            reference=job.reference,
            workdir=job.workdir,
            progress=progress,
        )
    except (ParityError, KeyboardInterrupt):
        raise
    except Exception as error:
        raise _broken(job, "could not be prepared", error) from error


def _broken(job: Job, what: str, error: Exception) -> ParityError:
    """The candidate's own failure, with the place; `PARITY_DEBUG` shows the whole traceback.

    A full disk is nobody's failure: it is said as one.
    """
    if os.environ.get("PARITY_DEBUG"):
        traceback.print_exception(error)
    if (said := no_room(error)) is not None:
        return UserError(f"{job.spec.text}: {what}: {said}")
    last = traceback.extract_tb(error.__traceback__)[-1]
    where = f"{Path(last.filename).name}:{last.lineno}"
    return CandidateError(f"{job.spec.text}: {what}: {type(error).__name__}: {error} [{where}]")


def _options(spec: Spec, options: Options) -> Options:
    """A side's own device goes before the run's."""
    return replace(options, device=spec.device) if spec.device else options


def _run(writer: TraceWriter, name: str, job: Job, session: Session) -> RunWriter:
    facts = session.facts
    return writer.run(
        name,
        target=job.spec.text,
        provenance={
            **case_provenance(job.case),
            "dtype": facts.dtype,
            "layout": facts.layout,
            "replay": job.replay if job.reference is not None else "own",
            "cache_records": facts.cache_records,
            "substitutions": list(facts.substitutions),
            "unobserved": [asdict(item) for item in facts.unobserved],
            "details": dict(facts.details),
            **({"capture": job.capture.provenance()} if job.capture else {}),
            "command": sys.argv[1:],
        },
    )


def _fed(job: Job, session: Session) -> list[dict[str, Any]]:
    """What an isolated replay cannot show: what its session cannot, and what it takes from the reference."""
    if isinstance(job.case, ModuleCase):
        fed = [Unobserved("output*", "belongs to the whole call")]
    else:
        taps = ["ids", "rope", *(row.cache for row in job.case.model.wiring.caches)]
        fed = [Unobserved(tap, "fed from the reference") for tap in taps]
        if session.facts.isolated_steps is not None:
            alone = session.facts.isolated_steps
            rest = tuple(step.index for step in plan(job.case.scenario) if step.index not in alone)
            fed.append(Unobserved("*", f"segments were run alone at steps {list(alone)} only", rest))
    return [asdict(item) for item in (*session.facts.unobserved, *fed)]


def _after(session: Session) -> Mapping[str, Any]:
    """What a session only knows once it has run: observer effect, warnings."""
    facts = session.facts
    return {"details": dict(facts.details), "warnings": list(facts.details.get("warnings", ()))}


def _threads(count: int | None) -> AbstractContextManager[Any]:
    if count is None:
        return nullcontext()
    from parity.reference.torch_run import threads

    return threads(count)


def reference_values(run: Run) -> Values:
    """What a candidate may be fed of a recorded reference; cache rows are derived from what was appended."""
    caches = run.provenance.get("wiring", {}).get("caches", ())
    return Values(run, derived={row["cache"]: row["source"] for row in caches})


def stored(spec: Spec) -> tuple[Trace, str]:
    """The trace and run name of a stored side; without a run name the file must hold one that is meant."""
    trace = Trace(spec.name)
    if spec.arg:
        return trace, spec.arg
    names = list(dict.fromkeys(run.name for run in trace.runs if not _of_another(run.name)))
    if len(names) == 1:
        return trace, names[0]
    chosen = next((name for name in ("torch", "ref") if name in names), None)
    if chosen is None:
        raise UserError(
            f"{spec.name}: holds the runs {', '.join(names) or 'none'}; say which, as {spec.name}:RUN"
        )
    return trace, chosen


def _of_another(name: str) -> bool:
    """Whether a run belongs to another and is never meant by itself."""
    return name.endswith((ISOLATED, EMULATED, FLOOR)) or ZOOM in name


def refuse_itself(reference: tuple[str, str], candidate: tuple[str, str]) -> None:
    """UserError for one run on both sides: it is always at parity with itself, which would prove nothing."""
    if reference[1] == candidate[1] and Path(reference[0]).samefile(candidate[0]):
        raise UserError(f"cand={candidate[1]!r}: is the reference itself; name another run of {candidate[0]}")
