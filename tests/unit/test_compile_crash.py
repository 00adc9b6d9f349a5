"""What the compiler printed when it died (captured), made one sentence."""

# ruff: noqa: E501 (its lines are long)

from __future__ import annotations

from pathlib import Path

import pytest

from parity.harness.errors import CandidateError, UserError
from parity.targets.sophgo.compile import crash
from parity.targets.sophgo.compile.finding import Finding
from parity.targets.sophgo.compile.mlir import Format, Graph, Op
from parity.targets.sophgo.compile.opset import load
from parity.targets.sophgo.compile.process import Ended

LOG = Path("log.txt")
BANNER = """PLEASE submit a bug report to https://github.com/llvm/llvm-project/issues/ and include the crash backtrace.
Stack dump:
0.\tProgram arguments: tpuc-opt seg_0.mlir --init "--processor-assign=chip=cv181x mode=BF16" -o seg_0_tpu.mlir
 #0 0x00005600292f5b27 (tpu_mlir/bin/tpuc-opt+0x95fb27)
 #1 0x00007f63c86a8eec __pthread_kill_implementation ./nptl/./nptl/pthread_kill.c:44:76
"""
RMS = f"""to be implemented
UNREACHABLE executed at /__w/tpu-mlir/tpu-mlir/lib/Conversion/TopToTpu/CV18xx/RMSNorm.cpp:23!
{BANNER}"""
SIN = f"""%2 = "top.Sin"(%0) : (tensor<1x4x64xf32>) -> tensor<1x4x64xf32> loc("sin_Sin")
unimplemented tpu dialect!
UNREACHABLE executed at /__w/tpu-mlir/tpu-mlir/lib/Conversion/TopToTpu/TopToTpuPass.cpp:1921!
{BANNER}"""
F32 = """[WARN] Inconsistent batch sizes across inputs detected. Using batch_size=2
%74 = "top.Reshape"(%73) {shape = [1, 1, 2, 32]} : (tensor<1x1x64xf32>) -> tensor<1x1x2x32xf32> loc("r_Reshape")
-> %75 = "top.Permute"(%74) {order = [0, 2, 1, 3]} : (tensor<1x1x2x32xf32>) -> tensor<1x2x1x32xf32> loc("layer1.v_Transpose")
func.return %35 : tensor<1x1x128xf32>
ASSERT executed at/__w/tpu-mlir/tpu-mlir/include/tpu_mlir/Conversion/TopToTpu/TopLowering.h:366
ASSERT INFO:Not Implemented
Operation:
"""
CAST = f"""tpuc-opt: /usr/local/include/llvm/Support/Casting.h:566: decltype(auto) llvm::cast(const From &) [To = mlir::quant::CalibratedQuantizedType, From = mlir::Type]: Assertion `isa<To>(Val) && "cast<Ty>() argument of incompatible type!"' failed.
{BANNER}"""
BACKEND = """The dir path of compiler_profile is ".//"
ERROR: ASSERT /workspace/TPU1686/bm1684x2/firmware_base/src/atomic/atomic_dma_gen_cmd.c: matrix_stride_move_gen_cmd: 899: transpose == 0
ASSERT info: none.
Obtained 10 stack frames.
tpu_mlir/lib/libbackend_bm1684x2.so(+0x6d6b38) [0x7fdcc1cd6b38]
tpu_mlir/bin/tpuc-opt(+0x15f76a4) [0x55a6a60f36a4]
"""
KERNEL = "fattention block_m:32 block_n:64\nppl jit call failed! Error: block split failed!!!\n"
NO_CMAKE = """fattention block_m:32, block_k:32, block_qh:8
run ppl_jit failed with ret 0x7f00!
ppl jit call failed!
Error: block split failed!!!
Can not open config file: No such file or directory, using default layer group config!
ppl_compile/bin/ppl_jit.sh: 35: cmake: not found
ppl_compile/bin/ppl_jit.sh: 36: make: not found
"""
MISSING = "error: could not open input file seg_1.mlir\n"
SILENT = f"""The dir path of compiler_profile is "./"
bmcpu init: skip cpu_user_defined
Cannot open libusercpu.so, disable user cpu layer.
{BANNER}"""
UNSUPPORTED = """Traceback (most recent call last):
  File "runpy.py", line 196, in _run_module_as_main
    return _run_code(code, main_globals, None,
  File "OnnxConverter.py", line 778, in generate_mlir
    raise RuntimeError("Op not support:{}".format(unsupported))
RuntimeError: Op not support:{'IsNaN'}
"""
OPEN_SIZES = """  File "OnnxConverter.py", line 700, in input_shape_assign
AssertionError: Please check --input_shapes formula or check if there is any dynamic dim
"""
AT_NODE = """PARITY-NODE {"op": "ReduceMean", "output": "mean"}
Traceback (most recent call last):
  File "OnnxConverter.py", line 1400, in convert_reduce_op
RuntimeError: Unsupport opset for ReduceMean
"""


