"""Any program of scopes, steps, recordings and exceptions records what a plain reading of it says."""

from __future__ import annotations

from collections import Counter
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from parity.harness.tracer import executing, recording, running, step, trace_tensor
from parity.harness.tracer.memory import MemoryRun

NAMES = st.sampled_from(["a", "b", "layer.0", "q"])

PROGRAMS = st.recursive(
    st.tuples(st.just("tap"), NAMES) | st.tuples(st.just("fail")),
    lambda inner: st.tuples(
        st.sampled_from(["scope", "step", "record", "off"]), NAMES, st.lists(inner, max_size=4)
    ),
    max_leaves=20,
)


class PlannedError(Exception):
    """What a program raises; caught by the block around it."""


def contexts(kind: str, name: str, runs: list[MemoryRun]) -> Any:
    if kind == "scope":
        return executing(name)
    if kind == "step":
        return step(len(name))
    if kind == "off":
        return running(name, enable=False)
    runs.append(MemoryRun(name))
    return recording(runs[-1])


def execute(program: Any, runs: list[MemoryRun]) -> None:
    """Run the program with the real tracer."""
    if program[0] == "tap":
        trace_tensor(program[1], [0])
    elif program[0] == "fail":
        raise PlannedError
    else:
        try:
            with contexts(program[0], program[1], runs):
                for inner in program[2]:
                    execute(inner, runs)
        except PlannedError:
            pass


class Reader:
    """What the program means: lists of (tap, step, call) per recording, in the order in which they began."""

    def __init__(self) -> None:
        self.runs: list[list[tuple[str, int, int]]] = []

    def read(
        self, program: Any, scopes: tuple[str, ...] = (), index: int = 0, run: int | None = None
    ) -> bool:
        """False when the program raised."""
        kind, *rest = program
        if kind == "fail":
            return False
        if kind == "tap":
            self.hit(".".join([*scopes, rest[0]]), index, run)
            return True
        name, body = rest
        if kind == "scope":
            scopes = (*scopes, name)
        elif kind == "step":
            index = len(name)
        elif kind == "record":
            self.runs.append([])
            run = len(self.runs) - 1
        all(self.read(inner, scopes, index, run) for inner in body)
        return True

    def hit(self, tap: str, index: int, run: int | None) -> None:
        if run is not None:
            calls = Counter((t, s) for t, s, _ in self.runs[run])
            self.runs[run].append((tap, index, calls[tap, index]))


@given(st.lists(PROGRAMS, max_size=4).map(lambda body: ("record", "outer", body)))
def test_every_tap_lands_in_the_innermost_recording_under_its_open_scopes(program: Any) -> None:
    runs: list[MemoryRun] = []
    execute(program, runs)
    reader = Reader()
    reader.read(program)
    assert [[(r.tap, r.step, r.call) for r in run.records()] for run in runs] == reader.runs
    trace_tensor("after", [0])
    assert len(runs[0].records()) == len(reader.runs[0])
