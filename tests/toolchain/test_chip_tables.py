"""A user's calibration table for int8: held against the clean build and the instrumented one alike."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import parity
from parity.harness.comparison import Comparison
from parity.harness.errors import UserError
from parity.targets.sophgo.compile import calibrate

DRAW = {"x": np.random.default_rng(0).standard_normal((4, 32), dtype=np.float32)}
LEVELS = pytest.mark.parametrize("level", ["sim", "tapped"])


@pytest.fixture
def onnx_file(tmp_path) -> Path:
    """Two products with a ReLU between them: a value inside that both builds have a tensor of."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(32, 64), torch.nn.ReLU(), torch.nn.Linear(64, 16))
    path = tmp_path / "net.onnx"
    torch.onnx.export(
        net, (torch.from_numpy(DRAW["x"]),), str(path), dynamo=False, opset_version=17,
        input_names=["x"], output_names=["y"],
    )  # fmt: skip
    return path


@pytest.fixture
def table(onnx_file, toolchain, tmp_path) -> Path:
    """As `parity compile` leaves it: of the graph as it lies there."""
    made = calibrate("net", onnx_file.read_bytes(), [DRAW], toolchain, tmp_path / "cache")
    assert f"# onnx: {hashlib.sha256(onnx_file.read_bytes()).hexdigest()}" in made.read_text()
    path = tmp_path / "table.txt"
    path.write_text(made.read_text())
    return path


@pytest.fixture
def ran(onnx_file, table) -> Callable[[str], Comparison]:
    """`ran(level)`: the comparison of int8 with the table."""

    def run(level: str) -> Comparison:
        spec = f"chip=cvi:int8+{level}+table={table}"
        return parity.run(model=str(onnx_file), inputs=DRAW, cand=spec, report=False)["chip"]

    return run


pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning"),
    pytest.mark.usefixtures("in_tmp"),
]


@pytest.fixture
def in_tmp(tmp_path, monkeypatch) -> None:
    """Dated folders of results go there."""
    monkeypatch.chdir(tmp_path)


@LEVELS
def test_a_table_of_the_clean_graph_serves_both_builds(ran, level):
    found = ran(level)
    assert found.verdict == "parity"
    assert not [finding for finding in found.findings if finding.level == "warning"]


@LEVELS
@pytest.mark.parametrize("says_whose_it_is", [True, False])
def test_a_table_that_lacks_a_tensor_is_refused_alike(ran, table, level, says_whose_it_is):
    rows = [line for line in table.read_text().splitlines() if says_whose_it_is or "# onnx" not in line]
    kept = [line for line in rows if not line.startswith("y_")]
    assert len(kept) == len(rows) - 1
    table.write_text("\n".join(kept) + "\n")
    with pytest.raises(UserError, match=r"table\.txt'?: has no threshold for 1 of .* tensors.*: y_"):
        ran(level)


@LEVELS
def test_a_table_of_another_graph_is_refused_alike(ran, table, level):
    table.write_text(table.read_text().replace("# onnx: ", "# onnx: 0000"))
    with pytest.raises(UserError, match=r"table\.txt'?: was made for net \(0000"):
        ran(level)


@LEVELS
def test_names_of_a_table_that_match_nothing_are_warned_of(ran, table, level):
    table.write_text(table.read_text() + "nowhere_Gemm 1 -1 1\n")
    said = [finding.text for finding in ran(level).findings if finding.level == "warning"]
    assert said == ["table.txt: 1 of its names are no tensor of net's graph: nowhere_Gemm"]
