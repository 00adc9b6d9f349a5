"""Graphs read from the compiler's text, and the chain of names through them."""

# ruff: noqa: E501 (an operator stands on one line)

from __future__ import annotations

from parity.targets.sophgo.compile.mlir import Format, Graph, parse_graph, unescape
from parity.targets.sophgo.compile.names import Names, is_cast, tensors

TOP = r"""
#loc = loc(unknown)
module @m attributes {module.chip = "ALL", module.state = "TOP_F32", module.weight_file = "m_weight.npz"} {
  func.func @main(%arg0: tensor<1x8xf32> loc(unknown), %arg1: tensor<1x4xsi32> loc(unknown)) -> (tensor<1x8xf32>) {
    %0 = "top.None"() : () -> none loc(#loc)
    %1 = "top.Input"(%arg0) {do_preprocess = false} : (tensor<1x8xf32>) -> tensor<1x8xf32> loc(#loc1)
    %2 = "top.Weight"() : () -> tensor<8x8xf32> loc(#loc2)
    %3 = "top.MatMul"(%1, %2, %0) {do_relu = false} : (tensor<1x8xf32>, tensor<8x8xf32>, none) -> tensor<1x8xf32> loc(#loc3)
    %4:2 = "top.Split"(%3, %0) {axis = 1 : si32} : (tensor<1x8xf32>, none) -> (tensor<1x4xf32>, tensor<1x4xf32>) loc(#loc6)
    return %3, %4#1 : tensor<1x8xf32>, tensor<1x4xf32> loc(#loc)
  } loc(#loc)
} loc(#loc)
#loc1 = loc("x")
#loc2 = loc("w")
#loc3 = loc("y \22quoted\22_Add")
#loc4 = loc("a_Split")
#loc5 = loc("b_Split")
#loc6 = loc(fused[#loc4, #loc5])
"""

FINAL = r"""
#loc = loc(unknown)
module @m attributes {module.inputs = ["x"], module.outputs = ["out_Add_f32"]} {
  module @m attributes {module.coeff_size = 4 : i64} {
    func.func @main(%arg0: tensor<1x8xf32> loc(unknown)) -> tensor<1x8xf32, 4096 : i64> {
      %0 = "top.Input"(%arg0) : (tensor<1x8xf32>) -> tensor<1x8xf32, 4096 : i64> loc(#loc1)
      %1 = call @subfunc_0(%0) : (tensor<1x8xf32, 4096 : i64>) -> tensor<1x8xf32, 8192 : i64> loc(#loc)
      return %1 : tensor<1x8xf32, 8192 : i64> loc(#loc)
    } loc(#loc)
    func.func @subfunc_0(%arg0: tensor<1x8xf32, 4096 : i64> loc("x")) -> tensor<1x8xf32, 8192 : i64> {
      %1 = "tpu.Cast"(%arg0) {} : (tensor<1x8xf32, 4096 : i64>) -> tensor<1x8x!quant.uniform<i8:f32, 0.5>, 1 : i64> loc(#loc2)
      %2:2 = "tpu.Group"(%1) ({
        %3 = "tpu.Load"(%1) {} : (tensor<1x8x!quant.uniform<i8:f32, 0.5>>) -> tensor<1x8x!quant.uniform<i8:f32, 0.5>> loc(#loc3)
        %4 = "tpu.Add"(%3, %3) {} : (tensor<1x8xsi8>, tensor<1x8xsi8>) -> tensor<1x8x!quant.uniform<u8<0:255>:f32, 0.25:128>, 2 : i64> loc(#loc4)
        %5 = "tpu.Store"(%4) {} : (tensor<1x8xui8>) -> tensor<1x8xui8> loc(#loc4)
        "tpu.Yield"(%5) : (tensor<1x8xui8>) -> () loc(#loc6)
      }) {group_type = 0 : i64} : (tensor<1x8xsi8>) -> (tensor<1x8x!quant.uniform<u8<0:255>:f32, 0.25:128>, 2 : i64>, tensor<1x8xf16>) loc(#loc6)
      %6 = "tpu.Cast"(%2#0) {} : (tensor<1x8xui8>) -> tensor<1x8xf32, 8192 : i64> loc(#loc5)
      return %6 : tensor<1x8xf32, 8192 : i64> loc(#loc)
    } loc(#loc)
  } loc(#loc)
} loc(#loc)
#loc1 = loc("x")
#loc2 = loc("xout_Add_si8")
#loc3 = loc("load_x")
#loc4 = loc("out_Add")
#loc5 = loc("out_Add_f32")
#loc6 = loc(fused[#loc4, #loc3])
"""


