"""Damaged Ascend files: every reader answers with one clear sentence or with an array that fits the file.

Valid files are cut, lengthened, overwritten and given absurd sizes; no other exception, no unbounded memory.
"""

from __future__ import annotations

import json
import tempfile
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parity.harness.dtypes import logical_dtype
from parity.harness.errors import UserError
from parity.targets.ascend import lint, profile_of
from parity.targets.dumps.ascend.adump import AdumpReader
from parity.targets.dumps.ascend.adump_writer import Written, fractal_nz, write_adump
from parity.targets.dumps.ascend.aisbench import AisbenchReader, write_aisbench, write_manifest
from parity.targets.dumps.ascend.atb import AtbReader
from parity.targets.dumps.ascend.atb_writer import write_atb, write_atb_tree
from parity.targets.dumps.ascend.atcjson import read_atc
from parity.targets.dumps.ascend.logits import LogitsReader, write_logits
from parity.targets.dumps.ascend.msprobe import MsprobeReader
from parity.targets.dumps.ascend.msprobe_writer import write_msprobe
from parity.targets.dumps.ascend.names import parse_name
from parity.targets.dumps.ascend.nano import NanoReader, NanoTensor, write_nano
from parity.targets.dumps.core import Reader, ReadOptions

#: Bytes that reading a damaged file of a few hundred bytes may take.
MOST_MEMORY = 32 << 20
NAME = "Op.name.1.2.1700000000000001"
X = np.arange(6, dtype=np.float32).reshape(2, 3)
HUGE = [2**63, 2**62 + 7, 2**48, 2**40, 2**31, 2**31 - 1, 2**24, 65535, 0]


def spoiled(raw: bytes, data: st.DataObject) -> bytes:
    """A file with one to three accidents."""
    for _ in range(data.draw(st.integers(1, 3), label="accidents")):
        at = data.draw(st.integers(0, len(raw)), label="at")
        kind = data.draw(st.sampled_from(["cut", "grow", "byte", "huge", "drop", "insert"]), label="kind")
        if kind == "cut":
            raw = raw[:at]
        elif kind == "grow":
            raw += data.draw(st.binary(min_size=1, max_size=40), label="tail")
        elif kind == "byte":
            raw = raw[:at] + data.draw(st.binary(min_size=1, max_size=1), label="byte") + raw[at + 1 :]
        elif kind == "huge":
            value = data.draw(st.sampled_from(HUGE), label="value")
            raw = raw[:at] + value.to_bytes(8, "little") + raw[at + 8 :]
        elif kind == "drop":
            raw = raw[:at] + raw[at + data.draw(st.integers(1, 12), label="count") :]
        else:
            raw = raw[:at] + data.draw(st.binary(min_size=1, max_size=12), label="bytes") + raw[at:]
    return raw


@contextmanager
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as made:
        yield Path(made)


@contextmanager
def one_sentence() -> Iterator[list[str]]:
    """What was said in refusing, if anything: one clear sentence that names a value."""
    said: list[str] = []
    try:
        yield said
    except UserError as error:
        said.append(str(error))
    assert all("=" in text and "\n" not in text and len(text) < 1500 for text in said), said


def survives(reader: Reader, path: Path, manifest: Path | None = None) -> bool:
    """Read everything; True if the file was taken, False if it was refused in one sentence."""
    reader.detects(path)
    with one_sentence() as said:
        for entry in reader.read(path, ReadOptions(manifest)).entries:
            found = entry.load()
            assert found.shape == entry.shape
            assert found.dtype == logical_dtype(entry.dtype)
            assert found.nbytes < MOST_MEMORY
    return not said


def adump(path: Path) -> Path:
    outputs = [Written(fractal_nz(X), "FRACTAL_NZ", (2, 3), ("/a", 0), padding=8)]
    write_adump(path / NAME, "op", inputs=[Written(X), Written(X.astype(np.int8))], outputs=outputs,
                attributes={"a": "b"}, spaces=[b"abc"], time=77)  # fmt: skip
    return path / NAME


