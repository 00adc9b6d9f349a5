"""Several jobs at once; the first failure and Ctrl-C stop them all, and what is done stays done."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from pathlib import Path
from typing import TYPE_CHECKING

from parity.harness.progress import Progress

from .artefact import compile_model
from .job import Artefact, CompileJob

if TYPE_CHECKING:
    from ..toolchain import Toolchain


class _StoppedError(Exception):
    """Another job failed, or a person did not want to wait."""


def compile_models(
    jobs: Sequence[CompileJob],
    toolchain: Toolchain,
    cache: Path,
    progress: Progress,
    *,
    parallel: int | None = None,
) -> list[Artefact]:
    """The artefacts of `jobs` in their order, `parallel` at a time (as many as there are processors).

    Raises what the first job that failed raised, once the others were stopped.
    """
    stop = threading.Event()

    def beat() -> None:
        if stop.is_set():
            raise _StoppedError

    title = f"compiling for {', '.join(sorted({job.chip for job in jobs}))}"
    with (
        progress.stage(title, len(jobs)) as bar,
        ThreadPoolExecutor(parallel or os.cpu_count() or 1) as pool,
    ):

        def one(job: CompileJob) -> Artefact:
            beat()
            made = compile_model(job, toolchain, cache, progress, beat=beat)
            bar.advance()
            return made

        futures = [pool.submit(one, job) for job in jobs]
        try:
            wait(futures, return_when=FIRST_EXCEPTION)
        finally:
            stop.set()
    failures = [error for future in futures if (error := future.exception()) is not None]
    first = next((error for error in failures if not isinstance(error, _StoppedError)), None)
    if first is not None:
        raise first
    return [future.result() for future in futures]
