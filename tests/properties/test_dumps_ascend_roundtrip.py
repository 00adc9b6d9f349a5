"""What a writer of an Ascend format leaves, its reader gives back: every number format, bit for bit.

The writers share no code with the readers; the header of a device dump is also read by protobuf itself.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from hypothesis import given, settings
from hypothesis import strategies as st

from parity.harness.dtypes import as_storage, logical_dtype
from parity.targets.dumps.ascend.adump import AdumpReader, parse_adump
from parity.targets.dumps.ascend.adump_message import parse
from parity.targets.dumps.ascend.adump_writer import Written, fractal_nz, nc1hwc0, write_adump
from parity.targets.dumps.ascend.aisbench import AisbenchReader, write_aisbench, write_manifest
from parity.targets.dumps.ascend.atb import AtbReader
from parity.targets.dumps.ascend.atb_writer import write_atb_tree
from parity.targets.dumps.ascend.dtypes import ACL, ADUMP
from parity.targets.dumps.ascend.logits import LogitsReader, write_logits
from parity.targets.dumps.ascend.msprobe import MsprobeReader
from parity.targets.dumps.ascend.msprobe_writer import write_msprobe
from parity.targets.dumps.ascend.nano import NanoReader, NanoTensor, write_nano
from parity.targets.dumps.core import Dumped, Reader, ReadOptions

WHOLE = ("float32", "float16", "bfloat16", "int8", "uint8", "int16", "int32", "int64", "bool", "float64")
DEVICE = (*WHOLE, "uint16", "uint32", "uint64", "int4", "float8_e5m2", "float8_e4m3fn", "complex64")
NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=40)
fast = settings(max_examples=60, deadline=None)


@st.composite
def arrays(draw: st.DrawFn, dtypes: tuple[str, ...] = WHOLE, most: int = 4) -> np.ndarray:
    """An array of any bits, NaN and infinities among them."""
    dtype = draw(st.sampled_from(dtypes), label="dtype")
    shape = tuple(draw(st.lists(st.integers(0, 5), max_size=most), label="shape"))
    storage = as_storage(np.zeros(1, logical_dtype(dtype)))[0].dtype
    size = math.prod(shape) * storage.itemsize
    bits = np.frombuffer(draw(st.binary(min_size=size, max_size=size), label="bits"), storage)
    if dtype == "bool":
        return (bits % 2 == 1).reshape(shape)
    if dtype == "int4":
        return ((bits.astype(np.int16) & 15) - 8).astype(logical_dtype("int4")).reshape(shape)
    return bits.view(logical_dtype(dtype)).reshape(shape)


@contextmanager
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as made:
        yield Path(made)


def same(entry: Dumped, array: np.ndarray) -> None:
    found = entry.load()
    assert (found.shape, found.dtype) == (array.shape, array.dtype)
    assert (entry.shape, logical_dtype(entry.dtype)) == (array.shape, array.dtype)
    assert as_storage(found)[0].tobytes() == as_storage(np.ascontiguousarray(array))[0].tobytes()


def read(reader: Reader, path: Path, **said: str) -> list[Dumped]:
    assert reader.detects(path)
    return list(reader.read(path, ReadOptions(settings=said)).entries)


@fast
@given(
    st.lists(arrays(DEVICE), max_size=3),
    st.lists(arrays(DEVICE), max_size=3),
    st.lists(st.binary(min_size=1, max_size=9), max_size=2),
    st.integers(0, 70),
    NAMES,
    st.dictionaries(NAMES, NAMES, max_size=2),
)
def test_device_dumps(
    inputs: list[np.ndarray],
    outputs: list[np.ndarray],
    spaces: list[bytes],
    padding: int,
    name: str,
    attributes: dict[str, str],
) -> None:
    with folder() as top:
        path = top / "Op.name.1.2.1700000000000001"
        write_adump(
            path,
            name,
            inputs=[Written(a, padding=padding + (a.size == 0 and a.ndim == 0)) for a in inputs],
            outputs=[Written(a) for a in outputs],
            spaces=spaces,
            attributes=attributes,
        )
        found = read(AdumpReader(), path, parts="input,output,space")
        assert parse_adump(path).attributes == tuple(attributes.items())
        arrays_ = [*inputs, *outputs]
        assert [e.name for e in found] == [
            *(f"{name}:input:{at}" for at in range(len(inputs))),
            *(f"{name}:output:{at}" for at in range(len(outputs))),
            *(f"{name}:space:{at}" for at in range(len(spaces))),
        ]
        for entry, array in zip(found, arrays_, strict=False):
            same(entry, array)
        assert [e.load().tobytes() for e in found[len(arrays_) :]] == spaces


@fast
@given(st.data(), st.sampled_from(["float16", "float32", "int8", "bfloat16"]), st.sampled_from([16, 32]))
def test_device_layouts(data: st.DataObject, dtype: str, columns: int) -> None:
    lead = data.draw(st.lists(st.integers(1, 3), max_size=2), label="lead")
    shape = (
        *lead,
        data.draw(st.integers(1, 40), label="rows"),
        data.draw(st.integers(1, 70), label="columns"),
    )
    array = np.arange(math.prod(shape)).reshape(shape).astype(logical_dtype(dtype))
    channels = (2, data.draw(st.integers(1, 40), label="channels"), 2, 3)
    image = np.arange(math.prod(channels)).reshape(channels).astype(logical_dtype(dtype))
    with folder() as top:
        path = top / "Op.name.1.2.1700000000000001"
        stored = [
            Written(fractal_nz(array, columns), "FRACTAL_NZ", shape),
            Written(nc1hwc0(image, columns), "NC1HWC0", channels),
        ]
        write_adump(path, "op", outputs=stored)
        found = read(AdumpReader(), path)
        same(found[0], array)
        same(found[1], image)


@fast
@given(st.lists(arrays(DEVICE), max_size=3), st.lists(arrays(DEVICE), max_size=3))
def test_nano_dumps(inputs: list[np.ndarray], outputs: list[np.ndarray]) -> None:
    def described(array: np.ndarray) -> NanoTensor:
        return NanoTensor(Written(array).raw, ACL.code(as_storage(array)[1]), array.shape)

    with folder() as top:
        path = top / "Op.name.1.2.1700000000000001"
        write_nano(path, [described(a) for a in inputs], [described(a) for a in outputs])
        found = read(NanoReader(), path)
        for entry, array in zip(found, [*inputs, *outputs], strict=True):
            same(entry, array)


@fast
@given(st.lists(arrays(), min_size=1, max_size=4), st.integers(0, 3))
def test_atb_trees(tensors: list[np.ndarray], execution: int) -> None:
    with folder() as top:
        named = {f"0_L/{at}_Op/after/outtensor{at}": array for at, array in enumerate(tensors)}
        write_atb_tree(top, named, execution=execution)
        found = read(AtbReader(), top)
        assert [(e.name, e.step) for e in found] == [(name, execution) for name in named]
        for entry, array in zip(found, tensors, strict=True):
            same(entry, array)


@settings(max_examples=25, deadline=None)
@given(st.lists(arrays(), min_size=1, max_size=3), st.integers(0, 2))
def test_msprobe_trees(tensors: list[np.ndarray], step: int) -> None:
    with folder() as top:
        calls = {
            f"Module.m.{at}.Class.forward.0": {"input_args": [array], "output": [array, None, 3]}
            for at, array in enumerate(tensors)
        }
        write_msprobe(top / f"step{step}" / "rank0", calls)
        found = read(MsprobeReader(), top)
        assert {entry.step for entry in found} == {step}
        assert len(found) == 2 * len(tensors)
        for at, entry in enumerate(found):
            same(entry, tensors[at // 2])


@settings(max_examples=25, deadline=None)
@given(st.lists(arrays(DEVICE[:13]), min_size=1, max_size=3), st.integers(1, 3))
def test_outputs_of_an_om(tensors: list[np.ndarray], count: int) -> None:
    with folder() as top:
        write_aisbench(top / "out", {f"sample{number}": tensors for number in range(count)})
        write_manifest(top / "m.json", [(f"o{at}", array) for at, array in enumerate(tensors)])
        contents = AisbenchReader().read(top / "out", ReadOptions(top / "m.json"))
        found = list(contents.entries)
        assert contents.count == len(found) == count * len(tensors)
        for at, entry in enumerate(found):
            same(entry, tensors[at % len(tensors)])


@settings(max_examples=25, deadline=None)
@given(st.lists(arrays(("float32", "float16", "bfloat16")), min_size=1, max_size=3), st.integers(1, 4))
def test_served_logits(tensors: list[np.ndarray], length: int) -> None:
    with folder() as top:
        write_logits(top, tensors, [np.arange(length)], [list(range(len(tensors)))])
        contents = LogitsReader().read(top, ReadOptions())
        assert contents.tokens is not None
        assert contents.tokens.tolist() == [list(range(length))]
        for entry, array in zip(contents.entries, tensors, strict=True):
            same(entry, array)


KINDS = {
    "string": descriptor_pb2.FieldDescriptorProto.TYPE_STRING,
    "uint64": descriptor_pb2.FieldDescriptorProto.TYPE_UINT64,
    "uint32": descriptor_pb2.FieldDescriptorProto.TYPE_UINT32,
    "int32": descriptor_pb2.FieldDescriptorProto.TYPE_INT32,
    "bytes": descriptor_pb2.FieldDescriptorProto.TYPE_BYTES,
}
#: The vendor's messages in words: field, number, kind; a star repeats. Enums travel as int32 does.
MESSAGES = {
    "Shape": "dim 1 *uint64",
    "OriginalOp": "name 1 string, output_index 2 uint32, data_type 3 int32, format 4 int32",
    "DimRange": "dim_start 1 uint64, dim_end 2 uint64",
    "OpOutput": "data_type 1 int32, format 2 int32, shape 3 Shape, original_op 4 OriginalOp, data 5 bytes, "
    "size 6 uint64, original_shape 7 Shape, sub_format 8 int32, address 9 uint64, dim_range 10 *DimRange, "
    "offset 11 uint64, arg_index 12 uint32",
    "OpInput": "data_type 1 int32, format 2 int32, shape 3 Shape, data 4 bytes, size 5 uint64, "
    "original_shape 6 Shape, sub_format 7 int32, address 8 uint64, offset 9 uint64, arg_index 10 uint32, "
    "input_type 11 uint32",
    "OpBuffer": "buffer_type 1 int32, data 2 bytes, size 3 uint64",
    "OpAttr": "name 1 string, value 2 string",
    "Workspace": "type 1 int32, data 2 bytes, size 3 uint64, arg_index 4 uint32",
    "DumpData": "version 1 string, dump_time 2 uint64, output 3 *OpOutput, input 4 *OpInput, "
    "buffer 5 *OpBuffer, op_name 6 string, attr 7 *OpAttr, space 8 *Workspace, dfx_message 9 string",
}


def dump_data() -> Any:
    """protobuf's own class for the message, made from the table above."""
    file = descriptor_pb2.FileDescriptorProto(name="dump_data.proto", package="t", syntax="proto3")
    for name, said in MESSAGES.items():
        message = file.message_type.add(name=name)
        for word in said.split(", "):
            label, number, kind = word.split(" ")
            field = message.field.add(name=label, number=int(number), label=3 if kind[0] == "*" else 1)
            if kind.lstrip("*") in KINDS:
                field.type = KINDS[kind.lstrip("*")]
            else:
                field.type, field.type_name = 11, f".t.{kind.lstrip('*')}"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("t.DumpData"))


