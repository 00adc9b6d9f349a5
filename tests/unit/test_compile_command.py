"""`parity compile`: what can be ordered, what is refused before anything starts, dry runs, the index."""

from __future__ import annotations

import importlib.util
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from click.testing import CliRunner

from parity.cli import cli
from parity.cli.compile import command
from parity.compiling import Order
from parity.compiling.deliver import tables_in
from parity.compiling.exports import ExportIndex, Graph
from parity.compiling.files import FileGraphs
from parity.compiling.order import parse_modes
from parity.harness.errors import UserError
from parity.harness.progress import Silent
from parity.models import find_model

OPTIONS = {
    "--chip", "--mode", "--segment-mode", "--group-size", "--model", "--weights", "--segments", "--window",
    "--masked", "--tapped", "--calibration", "--calibrator", "--scenario", "--samples", "--qtable", "--out",
    "--combine", "--num-device", "--strict", "--dry-run", "--json",
}  # fmt: skip


def _load(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parent / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


graphs = _load("compile_graphs")


def test_the_options_are_frozen():
    given = {name for item in command.params if isinstance(item, click.Option) for name in item.opts}
    assert given == OPTIONS


def test_modes_per_segment_are_globs_and_the_last_one_wins():
    order = Order("bm1684x", modes={"seg_*": "int8", "seg_head": "f16"})
    modes = order.modes_of(["seg_head", "seg_0", "tail"])
    assert {name: mode.name for name, mode in modes.items()} == {
        "seg_head": "f16",
        "seg_0": "int8",
        "tail": "f16",
    }


@pytest.mark.parametrize(
    ("chip", "mode"), [("cv181x", "bf16"), ("bm1684x", "f16"), ("cv184x", "bf16"), ("bm1684", "f32")]
)
def test_without_a_mode_a_chip_has_its_own(chip, mode):
    assert Order(chip).modes_of(["a"])["a"].name == mode


def test_a_glob_that_matches_nothing_is_refused():
    with pytest.raises(UserError, match=r"segment_mode=seg_hed=f16: matches none. Did you mean 'seg_head'"):
        Order("bm1684x", modes={"seg_hed": "f16"}).modes_of(["seg_head", "seg_0"])


@pytest.mark.parametrize("text", ["seg_head", "=f16", "seg_head="])
def test_a_mode_of_a_segment_is_written_with_an_equals_sign(text):
    with pytest.raises(UserError, match="write GLOB=MODE"):
        parse_modes([text])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"chip": "cv181y"}, "chip='cv181y': unknown. Did you mean 'cv181x'"),
        ({"chip": "cv181x", "mode": "f16"}, "cv181x has no f16: .* compute bf16 without a word"),
        ({"chip": "cv181x", "modes": {"a": "w4f16"}}, "no w4f16 for cv181x"),
        ({"chip": "cv181x", "num_device": 2}, "num_device=2: several devices are not simulated"),
        ({"chip": "cv181x", "files": (Path("a.onnx"),), "model": "klm"}, "leave out the options of a model"),
        ({"chip": "cv181x", "samples": (Path("a.npz"),)}, "samples: belong to ONNX files"),
        ({"chip": "cv181x", "window": 0}, "window=0"),
        ({"chip": "ascend310b"}, "its compiler does not run here; --dry-run writes the lines"),
        ({"chip": "ascend310b", "dry_run": True, "modes": {"a": "b"}}, "atc has one precision mode"),
        ({"chip": "ascend310b", "dry_run": True, "qtable": Path("q")}, "belongs to Sophgo's compiler"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_starts(options, said):
    with pytest.raises(UserError, match=said):
        Order(**options)


@pytest.fixture
def onnx_file(tmp_path: Path) -> Path:
    path = tmp_path / "my block.v2.onnx"
    path.write_bytes(graphs.block())
    return path


def invoke(*words: str) -> Any:
    return CliRunner().invoke(cli, ["compile", *words], catch_exceptions=True)


def dry_run(*words: str) -> tuple[Path, list[list[str]]]:
    """The folder that the lines are to be run in, and the words of each."""
    done = invoke(*words, "--dry-run")
    assert done.exit_code == 0, done.exception
    first, *lines = [shlex.split(line) for line in done.stdout.splitlines() if not line.startswith("#")]
    assert first[0] == "cd"
    return Path(first[1]), lines


def test_a_dry_run_prints_the_vendor_tools_own_lines(onnx_file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder, lines = dry_run(str(onnx_file), "--chip", "bm1684x", "--mode", "w4f16", "--group-size", "32")
    assert [line[0] for line in lines] == ["model_transform.py", "model_deploy.py"]
    transform, deploy = (dict(zip(line[1::2], line[2::2], strict=True)) for line in lines)
    assert transform["--input_shapes"] == "[[1,1,64]]"
    assert transform["--model_name"] == "my_block_v2"
    assert transform["--mlir"] == deploy["--mlir"]
    assert deploy | {"--quantize": "W4F16", "--processor": "bm1684x", "--q_group_size": "32"} == deploy
    assert folder == Path("my_block_v2-bm1684x-w4f16")
    assert (folder / transform["--model_def"]).read_bytes() == onnx_file.read_bytes()


def test_a_dry_run_of_int8_writes_the_samples_that_its_lines_name(onnx_file, tmp_path):
    for at in range(3):
        np.savez(tmp_path / f"s{at}.npz", x=np.full((1, 1, 64), at, np.float32))
    samples = [word for at in range(3) for word in ("--samples", str(tmp_path / f"s{at}.npz"))]
    words = (str(onnx_file), "--chip", "cv181x", "--mode", "int8", "--out", str(tmp_path / "there"))
    for _ in range(2):  # a second dry run leaves nothing of the first
        folder, (_, calibrate, deploy) = dry_run(*words, *samples)
    named = dict(zip(calibrate[2::2], calibrate[3::2], strict=True))
    files = sorted((folder / named["--dataset"]).iterdir())
    assert named["--input_num"] == str(len(files)) == "3"
    assert [float(np.load(file)["x"].max()) for file in files] == [0, 1, 2]
    assert deploy[deploy.index("--calibration_table") + 1] == named["-o"]


def test_a_dry_run_of_int8_without_samples_says_what_to_give(onnx_file, tmp_path):
    done = invoke(str(onnx_file), "--chip", "cv181x", "--mode", "int8", "--dry-run", "--out", str(tmp_path))
    assert isinstance(done.exception, UserError)
    assert "give --samples FILE.npz" in str(done.exception)


def test_a_dry_run_brings_the_tables_that_its_lines_name(onnx_file, tmp_path):
    table, qtable = tmp_path / "t.txt", tmp_path / "q.txt"
    table.write_text("x 1 -1 1\n")
    qtable.write_text("y_Softmax BF16\n")
    words = (str(onnx_file), "--chip", "cv181x", "--mode", "int8", "--calibration", str(table))
    folder, lines = dry_run(*words, "--qtable", str(qtable), "--out", str(tmp_path / "there"))
    assert [line[0] for line in lines] == ["model_transform.py", "model_deploy.py"]
    deploy = dict(zip(lines[1][1::2], lines[1][2::2], strict=True))
    assert (folder / deploy["--calibration_table"]).read_text() == table.read_text()
    assert (folder / deploy["--quantize_table"]).read_text() == qtable.read_text()


@pytest.mark.parametrize(
    ("text", "said"), [("x 1 nan 1\n", "numbers should be finite"), (None, "there is no such file")]
)
def test_a_dry_run_refuses_a_table_that_is_none(onnx_file, tmp_path, text, said):
    if text is not None:
        (tmp_path / "t.txt").write_text(text)
    words = (str(onnx_file), "--chip", "cv181x", "--mode", "int8", "--calibration", str(tmp_path / "t.txt"))
    done = invoke(*words, "--dry-run", "--out", str(tmp_path / "there"))
    assert isinstance(done.exception, UserError)
    assert said in str(done.exception)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"calibration": Path("t.txt")}, r"calibration='t.txt': bf16 needs no calibration; leave it out"),
        ({"calibrator": "stock"}, r"calibrator='stock': bf16 needs no calibration"),
        ({"files": (Path("a.onnx"),), "samples": (Path("a.npz"),)}, r"samples='a.npz': bf16 needs no"),
        ({"group_size": 32}, r"group_size=32: bf16 has no groups of weights"),
    ],
)
def test_what_no_mode_takes_is_refused_and_not_passed_over(options, said):
    with pytest.raises(UserError, match=said):
        Order("cv181x", **options).modes_of(["a"])


