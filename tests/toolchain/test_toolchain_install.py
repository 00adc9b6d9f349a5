"""The real thing: it compiles and simulates, writes nothing in itself, and being killed does it no harm."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from parity.harness.progress import Silent
from parity.targets.sophgo.toolchain import Toolchain
from parity.targets.sophgo.toolchain.adopt import adopt
from parity.targets.sophgo.toolchain.choice import read_choice
from parity.targets.sophgo.toolchain.packages import VERSION
from parity.targets.sophgo.toolchain.probe import probe
from parity.targets.sophgo.toolchain.selftest import MODES, network, selftest

PARITY = (sys.executable, "-c", "from parity.cli import main; main()")


def files_of(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and time of every file and folder below."""
    found = {}
    for path, folders, files in os.walk(folder):
        for name in (*folders, *files):
            facts = os.lstat(os.path.join(path, name))
            found[os.path.join(path, name)] = (facts.st_size, facts.st_mtime_ns)
    return found


def test_everything_of_it_starts_here(toolchain):
    found = probe(toolchain)
    assert found.compiler is None
    assert found.bindings is None
    assert {chip: reason for chip, reason in found.chips.items() if reason} == {}
    assert toolchain.version == found.version


def test_the_self_test_passes_in_seconds_and_is_kept(toolchain):
    begin = time.perf_counter()
    result = selftest(toolchain, Silent())
    assert result["passed"], result
    assert set(result["chips"]) == set(MODES)
    assert time.perf_counter() - begin < 30  # 4 s on a machine that does nothing else
    assert (read_choice() or {})["selftest"] == result


def test_the_network_of_the_self_test_is_what_onnx_runtime_computes():
    import onnxruntime

    model, x, expected = network()
    (actual,) = onnxruntime.InferenceSession(model).run(None, {"x": x})
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


def test_a_wrong_result_fails_the_self_test(toolchain, monkeypatch):
    module = sys.modules[selftest.__module__]
    model, x, expected = network()
    monkeypatch.setattr(module, "network", lambda: (model, x, expected + 0.1 * np.abs(expected).max()))
    monkeypatch.setattr(module, "_keep", lambda *_: None)
    result = selftest(toolchain, Silent())
    assert not result["passed"]
    assert all("is off by" in one["reason"] for one in result["chips"].values())


def test_nothing_in_it_and_nothing_at_home_is_written(toolchain, tmp_path, monkeypatch):
    before, home = files_of(toolchain.package), tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("PARITY_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(home)
    assert selftest(toolchain, Silent())["passed"]
    assert files_of(toolchain.package) == before
    assert list(home.iterdir()) == []


def test_chips_are_played_side_by_side(toolchain, tmp_path):
    """The stock tools bend one link for the whole machine; here each process has its own."""
    code = "import os, sys; print(os.path.realpath(sys.argv[1] + '/libcmodel.so'))"
    answers = []
    for chip in ("bm1684x", "bm1688", "bm1684"):
        environment = toolchain.environment(chip, tmp_path / chip)
        view = environment["LD_LIBRARY_PATH"].split(":")[0]
        done = subprocess.run(
            [sys.executable, "-c", code, view], env=environment, capture_output=True, text=True, check=True
        )
        answers.append(Path(done.stdout.strip()).name)
    assert answers == ["libcmodel_bm1684x.so", "libcmodel_bm1688.so", "libcmodel_bm1684.so"]


@pytest.mark.slow
def test_an_environment_that_exists_is_adopted_and_forgotten(toolchain, tmp_path, monkeypatch):
    monkeypatch.setenv("PARITY_CACHE", str(tmp_path / "cache"))
    before = files_of(toolchain.package)
    path = toolchain.package.parents[3] if not toolchain.adopted else toolchain.root
    adopted = adopt(path, Silent())
    assert adopted == Toolchain(path, toolchain.package, toolchain.python, toolchain.version, adopted=True)
    assert selftest(adopted, Silent())["passed"]
    assert cli("toolchain", "remove", "tpu-mlir", "--yes").returncode == 0
    assert files_of(toolchain.package) == before


def cli(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*PARITY, *args], capture_output=True, text=True, check=False)


