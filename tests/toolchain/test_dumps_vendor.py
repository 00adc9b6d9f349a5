"""Dumps that the vendor's own runtimes write, read by our readers: the same bits as our runner gets."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from parity.cases import build_case
from parity.harness.progress import Silent
from parity.importing import import_dump
from parity.request import Request
from parity.targets.dumps.core import ReadOptions
from parity.targets.dumps.detect import detect, reader
from parity.targets.sophgo.compile import Artefact, CompileJob, calibrate, compile_model
from parity.targets.sophgo.graphs import graphs
from parity.targets.sophgo.runner.client import Device, Output

#: For the toolchain's own Python: the stock runtime module, its inputs filled in their own number formats,
#: every tensor written as it lies in memory, which is what the board's model_runner does.
VENDOR = """
import sys
import numpy as np
package, model, given, found = sys.argv[1:]
sys.path.insert(0, package + "/python")
if model.endswith(".cvimodel"):
    import pyruntime_cvi
    net = pyruntime_cvi.Model(model, output_all_tensors=True)
else:
    import pyruntime_bm
    loaded = pyruntime_bm.Model(model, 0, "")
    net = loaded.Net(loaded.networks[0])
arrays = np.load(given)
for tensor in net.inputs:
    tensor.data.reshape(-1)[:] = arrays[tensor.name].reshape(-1).astype(tensor.data.dtype)
if model.endswith(".cvimodel"):
    net.forward()
else:
    net.forward_dynamic([tensor.data.shape for tensor in net.inputs])
