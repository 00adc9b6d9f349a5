"""Capsules: the guilty part in a folder that runs alone and shows the fault again."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from click.testing import CliRunner

import parity
from parity.cli import cli
from parity.harness.errors import UserError
from parity.models.klm.model import KLMModel

CASE = {"weights": "random:0", "scenario": "short", "steps": 3}


def run_alone(folder, *arguments):
    """As somebody who got the folder by mail: without this package on the path."""
    code = "import runpy, sys; sys.modules['parity'] = None; sys.argv = sys.argv[1:]\n"
    code += "runpy.run_path(sys.argv[0], run_name='__main__')"
    command = [sys.executable, "-W", "ignore", "-c", code, str(folder / "run.py"), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, cwd="/", check=False)
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stdout


def table(text):
    """tap -> (allowed, recorded, now) as printed."""
    rows = [line.split() for line in text.splitlines()[2:]]
    return {row[0]: tuple(map(float, row[1:])) for row in rows if len(row) == 4}


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PARITY_CACHE", str(tmp_path_factory.mktemp("capsule-cache")))
        yield


def wrong_eps(original):
    def split(self, state, *, masked=False):
        built = original(self, state, masked=masked)
        built["seg_1"].layer_bottom.ln2.eps = 1e-2
        return built

    return split


@pytest.mark.parametrize(
    ("cand", "model"),
    [("segmented", "model.pt2"), ("onnx", "model.onnx")],
)
@pytest.mark.slow
def test_the_guilty_segment_shows_its_fault_alone(cand, model, cache, tmp_path, monkeypatch):
    monkeypatch.setattr(KLMModel, "split", wrong_eps(KLMModel.split))
    found = parity.run("torch", [cand], out=tmp_path / "out", **CASE)[cand]
    assert found.culprits[0].segment == "seg_1"
    folder = parity.capsule(tmp_path / "out", tmp_path / "capsule")
    monkeypatch.undo()
    assert (folder / model).is_file()
    code, text = run_alone(folder)
    assert code == 1
    rows = table(text)
    assert "layer1.mlp" in rows or "layer2.residual" in rows
    for allowed, recorded, now in rows.values():
        assert now == pytest.approx(recorded, rel=0.05, abs=allowed)
    assert any(now > allowed for allowed, _, now in rows.values())
    facts = json.loads((folder / "capsule.json").read_text())
    assert (facts["tap"], facts["segment"]) == ("layer1.norm2", "seg_1")
    assert {"libraries", "host"} <= set(facts["environment"])
    held = np.load(folder / "weights.npz")
    assert "body.blocks.1.ln2.weight" in held.files
    assert "body.blocks.0.ln2.weight" not in held.files


@pytest.mark.slow
def test_a_healthy_segment_passes_alone_and_a_devices_outputs_are_judged(cache, tmp_path):
    parity.run("torch", ["onnx"], out=tmp_path / "out", **CASE)
    folder = parity.capsule(tmp_path / "out", tmp_path / "capsule", tap="layer2.q")
    code, text = run_alone(folder)
    assert code == 0, text
    right = dict(np.load(folder / "expected.npz"))
    np.savez(tmp_path / "device.npz", **{**right, "layer2.q": right["layer2.q"] * 1.01})
    assert run_alone(folder, "--actual", tmp_path / "device.npz")[0] == 1
    np.savez(tmp_path / "device.npz", **right)
    assert run_alone(folder, "--actual", tmp_path / "device.npz")[0] == 0
    np.savez(tmp_path / "device.npz", other=np.zeros(3))
    assert run_alone(folder, "--actual", tmp_path / "device.npz")[0] == 2


@pytest.mark.slow
def test_a_masked_batch_is_fed_its_mask(cache, tmp_path):
    case = {**CASE, "scenario": "batch3"}
    parity.run("torch", ["onnx"], out=tmp_path / "out", **case)
    folder = parity.capsule(tmp_path / "out", tmp_path / "capsule", tap="layer1.attn")
    assert "mask" in np.load(folder / "inputs.npz").files
    assert run_alone(folder)[0] == 0


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A reference, and a port whose second linear layer has lost its bias."""
    (tmp_path / "capsnet.py").write_text(
        "import torch\n"
        "class Net(torch.nn.Module):\n"
        "    def __init__(self, bias=True):\n"
        "        super().__init__(); torch.manual_seed(0)\n"
        "        self.a = torch.nn.Linear(16, 16); self.b = torch.nn.Linear(16, 4)\n"
        "        if not bias: self.b.bias.data.zero_()\n"
        "    def forward(self, x): return self.b(torch.relu(self.a(x)))\n"
        "def build(): return Net()\n"
        "def port(): return Net(bias=False)\n"
    )
    np.savez(tmp_path / "in.npz", x=np.random.default_rng(0).standard_normal((4, 16)).astype(np.float32))
    monkeypatch.syspath_prepend(str(tmp_path))
    return {"model": "capsnet:build", "inputs": str(tmp_path / "in.npz")}