def wait_for(true: Callable[[], object], child: subprocess.Popen[str]) -> None:
    end = time.monotonic() + 600
    while not true():
        assert child.poll() is None, child.communicate()
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.fixture
def cache(tmp_path, monkeypatch, toolchain) -> Iterator[Path]:
    """An empty cache; removed afterwards, as pytest would keep gigabytes."""
    if toolchain.adopted:
        pytest.skip("the toolchain was adopted: nothing says that one can be fetched here")
    monkeypatch.setenv("PARITY_CACHE", str(tmp_path / "cache"))
    yield tmp_path / "cache" / "toolchains"
    shutil.rmtree(tmp_path / "cache", ignore_errors=True)


@pytest.fixture
def kill_when(cache) -> Callable[..., None]:
    """`kill_when(true, how)`: an install that is stopped as soon as `true()`."""

    def kill(true: Callable[[], object], how: signal.Signals) -> None:
        child = subprocess.Popen(
            [*PARITY, "toolchain", "install", "tpu-mlir"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        wait_for(true, child)
        child.send_signal(how)
        _, said = child.communicate(timeout=60)
        assert child.returncode == (-how if how == signal.SIGKILL else 130), said
        assert "Traceback" not in said

    return kill


@pytest.mark.slow
def test_an_install_that_is_killed_in_each_stage_is_taken_up_and_ends_well(cache, kill_when, tmp_path):
    """kill -9 while the environment is made, Ctrl-C while packages come, kill -9 while they are unpacked."""
    root = cache / f"tpu-mlir-{VERSION}"
    compiler = cache / "wheels" / f"tpu_mlir-{VERSION}-py3-none-any.whl"
    kill_when((root / "bin" / "python").exists, signal.SIGKILL)
    assert json.loads(cli("toolchain", "status", "--json").stdout)["half_made"] == [str(root)]
    kill_when(compiler.exists, signal.SIGINT)
    assert not root.exists()
    same = compiler.stat().st_ino
    (tmp_path / "wheels").mkdir()
    os.link(compiler, tmp_path / "wheels" / compiler.name)
    kill_when(lambda: list(root.glob("lib/*/site-packages/tpu_mlir/bin/*")), signal.SIGKILL)
    assert compiler.stat().st_ino == same, "what was downloaded was fetched again"
    assert cli("toolchain", "status").returncode == 2

    done = cli("toolchain", "install", "tpu-mlir")
    assert done.returncode == 0, done.stderr
    assert "was left half-made by an interrupted install; removed" in done.stderr
    found = json.loads(cli("toolchain", "status", "--json").stdout)
    assert found["usable"]
    assert found["half_made"] == []
    assert found["toolchain"]["selftest"]["passed"]
    assert not compiler.exists()
    again = cli("toolchain", "install", "tpu-mlir")
    assert (again.returncode, "is there already" in again.stderr) == (0, True)
    check_a_folder_with_the_compiler_alone(tmp_path / "wheels")
    assert cli("toolchain", "remove", "tpu-mlir", "--yes").returncode == 0
    assert [path.name for path in cache.iterdir()] == ["tpu-mlir.lock"]


def check_a_folder_with_the_compiler_alone(wheels: Path) -> None:
    """Enough to run what was compiled elsewhere, without any Python 3.10."""
    words = ("toolchain", "install", "tpu-mlir", "--without-converter", "--force")
    done = cli(*words, "--wheels", str(wheels))
    assert done.returncode == 0, done.stderr
    assert "no self-test" in done.stdout
    found = json.loads(cli("toolchain", "status", "--json").stdout)
    assert found["usable"]
    assert found["toolchain"]["python"] is None
    assert set(found["toolchain"]["probe"]["chips"].values()) == {None}
    assert "no Python 3.10 goes with" in cli("toolchain", "selftest").stderr