def nano(path: Path) -> Path:
    tensors = [NanoTensor(X.tobytes(), 0, (2, 3), 2, (2, 3), "/a", 0)]
    write_nano(path / NAME, tensors, tensors)
    return path / NAME


def atb(path: Path) -> Path:
    return write_atb_tree(path, {"0_A/after/outtensor0": X}) / "0_A/after/outtensor0.bin"


def atb_alias(path: Path) -> Path:
    top = write_atb_tree(path, {"0_A/after/outtensor0": X})
    write_atb(top / "1_B/before/intensor0.bin", X, other="0_outtensor0.bin")
    return top / "1_B/before/intensor0.bin"


def statistics(path: Path) -> Path:
    return write_atb_tree(path, {"0_A/after/outtensor0": X}, task="statistics") / "statistic.csv"


def mapping(path: Path) -> Path:
    write_adump(path / ("1" * 32), "op", outputs=[Written(X)])
    (path / "mapping.csv").write_text(f"{'1' * 32},{NAME}\n")
    return path / "mapping.csv"


def description(path: Path) -> Path:
    calls = {"Module.a.B.forward.0": {"input_args": [X], "output": [X, None]}}
    write_msprobe(path / "step0" / "rank", calls)
    return path / "step0" / "rank" / "dump.json"


def torch_file(path: Path) -> Path:
    return description(path).parent / "dump_tensor_data" / "Module.a.B.forward.0.output.0.pt"


def logits(path: Path) -> Path:
    write_logits(path, [X], [np.array([1, 2])], [[1]])
    return path / "logits_0.pth"


def generated(path: Path) -> Path:
    return logits(path).with_name("output_ids_0.txt")


CASES: dict[str, tuple[Reader, Callable[[Path], Path]]] = {
    "adump": (AdumpReader(), adump),
    "adump mapping": (AdumpReader(), mapping),
    "nano": (NanoReader(), nano),
    "atb": (AtbReader(), atb),
    "atb alias": (AtbReader(), atb_alias),
    "atb statistics": (AtbReader(), statistics),
    "msprobe json": (MsprobeReader(), description),
    "msprobe tensor": (MsprobeReader(), torch_file),
    "logits": (LogitsReader(), logits),
    "logits ids": (LogitsReader(), generated),
}
PLACES = ["0", "1", "0_A", "12_B", "after", "before", "20240101120000", "x"]
QUICK = settings(max_examples=50, deadline=None)


@pytest.mark.parametrize("case", CASES)
def test_whole_files_are_taken(case: str) -> None:
    reader, make = CASES[case]
    with folder() as top:
        make(top)
        assert survives(reader, top)


@pytest.mark.parametrize("case", CASES)
@QUICK
@given(data=st.data())
def test_damaged_files_are_refused_in_one_sentence(case: str, data: st.DataObject) -> None:
    reader, make = CASES[case]
    with folder() as top:
        path = make(top)
        path.write_bytes(spoiled(path.read_bytes(), data))
        survives(reader, top)


@pytest.mark.parametrize("case", ["adump", "nano", "atb", "msprobe tensor"])
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_damaged_files_take_no_memory(case: str, data: st.DataObject) -> None:
    reader, make = CASES[case]
    with folder() as top:
        path = make(top)
        path.write_bytes(spoiled(path.read_bytes(), data))
        tracemalloc.start()
        try:
            survives(reader, top)
            assert tracemalloc.get_traced_memory()[1] < MOST_MEMORY
        finally:
            tracemalloc.stop()