def top(kind: str, name: str) -> Graph:
    return Graph((Op(kind, (name,), (Format("f32", (1,)),), (), ""),), (), {})


def known(**changes: object) -> crash.Known:
    given = {
        "onnx_of": {"y_Mul": "y", "sin_Sin": "sin", "layer1.v_Transpose": "layer1.v"},
        "taps": {"y": "layer0.norm1", "layer1.v": "layer1.v"},
    }
    return crash.Known(**(given | changes))  # type: ignore[arg-type]


def said(output: str, status: int = -6, facts: crash.Known | None = None) -> str:
    error = crash.compiler(
        "seg_0 (cv181x, bf16)", "lowering", Ended(status, output, 0.1), LOG, facts or known()
    )
    assert isinstance(error, CandidateError)
    return str(error)


def test_the_operator_is_found_by_the_source_file_that_gave_up_and_has_our_tap():
    assert said(RMS, facts=known(top=top("top.RMSNorm", "y_Mul"))) == (
        "seg_0 (cv181x, bf16): the compiler failed in lowering at RMSNorm layer0.norm1 (y_Mul): "
        "to be implemented, CV18xx/RMSNorm.cpp:23; the whole log: log.txt"
    )


def test_without_any_operator_the_reason_stands_alone():
    assert said(RMS) == (
        "seg_0 (cv181x, bf16): the compiler failed in lowering: to be implemented, CV18xx/RMSNorm.cpp:23; "
        "the whole log: log.txt"
    )


def test_the_operator_that_was_printed_is_named():
    assert "at Sin sin_Sin: unimplemented tpu dialect, TopToTpu/TopToTpuPass.cpp:1921;" in said(SIN)


def test_the_marked_operator_wins_over_the_last_one():
    assert "at Permute layer1.v (layer1.v_Transpose): Not Implemented, TopToTpu/TopLowering.h:366;" in said(
        F32, 255
    )


@pytest.mark.parametrize(
    ("output", "status", "reason"),
    [
        (CAST, -6, 'isa<To>(Val) && "cast<Ty>() argument of incompatible type!" does not hold'),
        (BACKEND, 255, "matrix_stride_move_gen_cmd: transpose == 0 does not hold (atomic_dma_gen_cmd.c)"),
        (KERNEL, 255, "a kernel could not be built (block split failed)"),
        (NO_CMAKE, 255, "a kernel could not be built (this machine has no cmake and no make)"),
        (MISSING, 1, "could not open input file seg_1.mlir"),
        (SILENT, -11, "it said nothing and ended (killed by SIGSEGV)"),
        ("", -9, "it was killed from outside, as happens where memory runs out"),
        ("", 255, "it said nothing and ended (exit status 255)"),
    ],
    ids=["assertion", "backend", "kernel", "cmake", "error", "segfault", "killed", "silence"],
)
def test_the_tools_own_reason_is_quoted(output, status, reason):
    assert f"lowering: {reason}; the whole log: log.txt" in said(output, status)


def test_no_stack_and_no_banner_gets_through():
    for output in (RMS, SIN, F32, CAST, BACKEND, SILENT):
        text = said(output)
        assert "0x" not in text
        assert "PLEASE" not in text
        assert "\n" not in text


def test_what_the_linter_knew_is_added():
    finding = Finding("Sin sin", None, "has no Sin", "feed the result in", "abort", "sin")
    other = Finding("Mul z", None, "...", "something else", "abort", "z")
    assert "; feed the result in; the whole log" in said(SIN, facts=known(findings=(finding, other)))
    assert "something else" not in said(SIN, facts=known(findings=(other, other)))


def converter(output: str, facts: crash.Known, graph: bytes) -> Exception:
    return crash.converter("seg_0", load(graph), Ended(1, output, 0.1), LOG, facts)


@pytest.fixture
def graph() -> bytes:
    import importlib.util

    spec = importlib.util.spec_from_file_location("graphs", Path(__file__).parent / "compile_graphs.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    made: bytes = module.unknown_op()
    return made


def test_an_operator_that_the_converter_has_not_is_named_with_its_place(graph):
    error = converter(UNSUPPORTED, crash.Known(taps={"nan": "layer0.check"}), graph)
    assert str(error) == (
        "seg_0: the converter has no operator IsNaN (at layer0.check (nan)); the whole log: log.txt"
    )


def test_open_sizes_are_the_users_to_mend(graph):
    error = converter(OPEN_SIZES, crash.Known(), graph)
    assert isinstance(error, UserError)
    assert "open sizes; export it with fixed shapes" in str(error)


def test_the_node_that_the_converter_was_at_is_named(graph):
    error = converter(AT_NODE, crash.Known(taps={"mean": "layer0.mean"}), graph)
    assert "failed at ReduceMean layer0.mean (mean): RuntimeError: Unsupport opset for ReduceMean;" in str(
        error
    )
