"""Children end with whoever started them, whatever ends it; one change of the toolchain happens at a time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from parity.targets.sophgo.toolchain.children import run_logged
from parity.targets.sophgo.toolchain.lock import held, lock_file, locked

RUN = """
import os, sys
from pathlib import Path
from parity.targets.sophgo.toolchain.children import run_logged
from parity.targets.sophgo.toolchain.lock import locked
with locked(print) as lock:
    script = "import os, time; print('child', os.getpid(), flush=True); time.sleep(60)"
    run_logged([sys.executable, "-c", script], env=os.environ, log=Path(sys.argv[1]), keep=(lock,))
"""


def wait_for(true: Callable[[], object], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not come to pass"
        time.sleep(0.02)


def child_in(log: Path) -> int:
    """The process id that the child wrote."""
    wait_for(lambda: log.exists() and "\nchild " in log.read_text())
    return int(log.read_text().split("\nchild ")[1].split()[0])


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PARITY_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT], ids=lambda how: how.name)
def test_a_child_dies_with_its_parent_and_lets_go_of_the_lock(tmp_path, how):
    log = tmp_path / "log"
    parent = subprocess.Popen([sys.executable, "-c", RUN, log], stderr=subprocess.DEVNULL)
    child = child_in(log)
    assert alive(child)
    assert held()
    parent.send_signal(how)
    parent.wait(20)
    wait_for(lambda: not alive(child))
    wait_for(lambda: not held())


def test_an_interrupt_in_the_wait_kills_what_the_child_started_too(tmp_path):
    log = tmp_path / "log"

    def interrupt() -> None:
        if log.read_text().count("\nchild "):
            raise KeyboardInterrupt

    script = "sleep 60 & echo child $!; wait"
    with pytest.raises(KeyboardInterrupt):
        run_logged(["/bin/sh", "-c", script], env=os.environ, log=log, tick=interrupt, every=0.05)
    wait_for(lambda: not alive(child_in(log)))


def test_the_log_holds_the_command_and_what_it_said(tmp_path):
    log = tmp_path / "log"
    assert run_logged(["/bin/sh", "-c", "echo out; echo err >&2; exit 7"], env={}, log=log) == 7
    assert log.read_text() == "$ /bin/sh -c echo out; echo err >&2; exit 7\nout\nerr\n"


def test_a_program_that_is_not_there_is_a_status_and_a_line(tmp_path):
    log = tmp_path / "log"
    assert run_logged(["/no/such/program"], env={}, log=log) == 1
    assert "/no/such/program: No such file or directory" in log.read_text()


def test_a_signal_is_a_negative_status(tmp_path):
    assert run_logged(["/bin/sh", "-c", "kill -11 $$"], env={}, log=tmp_path / "log") == -11


def test_the_second_waits_for_the_first_and_says_for_whom(tmp_path):
    log = tmp_path / "log"
    parent = subprocess.Popen([sys.executable, "-c", RUN, log], stderr=subprocess.DEVNULL)
    child_in(log)
    said: list[str] = []

    def say(line: str) -> None:
        said.append(line)
        parent.kill()
        parent.wait()

    with locked(say):
        assert lock_file().read_text() == str(os.getpid())
    assert said == [f"waiting for process {parent.pid}, which is changing the toolchain"]
    assert not held()