@pytest.mark.parametrize("case", ["adump", "nano", "atb", "msprobe tensor", "logits"])
def test_every_cut_is_noticed(case: str) -> None:
    reader, make = CASES[case]
    with folder() as top:
        path = make(top)
        raw = path.read_bytes()
        for length in range(0, len(raw), max(1, len(raw) // 60)):
            path.write_bytes(raw[:length])
            assert not survives(reader, top), f"{length} of {len(raw)} bytes were taken for the whole"


VALUES = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(), st.text(max_size=20),
        st.sampled_from(["../../x.pt", "/etc/passwd", "a.pt", "torch.Tensor", "torch.float32", "NaN", "0"]),
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip


def replaced(content: Any, data: st.DataObject) -> Any:
    """A JSON value with one member, anywhere, exchanged for something else."""
    if isinstance(content, (dict, list)) and content and data.draw(st.integers(0, 9), label="deeper"):
        keys = list(content) if isinstance(content, dict) else list(range(len(content)))
        key = data.draw(st.sampled_from(keys), label="key")
        changed = dict(content) if isinstance(content, dict) else list(content)
        changed[key] = replaced(content[key], data)
        return changed
    return data.draw(VALUES, label="value")


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_a_description_with_foreign_values_is_refused_in_one_sentence(data: st.DataObject) -> None:
    with folder() as top:
        path = description(top)
        path.write_text(json.dumps(replaced(json.loads(path.read_text()), data)))
        survives(MsprobeReader(), top)


GRAPH = {
    "graph": [
        {
            "op": [
                {
                    "name": "a",
                    "type": "NetOutput",
                    "id": 1,
                    "input": ["x:0"],
                    "attr": [{"key": "_datadump_original_op_names", "value": {"list": {"s": ["/a"]}}}],
                    "output_desc": [{"attr": [{"key": "_datadump_origin_name", "value": {"s": "/a"}}]}],
                    "input_desc": [{"dtype": "DT_FLOAT", "shape": {"dim": [2, 3]}}],
                },
                {"name": "b", "attr": [{"key": "_L1_fusion_sub_graph_no", "value": {"s": "1"}}]},
            ]
        }
    ]
}


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_graphs_and_manifests_with_foreign_values_are_refused_in_one_sentence(data: st.DataObject) -> None:
    with folder() as top:
        path = top / "net.json"
        path.write_text(json.dumps(replaced(GRAPH, data)))
        with one_sentence():
            read_atc(path).relations()
        write_aisbench(top / "out", {"x": [X]})
        survives(AisbenchReader(), top / "out", manifest=path)
        write_manifest(path, [("y", X)])
        path.write_text(json.dumps(replaced(json.loads(path.read_text()), data)))
        survives(AisbenchReader(), top / "out", manifest=path)
        summary = top / "out_summary.json"
        summary.write_text(json.dumps(replaced(json.loads(summary.read_text()), data)))
        write_manifest(path, [("y", X)])
        survives(AisbenchReader(), top / "out", manifest=path)


@settings(max_examples=80, deadline=None)
@given(st.dictionaries(st.sampled_from(["chip", "environment", "rounding", "format", "cann", "x"]), VALUES))
def test_what_is_noted_on_a_board_may_be_nonsense(said: dict[str, Any]) -> None:
    with one_sentence():
        profile_of(said).facts()


@QUICK
@given(st.binary(max_size=200))
def test_bytes_that_are_no_graph_are_refused(raw: bytes) -> None:
    with one_sentence():
        lint("net", raw)


@QUICK
@given(st.text(max_size=60))
def test_any_file_name_is_looked_at_without_harm(name: str) -> None:
    parse_name(name)


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.sampled_from(["0", "1", "0_A", "12_B", "after", "before", "20240101120000", "x"]), max_size=5)
)
def test_files_may_lie_anywhere(parts: list[str]) -> None:
    for reader, name in ((AdumpReader(), NAME), (AtbReader(), "outtensor0.bin")):
        with folder() as top:
            path = top.joinpath(*parts) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if name == NAME:
                write_adump(path, "op", outputs=[Written(X)])
            else:
                write_atb(path, X)
            survives(reader, top)
