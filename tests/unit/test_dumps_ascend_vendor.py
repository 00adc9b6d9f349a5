"""Our files read by the vendor's own tools, and theirs by us: mindstudio-probe, where it is installed.

Set PARITY_MSPROBE_PYTHON to a Python that has mindstudio-probe and torch. PARITY_ASCEND_PARSER names a folder
with libascend_dump_parser.so (from oam-tools), without which the vendor's tools cannot read device dumps.
"""

from __future__ import annotations

import csv
import json
import os
import subprocess
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from parity.targets.dumps.ascend.adump import AdumpReader
from parity.targets.dumps.ascend.adump_writer import Written, fractal_nz, nc1hwc0, write_adump
from parity.targets.dumps.ascend.atb import AtbReader
from parity.targets.dumps.ascend.atb_writer import write_atb_tree
from parity.targets.dumps.ascend.atcjson import read_atc
from parity.targets.dumps.ascend.layouts import undo
from parity.targets.dumps.ascend.msprobe import MsprobeReader
from parity.targets.dumps.ascend.msprobe_writer import write_msprobe
from parity.targets.dumps.core import ReadOptions

pytestmark = [pytest.mark.vendor, pytest.mark.slow]


@pytest.fixture(scope="module")
def python() -> Path:
    named = os.environ.get("PARITY_MSPROBE_PYTHON", "")
    if not named:
        pytest.skip("PARITY_MSPROBE_PYTHON names no Python with mindstudio-probe")
    return Path(named)


@pytest.fixture(scope="module")
def parser() -> Path:
    folder = Path(os.environ.get("PARITY_ASCEND_PARSER", "") or "/nowhere")
    if not (folder / "libascend_dump_parser.so").is_file():
        pytest.skip("PARITY_ASCEND_PARSER names no folder with libascend_dump_parser.so")
    return folder


def run(*words: object, cwd: Path, libraries: Path | None = None) -> str:
    """A vendor command; fails the test with what it printed if it does not exit with 0."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    if libraries is not None:
        environment["LD_LIBRARY_PATH"] = str(libraries)
    done = subprocess.run(
        [str(word) for word in words], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def tool(python: Path) -> Path:
    return python.with_name("msprobe")


def rows(folder: Path, pattern: str) -> list[dict[str, str]]:
    (found,) = folder.rglob(pattern)
    with found.open(newline="", encoding="utf-8-sig") as file:
        return list(csv.DictReader(file))


ARRAYS = {
    "0_Layer/before/intensor0": np.linspace(-2, 2, 24).astype(np.float16).reshape(2, 3, 4),
    "0_Layer/0_Linear/after/outtensor0": np.linspace(-1, 1, 8).astype(ml_dtypes.bfloat16).reshape(2, 4),
    "0_Layer/1_Add/after/outtensor0": np.arange(6, dtype=np.float32).reshape(2, 3) - 2.5,
    "0_Layer/1_Add/after/outtensor1": np.arange(-5, 5, dtype=np.int8),
    "0_Layer/after/outtensor0": np.arange(4, dtype=np.int64),
}


def test_the_vendor_compares_the_atb_trees_that_we_write(python: Path, tmp_path: Path) -> None:
    golden = write_atb_tree(tmp_path / "a", ARRAYS)
    moved = {name: (a + 0.5).astype(a.dtype) if a.dtype == np.float32 else a for name, a in ARRAYS.items()}
    other = write_atb_tree(tmp_path / "b", moved)
    run(
        tool(python),
        "compare",
        "-m",
        "atb",
        "-gp",
        golden,
        "-tp",
        other,
        "-o",
        tmp_path / "out",
        cwd=tmp_path,
    )
    (sheet,) = (tmp_path / "out").glob("atb_tensor_compare_result_*.xlsx")
    script = "import pandas, sys; pandas.read_excel(sys.argv[1]).to_csv(sys.argv[2], index=False)"
    run(python, "-c", script, sheet, tmp_path / "sheet.csv", cwd=tmp_path)
    found = {row["Target Data Name"]: row for row in rows(tmp_path, "sheet.csv")}
    assert len(found) == len(ARRAYS)
    errors = {name: float(row["Max Absolute Err"]) for name, row in found.items()}
    assert {name: error for name, error in errors.items() if error} == {"0_Layer/1_Add/output.0": 0.5}
    entries = {entry.name: entry.load() for entry in AtbReader().read(golden, ReadOptions()).entries}
    maxima = {name: float(row["Golden Max"]) for name, row in found.items()}
    for name, array in entries.items():
        theirs = name.replace("before/intensor", "input.").replace("after/outtensor", "output.")
        assert maxima[theirs] == float(array.astype(np.float32).max())


DEBUGGER = """
import json, sys
import numpy as np, torch
from torch import nn
from msprobe.pytorch import PrecisionDebugger

