"""A full disk, a limit and a place that may not be written to are one sentence with exit status 2."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from parity.cli import _run, cli
from parity.harness.errors import CandidateError, UserError
from parity.harness.room import no_room, said_no_room
from parity.recorder import _broken
from parity.targets.sophgo.compile import process, store


@pytest.mark.parametrize("name", ["ENOSPC", "EDQUOT", "EFBIG", "EROFS", "EACCES", "EPERM", "EIO", "EMFILE"])
def test_what_the_system_refuses_is_said_with_the_file_and_a_remedy(name):
    number = getattr(errno, name)
    said = no_room(OSError(number, os.strerror(number), "/there/file"))
    assert isinstance(said, UserError)
    assert str(said).startswith(f"/there/file: {os.strerror(number)}; ")


def test_an_error_without_a_file_blames_the_place_that_is_named():
    assert str(no_room(OSError(errno.ENOSPC, "x"), "cache='/c'")).startswith("cache='/c': No space left")


@pytest.mark.parametrize("error", [OSError("no number"), FileNotFoundError(errno.ENOENT, "x"), ValueError()])
def test_every_other_error_stays_what_it_is(error):
    assert no_room(error) is None


@pytest.mark.parametrize("name", ["ENOSPC", "EDQUOT", "EFBIG", "EROFS"])
def test_a_command_that_finds_no_room_ends_with_2(name, monkeypatch, capsys):
    def full(*_args: object, **_options: object) -> None:
        raise OSError(getattr(errno, name), "x")

    monkeypatch.setattr(cli, "main", full)
    monkeypatch.delenv("PARITY_DEBUG", raising=False)
    assert _run(["compile"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert os.strerror(getattr(errno, name)) in line


def test_a_command_that_finds_a_defect_still_ends_with_70(monkeypatch, capsys):
    def broken(*_args: object, **_options: object) -> None:
        raise FileNotFoundError(errno.ENOENT, "x", "inner")

    monkeypatch.setattr(cli, "main", broken)
    monkeypatch.delenv("PARITY_DEBUG", raising=False)
    assert _run(["compile"]) == 70
    assert "internal error: FileNotFoundError" in capsys.readouterr().err


def test_a_candidate_that_finds_no_room_has_not_failed(tmp_path):
    from parity.harness.target import Options, parse_spec
    from parity.recorder import Job

    job = Job(parse_spec("onnx"), None, Options(), tmp_path / "t.h5", tmp_path)  # type: ignore[arg-type]
    for error, kind in ((OSError(errno.ENOSPC, "x"), UserError), (OSError("odd"), CandidateError)):
        with pytest.raises(OSError, match=r"x|odd") as raised:
            raise error
        assert isinstance(_broken(job, "could not be prepared", raised.value), kind)


def test_a_work_folder_without_room_blames_the_cache(tmp_path):
    with (
        pytest.raises(UserError, match=r"cache='.*/cache': File too large; .*ulimit -f"),
        store.fresh(tmp_path / "cache", "a") as folder,
    ):
        raise OSError(errno.EFBIG, "x")
    assert not folder.exists()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_compiler_that_dies_of_a_full_disk_is_no_failure_of_its_own(number, tmp_path):
    code = f"import os, sys; print('LLVM ERROR: IO failure:', os.strerror({number})); sys.exit(1)"
    command = [sys.executable, "-c", code]
    with pytest.raises(UserError, match=os.strerror(number)):
        process.run(command, env=dict(os.environ), cwd=tmp_path, log=tmp_path / "log.txt")


def test_a_compiler_that_is_killed_at_a_limit_is_no_failure_of_its_own(tmp_path):
    code = "import os, signal; os.kill(os.getpid(), signal.SIGXFSZ)"
    code = f"import signal; signal.signal(signal.SIGXFSZ, signal.SIG_DFL); {code}"
    with pytest.raises(UserError, match="File too large"):
        process.run(
            [sys.executable, "-c", code], env=dict(os.environ), cwd=tmp_path, log=tmp_path / "log.txt"
        )


def test_the_words_of_a_program_that_ran_well_mean_nothing(tmp_path):
    code = "import os; print(os.strerror(28))"
    ended = process.run(
        [sys.executable, "-c", code], env=dict(os.environ), cwd=tmp_path, log=tmp_path / "log.txt"
    )
    assert ended.status == 0
    assert said_no_room("all is well") is None


def limited(size: int, cwd: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """A command whose files may have `size` bytes."""
    return subprocess.run(
        [sys.executable, "-c", "from parity.cli import main; main()", *words],
        cwd=cwd, capture_output=True, text=True, check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size)),
    )  # fmt: skip


def test_an_import_whose_trace_may_not_grow_is_one_sentence(tmp_path):
    np.savez(tmp_path / "d.npz", a=np.zeros((64, 64), np.float32))
    done = limited(4096, tmp_path, "import", "d.npz", "-o", "t.h5")
    assert done.returncode == 2, done.stderr
    assert "File too large" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_dry_run_whose_files_may_not_grow_is_one_sentence(tmp_path):
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    weight = numpy_helper.from_array(np.zeros((64, 64), np.float32), "w")
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 64]) for name in "xy")
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "g", [x], [y], [weight])
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), tmp_path / "net.onnx")
    words = ("compile", "net.onnx", "--chip", "cv181x", "--dry-run", "--out", "there")
    done = limited(4096, tmp_path, *words)
    assert done.returncode == 2, done.stderr
    assert "File too large" in done.stderr
