"""Compilations that are killed, interrupted, made twice at once, or damaged afterwards."""

from __future__ import annotations

import importlib.util
import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from parity.harness.errors import CandidateError, UserError
from parity.harness.folders import cache_folder
from parity.harness.progress import Silent
from parity.targets.sophgo.compile import CompileJob, combine, compile_model, compile_models
from parity.targets.sophgo.toolchain import Toolchain

NAMES = ("seg_a", "seg_b", "seg_c")


def _load(name: str) -> Any:
    path = Path(__file__).parents[1] / "unit" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


graphs = _load("compile_graphs")


def jobs(chip: str = "cv181x", mode: str = "bf16") -> list[CompileJob]:
    return [CompileJob(name, graphs.block(), chip, mode) for name in NAMES]


@pytest.fixture
def start(toolchain, tmp_path):
    """Starts a process of its own that compiles all three, one after the other."""
    (tmp_path / "block.onnx").write_bytes(graphs.block())
    facts = {key: str(getattr(toolchain, key)) for key in ("root", "package", "python", "version")}
    code = f"""
from pathlib import Path
from parity.harness.folders import cache_folder
from parity.harness.progress import Silent
from parity.targets.sophgo.compile import CompileJob, compile_models
from parity.targets.sophgo.toolchain import Toolchain
facts = {facts!r}
toolchain = Toolchain(
    Path(facts["root"]), Path(facts["package"]), Path(facts["python"]), facts["version"], adopted=True)
here = Path({str(tmp_path)!r})
jobs = [CompileJob(name, here / "block.onnx", "cv181x", "bf16") for name in {NAMES!r}]
compile_models(jobs, toolchain, here / "cache", Silent(), parallel=1)
"""

    def started() -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-c", code], stderr=subprocess.PIPE, start_new_session=True, env=os.environ
        )

    return started


def finished(cache: Path) -> list[str]:
    folder = cache / "artefacts"
    return sorted(path.name for path in folder.glob("seg_*") if path.suffix != ".failed")