task, out, truth = sys.argv[1:]

class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.lin = nn.LayerNorm(8), nn.Linear(8, 8)
    def forward(self, x, scale=1.0, *, mask=None):
        y = torch.nn.functional.silu(self.lin(self.norm(x))) * scale + mask
        return x + y, y

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.emb, self.blocks = nn.Embedding(11, 8), nn.ModuleList(Block() for _ in range(2))
        self.head = nn.Linear(8, 11).to(torch.bfloat16)
    def forward(self, ids):
        x = self.emb(ids)
        for block in self.blocks:
            x, _ = block(x, 2.0, mask=torch.zeros(1, 1, 8))
        return self.head(x.to(torch.bfloat16))

torch.manual_seed(0)
net, seen = Net(), {}
settings = {"scope": [], "list": [], "data_mode": ["all"]}
config = {"task": task, "dump_path": out, "rank": [], "step": [], "level": "mix", "async_dump": False,
          "tensor": settings, "statistics": {**settings, "summary_mode": "statistics"}}
json.dump(config, open("config.json", "w"))
debugger = PrecisionDebugger(config_path="config.json", dump_path=out, level="mix", task=task)
for step in range(2):
    def keep(path):
        def hook(module, given, output):
            outputs = output if isinstance(output, tuple) else (output,)
            for at, one in enumerate(outputs):
                name = f"{step} module:{path}" + (f".{at}" if len(outputs) > 1 else "")
                seen[name] = one.detach().float().numpy().copy()
        return hook
    handles = [m.register_forward_hook(keep(n)) for n, m in net.named_modules() if n and n != "blocks"]
    debugger.start(model=net)
    net(torch.tensor([[1 + step, 2, 3]])).float().sum().backward()
    debugger.stop(); debugger.step()
    [handle.remove() for handle in handles]
np.savez(truth, **seen)
"""


@pytest.fixture(scope="module")
def debugged(python: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Dumps of the vendor's PrecisionDebugger, by task, and what plain hooks saw."""
    folder = tmp_path_factory.mktemp("debugger")
    for task in ("tensor", "statistics"):
        run(python, "-c", DEBUGGER, task, folder / task, folder / "truth.npz", cwd=folder)
    return {name: folder / name for name in ("tensor", "statistics", "truth.npz")}


def test_we_read_what_the_precision_debugger_dumps(debugged: dict[str, Path]) -> None:
    assert MsprobeReader().detects(debugged["tensor"])
    named = "Functional.embedding.0.forward.input.0"
    contents = MsprobeReader().read(debugged["tensor"], ReadOptions(settings={"ids": named}))
    assert {step: ids.tolist() for step, ids in contents.fed.items()} == {0: [[1, 2, 3]], 1: [[2, 2, 3]]}
    entries = list(contents.entries)
    assert len(entries) > 100
    ours = {f"{e.step} {e.tap}": e.load() for e in entries if e.tap and ":in." not in e.tap}
    with np.load(debugged["truth.npz"]) as truth:
        assert set(truth.files) == set(ours)
        for name in truth.files:
            np.testing.assert_array_equal(ours[name].astype(np.float32), truth[name])
    assert {e.dtype for e in entries} == {"float32", "int64", "bfloat16"}


