"""Progress on standard error: bars on a terminal, one line per stage elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as RichProgress

from parity.harness.progress import Bar


class _RichBar:
    def __init__(self, progress: RichProgress, task: int) -> None:
        self._progress, self._task = progress, task

    def advance(self, amount: int = 1) -> None:
        self._progress.advance(self._task, amount)  # type: ignore[arg-type]


class _Quiet:
    def advance(self, amount: int = 1) -> None:
        """No bar where nobody watches."""


class ConsoleProgress:
    """Bars while a terminal watches; otherwise the stage and its time when it is done."""

    def __init__(self) -> None:
        self._console = Console(stderr=True)

    @contextmanager
    def stage(self, title: str, total: int) -> Iterator[Bar]:
        """One stage of `total` units."""
        begin = time.perf_counter()
        if self._console.is_terminal:
            columns = (
                TextColumn("{task.description:28}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
            )
            with RichProgress(*columns, console=self._console, transient=True) as progress:
                yield _RichBar(progress, progress.add_task(title, total=total))
        else:
            yield _Quiet()
        self.say(f"{title}: {time.perf_counter() - begin:.1f} s")

    def say(self, line: str) -> None:
        """One line."""
        self._console.print(line, highlight=False, markup=False, soft_wrap=True)
        sys.stderr.flush()
