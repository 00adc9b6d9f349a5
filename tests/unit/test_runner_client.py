"""The child that plays models: how its end is told, that it ends with us, that it needs nothing of ours."""

from __future__ import annotations

import ast
import io
import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from parity.harness.errors import CandidateError
from parity.targets.sophgo.runner import chatter
from parity.targets.sophgo.runner.client import Device
from parity.targets.sophgo.runner.program import NAME, program, write_program

FOLDER = Path(sys.modules["parity.targets.sophgo.runner.program"].__file__ or "").parent / "device"
SOURCES = sorted(FOLDER.glob("*.py"))


def bare_environment(chip: str, workdir: Path) -> dict[str, str]:
    """A host without the vendor's libraries."""
    workdir.mkdir(parents=True, exist_ok=True)
    return {"PATH": os.environ["PATH"]}


BARE = SimpleNamespace(environment=bare_environment)


def models(folder: Path, **contents: bytes) -> dict[str, Path]:
    for name, content in contents.items():
        (folder / f"{name}.cvimodel").write_bytes(content)
    return {name: folder / f"{name}.cvimodel" for name in contents}


def test_a_library_that_is_not_there_is_named(tmp_path):
    with pytest.raises(CandidateError, match=r"x on cv181x .*libcviruntime.so: cannot be loaded") as caught:
        Device("cv181x", models(tmp_path, x=b"CviModel"), BARE, log=tmp_path / "log")
    assert str(tmp_path / "log") in str(caught.value)


def test_a_file_of_another_kind_is_refused(tmp_path):
    (tmp_path / "x.onnx").write_bytes(b"")
    with pytest.raises(CandidateError, match=r"x.onnx: is neither a .cvimodel nor a .bmodel"):
        Device("cv181x", {"x": tmp_path / "x.onnx"}, BARE, log=tmp_path / "log")


def test_a_model_that_is_not_loaded_is_asked_for_in_vain(tmp_path):
    with Device("cv181x", {}, BARE, log=tmp_path / "log") as device:
        with pytest.raises(CandidateError, match=r"model='seg_1': is not loaded. There are none."):
            device.call("seg_1", {})
        device.close()


def test_the_end_of_a_child_is_told_with_its_signal_and_its_last_telling_words(tmp_path):
    device = Device("cv181x", {}, BARE, log=tmp_path / "log")
    with (tmp_path / "log").open("a") as log:
        log.write("python: /build/src/program.cpp:352: init_dmabuf: Assertion `0' failed.\nStack dump:\n")
    device._child._process.send_signal(signal.SIGABRT)
    device._child._process.wait()
    with pytest.raises(CandidateError, match=r"the runtime died \(SIGABRT\)") as caught:
        device._child.ask({"op": "load"}, [], [], "seg_head on cv181x")
    assert str(tmp_path / "log") in str(caught.value)
    device.close()


@pytest.mark.parametrize(
    ("log", "reason"),
    [
        (
            "load\npython: /a/b/program.cpp:352: void init_dmabuf(): Assertion `0' failed.\n#0 0x12 f\n",
            ": python: program.cpp:352: void init_dmabuf(): Assertion `0' failed.",
        ),
        (
            "ERROR: ASSERT /w/src/atomic_dma.cpp: get_stride_size: 57: nsize > 0\nASSERT info: none.\n",
            ": ERROR: ASSERT atomic_dma.cpp: get_stride_size: 57: nsize > 0",
        ),
        (
            "cvimodel built for cv180x CANNOT run on platform cv181x\nfailed to parse cvimodel\n",
            ": cvimodel built for cv180x CANNOT run on platform cv181x",
        ),
        ("Cannot open libusercpu.so, disable user cpu layer.\nCmodel: bm_run_cmdbuf\n", ""),
        ("", ""),
    ],
)
def test_the_line_that_says_why_is_found_in_the_chatter(tmp_path, log, reason):
    path = tmp_path / "log"
    path.write_text("an error of the run before\n" + log)
    assert chatter.reason(path, len("an error of the run before\n")) == reason