def test_we_read_the_statistics_that_the_precision_debugger_dumps(debugged: dict[str, Path]) -> None:
    contents = MsprobeReader().read(debugged["statistics"], ReadOptions())
    assert any("statistics" in note for note in contents.notes)
    tensors = {e.name: e for e in MsprobeReader().read(debugged["tensor"], ReadOptions()).entries}
    checked = 0
    for entry in contents.entries:
        name = entry.name.removesuffix(":statistics")
        assert name in tensors
        if entry.step == 1 and tensors[name].dtype == "float32":
            array = tensors[name].load()
            np.testing.assert_allclose(entry.load()[:2], [array.max(), array.min()], rtol=1e-6)
            checked += 1
    assert checked > 40


def test_the_vendor_compares_the_trees_that_we_write_with_its_own(
    python: Path, debugged: dict[str, Path], tmp_path: Path
) -> None:
    (theirs,) = debugged["tensor"].glob("step0/proc*")
    everything = ReadOptions(settings={"parts": "input,kwargs,parameters,output,parameters_grad"})
    arrays = {
        e.meta["file"].removesuffix(".pt"): e.load() for e in MsprobeReader().read(theirs, everything).entries
    }
    calls = {
        key: {section: refilled(given, arrays) for section, given in value.items()}
        for key, value in json.loads((theirs / "dump.json").read_text())["data"].items()
    }
    ours = tmp_path / "ours" / "step0" / "proc1"
    write_msprobe(ours, calls)
    (ours / "stack.json").write_text((theirs / "stack.json").read_text())
    (ours / "construct.json").write_text((theirs / "construct.json").read_text())
    told = json.loads((theirs / "dump.json").read_text())
    written = json.loads((ours / "dump.json").read_text())
    assert written["data"].keys() == told["data"].keys()
    for folder in (ours, theirs):
        told = json.loads((folder / "dump.json").read_text())
        told["dump_data_dir"] = str(folder / "dump_tensor_data")
        (folder / "dump.json").write_text(json.dumps(told))
    out = tmp_path / "out"
    run(
        tool(python),
        "compare",
        "-tp",
        ours / "dump.json",
        "-gp",
        theirs / "dump.json",
        "-o",
        out,
        cwd=tmp_path,
    )
    table = rows(out, "compare_result*.csv")
    assert len(table) > 80
    assert all(row["NPU Name"] == row["Bench Name"] for row in table)
    tensors = [row for row in table if row["NPU Dtype"].startswith("torch.")]
    assert {row["MaxAbsErr"] for row in tensors} == {"0.0"}
    assert len(tensors) > 60


def refilled(given: object, arrays: dict[str, np.ndarray]) -> object:
    """A section of dump.json with arrays in place of their descriptions."""
    if isinstance(given, dict):
        if "data_name" in given:
            return arrays[str(given["data_name"]).removesuffix(".pt")]
        if "type" in given:
            return given.get("value")
        return {key: refilled(one, arrays) for key, one in given.items()}
    return [refilled(one, arrays) for one in given] if isinstance(given, list) else given


def device_dump(folder: Path) -> dict[str, np.ndarray]:
    """Two operators' dumps, as our writer leaves them."""
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((2, 3, 4)).astype(np.float16), rng.integers(-9, 9, (4, 5)).astype(np.int8)
    y = rng.standard_normal((2, 3, 5)).astype(np.float32)
    z = rng.standard_normal((6, 7)).astype(ml_dtypes.bfloat16)
    write_adump(
        folder / "MatMul.lin_MatMul.3.2.1700000000000001",
        "/lin/MatMul",
        inputs=[Written(x), Written(w)],
        outputs=[Written(y, padding=36), Written(z, padding=648)],
        buffers=[b"abc"],
        spaces=[b"defg"],
        time=1700000000000001,
    )
    return {"input.0": x, "input.1": w, "output.0": y, "output.1": z}