def test_the_guilty_submodule_of_ones_own_port_shows_its_fault_alone(cache, own, tmp_path):
    parity.run(cand=["module:capsnet:port"], out=tmp_path / "out", **own)
    folder = parity.capsule(tmp_path / "out", tmp_path / "capsule")
    code, text = run_alone(folder)
    assert code == 1
    (row,) = table(text).values()
    assert row[2] == pytest.approx(row[1], rel=1e-3)
    assert set(np.load(folder / "weights.npz").files) == {"b.weight", "b.bias"}


def test_wrong_code_between_modules_is_packed_with_what_holds_it(cache, own, tmp_path):
    (tmp_path / "capsouter.py").write_text(
        "import torch\nfrom capsnet import Net\n"
        "class Outer(torch.nn.Module):\n"
        "    def __init__(self, gain):\n"
        "        super().__init__(); self.net = Inner(gain)\n"
        "    def forward(self, x): return self.net(x)\n"
        "class Inner(Net):\n"
        "    def __init__(self, gain): super().__init__(); self.gain = gain\n"
        "    def forward(self, x): return self.b(self.a(x) * self.gain)\n"
        "def outer(): return Outer(1.0)\n"
        "def louder(): return Outer(1.5)\n"
    )
    case = {**own, "model": "capsouter:outer"}
    found = parity.run(cand=["module:capsouter:louder"], out=tmp_path / "out", **case)
    (culprit,) = next(iter(found)).culprits
    assert (culprit.tap, culprit.segment) == ("module:net.b", "net")
    folder = parity.capsule(tmp_path / "out", tmp_path / "capsule")
    code, text = run_alone(folder)
    assert code == 1
    assert "module:net" in table(text)


def test_a_run_at_parity_has_nothing_to_pack(cache, own, tmp_path):
    parity.run(cand=["module:capsnet:build"], out=tmp_path / "out", **own)
    with pytest.raises(UserError, match="nothing departs"):
        parity.capsule(tmp_path / "out", tmp_path / "capsule")
    with pytest.raises(UserError, match="tap='nothing'"):
        parity.capsule(tmp_path / "out", tmp_path / "capsule", tap="nothing")
    assert not (tmp_path / "capsule").exists()
    assert run_alone(parity.capsule(tmp_path / "out", tmp_path / "capsule", tap="module:a"))[0] == 0


def test_a_folder_that_exists_is_kept(cache, own, tmp_path):
    parity.run(cand=["module:capsnet:port"], out=tmp_path / "out", **own)
    (tmp_path / "capsule").mkdir()
    done = CliRunner().invoke(cli, ["capsule", str(tmp_path / "out"), "--out", str(tmp_path / "capsule")])
    assert done.exit_code != 0
    assert isinstance(done.exception, UserError)
    done = CliRunner().invoke(cli, ["capsule", str(tmp_path / "out"), "--out", str(tmp_path / "fresh")])
    assert done.exit_code == 0, done.output
    assert "run.py" in done.output