def test_operators_their_names_and_what_they_read():
    graph = parse_graph(TOP)
    kinds = [op.kind for op in graph.ops]
    assert kinds == ["top.Input", "top.Weight", "top.MatMul", "top.Split"]
    product = graph.ops[2]
    assert product.names == ('y "quoted"_Add',)
    assert product.operands == ("x", "w")
    assert graph.ops[3].names == ("a_Split", "b_Split")
    assert graph.returns == ('y "quoted"_Add', "b_Split")
    assert graph.facts["weight_file"] == "m_weight.npz"


def test_formats_with_scales_zero_points_and_addresses():
    formats = {op.name: op.formats[0] for op in parse_graph(FINAL).ops if op.kind != "tpu.Group"}
    assert formats["x"] == Format("f32", (1, 8))
    assert formats["xout_Add_si8"] == Format("int8", (1, 8), 0.5)
    assert formats["out_Add_f32"] == Format("f32", (1, 8))
    add = next(op for op in parse_graph(FINAL).ops if op.kind == "tpu.Add")
    assert add.formats == (Format("uint8", (1, 8), 0.25, 128),)


NAMED = r"""
#loc = loc(unknown)
module @m attributes {module.state = "TOP_F32"} {
  func.func @main(%arg0: tensor<3x8xf32> loc(unknown)) -> (tensor<3x3xf32>, tensor<3x3xf32>, tensor<3xf32>) {
    %0 = "top.Input"(%arg0) {do_preprocess = false} : (tensor<3x8xf32>) -> tensor<3x8xf32> loc(#loc1)
    %values, %indices = "top.TopK"(%0) {K = 3 : i64} : (tensor<3x8xf32>) -> (tensor<3x3xf32>, tensor<3x3xf32>) loc(#loc4)
    %indices_0, %values_1 = "top.Arg"(%0) {mode = "ArgMax"} : (tensor<3x8xf32>) -> (tensor<3xf32>, none) loc(#loc5)
    %1 = "top.Abs"(%indices) {} : (tensor<3x3xf32>) -> tensor<3x3xf32> loc(#loc6)
    return %values, %1, %indices_0 : tensor<3x3xf32>, tensor<3x3xf32>, tensor<3xf32> loc(#loc)
  } loc(#loc)
} loc(#loc)
#loc1 = loc("x")
#loc2 = loc("t_TopK")
#loc3 = loc("n_TopK")
#loc4 = loc(fused[#loc2, #loc3])
#loc5 = loc("i_ArgMax")
#loc6 = loc("a_Abs")
"""


def test_results_that_have_names_of_their_own_are_found_by_them():
    graph = parse_graph(NAMED)
    assert graph.returns == ("t_TopK", "a_Abs", "i_ArgMax")
    by_kind = {op.kind: op for op in graph.ops}
    assert by_kind["top.TopK"].names == ("t_TopK", "n_TopK")
    assert by_kind["top.Arg"].names == ("i_ArgMax",)
    assert by_kind["top.Abs"].operands == ("n_TopK",)


def test_a_group_has_the_results_of_its_last_line_and_is_no_tensor_of_its_own():
    graph = parse_graph(FINAL)
    group = next(op for op in graph.ops if op.kind == "tpu.Group")
    assert [form.name for form in group.formats] == ["uint8", "f16"]
    assert [name for name, *_ in tensors(graph)] == ["x", "xout_Add_si8", "out_Add", "out_Add_f32"]


