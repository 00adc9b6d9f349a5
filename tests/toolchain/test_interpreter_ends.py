"""What becomes of an interpreter whose process has gone."""

from __future__ import annotations

import os
import signal

import numpy as np
import pytest

from parity.harness.errors import CandidateError
from parity.targets.sophgo.compile import Interpreter
from parity.targets.sophgo.compile.top import convert


def test_a_call_of_an_interpreter_that_has_gone_is_a_sentence_with_what_it_ended_by(toolchain, tmp_path):
    """Its inputs are larger than a pipe, so that what was not taken is still in the buffer."""
    from onnx import TensorProto, helper

    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [64, 1024]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "relu", [x], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    top = convert("relu", model.SerializeToString(), toolchain, tmp_path)
    with Interpreter(toolchain, top.mlir, tmp_path / "log") as player:
        os.kill(player._child.pid, signal.SIGSEGV)
        with pytest.raises(CandidateError, match="killed by SIGSEGV"):
            player.call({"x": np.zeros((64, 1024), np.float32)})
