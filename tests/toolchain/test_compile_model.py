"""`parity compile` from end to end: a model's segments, anyone's ONNX, and the second time in a moment."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from parity.compiling import Order, compile_order
from parity.harness.errors import UserError
from parity.harness.folders import cache_folder

TINY = {"model": "klm-tiny", "weights": "random:0"}
OTHER = {"model": "klm-tiny", "weights": "random:1", "segments": "seg_0"}
SEGMENTS = ["seg_head", "seg_0", "seg_1", "seg_2", "seg_tail"]


def _load(name: str) -> Any:
    path = Path(__file__).parents[1] / "unit" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


graphs = _load("compile_graphs")


@pytest.fixture(scope="module")
def cache(toolchain, tmp_path_factory) -> Path:
    """A cache of its own that holds the toolchain of the machine's."""
    folder = Path(tmp_path_factory.mktemp("cache"))
    (folder / "toolchains").symlink_to(cache_folder().absolute() / "toolchains")
    return folder


@pytest.fixture(autouse=True)
def _there(cache, monkeypatch):
    monkeypatch.setenv("PARITY_CACHE", str(cache))


def parity(cache: Path, *words: str, then: str = "") -> subprocess.CompletedProcess[str]:
    code = f"import sys\nfrom parity.cli import _run\nstatus = _run(sys.argv[1:])\n{then}\nsys.exit(status)"
    return subprocess.run(
        [sys.executable, "-c", code, "compile", *words],
        capture_output=True,
        text=True,
        env={**os.environ, "PARITY_CACHE": str(cache)},
        check=False,
    )


@pytest.mark.slow
def test_a_models_segments_are_compiled_and_delivered_with_a_manifest(tmp_path):
    made = compile_order(Order("cv181x", **TINY, out=tmp_path / "out"))
    assert [artefact.manifest["name"] for artefact in made.artefacts] == SEGMENTS
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["rows"] == 63
    assert not manifest["masked"]
    assert list(manifest["segments"]) == SEGMENTS
    for name in SEGMENTS:
        assert (tmp_path / "out" / f"{name}.cvimodel").stat().st_size == manifest["segments"][name]["size"]
    head = manifest["segments"]["seg_0"]["outputs"]
    assert [end["tap"] for end in head] == ["layer1.residual", "layer1.q", "layer1.k", "layer1.v"]
    values = {entry["tap"]: entry for entry in manifest["segments"]["seg_0"]["values"] if entry["tap"]}
    assert values["layer0.norm2"]["final"], "inner taps keep their names in the clean build"


@pytest.mark.slow
def test_the_second_time_loads_neither_torch_nor_onnx(cache, tmp_path):
    words = ("--chip", "cv181x", "--weights", "random:0", "--out", str(tmp_path))
    parity(cache, *words)
    loaded = "print(sorted({'torch', 'onnx', 'onnxruntime'} & set(sys.modules)), file=sys.stderr)"
    done = parity(cache, *words, then=loaded)
    assert done.returncode == 0, done.stderr
    assert "5 of 5 from the cache" in done.stdout
    assert done.stderr.splitlines()[-1] == "[]"


@pytest.mark.slow
def test_int8_is_calibrated_on_a_scenario_and_its_tables_can_be_given_back(tmp_path):
    made = compile_order(Order("cv181x", **TINY, mode="int8", out=tmp_path / "a"))
    assert made.artefacts[1].manifest["calibration"]["calibrator"] == "max"
    assert (tmp_path / "a" / "seg_0_calibration.txt").read_text().startswith("# onnx: ")
    again = compile_order(
        Order("cv181x", **TINY, mode="int8", calibration=tmp_path / "a", out=tmp_path / "b")
    )
    assert again.cached == len(SEGMENTS)
    other = compile_order(
        Order(
            "cv181x", **TINY, mode="int8", scenario="short", masked=True, segments="seg_0", out=tmp_path / "c"
        )
    )
    assert other.cached == 0


@pytest.mark.slow
def test_what_is_kept_for_a_while_lies_in_the_cache_where_a_killed_process_is_swept_up_after(
    cache, tmp_path, monkeypatch
):
    compile_order(Order("cv181x", **OTHER, out=tmp_path / "exported"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "absent"))
    compile_order(Order("cv181x", **OTHER, mode="int8", out=tmp_path / "out"))
    assert list((cache / "work" / "reference").iterdir()) == []


@pytest.mark.slow
def test_a_scenario_that_does_not_fill_the_rows_is_refused_with_what_to_do(tmp_path):
    with pytest.raises(UserError, match=r"do not fill the 63 rows of a build without mask; .* or --masked"):
        compile_order(Order("cv181x", **TINY, mode="int8", scenario="short", out=tmp_path))