def test_what_one_of_the_modes_takes_is_fine():
    Order("bm1684x", mode="f16", modes={"b": "int8"}, calibrator="stock").modes_of(["a", "b"])
    Order("bm1684x", mode="f16", modes={"b": "w4f16"}, group_size=32).modes_of(["a", "b"])


def test_a_table_and_a_way_to_make_one_do_not_go_together():
    with pytest.raises(UserError, match="is a table already; leave out --calibrator and --samples"):
        Order("cv181x", mode="int8", calibration=Path("t.txt"), calibrator="stock")


def test_a_qtable_is_refused_before_anything_is_calibrated(onnx_file, tmp_path):
    """The samples are not even looked at."""
    (tmp_path / "q.txt").write_text("y_Softmax F16\n")
    words = (str(onnx_file), "--chip", "cv181x", "--mode", "int8", "--samples", str(tmp_path / "none.npz"))
    done = invoke(*words, "--qtable", str(tmp_path / "q.txt"), "--out", str(tmp_path / "there"), "--dry-run")
    assert isinstance(done.exception, UserError)
    assert "asks for y_Softmax in F16, which a build for cv181x in int8 has not" in str(done.exception)


def test_a_dry_run_for_ascend_writes_atc_lines_with_the_precision(onnx_file, tmp_path):
    words = (str(onnx_file), "--chip", "ascend310b", "--mode", "force_fp16", "--out", str(tmp_path / "there"))
    folder, lines = dry_run(*words)
    (atc,) = (line for line in lines if line[:2] == ["atc", "--framework=5"])
    assert "--precision_mode=force_fp16" in atc
    assert "--input_shape=x:1,1,64" in atc
    (model,) = (word.partition("=")[2] for word in atc if word.startswith("--model="))
    assert (folder / model).read_bytes() == onnx_file.read_bytes()