np.savez(found, **{tensor.name: np.array(tensor.data) for tensor in net.outputs})
"""
SEGMENT = "seg_0"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def graph(tmp_path_factory):
    case = build_case(Request(weights="random:3", cache="window(16)"), progress=Silent())
    folder = tmp_path_factory.mktemp("graphs")
    return graphs(case, case.model.wiring, {SEGMENT}, masked=False, rows=16, cache=folder)[SEGMENT]


def compiled(toolchain, graph, folder: Path, chip: str, mode: str, **more: Any) -> Artefact:
    job = CompileJob(SEGMENT, graph.clean, chip, mode, outputs=graph.outputs, taps=graph.taps, **more)
    return compile_model(job, toolchain, folder, Silent())


def called(
    toolchain, artefact: Artefact, chip: str, folder: Path
) -> tuple[dict[str, np.ndarray], list[Output]]:
    """Inputs, and what our runner gets from them."""
    random = np.random.default_rng(5)
    models = {SEGMENT: artefact.file}
    with Device(chip, models, toolchain, log=folder / "log", all_tensors=chip == "cv181x") as device:
        given = {
            tensor.name: random.standard_normal(tensor.shape).astype(np.float32)
            for tensor in device.inputs(SEGMENT)
        }
        return given, device.call(SEGMENT, given)


def vendor(
    toolchain, chip: str, model: Path, given: dict[str, np.ndarray], folder: Path, **more: str
) -> Path:
    """Run the vendor's runtime in `folder`; the .npz that it wrote."""
    np.savez(folder / "given.npz", **given)
    environment = {**toolchain.environment(chip, folder / "vendor"), **more}
    done = subprocess.run(
        [toolchain.python, "-c", VENDOR, toolchain.package, model, folder / "given.npz", folder / "out.npz"],
        env=environment, cwd=folder, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder / "out.npz"


def told(toolchain, artefact: Artefact, chip: str, folder: Path) -> Path:
    """What `model_tool --info` prints."""
    done = subprocess.run(
        [toolchain.tool("model_tool"), "--info", artefact.file],
        env=toolchain.environment(chip, folder / "told"), cwd=folder,
        stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    path = folder / "info.txt"
    path.write_text(done.stdout)
    return path


def check(path: Path, kind: str, ours: list[Output], manifest: Path | None) -> int:
    """Every tensor that both have, bit for bit; how many those are."""
    contents = reader(kind).read(path, ReadOptions(manifest))
    found = {entry.name: entry for entry in contents.entries}
    wanted = {output.tensor.name: output for output in ours if output.tensor.name in found}
    for name, output in wanted.items():
        array = found[name].load()
        real = output.real if "dequantized" in found[name].meta else output.raw
        assert array.dtype.itemsize == real.dtype.itemsize, name
        assert np.array_equal(array.reshape(-1).astype(np.float64), real.reshape(-1).astype(np.float64)), name
    return len(wanted)


def test_the_cvi_runtimes_npz_is_read_with_each_of_its_sidecars(toolchain, graph, tmp_path):
    artefact = compiled(toolchain, graph, tmp_path / "compiled", "cv181x", "bf16")
    given, ours = called(toolchain, artefact, "cv181x", tmp_path)
    path = vendor(toolchain, "cv181x", artefact.file, given, tmp_path)
    info = told(toolchain, artefact, "cv181x", tmp_path)
    manifest = artefact.folder / "manifest.json"
    assert check(path, "cvi-npz", ours, info) > 20
    assert check(path, "cvi-npz", ours, manifest) > 20
    entries = {entry.name: entry for entry in reader("cvi-npz").read(path, ReadOptions(manifest)).entries}
    named = {entry.tap: entry for entry in entries.values() if entry.tap}
    assert named["layer1.q"].shape == (1, 4, 1, 32)
    assert named["layer1.residual"].shape == (1, 1, 128)
    assert any(entry.dtype == "bfloat16" for entry in entries.values())


def test_int8_of_the_cvi_runtime_is_made_real_by_the_sidecars_scales(toolchain, graph, tmp_path):
    """The texts round scales to six decimals, the manifest does not."""
    random = np.random.default_rng(7)
    shapes = {"residual": (1, 1, 128), "rotary_pos_emb": (2, 1, 1, 32), "q": (1, 4, 1, 32)}
    shapes |= {"ks": (1, 2, 16, 32), "vs": (1, 2, 16, 32)}
    sample = {name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    table = calibrate(SEGMENT, graph.clean, [sample], toolchain, tmp_path / "compiled")
    artefact = compiled(toolchain, graph, tmp_path / "compiled", "cv181x", "int8", calibration=table)
    given, ours = called(toolchain, artefact, "cv181x", tmp_path)
    path = vendor(toolchain, "cv181x", artefact.file, given, tmp_path)
    stored = {output.tensor.name: output for output in ours if output.tensor.format == "int8"}
    assert len(stored) > 5
    sidecars = {
        artefact.folder / "manifest.json": 1e-6,
        told(toolchain, artefact, "cv181x", tmp_path): 1e-3,
    }
    for sidecar, precision in sidecars.items():
        contents = reader("cvi-npz").read(path, ReadOptions(sidecar))
        found = {entry.name: entry for entry in contents.entries}
        for name, output in stored.items():
            entry = found[name]
            assert entry.meta["dequantized"]["format"] == "int8"
            scale = float(np.abs(output.real).max())
            assert np.abs(entry.load().reshape(-1) - output.real.reshape(-1)).max() <= precision * scale, name
        assert bool(contents.notes) == (sidecar.suffix == ".txt")


def test_what_the_bm_runtime_saves_of_a_launch_is_read(toolchain, graph, tmp_path):
    """BMRT_SAVE_IO_TENSORS writes into the working folder, headerless."""
    artefact = compiled(toolchain, graph, tmp_path / "compiled", "bm1684x", "f16")
    given, ours = called(toolchain, artefact, "bm1684x", tmp_path)
    vendor(toolchain, "bm1684x", artefact.file, given, tmp_path, BMRT_SAVE_IO_TENSORS="1")
    info = told(toolchain, artefact, "bm1684x", tmp_path)
    (tmp_path / "given.npz").unlink()
    (tmp_path / "out.npz").unlink()
    assert sorted(file.name for file in tmp_path.glob("*.bmrt")) == [
        "input_ref_data.dat.bmrt",
        "output_ref_data.dat.bmrt",
    ]
    assert detect(tmp_path) == "bmrt"
    assert check(tmp_path, "bmrt", ours, info) == 4
    assert check(tmp_path, "bmrt", ours, artefact.folder / "manifest.json") == 4
    inputs = {entry.name: entry.load() for entry in reader("bmrt").read(tmp_path, ReadOptions(info)).entries}
    assert all(np.array_equal(inputs[name], given[name]) for name in given)
    done = import_dump(
        tmp_path, out=tmp_path / "t.h5", manifest=str(artefact.folder / "manifest.json"), run="bm"
    )
    assert done.rules["named by the dump"] == 4
