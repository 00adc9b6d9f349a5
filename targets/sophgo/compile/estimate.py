"""What a compilation will take, told before it begins; measured on graphs of 1 to 400 MB."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from parity.harness.errors import UserError
from parity.harness.progress import Progress

from .artefact import stored_artefact
from .job import CompileJob, sha256

if TYPE_CHECKING:
    from ..toolchain import Toolchain

_MB = 1 << 20
#: Per MB of ONNX: seconds, memory of the largest child, disk while compiling, disk kept afterwards (MB).
_SECONDS, _MEMORY, _WORKING, _KEPT = 0.12, 7.5, 7.0, 3.2
#: The same for an empty graph.
_START, _LEAST_MEMORY, _LEAST_DISK = 1.0, 130.0, 12.0


@dataclass(frozen=True)
class Estimate:
    """Seconds on one processor, MB of memory for one job at a time, MB of disk at the most."""

    graphs: int
    seconds: float
    memory: float
    disk: float

    def __str__(self) -> str:
        return (
            f"{self.graphs} to compile: about {_seconds(self.seconds)}, {self.memory:.0f} MB of memory each, "
            f"{self.disk:.0f} MB of disk"
        )


def estimate(sizes: Sequence[int], *, parallel: int = 1) -> Estimate:
    """For graphs of these sizes (bytes of ONNX), `parallel` at a time."""
    mbs = [size / _MB for size in sizes]
    seconds = sum(_START + _SECONDS * mb for mb in mbs) / max(1, min(parallel, len(mbs)))
    largest = max(mbs, default=0.0)
    disk = sum(_LEAST_DISK + _KEPT * mb for mb in mbs) + parallel * _WORKING * largest
    return Estimate(len(sizes), seconds, _LEAST_MEMORY + _MEMORY * largest, disk)


def announce(
    jobs: Iterable[CompileJob], toolchain: Toolchain, cache: Path, progress: Progress, *, parallel: int = 1
) -> None:
    """Say what those jobs will take that are not in the cache; nothing where all of them are.

    UserError where the cache's disk cannot hold it.
    """
    graphs = ((job, job.graph()) for job in jobs)
    sizes = [
        len(graph) for job, graph in graphs if stored_artefact(job, sha256(graph), toolchain, cache) is None
    ]
    if sizes:
        need = estimate(sizes, parallel=parallel)
        progress.say(str(need))
        check_space(cache, need)


def check_space(cache: Path, need: Estimate) -> None:
    """UserError where the cache's disk has not that much left."""
    folder = next(path for path in (cache, *cache.parents) if path.exists())
    free = shutil.disk_usage(folder).free / _MB
    if free < need.disk:
        raise UserError(
            f"cache={str(cache)!r}: compiling takes {need.disk:.0f} MB of disk and {free:.0f} are free; "
            "make room, or set PARITY_CACHE to a larger disk"
        )


def _seconds(value: float) -> str:
    return f"{value:.0f} s" if value < 120 else f"{value / 60:.0f} min"
