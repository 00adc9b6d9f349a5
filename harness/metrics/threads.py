"""Threads that share the measuring; the compiled pass runs without the interpreter lock."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache

from .layout import LANES


@cache
def processors() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def share(work: Callable[[int], None], workers: int) -> None:
    """Call work(0) ... work(workers - 1), at most LANES, at the same time; returns when all are done."""
    others = [_pool().submit(work, worker) for worker in range(1, workers)]
    work(0)
    for other in others:
        other.result()


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(LANES - 1, thread_name_prefix="parity-measure")
