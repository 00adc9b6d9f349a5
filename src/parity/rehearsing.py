"""One execution kept in memory: for suites that run a case many times and keep only what they conclude."""

from __future__ import annotations

from contextlib import closing
from typing import cast

import numpy as np

from parity.harness.case import Case, Step
from parity.harness.errors import CandidateError, ParityError
from parity.harness.progress import Progress, Silent
from parity.harness.replay import replay
from parity.harness.target import Session
from parity.harness.trace import Run
from parity.harness.tracer import recording
from parity.harness.tracer import step as mark_step
from parity.harness.tracer.memory import MemoryRun
from parity.harness.values import Values

from .cases import case_provenance
from .recorder import Job, prepared


def rehearse(job: Job, progress: Progress, *, forced: Values | None = None) -> Run:
    """The run of a job in memory, on its own tokens or on those of `forced`."""
    with closing(prepared(job, progress)) as session:
        return rehearse_session(session, job, forced=forced)


def rehearse_session(session: Session, job: Job, *, forced: Values | None = None) -> Run:
    """As `rehearse`, in a session that is there already. CandidateError for one that fails while it runs."""
    facts = session.facts
    run = MemoryRun(
        job.spec.label,
        target=job.spec.text,
        provenance={
            **case_provenance(job.case),
            "dtype": facts.dtype,
            "layout": facts.layout,
            "cache_records": facts.cache_records,
        },
        complete=True,
    )
    try:
        if isinstance(job.case, Case):
            replay(session, job.case.scenario, sink=run, progress=Silent(), title="", reference=forced)
        else:
            nothing = np.zeros((0, 0), np.int64)
            with recording(run), mark_step(0):
                session.step(Step(0, "call", ((),), None), nothing, nothing, None)
    except (ParityError, KeyboardInterrupt):
        raise
    except Exception as error:
        raise CandidateError(
            f"{job.spec.text}: failed while running: {type(error).__name__}: {error}"
        ) from error
    return cast("Run", run)