def test_a_file_that_is_not_there_is_one_sentence(tmp_path):
    code = "from parity.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "compile", "none.onnx", "--chip", "cv181x", "--dry-run"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1].startswith("parity: onnx='none.onnx': cannot be read")


def test_two_files_of_one_name_are_refused(tmp_path):
    paths = []
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        paths.append(tmp_path / folder / "net.onnx")
        paths[-1].write_bytes(graphs.block())
    with pytest.raises(UserError, match="two of them are called net"):
        FileGraphs(Order("cv181x", files=tuple(paths)), Silent()).graphs  # noqa: B018


def test_samples_are_arrays_by_input(onnx_file, tmp_path):
    np.savez(tmp_path / "s.npz", x=np.ones((1, 1, 64), np.float32))
    source = FileGraphs(Order("cv181x", files=(onnx_file,), samples=(tmp_path / "s.npz",)), Silent())
    (sample,) = source.samples()["my_block_v2"]
    assert sample["x"].shape == (1, 1, 64)
    (tmp_path / "bad.npz").write_bytes(b"PK\x03\x04")
    bad = FileGraphs(Order("cv181x", files=(onnx_file,), samples=(tmp_path / "bad.npz",)), Silent())
    with pytest.raises(UserError, match=r"is no \.npz"):
        bad.samples()


def test_int8_of_a_file_without_samples_says_what_to_give(onnx_file):
    with pytest.raises(UserError, match=r"give --samples FILE\.npz"):
        FileGraphs(Order("cv181x", files=(onnx_file,), mode="int8"), Silent()).samples()


def test_tables_are_one_file_for_one_graph_or_a_folder(tmp_path):
    (tmp_path / "a_qtable.txt").write_text("")
    assert tables_in("qtable", tmp_path, ["a", "b"], "qtable.txt") == {"a": tmp_path / "a_qtable.txt"}
    file = tmp_path / "a_qtable.txt"
    assert tables_in("qtable", file, ["a"], "qtable.txt") == {"a": file}
    with pytest.raises(UserError, match="is one table for 2 graphs"):
        tables_in("qtable", file, ["a", "b"], "qtable.txt")
    with pytest.raises(UserError, match="there is no such"):
        tables_in("qtable", tmp_path / "none", ["a"], "qtable.txt")
    with pytest.raises(UserError, match="holds no c_qtable"):
        tables_in("qtable", tmp_path, ["c"], "qtable.txt")