DumpData = dump_data()
U64, I32 = st.integers(0, 2**64 - 1), st.integers(-(2**31), 2**31 - 1)
SIZES = st.lists(U64, max_size=6)


@fast
@given(st.data())
def test_every_field_is_read_as_protobuf_reads_it(data: st.DataObject) -> None:
    message = DumpData(
        version=data.draw(NAMES),
        dump_time=data.draw(U64),
        op_name=data.draw(NAMES),
        dfx_message=data.draw(NAMES),
    )
    for _ in range(data.draw(st.integers(0, 3))):
        output = message.output.add(data_type=data.draw(I32), format=data.draw(I32), size=data.draw(U64))
        output.shape.dim.extend(data.draw(SIZES))
        output.original_shape.dim.extend(data.draw(SIZES))
        output.original_op.name = data.draw(NAMES)
        output.original_op.output_index = data.draw(st.integers(0, 2**32 - 1))
        output.sub_format, output.address, output.offset = data.draw(I32), data.draw(U64), data.draw(U64)
        output.dim_range.add(dim_start=data.draw(U64), dim_end=data.draw(U64))
        given_ = message.input.add(data_type=data.draw(I32), format=data.draw(I32), size=data.draw(U64))
        given_.shape.dim.extend(data.draw(SIZES))
        given_.input_type, given_.arg_index = data.draw(st.integers(0, 9)), data.draw(st.integers(0, 9))
        message.attr.add(name=data.draw(NAMES), value=data.draw(NAMES))
        message.space.add(type=data.draw(I32), size=data.draw(U64))
        message.buffer.add(buffer_type=data.draw(I32), size=data.draw(U64))
    found = parse(message.SerializeToString())
    assert (found.version, found.time) == (message.version, message.dump_time)
    assert (found.name, found.message) == (message.op_name, message.dfx_message)
    assert found.attributes == tuple((attr.name, attr.value) for attr in message.attr)
    parts = {
        part: [t for t in found.tensors if t.part == part] for part in ("input", "output", "buffer", "space")
    }
    for ours, theirs in zip(parts["output"], message.output, strict=True):
        assert (ours.dtype, ours.layout, ours.size) == (theirs.data_type, theirs.format, theirs.size)
        assert ours.shape == tuple(theirs.shape.dim)
        assert ours.original == tuple(theirs.original_shape.dim)
        assert ours.origin is not None
        assert (ours.origin.name, ours.origin.output) == (
            theirs.original_op.name,
            theirs.original_op.output_index,
        )
        for key in ("sub_format", "address", "offset"):
            assert ours.more.get(key, 0) == getattr(theirs, key)
        (ranged,) = theirs.dim_range
        assert [(r.get("start", 0), r.get("end", 0)) for r in ours.more["dim_range"]] == [
            (ranged.dim_start, ranged.dim_end)
        ]
    for ours, theirs in zip(parts["input"], message.input, strict=True):
        assert (ours.dtype, ours.layout, ours.size) == (theirs.data_type, theirs.format, theirs.size)
        assert ours.shape == tuple(theirs.shape.dim)
        assert (ours.more.get("input_type", 0), ours.more.get("arg_index", 0)) == (
            theirs.input_type,
            theirs.arg_index,
        )
    for part in ("buffer", "space"):
        assert [t.size for t in parts[part]] == [one.size for one in getattr(message, part)]


@fast
@given(st.lists(arrays(DEVICE), min_size=1, max_size=3), NAMES)
def test_what_we_write_is_what_protobuf_understands(outputs: list[np.ndarray], name: str) -> None:
    with folder() as top:
        path = top / "Op.name.1.2.1700000000000001"
        write_adump(
            path, name, outputs=[Written(a, origin=("/n", 1), original=(2, 3)) for a in outputs], time=5
        )
        raw = path.read_bytes()
    message = DumpData.FromString(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    assert (message.version, message.dump_time, message.op_name) == ("2.0", 5, name)
    for output, array in zip(message.output, outputs, strict=True):
        assert list(output.shape.dim) == list(array.shape)
        assert output.data_type == ADUMP.code(as_storage(array)[1])
        assert (output.original_op.name, output.original_op.output_index) == ("/n", 1)
        assert list(output.original_shape.dim) == [2, 3]