def test_the_vendor_parses_the_device_dumps_that_we_write(python: Path, parser: Path, tmp_path: Path) -> None:
    folder = tmp_path / "20240101120000" / "0" / "net" / "1" / "0"
    arrays = device_dump(folder)
    words = (tool(python), "parse", "-d", folder, "-t", "npy", "-o", tmp_path / "out")
    run(*words, cwd=tmp_path, libraries=parser)
    found = {path.name: np.load(path) for path in (tmp_path / "out").rglob("*put.*.npy")}
    assert len(found) == len(arrays)
    for name, array in arrays.items():
        theirs = found[f"MatMul.lin_MatMul.3.2.1700000000000001.{name}.npy"]
        np.testing.assert_array_equal(theirs, array.astype(theirs.dtype))
    (made,) = {path.parent for path in (tmp_path / "out").rglob("*put.*.npy")}
    again = [e.load() for e in AdumpReader().read(made, ReadOptions()).entries]
    for theirs, array in zip(again, arrays.values(), strict=True):
        np.testing.assert_array_equal(theirs, array.astype(theirs.dtype))
    ours = {e.name: e.load() for e in AdumpReader().read(folder, ReadOptions()).entries}
    for name, array in arrays.items():
        np.testing.assert_array_equal(ours["/lin/MatMul:" + name.replace(".", ":")], array)


LAYOUTS = {
    "nz": (np.float16, (20, 35), "FRACTAL_NZ", "ND", fractal_nz),
    "c0": (np.float16, (1, 20, 3, 5), "NC1HWC0", "NCHW", nc1hwc0),
}


@pytest.mark.parametrize("case", LAYOUTS)
def test_the_vendor_undoes_device_layouts_to_the_same_numbers(
    python: Path, parser: Path, tmp_path: Path, case: str
) -> None:
    dtype, shape, layout, plain, physical = LAYOUTS[case]
    array = np.random.default_rng(1).standard_normal(shape).astype(dtype)
    npu, golden = tmp_path / "npu", tmp_path / "golden"
    stem = "MatMul.MatMul_1.3.2.1700000000000001"
    write_adump(npu / stem, "MatMul_1", outputs=[Written(physical(array), layout, shape)])
    golden.mkdir()
    np.save(golden / "_lin_MatMul.0.1700000000000001.npy", array.astype(np.float32))
    fusion = tmp_path / "fusion.json"
    fusion.write_text(json.dumps(graph(plain, shape)))
    words = [
        "compare",
        "-m",
        "offline_data",
        "-tp",
        npu,
        "-gp",
        golden,
        "-fr",
        fusion,
        "-o",
        tmp_path / "out",
    ]
    run(tool(python), *words, cwd=tmp_path, libraries=parser)
    (row,) = (row for row in rows(tmp_path / "out", "result*.csv") if ":output:0" in row["TensorIndex"])
    assert json.loads(row["Shape"]) == list(shape)
    assert float(row["CosineSimilarity"]) == pytest.approx(1.0)
    assert float(row["MaxAbsoluteError"]) == 0.0
    (entry,) = AdumpReader().read(npu, ReadOptions()).entries
    np.testing.assert_array_equal(entry.load(), array)


CONVERT = """
import os, sys
import msprobe
import numpy as np
sys.path.insert(0, os.path.join(os.path.dirname(msprobe.__file__), "msaccucmp"))
from format_manager.builtin_format_convert import convert_FRACTAL_NZ_to_ND, convert_NC1HWC0_to_NCHW
found = {}
with np.load(sys.argv[1]) as given:
    for name in given.files:
        kind, shape = name.split(" ")
        to, array = [int(size) for size in shape.split("x")], given[name]
        undo = convert_FRACTAL_NZ_to_ND if kind == "nz" else convert_NC1HWC0_to_NCHW
        done = np.asarray(undo.convert(list(array.shape), to, array.reshape(-1)))
        # its caller cuts the channels
        found[name] = done.reshape(to[0], -1, *to[2:])[:, : to[1]] if kind == "c0" else done.reshape(to)
np.savez(sys.argv[2], **found)
"""


