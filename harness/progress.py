"""How long work tells a person how far it is; the core never prints."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Protocol


class Bar(Protocol):
    """One bar of a progress display."""

    def advance(self, amount: int = 1) -> None: ...


class Progress(Protocol):
    """Where stages report to; the console draws bars, tests and scripts use `Silent`."""

    def stage(self, title: str, total: int) -> AbstractContextManager[Bar]: ...

    def say(self, line: str) -> None: ...


class _NoBar:
    def advance(self, amount: int = 1) -> None:
        """Nothing to draw."""


class Silent:
    """A progress that shows nothing."""

    def stage(self, title: str, total: int) -> AbstractContextManager[Bar]:
        return nullcontext(_NoBar())

    def say(self, line: str) -> None:
        """Nothing to say."""


class Once:
    """A progress that says every sentence once: several targets of a run may each find the same."""

    def __init__(self, inner: Progress) -> None:
        self._inner = inner
        self._said: set[str] = set()

    def stage(self, title: str, total: int) -> AbstractContextManager[Bar]:
        return self._inner.stage(title, total)

    def say(self, line: str) -> None:
        if line not in self._said:
            self._said.add(line)
            self._inner.say(line)
