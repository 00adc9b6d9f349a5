"""The steps that teach `atc` the operator MatMulInteger: a parser plugin that names BatchMatMulV2."""

from __future__ import annotations

#: Opsets that the plugin registers the operator for.
OPSETS = tuple(range(10, 16))
TEMPLATE = "tools/msopgen/template/custom_operator_sample/DSL/Onnx"


def source() -> str:
    """The plugin's C++ source: no attribute is parsed, so zero points never reach the chip."""
    names = ",\n                   ".join(f'ge::AscendString("ai.onnx::{v}::MatMulInteger")' for v in OPSETS)
    return f"""#include "register/register.h"

namespace domi {{
static Status NoAttributes(const ge::Operator&, ge::Operator&) {{ return SUCCESS; }}

REGISTER_CUSTOM_OP("BatchMatMulV2")
    .FrameworkType(ONNX)
    .OriginOpType({{{names}}})
    .ParseParamsByOperatorFn(NoAttributes)
    .ImplyType(ImplyType::TVM);
}}  // namespace domi
"""


def steps(soc: str) -> list[str]:
    """Shell lines that build and install the plugin on a machine with CANN; run once per machine.

    protoc must be the version that this CANN was built with (3.13.0 for CANN 7).
    """
    return [
        "# MatMulInteger: atc needs a parser plugin, once per machine (built with CANN's own protoc)",
        'export ASCEND_HOME="${ASCEND_HOME:-/usr/local/Ascend/ascend-toolkit/latest}"',
        f'cd "$ASCEND_HOME/{TEMPLATE}"',
        "cat > framework/onnx_plugin/matmul_integer_plugin.cc <<'PLUGIN'",
        *source().splitlines(),
        "PLUGIN",
        'export ASCEND_TENSOR_COMPILER_INCLUDE="$ASCEND_HOME/include"',
        "export TOOLCHAIN_DIR=/usr",
        "export AICPU_KERNEL_TARGET=cust_aicpu_kernels",
        f"export AICPU_SOC_VERSION={soc}",
        "./build.sh && ./build_out/custom_opp_*.run",
        "# the template's sample kernels are not wanted: only framework/ of the vendor folder is",
        'rm -rf "$ASCEND_HOME/opp/vendors/customize/op_impl" "$ASCEND_HOME/opp/vendors/customize/op_proto"',
        "cd - > /dev/null",
    ]
