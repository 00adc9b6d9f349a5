"""The runner on the real simulators: packages, dumps, the keyboard, and whatever goes wrong."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from parity import boards
from parity.cases import build_case
from parity.harness.errors import CandidateError, UserError
from parity.harness.progress import Silent
from parity.harness.replay import replay
from parity.harness.target import Options, parse_spec
from parity.harness.trace import Trace
from parity.harness.tracer.memory import MemoryRun
from parity.recorder import Job, record, reference_values
from parity.request import Request
from parity.targets.dumps.core import ReadOptions
from parity.targets.dumps.parity_dump import ParityReader
from parity.targets.sophgo.compile import CompileJob, compile_model
from parity.targets.sophgo.graphs import graphs
from parity.targets.sophgo.runner.client import Device
from parity.targets.sophgo.runner.local import simulate
from parity.targets.sophgo.runner.ssh import Board
from parity.targets.sophgo.target import cvi

CASE = {"weights": "random:3", "prompt": "The value is the list.", "cache": "window(12)", "steps": 3}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """seg_0 of klm-tiny with a window of 12 rows."""
    case = build_case(Request(**CASE), progress=Silent())
    folder = tmp_path_factory.mktemp("graphs")
    return graphs(case, case.model.wiring, {"seg_head", "seg_0"}, masked=False, rows=12, cache=folder)


@pytest.fixture(scope="module")
def artefact(toolchain, made, tmp_path_factory):
    """Compiles a segment for a chip, each once."""
    folder = tmp_path_factory.mktemp("compiled")

    def compiled(chip: str, mode: str, segment: str = "seg_0", name: str = "") -> Path:
        graph = made[segment]
        job = CompileJob(name or segment, graph.clean, chip, mode, outputs=graph.outputs, taps=graph.taps)
        return compile_model(job, toolchain, folder, Silent()).file

    return compiled


@pytest.fixture(scope="module")
def package(toolchain, tmp_path_factory):
    """A board package whose prompt is prefilled on the host."""
    return boards.package(tmp_path_factory.mktemp("board") / "package", **CASE)


def entries(folder: Path) -> dict[tuple[Any, int, int], np.ndarray]:
    contents = ParityReader().read(folder, ReadOptions())
    assert contents.facts["complete"]
    return {(entry.tap, entry.step, entry.call): entry.load() for entry in contents.entries}


def random_inputs(device: Device, model: str) -> dict[str, np.ndarray]:
    random = np.random.default_rng(1)
    return {
        tensor.name: random.integers(0, 512, tensor.shape)
        if "int" in tensor.format
        else random.standard_normal(tensor.shape).astype(np.float32)
        for tensor in device.inputs(model)
    }


@pytest.mark.slow
def test_a_dump_holds_what_the_harness_records_of_the_same_simulator(toolchain, package, tmp_path):
    """Two loops, one in plain Python beside the runtime and one in numpy here: the same bits from both."""
    case = build_case(Request(**CASE), progress=Silent())
    trace = tmp_path / "reference.h5"
    record(Job(parse_spec("torch"), case, Options(), trace, tmp_path), progress=Silent())
    values = reference_values(Trace(trace)["torch"])
    session = cvi().prepare(
        case, arg="", options=Options(), reference=values, workdir=tmp_path / "work", progress=Silent()
    )
    host = MemoryRun("host")
    replay(session, case.scenario, sink=host, progress=Silent(), title="", reference=values)
    session.close()
    simulate(package, tmp_path / "dump", toolchain, log=tmp_path / "log", progress=Silent())
    found = entries(tmp_path / "dump")
    expected = {
        (tap, item.step, item.call): item.read()
        for tap in host.taps
        if tap != "ids"
        for item in host.records(tap)
    }
    assert set(found) == set(expected)
    assert sum(tap.endswith(".mid") for tap, _, _ in found) == 3 * case.model.config.num_layers
    for key, array in expected.items():
        assert array.dtype == found[key].dtype, key
        assert array.tobytes() == found[key].tobytes(), key


@pytest.mark.slow
def test_no_numpy_is_needed_to_run_a_package(toolchain, package, tmp_path):
    """-S keeps every installed package away; further Pythons of this machine play it as well."""
    environment = toolchain.environment("cv181x", tmp_path)
    pythons = [sys.executable, *map(str, sorted(Path.home().glob(".pyenv/versions/3.8*/bin/python3")))]
    for at, python in enumerate(pythons):
        bare = subprocess.run(
            [python, "-I", "-S", "-c", "import numpy"], env=environment, capture_output=True, check=False
        )
        assert bare.returncode != 0
        done = subprocess.run(
            [python, "-I", "-S", package / "runner.pyz", "run", package, "--out", tmp_path / f"d{at}"],
            env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert entries(tmp_path / f"d{at}")


@pytest.mark.slow
def test_over_ssh_the_dump_is_the_same(toolchain, package, tmp_path, monkeypatch):
    """The transport is a script that runs commands in a folder; the board is the simulator."""
    home, tools = tmp_path / "home", tmp_path / "bin"
    home.mkdir()
    tools.mkdir()
    environment = toolchain.environment("cv181x", tmp_path / "work")
    exports = "\n".join(f"export {name}='{value}'" for name, value in environment.items())
    (tools / "ssh").write_text(f'#!/bin/sh\n{exports}\nshift\ncd "{home}" && exec /bin/sh -c "$*"\n')
    (tools / "ssh").chmod(0o755)
    monkeypatch.setenv("PATH", str(tools), prepend=os.pathsep)
    board = Board("root@board")
    board.push(package)
    board.run(python=sys.executable, lib="", force=False)
    with pytest.raises(UserError, match="status 2"):
        board.run(python=sys.executable, lib="", force=False)
    board.run(python=sys.executable, lib=str(toolchain.package / "lib"), force=True)
    fetched = entries(board.fetch(tmp_path / "fetched"))
    here = entries(simulate(package, tmp_path / "here", toolchain, log=tmp_path / "log", progress=Silent()))
    assert {key: array.tobytes() for key, array in fetched.items()} == {
        key: array.tobytes() for key, array in here.items()
    }


@pytest.mark.slow
def test_the_keyboard_is_served_and_stdout_holds_nothing_but_answers(toolchain, package, tmp_path):
    def talk(*lines: str) -> list[str]:
        done = subprocess.run(
            [sys.executable, "-I", "-S", package / "runner.pyz", "serve", package],
            input="".join(f"{line}\n" for line in lines), env=toolchain.environment("cv181x", tmp_path),
            capture_output=True, text=True, encoding="utf-8", check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        ready, *answers = done.stdout.split("\n")[:-1]
        assert ready == "## READY ##"
        return answers

    (first, second) = talk("#h", "#e", "@pred4", "@accept", "#x", "@pred4")
    (anew,) = talk(*(f"#{character}" for character in f"he{first}x"), "@pred4")
    assert len(first) == 4
    assert second == anew


@pytest.mark.slow
def test_what_the_keyboard_cannot_answer_is_said_at_once_and_without_chatter(toolchain, package):
    """By the command, while it goes on: a person sees the sentence before the next answer."""
    code = "from parity.cli import main; main()"
    with subprocess.Popen(
        [sys.executable, "-c", code, "board", "serve", package],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8",
    ) as child:  # fmt: skip
        assert child.stdin is not None
        assert child.stdout is not None
        assert child.stderr is not None
        assert child.stdout.readline() == "## READY ##\n"
        child.stdin.write("@prod\n")
        child.stdin.flush()
        said = child.stderr.readline()
        child.stdin.write("#h\n@pred2\n")
        child.stdin.close()
        assert len(child.stdout.read().rstrip("\n")) == 2
        assert child.stderr.read() == ""
    assert said == "serve: '@prod': is no command; use #c, @pred[N], @accept, @back, @clear or @debug\n"
    assert child.returncode == 0


@pytest.mark.slow
def test_chips_are_played_side_by_side(toolchain, artefact, tmp_path):
    one, other = artefact("cv181x", "bf16"), artefact("bm1684x", "f16")
    with (
        Device("cv181x", {"seg_0": one}, toolchain, log=tmp_path / "cvi.log") as cvi_,
        Device("bm1684x", {"seg_0": other}, toolchain, log=tmp_path / "bm.log") as bm,
    ):
        given = random_inputs(bm, "seg_0")
        found = [
            [output.real.reshape(-1) for output in device.call("seg_0", given)] for device in (cvi_, bm, cvi_)
        ]
    for first, second, third in zip(*found, strict=True):
        np.testing.assert_array_equal(first, third)
        assert np.corrcoef(first, second)[0, 1] > 0.999
    assert [tensor.format for tensor in (*cvi_.inputs("seg_0"), *bm.inputs("seg_0"))] == ["float32"] * 10


@pytest.mark.slow
def test_inputs_are_checked_by_name_shape_and_format(toolchain, artefact, tmp_path):
    with Device("cv181x", {"seg_0": artefact("cv181x", "bf16")}, toolchain, log=tmp_path / "log") as device:
        given = random_inputs(device, "seg_0")
        with pytest.raises(CandidateError, match=r"seg_0 on cv181x: input 'ks' is not given"):
            device.call("seg_0", {name: array for name, array in given.items() if name != "ks"})
        with pytest.raises(CandidateError, match=r"has no input 'mask'"):
            device.call("seg_0", {**given, "mask": given["q"]})
        with pytest.raises(CandidateError, match=r"seg_0 on cv181x: ks has shape \[1, 12, 2, 32\]"):
            device.call("seg_0", {**given, "ks": given["ks"].reshape(1, 12, 2, 32)})
        with pytest.raises(CandidateError, match=r"ks is float64, the artefact takes float32"):
            device.call("seg_0", {**given, "ks": given["ks"].astype(np.float64)})
        assert len(device.call("seg_0", given)) == 4


@pytest.mark.slow
def test_a_model_of_another_chip_is_refused_by_name(toolchain, artefact, tmp_path):
    files = {"seg_0": artefact("cv180x", "bf16")}
    with pytest.raises(
        CandidateError, match=r"was built for cv180x and cannot run on cv181x; compile it for"
    ):
        Device("cv181x", files, toolchain, log=tmp_path / "log")
    with pytest.raises(CandidateError, match=r"is for another kind of chip"):
        Device(
            "cv181x",
            {"a": artefact("cv181x", "bf16"), "b": artefact("bm1684x", "f16")},
            toolchain,
            log=tmp_path / "log2",
        )


@pytest.mark.slow
def test_nets_of_one_name_are_not_mixed_up(toolchain, artefact, tmp_path):
    """The runtime would silently answer for both with the first."""
    model = artefact("bm1684x", "f16")
    twin = tmp_path / "twin.bmodel"
    twin.write_bytes(model.read_bytes())
    with pytest.raises(CandidateError, match=r"another file has a net of the same name \(seg_0\)"):
        Device("bm1684x", {"seg_0": model, "twin": twin}, toolchain, log=tmp_path / "log")
    with pytest.raises(CandidateError, match=r"a bmodel shows its outputs alone"):
        Device("bm1684x", {"seg_0": model}, toolchain, log=tmp_path / "log", all_tensors=True)


@pytest.mark.slow
def test_a_combined_file_gives_each_net_by_its_name(toolchain, artefact, tmp_path):
    parts = [artefact("bm1684x", "f16", segment) for segment in ("seg_head", "seg_0")]
    both = tmp_path / "both.bmodel"
    subprocess.run(
        [toolchain.tool("model_tool"), "--combine", *parts, "-o", both],
        env=toolchain.environment("bm1684x", tmp_path), capture_output=True, check=True,
    )  # fmt: skip
    names = {"seg_head": both, "block": both}
    with Device("bm1684x", names, toolchain, log=tmp_path / "log", nets={"block": "seg_0"}) as device:
        assert [tensor.name for tensor in device.inputs("block")] == [
            "residual",
            "rotary_pos_emb",
            "q",
            "ks",
            "vs",
        ]
        assert len(device.inputs("seg_head")) == 2
    with pytest.raises(CandidateError, match=r"holds the nets seg_head, seg_0, none of them is block"):
        Device("bm1684x", {"block": both}, toolchain, log=tmp_path / "log")


@pytest.mark.slow
def test_a_damaged_cvimodel_is_noticed_wherever_it_is_damaged(toolchain, artefact, tmp_path):
    """The runtime would crash on some, run for ever on others, and give wrong numbers on the rest."""
    whole = artefact("cv181x", "bf16").read_bytes()
    random = np.random.default_rng(0)
    path = tmp_path / "x.cvimodel"
    for damaged in [whole[: len(whole) // 2], whole[:20], b"", *(flipped(whole, random) for _ in range(12))]:
        path.write_bytes(damaged)
        told = played(toolchain, "cv181x", path, tmp_path / "log")
        assert told.startswith("seg_0 on cv181x (x.cvimodel, while loading): ")
        assert "the runtime died" not in told
    path.write_bytes(whole)
    assert played(toolchain, "cv181x", path, tmp_path / "log") == ""


def flipped(data: bytes, random: np.random.Generator) -> bytes:
    """One bit is another; the header's size and version, which nobody reads, and its tail are spared."""
    place = int(random.choice([*range(8), *range(14, 36), *random.integers(48, len(data), 40)]))
    return data[:place] + bytes([data[place] ^ 1 << int(random.integers(8))]) + data[place + 1 :]


