"""running(): the drop-in verb, its file, and scripts in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from parity.harness.errors import UserError
from parity.harness.trace import Trace
from parity.harness.tracer import compare, executing, running, trace_tensor
from parity.harness.tracer.store import store

X = np.arange(4.0)


@pytest.fixture(autouse=True)
def trace_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PARITY_TRACE", raising=False)
    store.memory.clear()
    return tmp_path / "traced_tensors.h5"


def script(folder: Path, body: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run a script in its own process, warnings being errors there too."""
    path = folder / "script.py"
    path.write_text(body)
    paths = os.pathsep.join(entry for entry in sys.path if entry)
    return subprocess.run(
        [sys.executable, "-W", "error", path.name],
        cwd=folder, env={**os.environ, "PYTHONPATH": paths, **env},
        capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_a_run_lands_in_the_working_folders_file(trace_file: Path) -> None:
    with running("torch"), executing("layer0"):
        trace_tensor("q", X)
    run = Trace(trace_file)["torch"]
    assert run.complete
    assert run.taps == ["layer0.q"]
    assert run.provenance["script"]
    assert run.created


def test_parity_trace_names_another_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PARITY_TRACE", str(tmp_path / "other.h5"))
    with running("torch"):
        trace_tensor("q", X)
    assert [path.name for path in tmp_path.glob("*.h5")] == ["other.h5"]
    assert (compare().reference, len(compare())) == ("torch", 0)


def test_a_disabled_run_records_nothing_and_leaves_the_outer_run_recording(trace_file: Path) -> None:
    with running("off", enable=False):
        trace_tensor("q", X)
    assert not trace_file.exists()
    with running("torch"):
        with running("off", False):
            trace_tensor("q", X)
        trace_tensor("k", X)
    assert [(run.name, run.taps) for run in Trace(trace_file).runs] == [("torch", ["q", "k"])]


def test_an_inner_run_hands_back_to_the_outer_one(trace_file: Path) -> None:
    with running("outer"), executing("a"):
        trace_tensor("before", X)
        with running("inner"):
            trace_tensor("q", X)
        trace_tensor("after", X)
    trace = Trace(trace_file)
    assert trace["outer"].taps == ["a.before", "a.after"]
    assert trace["inner"].taps == ["a.q"]
    assert all(run.complete for run in trace.runs)


def test_save_false_keeps_the_run_out_of_the_file_and_in_the_comparison(trace_file: Path) -> None:
    with running("torch", True, False):
        trace_tensor("q", X)
    with running("port"):
        trace_tensor("q", X)
    assert [run.name for run in Trace(trace_file).runs] == ["port"]
    assert compare().verdict == "parity"


@pytest.mark.parametrize("dtype", [torch.float16, np.float16, np.dtype("float16"), "float16"])
def test_a_cast_keeps_the_original_type_in_the_file(trace_file: Path, dtype: Any) -> None:
    with running("torch", dtype=dtype):
        trace_tensor("q", torch.ones(2, dtype=torch.bfloat16))
        trace_tensor("ids", torch.tensor([5]))
    q, ids = Trace(trace_file)["torch"].records()
    assert (q.dtype, q.meta["original_dtype"]) == ("float16", "bfloat16")
    assert ids.dtype == "int64"


@pytest.mark.parametrize("dtype", ["halb", torch.int32, object()])
def test_a_type_that_is_no_float_is_a_user_error(dtype: Any) -> None:
    with pytest.raises(UserError, match="dtype="), running("torch", dtype=dtype):
        pass


def test_gradients_are_off_inside_unless_asked_for() -> None:
    x = torch.ones(1, requires_grad=True)
    with running("a", save=False):
        assert not (x * 2).requires_grad
    with running("b", save=False, no_grad=False):
        assert (x * 2).requires_grad
    assert torch.is_grad_enabled()


def test_an_exception_leaves_an_incomplete_run_and_a_tracer_that_works(
    trace_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ZeroDivisionError), running("torch"), executing("a"):  # noqa: PT012
        trace_tensor("q", X)
        raise ZeroDivisionError
    with running("port"):
        trace_tensor("a.q", X)
    trace = Trace(trace_file)
    assert [(run.name, run.complete) for run in trace.runs] == [("torch", False), ("port", True)]
    assert trace["torch"].taps == ["a.q"]
    assert compare().verdict == "inconclusive"
    assert "INCOMPLETE" in capsys.readouterr().out


def test_a_loop_that_opens_the_run_for_every_token_keeps_all_and_says_it_once(
    trace_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for token in range(4):
        with running("seg"):
            trace_tensor("q", X + token)
    assert capsys.readouterr().err.count("seg") == 2  # one line, name and new name
    runs = Trace(trace_file).runs
    assert [(run.generation, run["q"][0]) for run in runs] == [(1, 0), (2, 1), (3, 2), (4, 3)]
    with running("torch"):
        trace_tensor("q", X + 3)
    assert compare().verdict == "parity"
    assert "the newest of 4 of that name" in capsys.readouterr().out


def test_a_long_loop_keeps_the_file_open_only_for_a_moment(
    trace_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("parity.harness.tracer.store._LINGER_SECONDS", 0.05)
    for token in range(8):
        with running("loop"):
            trace_tensor("q", X + token)
    assert trace_file in store._open
    for _ in range(200):
        if trace_file not in store._open:
            break
        time.sleep(0.02)
    assert [run.complete for run in Trace(trace_file).runs] == [True] * 8
    with h5py.File(trace_file) as file:
        assert file["runs/loop/q"].shape == (1, 4)


def test_a_long_loop_ends_in_a_clean_file_when_the_process_ends(tmp_path: Path) -> None:
    body = REFERENCE.replace("compare()", "").replace(
        'with running("torch"):', 'for _ in range(6):\n  with running("x"):'
    )
    done = script(tmp_path, body.replace("\n    ", "\n      "))
    assert done.returncode == 0, done.stderr
    with h5py.File(tmp_path / "traced_tensors.h5") as file:
        assert len(file["runs"]) == 7


def test_a_loop_that_enables_the_last_token_only_records_one_run(trace_file: Path) -> None:
    for token in range(4):
        with running("seg", enable=token == 3), executing("layer0"):
            trace_tensor("q", X + token)
    (run,) = Trace(trace_file).runs
    assert run["layer0.q"].tolist() == (X + 3).tolist()


def test_a_view_is_stored_without_the_storage_behind_it(trace_file: Path) -> None:
    with running("torch"):
        trace_tensor("q", torch.zeros(4_000_000)[:2])
    assert trace_file.stat().st_size < 4_000_000


def test_compare_inside_an_open_run_sees_what_was_recorded(capsys: pytest.CaptureFixture[str]) -> None:
    with running("torch"):
        trace_tensor("q", X)
    with running("port"):
        trace_tensor("q", X)
        result = compare()
    assert [row.status for row in result["port"].rows()] == ["equal"]
    assert result.verdict == "inconclusive"


REFERENCE = """
import numpy as np
from parity.harness.tracer import running, executing, trace_tensor, compare

x = np.linspace(-1, 1, 8)
with running("torch"):
    for i in range(3):
        with executing(f"model.layer{i}"):
            q = x * (i + 1)
            trace_tensor("q", q)
            q += 100
            for _ in range(2):
                trace_tensor("twice", q)
    trace_tensor("logits", q)
compare()
"""

PORT = REFERENCE.replace('running("torch")', 'running("cand")').replace(
    "compare()",
    """
result = compare(1e-5, False)
print("rows", len(result.rows()), "verdict", result.verdict)
raise SystemExit(result.exit_code)
""",
)


def in_torch(body: str) -> str:
    return body.replace("import numpy as np", "import torch").replace("np.linspace", "torch.linspace")


def test_two_scripts_in_two_processes_meet_in_one_file(tmp_path: Path) -> None:
    first = script(tmp_path, in_torch(REFERENCE))
    assert (first.returncode, first.stderr) == (0, "")
    assert "nothing was compared" in first.stdout
    second = script(tmp_path, in_torch(PORT))
    assert (second.returncode, second.stderr) == (0, "")
    assert "rows 10 verdict parity" in second.stdout
    assert second.stdout.count("[OK]") == 10


def test_a_planted_bug_in_the_second_script_is_found(tmp_path: Path) -> None:
    script(tmp_path, REFERENCE)
    second = script(tmp_path, PORT.replace("x * (i + 1)", "x * (i + 1 + (i == 1) * 1e-3)"))
    assert second.returncode == 1, second.stderr
    assert "first divergence: model.layer1.q" in second.stdout


def test_one_run_name_in_two_scripts_is_said_and_not_compared_with_itself(tmp_path: Path) -> None:
    script(tmp_path, REFERENCE)
    second = script(tmp_path, REFERENCE)
    assert "run 'torch' exists already" in second.stderr
    assert second.stderr.count("\n") == 1
    assert "nothing was compared, there is 1 run" in second.stdout


def test_a_run_of_an_older_day_is_said_to_be_stale(
    trace_file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from parity.harness.trace import writer

    monkeypatch.setattr(writer, "created", lambda: "2020-01-01T00:00:00+00:00")
    with running("old"):
        trace_tensor("q", X)
    monkeypatch.undo()
    monkeypatch.chdir(trace_file.parent)
    with running("torch"):
        trace_tensor("q", X)
    with running("port"):
        trace_tensor("q", X)
    result = compare()
    assert [comparison.label for comparison in result] == ["old", "port"]
    lines = [line for line in capsys.readouterr().out.splitlines() if "STALE?" in line]
    assert len(lines) == 1
    assert "run old" in lines[0]


def test_a_script_without_torch_needs_none(tmp_path: Path) -> None:
    body = """
import sys
sys.modules["torch"] = None  # as on a board
import numpy as np
from parity.harness.tracer import running, executing, trace_tensor, compare
for name in ("ref", "board"):
    with running(name, dtype=np.float32), executing("layer0"):
        trace_tensor("q", np.ones(3))
raise SystemExit(compare().exit_code)
"""
    done = script(tmp_path, body)
    assert (done.returncode, done.stderr) == (0, "")


def test_comparing_two_recorded_runs_loads_no_torch(tmp_path: Path) -> None:
    script(tmp_path, REFERENCE)
    script(tmp_path, PORT)
    body = """
import sys
from parity.harness.tracer import compare
assert compare().exit_code == 0
assert "torch" not in sys.modules
"""
    done = script(tmp_path, body)
    assert (done.returncode, done.stderr) == (0, "")