GRAPH = Graph("seg_0", "d" * 64, 100, ("y",), {"y": "layer0.y"})


def index(cache: Path, rows: int = 63, **order: Any) -> ExportIndex:
    return ExportIndex(Order("cv181x", **order), find_model("klm-tiny"), 1, rows, cache)


def test_the_index_gives_back_what_was_exported(tmp_path):
    assert index(tmp_path).read() is None
    index(tmp_path).write({"seg_0": GRAPH}, None)
    assert index(tmp_path).read() == {"seg_0": GRAPH}


def test_another_build_has_another_entry(tmp_path):
    index(tmp_path).write({"seg_0": GRAPH}, None)
    for changed in ({"masked": True}, {"tapped": True}, {"weights": "random:0"}):
        assert index(tmp_path, **changed).read() is None
    assert index(tmp_path, rows=31).read() is None
    assert ExportIndex(Order("cv181x"), find_model("klm"), 1, 63, tmp_path).read() is None


def test_weights_that_changed_on_disk_make_an_entry_stale(tmp_path):
    weights = tmp_path / "model.pt"
    weights.write_bytes(b"one")
    index(tmp_path).write({"seg_0": GRAPH}, weights)
    assert index(tmp_path).read() is not None
    weights.write_bytes(b"two!")
    assert index(tmp_path).read() is None
    weights.unlink()
    assert index(tmp_path).read() is None


def test_code_that_makes_graphs_is_in_the_key(tmp_path, monkeypatch):
    index(tmp_path).write({"seg_0": GRAPH}, None)
    monkeypatch.setattr("parity.compiling.exports._code", lambda: "edited")
    assert index(tmp_path).read() is None


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"weights": null, "graphs": {}', '{"weights": {}}'])
def test_a_damaged_index_is_no_entry(tmp_path, text):
    index(tmp_path).write({"seg_0": GRAPH}, None)
    (file,) = (tmp_path / "index").iterdir()
    file.write_text(text)
    assert index(tmp_path).read() is None


@pytest.mark.parametrize("word", ["d" * 64, '"outputs"', "layer0.y"])
def test_an_index_of_which_a_word_is_another_is_no_entry(tmp_path, word):
    index(tmp_path).write({"seg_0": GRAPH}, None)
    (file,) = (tmp_path / "index").iterdir()
    text = file.read_text()
    assert word in text
    file.write_text(text.replace(word, word[:-2] + "z" + word[-1]))
    assert index(tmp_path).read() is None


def test_tables_are_kept_beside_the_graphs_while_their_files_are_there(tmp_path):
    table = tmp_path / "t.txt"
    table.write_text("")
    index(tmp_path).write({"seg_0": GRAPH}, None)
    index(tmp_path).add_tables("k", {"seg_0": table})
    assert index(tmp_path).tables("k") == {"seg_0": table}
    assert index(tmp_path).tables("other") is None
    table.unlink()
    assert index(tmp_path).tables("k") is None


def test_looking_an_artefact_up_loads_neither_torch_nor_onnx():
    code = (
        "import sys\nfrom parity.compiling import compile_order\n"
        "import parity.targets.sophgo.compile.artefact\n"
        "sys.exit(' '.join({'torch', 'onnx', 'onnxruntime'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_without_a_toolchain_it_says_how_to_get_one(onnx_file, tmp_path):
    code = "from parity.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "compile", str(onnx_file), "--chip", "cv181x"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PARITY_CACHE": str(tmp_path / "cache")},
        check=False,
    )
    assert done.returncode == 2
    assert "`parity toolchain install tpu-mlir`" in done.stderr


def test_the_plain_data_of_a_dry_run_is_its_lines(onnx_file, tmp_path):
    done = invoke(str(onnx_file), "--chip", "cv181x", "--dry-run", "--json", "--out", str(tmp_path))
    assert [line.split()[0] for line in json.loads(done.stdout)["lines"]] == [
        "cd",
        "model_transform.py",
        "model_deploy.py",
    ]
