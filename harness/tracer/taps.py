"""Taps, the scopes that name them, and where their values go."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from types import TracebackType
from typing import Any, ParamSpec, TypeVar

from ..errors import UserError
from .nested import is_array, pass_over
from .recorder import Recorder, Sink, StepMark, as_positions
from .state import exporting, full_name, in_dynamo, local, refresh

P = ParamSpec("P")
R = TypeVar("R")


class executing:  # noqa: N801
    """A scope of names: `with executing("layer0")` puts `layer0.` before every tap inside it.

    A name may contain dots. Works as a decorator too.
    """

    __slots__ = ("_stack", "name")

    def __init__(self, name: str) -> None:
        self.name = name

    def __enter__(self) -> executing:
        self._stack = _traced_stack() if in_dynamo() else local.traced or local.scopes
        if self._stack is not None:
            self._stack.append(self.name)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._stack is not None:
            self._stack.pop()

    def __call__(self, function: Callable[P, R]) -> Callable[P, R]:
        @wraps(function)
        def inside(*args: P.args, **kwargs: P.kwargs) -> R:
            with executing(self.name):
                return function(*args, **kwargs)

        return inside


def _traced_stack() -> list[str] | None:
    """Where a scope that dynamo is tracing is noted; None where nothing will ask for it.

    Traced code notes nothing without need: torch.export warns of every side effect.
    """
    wanted = local.live and (local.collected is not None or not exporting())
    return local.traced if wanted else None


def trace_tensor(name: str, x: Any, *, axes: str = "", positions: Any = None) -> None:
    """Record x under `name` (after the open executing() scopes); nothing happens outside a recording.

    x: a torch tensor, a numpy array, or anything with `__array__` or `__dlpack__`; it is copied at once.
    axes: one letter per dimension, such as "b h t d". positions: int `[T]` or `[B, T]`, absolute
    positions of the token axis, -1 at padding. UserError where axes or positions do not fit x.
    """
    if not local.live:
        return
    if in_dynamo():
        trace_compiled(name, x, axes, positions)
        return
    deliver(full_name(name), x, axes, positions)


def trace_compiled(name: str, x: Any, axes: str = "", positions: Any = None, *, hook: bool = False) -> None:
    """The tap inside a function that dynamo is tracing: a graph output, or an op that records at run time."""
    if local.collected is not None:
        _collect(name if hook else full_name(name), x)
    elif not exporting():
        from .compiled import put

        put(name if hook else ".".join([*local.traced, name]), x, axes, positions, hook=hook)


def deliver(tap: str, x: Any, axes: str = "", positions: Any = None, *, hook: bool = False) -> None:
    """Give a value to whoever listens on this thread: the collection, the recording, or both."""
    if local.collected is not None:
        _collect(tap, x)
    if local.recorder is not None and not exporting():
        if not is_array(x):
            pass_over(tap, x)
            return
        local.recorder.take(tap, x, local.mark, axes, positions, hook=hook, wait=local.hooked > 0)


def _collect(tap: str, x: Any) -> None:
    """Keep a clone in the graph: a live tensor would show later in-place edits, and one tensor under two
    names would be one output."""
    collected = local.collected
    assert collected is not None
    if not hasattr(x, "clone"):
        raise UserError(f"x={type(x).__name__}: tap {tap!r} cannot be a graph output; trace a torch tensor")
    key, call = tap, 0
    while key in collected:
        call += 1
        key = f"{tap}#{call}"
    collected[key] = x.clone()


@contextmanager
def recording(sink: Sink | Recorder, *, dtype: str | None = None) -> Iterator[None]:
    """Send this thread's records to `sink`; an inner recording takes over until it ends.

    Threads that are started inside record nothing, unless they open a recording of their own.
    dtype: logical name of the floating type that floating records are cast to. A `Recorder` in place of the
    sink is gone on with: its calls count on, and it stays open.
    """
    outer = local.recorder
    local.recorder = recorder = sink if isinstance(sink, Recorder) else Recorder(sink, dtype)
    refresh()
    try:
        yield
    finally:
        local.recorder = outer
        refresh()
        recorder.flush() if recorder is sink else recorder.close()


@contextmanager
def step(
    index: int, *, rows: int | None = None, positions: Any = None, whole_caches: bool = False
) -> Iterator[None]:
    """Mark the records inside as step `index` of the scenario.

    rows: keep only the last `rows` rows along the token axis ("t", or "p" where there is none).
    positions: int `[T]` or `[B, T]`, of the rows that are kept, for records that give none.
    whole_caches: keep every row of records that have "p" but not "t".
    """
    if index < 0:
        raise UserError(f"index={index}: a step cannot be negative")
    if rows is not None and rows < 1:
        raise UserError(f"rows={rows}: keep at least one row, or leave rows out to keep all")
    outer = local.mark
    given = None if positions is None else as_positions(positions)
    local.mark = StepMark(index, rows, whole_caches, given)
    try:
        yield
    finally:
        if local.recorder is not None:
            local.recorder.flush()
        local.mark = outer


@contextmanager
def collecting() -> Iterator[dict[str, Any]]:
    """Gather taps as live tensors while a model is being exported, to be returned as graph outputs.

    Yields tap -> tensor in execution order; the second call of a tap is named `tap#1`.
    """
    outer = local.collected
    collected: dict[str, Any] = {}
    local.collected = collected
    refresh()
    try:
        yield collected
    finally:
        local.collected = outer
        refresh()