PARENT = """
import sys, time
from pathlib import Path
from types import SimpleNamespace
from parity.targets.sophgo.runner.client import Device
def environment(chip, workdir):
    workdir.mkdir(parents=True, exist_ok=True)
    return {}
device = Device("cv181x", {}, SimpleNamespace(environment=environment), log=Path(sys.argv[1]))
print(device._child._process.pid, flush=True)
time.sleep(60)
"""


def test_a_killed_parent_leaves_no_child(tmp_path):
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, tmp_path / "log"], stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    assert alive(child)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 10
    while alive(child) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not alive(child)


def alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_several_devices_live_side_by_side_and_closing_twice_is_fine(tmp_path):
    devices = [Device("cv181x", {}, BARE, log=tmp_path / f"{i}.log") for i in range(3)]
    pids = {device._child._process.pid for device in devices}
    assert len(pids) == 3
    for device in devices:
        device.close()
        device.close()
    assert not any(map(alive, pids))


def test_the_program_is_one_file_whose_bytes_depend_on_its_sources_alone(tmp_path):
    assert program() == program()
    path = write_program(tmp_path)
    assert path.name == NAME
    with zipfile.ZipFile(path) as archive:
        assert {item.compress_type for item in archive.infolist()} == {zipfile.ZIP_STORED}
        assert sorted(archive.namelist()) == sorted(
            ["__main__.py", *(f"parity_device/{source.name}" for source in SOURCES)]
        )


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.name)
def test_the_program_is_python_3_8_and_imports_the_standard_library_alone(source):
    tree = ast.parse(source.read_text("utf-8"), feature_version=(3, 8))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level <= 1, ast.unparse(node)
            names = [node.module or ""] if node.level == 0 else []
        else:
            continue
        own = {"numpy"} if source.name == "live.py" else set()
        assert {name.partition(".")[0] for name in names} <= set(sys.stdlib_module_names) | own


BLIND = """
import sys
class Blind:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("numpy", "parity", "zlib"):
            raise ImportError(name)
sys.meta_path.insert(0, Blind())
sys.path.insert(0, sys.argv[1])
from array import array
from parity_device import bm, chip, cvi, dump, files, frames, live, loop, main, numbers, run, serve, tensors
slot = tensors.Slot("x", [1, 2], "bfloat16")
out = dump.Dump(sys.argv[2], {"chip": "cv181x"})
out.begin(0)
raw = numbers.stored(slot, array("f", [1.0, -3.5]).tobytes())
record = {"tap": "x", "segment": "s", "tensor": "x", "format": "bfloat16", "shape": [1, 2]}
out.add(record, raw)
out.end([[5]], [[0]])
out.complete()
"""


def test_without_numpy_and_without_any_package_a_dump_is_written(tmp_path):
    path = write_program(tmp_path)
    for python in {sys.executable, *others()}:
        folder = tmp_path / Path(python).parent.parent.name
        done = subprocess.run(
            [python, "-I", "-S", "-c", BLIND, path, folder], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        with zipfile.ZipFile(folder / "step_000000.npz") as archive:
            array = np.load(io.BytesIO(archive.read("0000.npy")))
        assert array.dtype == np.uint16
        assert (array.view(np.uint16).astype(np.uint32) << 16).view(np.float32).tolist() == [[1.0, -3.5]]


def others() -> list[str]:
    """Further interpreters of this machine that really run; the oldest that the program is for among them."""
    found = []
    for path in sorted(Path.home().glob(".pyenv/versions/3.*/bin/python3")):
        asked = "import sys; sys.exit(sys.version_info < (3, 8))"
        if subprocess.run([path, "-c", asked], check=False).returncode == 0:
            found.append(str(path))
    return found


def test_its_help_says_what_it_can(tmp_path):
    path = write_program(tmp_path)
    done = subprocess.run(
        [sys.executable, "-I", "-S", path, "--help"], capture_output=True, text=True, check=True
    )
    for word in ("run", "serve", "info", "frames"):
        assert word in done.stdout