def test_calibrated_types_and_unknown_ranks():
    text = TOP.replace(
        "-> tensor<1x8xf32> loc(#loc3)", "-> tensor<*x!quant.calibrated<bf16<-1.5:2.5>>> loc(#loc3)"
    )
    assert parse_graph(text).ops[2].formats == (Format("bf16", None),)


def test_casts_are_known_by_their_operator():
    ops = {op.name: op for op in parse_graph(FINAL).ops if op.kind not in ("tpu.Group", "tpu.Load")}
    assert is_cast(ops["xout_Add_si8"])
    assert not is_cast(ops["out_Add"])
    line = '%1 = "tpu.GenericCpu"(%0) {cpu_op_name = "quant"} : (none) -> tensor<1xsi8> loc("q")'
    assert is_cast(parse_graph(line).ops[0])
    assert not is_cast(parse_graph(line.replace("quant", "embedding")).ops[0])


def test_escapes_are_undone():
    assert unescape(r"a\22b\\c\0Ad") == 'a"b\\c\nd'


def names(**changes: object) -> Names:
    top = parse_graph(
        TOP.replace("y \\22quoted\\22_Add", "h_MatMul")
        .replace("a_Split", "out_Add")
        .replace("return %3, %4#1", "return %4#0")
    )
    given: dict[str, object] = {
        "computed": ("x", "h", "gone", "out"),
        "bound": {"x": "x", "h": "h_MatMul", "out": "out_Add"},
        "outputs": ("out",),
        "taps": {"out": "layer0.out", "h": "layer0.h", "gone": "layer0.gone"},
        "top": top,
        "tpu": Graph((), ("out_Add",), {}),
        "final": parse_graph(FINAL),
    }
    return Names(**(given | changes))  # type: ignore[arg-type]


def test_every_value_has_a_line_with_its_tensor_at_each_level_or_is_fused():
    chains = {chain.onnx: chain for chain in names().chains()}
    assert (chains["h"].top, chains["h"].final, chains["h"].status) == ("h_MatMul", None, "fused")
    assert (chains["out"].top, chains["out"].final, chains["out"].status) == ("out_Add", "out_Add", "present")
    assert (chains["gone"].top, chains["gone"].status, chains["gone"].tap) == (None, "fused", "layer0.gone")


def test_an_output_whose_name_was_lost_is_found_by_its_place():
    swapped = parse_graph(
        FINAL.replace('loc("out_Add")', 'loc("swapped")').replace("out_Add_f32", "swapped_f32")
    )
    (chain,) = [chain for chain in names(final=swapped).chains() if chain.onnx == "out"]
    assert chain.final == "swapped_f32"


def test_tensors_are_described_with_their_value_tap_and_format():
    described = {entry["mlir"]: entry for entry in names().described()}
    assert described["out_Add"] | {
        "onnx": "out", "tap": "layer0.out", "format": "uint8", "scale": 0.25, "zero_point": 128,
        "status": "present", "cast_of": None,
    } == described["out_Add"]  # fmt: skip
    assert described["out_Add_f32"]["cast_of"] == "out_Add"
    assert described["out_Add_f32"]["tap"] == "layer0.out"
    assert described["xout_Add_si8"]["cast_of"] == "x"


def test_fused_values_are_listed_as_such():
    fused = [entry for entry in names().described() if entry["status"] == "fused"]
    assert [(entry["onnx"], entry["tap"], entry["mlir"]) for entry in fused] == [
        ("h", "layer0.h", None),
        ("gone", "layer0.gone", None),
    ]


def test_of_two_values_under_one_tensor_the_one_with_a_tap_names_it():
    twins = names(computed=("x", "copy", "out"), bound={"x": "x", "copy": "out_Add", "out": "out_Add"})
    assert twins.onnx_of()["out_Add"] == "out"
