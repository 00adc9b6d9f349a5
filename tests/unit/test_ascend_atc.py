"""What is written for `atc`, and what is said before it is run."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from parity.harness.errors import UserError
from parity.targets.ascend import CHIPS, Finding, atc_lines, lint
from parity.targets.ascend.plugin import source

F32, F16, I8, U8 = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.INT8, TensorProto.UINT8


def model(
    *nodes: onnx.NodeProto,
    given: tuple[int, list[int | str]] = (F32, [1, "T", 4]),
    weights: dict[str, np.ndarray] | None = None,
    opset: int = 13,
) -> bytes:
    kind, shape = given
    graph = helper.make_graph(
        list(nodes),
        "g",
        [helper.make_tensor_value_info("x", kind, shape)],
        [helper.make_tensor_value_info("y", 0, None)],
        [numpy_helper.from_array(array, name) for name, array in (weights or {}).items()],
    )
    written: bytes = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", opset)]
    ).SerializeToString()
    return written


RELU = model(helper.make_node("Relu", ["x"], ["y"]))
W = np.ones((4, 3), np.int8)


def integer(
    *more: str, kind: int = I8, opset: int = 13, weights: dict[str, np.ndarray] | None = None
) -> bytes:
    node = helper.make_node("MatMulInteger", ["x", "w", *more], ["y"], name="mm")
    return model(node, given=(kind, [1, 4]), weights={"w": W, **(weights or {})}, opset=opset)


def severities(found: list[Finding]) -> list[tuple[str, str]]:
    return [(finding.severity, finding.op) for finding in found]


def test_the_line_fixes_every_shape_and_keeps_the_number_format() -> None:
    plan = atc_lines({"seg_0": RELU}, "ascend310b", sizes={"T": 7}, folder="om files")
    (line,) = (line for line in plan.lines if line.startswith("atc --framework"))
    assert line == (
        "atc --framework=5 --model='om files/seg_0.onnx' --output='om files/seg_0' --input_format=ND "
        "--input_shape=x:1,7,4 --soc_version=Ascend310B4 --precision_mode=must_keep_origin_dtype"
    )
    assert "atc --mode=1 --om='om files/seg_0.om' --json='om files/seg_0.json'" in plan.lines
    assert plan.findings == ()


def test_the_lines_are_a_shell_script_that_parses(tmp_path: Path) -> None:
    plan = atc_lines({"a": RELU, "b": integer()}, "Ascend310B1", sizes={"T": 1})
    script = tmp_path / "build.sh"
    script.write_text("\n".join(plan.lines) + "\n")
    subprocess.run(["bash", "-n", script], check=True)
    assert "AICPU_SOC_VERSION=Ascend310B1" in script.read_text()
    assert source() in script.read_text()


def test_what_is_noted_on_the_board_is_what_the_reader_understands(tmp_path: Path) -> None:
    lines = atc_lines({"a": RELU}, "ascend310b", sizes={"T": 1}).lines
    start = lines.index("python3 - > ascend.json <<'RECORD'")
    code = "\n".join(lines[start + 1 : lines.index("RECORD", start)])
    environment = {"INF_NAN_MODE_ENABLE": "1", "PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        ["python3", "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    import json

    from parity.targets.ascend import profile_of

    profile = profile_of(json.loads(done.stdout))
    assert (profile.chip, profile.precision_mode) == ("Ascend310B4", "must_keep_origin_dtype")
    assert (profile.overflow, profile.order) == ("inf", "varies")


def test_an_open_dimension_must_be_said() -> None:
    with pytest.raises(UserError, match=r"dimension 1 of the input 'x' of \./a\.onnx is open \(T\)"):
        atc_lines({"a": RELU}, "ascend310b")


@pytest.mark.parametrize("chip", [*CHIPS, "Ascend310B2", "ASCEND910b4"])
def test_chips_are_named_by_family_or_version(chip: str) -> None:
    assert any("--soc_version=Ascend" in line for line in atc_lines({"a": RELU}, chip, sizes={"T": 1}).lines)


def test_unknown_chips_modes_and_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such Ascend chip"):
        atc_lines({"a": RELU}, "cv181x")
    with pytest.raises(UserError, match="atc has no such mode"):
        atc_lines({"a": RELU}, "ascend310b", precision="fp32")
    with pytest.raises(UserError, match="is no ONNX model"):
        lint("a", b"nonsense")
    with pytest.raises(UserError, match="holds no node"):
        lint("a", b"")
    with pytest.raises(UserError, match="cannot be read"):
        lint("a", tmp_path / "absent.onnx")


def test_fp16_by_default_is_said() -> None:
    (finding,) = lint("a", RELU)
    assert (finding.severity, finding.rewrite) == ("wrong", "--precision_mode=must_keep_origin_dtype")
    assert "without a word" in finding.what
    assert lint("a", RELU, precision="must_keep_origin_dtype") == []
    assert [f.severity for f in lint("a", RELU, precision="allow_mix_precision")] == ["wrong"]
    half = model(helper.make_node("Relu", ["x"], ["y"]), given=(F16, [1]))
    assert lint("a", half) == []


def test_an_integer_matmul_needs_the_plugin() -> None:
    (finding,) = lint("a", integer())
    assert (finding.severity, finding.op, finding.tap) == ("abort", "MatMulInteger mm", "y")
    assert str(finding) == (
        "abort: MatMulInteger mm: atc knows no MatMulInteger until a parser plugin maps it to BatchMatMulV2; "
        "install the plugin (steps below)"
    )


def test_zero_points_and_unsigned_inputs_are_not_what_the_plugin_computes() -> None:
    zero, one = np.zeros((), np.int8), np.ones((), np.int8)
    assert severities(lint("a", integer("z", weights={"z": zero}))) == [("abort", "MatMulInteger mm")]
    found = lint("a", integer("z", "o", weights={"z": zero, "o": one}))
    assert [f.what for f in found if f.severity == "wrong"] == [
        "b_zero_point is not zero, and the plugin ignores zero points"
    ]
    computed = model(
        helper.make_node("Cast", ["x"], ["z"], to=I8),
        helper.make_node("MatMulInteger", ["x", "w", "z"], ["y"]),
        given=(I8, [1, 4]),
        weights={"w": W},
    )
    assert any("is computed" in f.what for f in lint("a", computed))
    assert any("A is uint8" in f.what for f in lint("a", integer(kind=U8)))


def test_opsets_outside_the_plugins_are_said() -> None:
    assert [f.severity for f in lint("a", integer(opset=17))] == ["abort", "abort"]
    late = model(helper.make_node("Relu", ["x"], ["y"]), given=(F16, [1]), opset=18)
    assert [f.severity for f in lint("a", late)] == ["note"]


def test_casts_that_truncate_and_unsigned_quantizers_are_said() -> None:
    cast = model(helper.make_node("Cast", ["x"], ["y"], to=I8), given=(F16, [1]))
    assert [f.severity for f in lint("a", cast)] == ["wrong"]
    dynamic = model(helper.make_node("DynamicQuantizeLinear", ["x"], ["y", "s", "z"]), given=(F32, [4]))
    found = lint("a", dynamic, precision="force_fp32")
    assert [(f.severity, f.tap) for f in found] == [("wrong", "y")]
    widening = model(helper.make_node("Cast", ["x"], ["y"], to=F32), given=(F16, [1]))
    assert lint("a", widening) == []