def test_the_vendor_and_we_undo_layouts_of_many_shapes_alike(python: Path, tmp_path: Path) -> None:
    physical, expected = {}, {}
    for shape in ((1, 1), (16, 16), (17, 33), (15, 64), (2, 3, 17, 33), (4, 1, 16, 31), (3, 40, 5)):
        for columns in (16, 32):
            name = f"nz {'x'.join(map(str, shape))}" if columns == 16 else None
            array = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
            stored = fractal_nz(array, columns)
            np.testing.assert_array_equal(undo("FRACTAL_NZ", stored, shape), array)
            if name:
                physical[name], expected[name] = stored, array
    for shape in ((1, 16, 2, 2), (2, 3, 4, 5), (1, 33, 1, 7)):
        array = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
        name = f"c0 {'x'.join(map(str, shape))}"
        physical[name], expected[name] = nc1hwc0(array), array
        np.testing.assert_array_equal(undo("NC1HWC0", physical[name], shape), array)
    np.savez(tmp_path / "physical.npz", **physical)
    run(python, "-c", CONVERT, tmp_path / "physical.npz", tmp_path / "found.npz", cwd=tmp_path)
    with np.load(tmp_path / "found.npz") as found:
        for name, array in expected.items():
            np.testing.assert_array_equal(found[name], array, name)


def graph(plain: str, shape: tuple[int, ...]) -> dict[str, object]:
    """A small graph as `atc --mode=1` prints it: one to one, a fusion, one to many, one of the compiler's."""
    return {
        "graph": [
            {
                "name": "g",
                "op": [
                    op("MatMul_1", 1, ["/lin/MatMul"], [("/lin/MatMul", 0, plain, shape)], ["x:0"]),
                    op("fused", 2, ["/a/Mul", "/a/Add"], [("/a/Add", 0, plain, shape)], ["MatMul_1:0"]),
                    op("part_0", 3, ["/b/Softmax"], [], ["fused:0"]),
                    op("part_1", 4, ["/b/Softmax"], [("/b/Softmax", 0, plain, shape)], ["part_0:0"]),
                    op("trans_0", 5, [], [], ["part_1:0"]),
                ],
            }
        ]
    }


def op(
    name: str,
    number: int,
    originals: list[str],
    outputs: list[tuple[str, int, str, tuple[int, ...]]],
    inputs: list[str],
) -> dict[str, object]:
    described = [
        {
            "dtype": "DT_FLOAT",
            "attr": [
                {"key": "_datadump_origin_name", "value": {"s": origin}},
                {"key": "_datadump_origin_output_index", "value": {"i": index}},
                {"key": "_datadump_origin_format", "value": {"s": layout}},
                {"key": "origin_shape", "value": {"list": {"i": list(shape)}}},
            ],
        }
        for origin, index, layout, shape in outputs
    ]
    listed = {"list": {"s": originals}} if originals else {"list": {}}
    attributes = [{"key": "_datadump_original_op_names", "value": listed}]
    return {
        "name": name,
        "type": "BatchMatMulV2",
        "id": number,
        "input": inputs,
        "attr": attributes,
        "output_desc": described or [{"dtype": "DT_FLOAT"}],
    }


FUSION = """
import json, os, sys
import msprobe
sys.path.insert(0, os.path.join(os.path.dirname(msprobe.__file__), "msaccucmp"))
from vector_cmp.fusion_manager.fusion_rule_parser import FusionRuleParser
rule = FusionRuleParser(sys.argv[1])
rule.analysis_fusion_rule()
found = {}
for op in rule.op_list:
    for at, output in enumerate(op.output_desc):
        if output.origin_name:
            found[f"{op.op_name}:output:{at}"] = f"{output.origin_name}:{output.origin_output_index}"
print("FOUND" + json.dumps(found))
"""


def test_the_vendor_ties_operators_to_the_same_nodes(python: Path, tmp_path: Path) -> None:
    path = tmp_path / "graph.json"
    path.write_text(json.dumps(graph("ND", (2, 3))))
    (line,) = (
        line
        for line in run(python, "-c", FUSION, path, cwd=tmp_path).splitlines()
        if line.startswith("FOUND")
    )
    ours = {name: output.origin for name, output in read_atc(path).outputs.items() if output.origin}
    assert ours == json.loads(line.removeprefix("FOUND"))