@pytest.mark.slow
def test_tables_of_other_weights_are_refused(tmp_path):
    compile_order(Order("cv181x", **TINY, mode="int8", segments="seg_0", out=tmp_path / "a"))
    with pytest.raises(UserError, match="was made for seg_0"):
        compile_order(Order("cv181x", **OTHER, mode="int8", calibration=tmp_path / "a", out=tmp_path / "b"))


@pytest.mark.slow
def test_another_mode_for_some_segments_and_all_in_one_file(tmp_path):
    made = compile_order(
        Order(
            "bm1684x",
            **TINY,
            mode="w4f16",
            group_size=32,
            modes={"seg_head": "f16"},
            combine=True,
            out=tmp_path,
        )
    )
    assert [artefact.manifest["mode"] for artefact in made.artefacts] == ["f16", *["w4f16"] * 4]
    assert [artefact.manifest["group_size"] for artefact in made.artefacts] == [0, *[32] * 4]
    assert made.combined == tmp_path / "klm-tiny-bm1684x-mixed.bmodel"
    assert made.combined.stat().st_size < 2 * made.artefacts[0].manifest["size"]
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


@pytest.mark.slow
def test_a_tapped_build_has_every_tap_as_an_output(tmp_path):
    made = compile_order(Order("cv181x", **TINY, tapped=True, segments="seg_1", window=12, out=tmp_path))
    (artefact,) = made.artefacts
    taps = [end["tap"] for end in artefact.manifest["outputs"]]
    assert taps[:4] == ["layer2.residual", "layer2.q", "layer2.k", "layer2.v"]
    assert {"layer1.attn", "layer1.o", "layer1.mid", "layer1.norm2", "layer1.act", "layer1.mlp"} <= set(taps)
    shapes = {entry["name"]: entry["shape"] for entry in artefact.manifest["inputs"]}
    assert shapes["ks"] == [1, 2, 12, 32]


def test_an_onnx_file_of_anyones(cache, tmp_path):
    (tmp_path / "my-block.onnx").write_bytes(graphs.block())
    np.savez(tmp_path / "s.npz", x=np.random.default_rng(0).standard_normal((1, 1, 64)).astype(np.float32))
    words = (str(tmp_path / "my-block.onnx"), "--chip", "cv181x", "--mode", "int8")
    done = parity(cache, *words, "--samples", str(tmp_path / "s.npz"), "--out", str(tmp_path / "o"), "--json")
    assert done.returncode == 0, done.stderr
    assert "my-block.onnx: its net is called my_block" in done.stderr
    (made,) = json.loads(done.stdout)["artefacts"].values()
    assert made["formats"]["int8"] >= 3
    assert Path(made["file"]).is_file()


def test_a_qtable_is_refused_before_anything_is_calibrated(cache, tmp_path):
    (tmp_path / "net.onnx").write_bytes(graphs.block())
    (tmp_path / "q.txt").write_text("y_Softmax F16\n")
    words = (str(tmp_path / "net.onnx"), "--chip", "cv181x", "--mode", "int8", "--samples", "none.npz")
    done = parity(cache, *words, "--qtable", str(tmp_path / "q.txt"), "--out", str(tmp_path / "o"))
    assert done.returncode == 2
    assert "asks for y_Softmax in F16, which a build for cv181x in int8 has not" in done.stderr


def test_a_person_may_stop_before_what_is_known_to_go_wrong(cache, tmp_path):
    path = tmp_path / "sine.onnx"
    path.write_bytes(graphs.sine())
    done = parity(cache, str(path), "--chip", "cv181x", "--strict", "--out", str(tmp_path / "o"))
    assert done.returncode == 2
    assert "parity: strict: sine: abort: Sin sin: cv181x has no Sin" in done.stderr
    done = parity(cache, str(path), "--chip", "cv181x", "--out", str(tmp_path / "o"))
    assert done.returncode == 4
    assert "sine: abort: Sin sin" in done.stderr
    assert "sine (cv181x, bf16): the compiler failed in lowering at Sin sin_Sin" in done.stderr
    assert "Traceback" not in done.stderr


def test_what_it_will_take_is_said_before(cache, tmp_path):
    path = tmp_path / "net.onnx"
    path.write_bytes(graphs.gqa_grouped())
    done = parity(cache, str(path), "--chip", "bm1684x", "--out", str(tmp_path / "o"))
    assert done.stderr.splitlines()[0].startswith("1 to compile: about ")