@pytest.mark.slow
def test_a_damaged_bmodel_is_one_sentence(toolchain, artefact, tmp_path):
    whole = artefact("bm1684x", "f16").read_bytes()
    random = np.random.default_rng(0)
    for at in range(6):
        damaged = bytearray(whole[: len(whole) // (at + 2)] if at < 2 else whole)
        for place in random.integers(0, 4000, 20):
            damaged[place] = int(random.integers(256))
        path = tmp_path / "x.bmodel"
        path.write_bytes(damaged)
        told = played(toolchain, "bm1684x", path, tmp_path / f"{at}.log")
        assert told.startswith("seg_0 on bm1684x")
        assert "Traceback" not in told
        assert len(told) < 700


@pytest.mark.slow
def test_a_call_without_end_is_given_up(toolchain, artefact, tmp_path):
    model = {"seg_0": artefact("bm1684x", "f16")}
    with Device("bm1684x", model, toolchain, log=tmp_path / "log") as device:
        device._child._patience = 0.001
        with pytest.raises(CandidateError, match=r"seg_0 on bm1684x: gave no answer within 0.001 s"):
            device.call("seg_0", random_inputs(device, "seg_0"))
        assert device._child._process.poll() is not None


def played(toolchain, chip: str, path: Path, log: Path) -> str:
    """What is said against a model; empty if it runs."""
    try:
        with Device(chip, {"seg_0": path}, toolchain, log=log) as device:
            device.call("seg_0", random_inputs(device, "seg_0"))
    except CandidateError as error:
        return str(error)
    return ""


@pytest.mark.slow
def test_an_interrupted_call_ends_its_child(toolchain, artefact, tmp_path):
    with Device("bm1684x", {"seg_0": artefact("bm1684x", "f16")}, toolchain, log=tmp_path / "log") as device:
        child, given = device._child._process, random_inputs(device, "seg_0")

        def interrupt(*_: object) -> None:
            raise KeyboardInterrupt

        before = signal.signal(signal.SIGALRM, interrupt)
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        try:
            with pytest.raises(KeyboardInterrupt):
                again_and_again(device, given)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
        assert child.poll() is not None
        with pytest.raises(CandidateError, match="its device was closed, or interrupted"):
            device.call("seg_0", given)


def again_and_again(device: Device, given: dict[str, np.ndarray]) -> None:
    for _ in range(100):
        device.call("seg_0", given)


@pytest.mark.slow
def test_a_stopped_run_leaves_a_dump_that_says_so(toolchain, package, tmp_path):
    child = subprocess.Popen(
        [sys.executable, "-I", "-S", package / "runner.pyz", "run", package, "--out", tmp_path / "d"],
        env=toolchain.environment("cv181x", tmp_path / "work"), stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    with child:
        assert child.stderr is not None
        for line in child.stderr:
            if line.startswith("step 1"):
                child.send_signal(signal.SIGTERM)
                break
        told = child.stderr.read()
    assert child.returncode == 130
    assert "marked incomplete" in told
    contents = ParityReader().read(tmp_path / "d", ReadOptions())
    assert contents.facts["complete"] is False
    assert {entry.step for entry in contents.entries} >= {1}


@pytest.mark.slow
def test_a_model_that_was_swapped_in_the_package_is_noticed(toolchain, package, tmp_path):
    import shutil

    copy = tmp_path / "package"
    shutil.copytree(package, copy)
    (copy / "models" / "seg_1.cvimodel").write_bytes((copy / "models" / "seg_0.cvimodel").read_bytes())
    with pytest.raises(UserError, match=r"seg_1: .*seg_1.cvimodel is not the file of this package"):
        simulate(copy, tmp_path / "dump", toolchain, log=tmp_path / "log", progress=Silent())
