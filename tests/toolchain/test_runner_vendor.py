"""Our runner against the vendor's own, on the same artefacts and inputs: the same bits, all tensors."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest

from parity.cases import build_case
from parity.harness.progress import Silent
from parity.request import Request
from parity.targets.sophgo.compile import CompileJob, compile_model
from parity.targets.sophgo.graphs import graphs
from parity.targets.sophgo.runner.client import Device

#: For the toolchain's own Python: the stock runtime module, its inputs filled in their own number formats.
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


@pytest.fixture(scope="module")
def segment_graphs(tmp_path_factory):
    case = build_case(Request(weights="random:3", cache="window(16)"), progress=Silent())
    folder = tmp_path_factory.mktemp("graphs")
    return graphs(case, case.model.wiring, {"seg_head", "seg_0"}, masked=False, rows=16, cache=folder)


@pytest.mark.slow
@pytest.mark.parametrize(("chip", "mode"), [("cv181x", "bf16"), ("bm1684x", "f16")])
@pytest.mark.parametrize("segment", ["seg_head", "seg_0"])
def test_every_tensor_is_the_vendors_bit_for_bit(toolchain, segment_graphs, tmp_path, chip, mode, segment):
    if toolchain.python is None:
        pytest.skip("the vendor's runner needs the toolchain's Python 3.10")
    graph = segment_graphs[segment]
    job = CompileJob(segment, graph.clean, chip, mode, outputs=graph.outputs, taps=graph.taps)
    model = compile_model(job, toolchain, tmp_path / "compiled", Silent()).file
    random = np.random.default_rng(5)
    with Device(
        chip, {segment: model}, toolchain, log=tmp_path / "log", all_tensors=chip == "cv181x"
    ) as device:
        given = {
            tensor.name: random.integers(0, 512, tensor.shape)
            if "int" in tensor.format
            else random.standard_normal(tensor.shape).astype(np.float32)
            for tensor in device.inputs(segment)
        }
        ours = device.call(segment, given)
        official = len(device.outputs(segment))
    theirs = vendor(toolchain, chip, model, given, tmp_path)
    assert official == 4
    assert len(ours) > 10 or chip == "bm1684x"
    assert {output.tensor.name for output in ours} == set(theirs) - set(given)
    for output in ours:
        found = theirs[output.tensor.name]
        assert found.shape == output.raw.shape
        assert found.itemsize == output.raw.itemsize
        assert found.tobytes() == output.raw.tobytes(), output.tensor.name
        assert np.isfinite(output.real).all()
        assert np.abs(output.real).max() > 0


def vendor(toolchain, chip: str, model: Path, given: dict[str, np.ndarray], folder: Path):
    found = folder / "found.npz"
    np.savez(folder / "given.npz", **given)
    done = subprocess.run(
        [toolchain.python, "-c", VENDOR, toolchain.package, model, folder / "given.npz", found],
        env=toolchain.environment(chip, folder / "vendor"), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    with np.load(found) as arrays:
        return dict(arrays)
