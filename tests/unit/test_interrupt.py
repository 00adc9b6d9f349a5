"""Ctrl-C in every stage: exit status 130, what was recorded stays and opens, the run says incomplete."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import parity
from parity.cli import main
from parity.harness.progress import Bar
from parity.harness.trace import Trace

QUICK = ("--weights", "random:0", "--scenario", "one", "--steps", "2")


class Interrupting:
    """A progress that presses Ctrl-C at the first advance of a stage; `reached` says that it came to it."""

    def __init__(self, stage: str) -> None:
        self._stage, self.reached = stage, False

    @contextmanager
    def stage(self, title: str, total: int) -> Iterator[Bar]:
        self._here = title.startswith(self._stage)
        yield self

    def advance(self, amount: int = 1) -> None:
        if self._here:
            self.reached = True
            raise KeyboardInterrupt

    def say(self, line: str) -> None:
        """Nobody listens."""


@pytest.fixture
def interrupt(monkeypatch, tmp_path, capsys):
    """`interrupt("comparing", "run", ...)`: the command, stopped in that stage; returns what it said."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PARITY_CACHE", str(tmp_path / "cache"))

    def run(stage: str, *args: str) -> str:
        progress = Interrupting(stage)
        monkeypatch.setattr("parity.cli.progress.ConsoleProgress", lambda: progress)
        monkeypatch.setattr("sys.argv", ["parity", *args])
        with pytest.raises(SystemExit) as stopped:
            main()
        said = capsys.readouterr().err
        assert progress.reached, f"no stage {stage!r}: {said}"
        assert stopped.value.code == 130, said
        assert "Traceback" not in said
        return said

    return run


@pytest.mark.parametrize(
    ("stage", "complete", "incomplete"),
    [
        ("recording torch", set(), {"torch"}),
        ("replaying segmented", {"torch"}, {"segmented"}),
        ("recording floor", {"torch", "segmented"}, set()),
        ("comparing segmented", {"torch", "segmented"}, set()),
        ("reporting", {"torch", "segmented"}, set()),
    ],
)
def test_a_run_that_is_interrupted_keeps_what_it_has(interrupt, tmp_path, stage, complete, incomplete):
    said = interrupt(stage, "run", *QUICK, "--cand", "segmented", "--out", "out")
    assert "interrupted; a trace that was being recorded is kept and marked incomplete" in said
    runs = {run.name: run for run in Trace(tmp_path / "out" / "trace.h5").runs if "@" not in run.name}
    assert {name for name, run in runs.items() if run.complete} == complete
    assert {name for name, run in runs.items() if not run.complete} == incomplete
    assert all(run.verify() == [] for run in runs.values())
    assert all(len(run.records()) > 0 for run in runs.values())


@pytest.mark.slow
def test_an_interrupted_export_leaves_nothing_that_a_later_run_takes_for_whole(
    interrupt, tmp_path, monkeypatch
):
    interrupt("exporting", "run", *QUICK, "--cand", "onnx", "--out", "out")
    monkeypatch.setenv("PARITY_CACHE", str(tmp_path / "cache"))
    result = parity.run("torch", "onnx", weights="random:0", scenario="one", steps=2, out="again", tol="fp32")
    assert result.exit_code == 0


def test_a_record_that_is_interrupted_can_be_gone_on_with(interrupt, tmp_path):
    interrupt("recording", "record", *QUICK, "--out", "t.h5")
    assert (
        parity.record("torch", out=tmp_path / "t.h5", weights="random:0", scenario="one", steps=2) == "torch"
    )
    assert [run.complete for run in Trace(tmp_path / "t.h5").runs] == [False, True]


def test_an_interrupted_comparison_writes_no_half_report(interrupt, tmp_path):
    parity.record("torch", out=tmp_path / "a.h5", weights="random:0", scenario="one", steps=1)
    parity.record("segmented", out=tmp_path / "b.h5", weights="random:0", scenario="one", steps=1)
    interrupt("comparing", "compare", "a.h5", "b.h5", "--tol", "fp32", "--out", "report")
    assert not list(tmp_path.rglob("report.*"))


def test_an_interrupted_training_leaves_nothing_that_a_run_takes_for_trained(
    interrupt, tmp_path, monkeypatch
):
    from parity.reference.training import loop
    from parity.reference.training.text import Text

    text = Text("the quick brown fox jumps over the lazy dog " * 20, "the lazy fox " * 20)
    monkeypatch.setattr(loop, "library_text", lambda: text)
    interrupt("training", "train", "klm-tiny", "--steps", "2", "--out", "trained")
    assert not list(tmp_path.rglob("model.pt"))
    assert loop.train("klm-tiny", tmp_path / "trained", steps=2).finished


@pytest.mark.slow
def test_a_real_ctrl_c_while_recording_leaves_a_trace_that_opens(tmp_path):
    trace = tmp_path / "t.h5"
    code = "from parity.cli import main; main()"
    args = ("record", "--weights", "random:0", "--scenario", "full", "--steps", "400", "--out", str(trace))
    child = subprocess.Popen(
        [sys.executable, "-c", code, *args],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PARITY_CACHE": str(tmp_path / "cache")},
        # Whoever starts the tests in the background has them ignore the signal.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    try:
        _wait_for_records(trace, child)
        child.send_signal(signal.SIGINT)
        _, said = child.communicate(timeout=60)
    finally:
        child.kill()
    assert child.returncode == 130, said
    assert "Traceback" not in said
    (run,) = Trace(trace).runs
    assert not run.complete
    assert run.verify() == []
    assert len(run.records()) > 0


def _wait_for_records(trace: Path, child: subprocess.Popen[str]) -> None:
    """Until the child's file is there and the run has begun; it records for many seconds from then on."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and child.poll() is None:
        if trace.exists() and trace.stat().st_size > 0:
            time.sleep(1)
            return
        time.sleep(0.05)
    raise AssertionError("the child never began to record")
