"""The stock tools' command lines for a job, for those who compile elsewhere (in the vendor's container)."""

from __future__ import annotations

import shlex

from .described import describe_graph
from .job import CompileJob
from .opset import load


def stock_lines(job: CompileJob, *, samples: int) -> list[str]:
    """`model_transform.py`, `run_calibration.py` where int8 has no table yet, `model_deploy.py`.

    They expect NAME.onnx in the current folder, and `samples` .npz files for int8 in NAME_samples/.
    """
    chip, mode, group_size = job.checked()
    name = job.name
    inputs = describe_graph(load(job.graph()))["inputs"]
    shapes = ",".join(f"[{','.join(map(str, entry['shape']))}]" for entry in inputs)
    transform = [
        *("model_transform.py", "--model_name", name, "--model_def", f"{name}.onnx"),
        *("--input_shapes", f"[{shapes}]", "--mlir", f"{name}.mlir"),
    ]
    deploy = [
        *("model_deploy.py", "--mlir", f"{name}.mlir", "--quantize", mode.name.upper()),
        *("--processor", chip.name),
    ]
    calibrate: list[list[str]] = []
    if mode.calibrated:
        table = str(job.calibration or f"{name}_calibration.txt")
        deploy += ["--calibration_table", table]
        if job.calibration is None:
            source = ["--dataset", f"{name}_samples", "--input_num", str(samples)]
            calibrate = [["run_calibration.py", f"{name}.mlir", *source, "-o", table]]
    if job.qtable is not None:
        deploy += ["--quantize_table", str(job.qtable)]
    if group_size:
        deploy += ["--q_group_size", str(group_size)]
    deploy += ["--model", f"{name}{chip.suffix}"]
    return [shlex.join(words) for words in (transform, *calibrate, deploy)]