def wait_for(condition: Any, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "did not come"
        time.sleep(0.005)


def children_in(folder: Path) -> list[int]:
    """Living processes that work in a folder below `folder`."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            inside = Path(os.readlink(path / "cwd")).is_relative_to(folder)
            if inside and (path / "stat").read_text().rpartition(")")[2].split()[0] != "Z":
                found.append(int(path.name))
        except OSError:
            continue
    return found


@pytest.mark.slow
def test_after_kill_9_what_was_done_stays_and_the_rest_is_done(toolchain, start, tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    process = start()
    wait_for(lambda: finished(cache))
    process.kill()
    process.wait()
    process.stderr.close()
    wait_for(lambda: not children_in(tmp_path))
    before = finished(cache)
    assert 0 < len(before) < len(NAMES) or len(before) == len(NAMES)
    stamps = {name: (cache / "artefacts" / name / "manifest.json").stat().st_mtime_ns for name in before}
    process = start()
    assert process.wait(120) == 0, process.stderr.read().decode()
    process.stderr.close()
    after = finished(cache)
    assert [name.split("-")[0] for name in after] == list(NAMES)
    for name, stamp in stamps.items():
        assert (cache / "artefacts" / name / "manifest.json").stat().st_mtime_ns == stamp
    assert not list(cache.rglob(".*@*")), "what the killed one left was not swept"


@pytest.mark.slow
@pytest.mark.parametrize("delay", [0.3, 0.6, 0.9, 1.2])
def test_killed_at_any_moment_it_leaves_nothing_that_is_taken_for_whole(toolchain, start, tmp_path, delay):
    process = start()
    time.sleep(delay)
    process.kill()
    process.wait()
    process.stderr.close()
    wait_for(lambda: not children_in(tmp_path))
    for made in compile_models(jobs(), toolchain, tmp_path / "cache", Silent()):
        assert made.manifest["formats"]["bf16"] >= 3
        assert made.file.stat().st_size == made.manifest["size"]


@pytest.mark.slow
def test_ctrl_c_ends_the_children_and_leaves_no_half_made_folder(start, tmp_path):
    process = start()
    wait_for(lambda: children_in(tmp_path / "cache"))
    process.send_signal(signal.SIGINT)
    assert process.wait(20) != 0
    process.stderr.close()
    wait_for(lambda: not children_in(tmp_path), seconds=5)
    assert not list((tmp_path / "cache").rglob(".*@*"))


@pytest.mark.slow
def test_two_processes_may_make_the_same_at_once(start, tmp_path):
    pair = [start(), start()]
    for process in pair:
        assert process.wait(120) == 0, process.stderr.read().decode()
        process.stderr.close()
    assert len(finished(tmp_path / "cache")) == len(NAMES)


def test_several_at_once_come_back_in_their_order(toolchain, tmp_path):
    made = compile_models(jobs(), toolchain, tmp_path, Silent(), parallel=3)
    assert [artefact.manifest["name"] for artefact in made] == list(NAMES)


def test_the_first_that_fails_stops_the_others_and_is_raised(toolchain, tmp_path):
    bad = CompileJob("seg_bad", graphs.sine(), "cv181x", "bf16")
    with pytest.raises(CandidateError, match="seg_bad"):
        compile_models([bad, *jobs()], toolchain, tmp_path, Silent(), parallel=1)
    assert finished(tmp_path) == []


@pytest.mark.parametrize("damage", ["file", "manifest", "top"])
def test_what_was_damaged_in_the_cache_is_made_again(toolchain, tmp_path, damage):
    job = jobs()[0]
    first = compile_model(job, toolchain, tmp_path, Silent())
    good = first.file.stat().st_size
    if damage == "file":
        first.file.write_bytes(b"cut")
    elif damage == "manifest":
        (first.folder / "manifest.json").write_text("{")
    else:
        (first.folder / "manifest.json").unlink()
        (weights,) = (tmp_path / "top").glob("*/*_weight.npz")
        weights.unlink()
    again = compile_model(job, toolchain, tmp_path, Silent())
    assert again.file.stat().st_size == good
    assert again.top.is_file()


def test_an_artefact_of_another_version_of_the_toolchain_is_not_taken(toolchain, tmp_path):
    from dataclasses import replace

    first = compile_model(jobs()[0], toolchain, tmp_path, Silent())
    other = compile_model(jobs()[0], replace(toolchain, version="0.0"), tmp_path, Silent())
    assert other.folder != first.folder
    assert json.loads((other.folder / "manifest.json").read_text())["toolchain"] == "0.0"


def test_a_toolchain_without_python_says_what_to_do(toolchain, tmp_path):
    bare = Toolchain(toolchain.root, toolchain.package, None, toolchain.version, adopted=True)
    with pytest.raises(UserError, match=r"has no Python 3\.10, which ONNX is converted by"):
        compile_model(jobs()[0], bare, tmp_path, Silent())
    compile_model(jobs()[0], toolchain, tmp_path, Silent())
    other = CompileJob("seg_a", graphs.block(), "bm1684x", "f16")
    assert compile_model(other, bare, tmp_path, Silent()), "lowering needs none"


def test_nets_are_combined_into_one_file(toolchain, tmp_path):
    made = compile_models(jobs("bm1684x", "f16"), toolchain, tmp_path / "cache", Silent())
    place = combine(made, tmp_path / "all.bmodel", toolchain, tmp_path / "work")
    one = max(artefact.manifest["size"] for artefact in made)
    assert one < place.stat().st_size < 2 * one, "the device's kernel is in it once"
    with pytest.raises(UserError, match="several nets are called seg_a"):
        combine([made[0], made[0]], tmp_path / "b.bmodel", toolchain, tmp_path / "work")
    other = compile_model(jobs()[0], toolchain, tmp_path / "cache", Silent())
    with pytest.raises(UserError, match="cv181x has no files of several nets"):
        combine([other], tmp_path / "c.bmodel", toolchain, tmp_path / "work")
    with pytest.raises(UserError, match="artefacts of bm1684x, cv181x do not go into one file"):
        combine([made[0], other], tmp_path / "d.bmodel", toolchain, tmp_path / "work")


def test_a_name_that_no_net_can_have_is_refused(toolchain, tmp_path):
    with pytest.raises(UserError, match="name='seg-0/x': a net's name"):
        compile_model(CompileJob("seg-0/x", graphs.block(), "cv181x", "bf16"), toolchain, tmp_path, Silent())


def test_outputs_that_are_not_the_graphs_are_refused(toolchain, tmp_path):
    job = CompileJob("b", graphs.block(), "cv181x", "bf16", outputs=("y", "mid"))
    with pytest.raises(UserError, match="the graph of b has"):
        compile_model(job, toolchain, tmp_path, Silent())


def test_nothing_is_written_outside_of_the_cache(toolchain, tmp_path, monkeypatch):
    monkeypatch.setenv("PARITY_CACHE", str(cache_folder()))
    monkeypatch.chdir(tmp_path)
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    compile_model(jobs("bm1684x", "f16")[0], toolchain, Path("cache"), Silent())
    assert {path.name for path in tmp_path.iterdir()} == {"cache", "home"}
    assert list(home.iterdir()) == []


def test_a_limit_on_the_size_of_files_is_one_sentence_and_leaves_nothing(toolchain, tmp_path):
    """`ulimit -f`: the children are killed by a signal, this process gets an error number."""
    (tmp_path / "limited.onnx").write_bytes(graphs.block())
    words = ["compile", "limited.onnx", "--chip", "cv181x", "--out", "there"]
    for size in (1 << 12, 1 << 16):
        done = subprocess.run(
            [sys.executable, "-c", "from parity.cli import main; main()", *words],
            cwd=tmp_path, capture_output=True, text=True, check=False,
            preexec_fn=lambda size=size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size)),
        )  # fmt: skip
        assert done.returncode == 2, done.stderr
        assert "File too large; files of this process may not grow that large" in done.stderr
        assert not (tmp_path / "there").exists()
