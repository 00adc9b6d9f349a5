"""The header of an AscendCL dump: `toolkit.dumpdata.DumpData`, every field of it.

Source: `dump_data.proto` of oam-tools and runtime, `dump_task.proto` for the later fields, and an older copy
in metadef that has `space` where `attr` is now.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .dtypes import ADUMP
from .operation import BUFFER, INPUT, MOST_TENSORS, OUTPUT, SPACE, Operation, Origin, Tensor
from .wire import COUNTED, VARINT, WireError, fields, signed, text, varint

#: A longer list of dimensions is no shape.
MOST_NUMBERS = 64
UINT, INT, TEXT, BYTES, NUMBERS = "uint", "int", "text", "bytes", "numbers"


@dataclass(frozen=True)
class Field:
    """A field by its number: the key it is kept under, and what its bytes are; a message has its own."""

    key: str
    kind: str = ""
    message: Mapping[int, Field] = field(default_factory=dict)
    repeated: bool = False


_SHAPE = {1: Field("dim", NUMBERS)}
_ORIGIN = {1: Field("name", TEXT), 2: Field("output", UINT), 3: Field("dtype", INT), 4: Field("layout", INT)}
_RANGE = {1: Field("start", UINT), 2: Field("end", UINT)}
_OUTPUT = {
    1: Field("dtype", INT),
    2: Field("layout", INT),
    3: Field("shape", message=_SHAPE),
    4: Field("origin", message=_ORIGIN),
    5: Field("data", BYTES),
    6: Field("size", UINT),
    7: Field("original", message=_SHAPE),
    8: Field("sub_format", INT),
    9: Field("address", UINT),
    10: Field("dim_range", message=_RANGE, repeated=True),
    11: Field("offset", UINT),
    12: Field("arg_index", UINT),
}
_INPUT = {
    1: Field("dtype", INT),
    2: Field("layout", INT),
    3: Field("shape", message=_SHAPE),
    4: Field("data", BYTES),
    5: Field("size", UINT),
    6: Field("original", message=_SHAPE),
    7: Field("sub_format", INT),
    8: Field("address", UINT),
    9: Field("offset", UINT),
    10: Field("arg_index", UINT),
    11: Field("input_type", UINT),
}
_BUFFER = {1: Field("kind", INT), 2: Field("data", BYTES), 3: Field("size", UINT)}
_SPACE = {**_BUFFER, 4: Field("arg_index", UINT)}
#: The older workspace keeps an address where the newer has (empty) data.
_OLD_SPACE = {**_BUFFER, 2: Field("address", UINT)}
_DUMP = {
    1: Field("version", TEXT),
    2: Field("time", UINT),
    3: Field(OUTPUT, message=_OUTPUT, repeated=True),
    4: Field(INPUT, message=_INPUT, repeated=True),
    5: Field(BUFFER, message=_BUFFER, repeated=True),
    6: Field("name", TEXT),
    7: Field("seventh", BYTES, repeated=True),
    8: Field(SPACE, message=_SPACE, repeated=True),
    9: Field("message", TEXT),
}
_MORE = ("sub_format", "address", "dim_range", "offset", "arg_index", "input_type", "kind")
_NO_ORIGIN: dict[str, Any] = {"name": "", "output": 0, "dtype": 0, "layout": 0}
_ATTRIBUTE = {1: Field("name", TEXT), 2: Field("value", TEXT)}


def parse(header: bytes) -> Operation:
    """The operator that a header describes; places of tensors are not known yet. WireError for no header."""
    said = _decoded(memoryview(header), _DUMP)
    attributes: list[tuple[str, str]] = []
    for data in said.get("seventh", ()):
        attribute = _attribute(data)
        if attribute is not None:
            attributes.append(attribute)
        else:
            said.setdefault(SPACE, []).append(_decoded(data, _OLD_SPACE))
    tensors = [
        _tensor(part, index, one)
        for part in (INPUT, OUTPUT, BUFFER, SPACE)
        for index, one in enumerate(said.get(part, ()))
    ]
    return Operation(
        said.get("name", ""),
        ADUMP,
        tuple(tensors),
        version=said.get("version", ""),
        time=said.get("time", 0),
        attributes=tuple(attributes),
        message=said.get("message", ""),
    )


def _attribute(data: memoryview) -> tuple[str, str] | None:
    """An attribute's name and value; None if the bytes are the workspace of the older message."""
    try:
        if any(number not in _ATTRIBUTE or kind != COUNTED for number, kind, _, _ in fields(data)):
            return None
        said = _decoded(data, _ATTRIBUTE)
    except WireError:
        return None
    return said.get("name", ""), said.get("value", "")


def _tensor(part: str, index: int, said: Mapping[str, Any]) -> Tensor:
    if said.get("data"):
        raise WireError(f"{part} {index} lies inside the header, as in dumps older than version 2.0")
    origin = said.get("origin")
    return Tensor(
        part,
        index,
        dtype=said.get("dtype", 0),
        layout=said.get("layout", 0),
        shape=tuple(said.get("shape", {}).get("dim", ())),
        size=said.get("size", 0),
        original=tuple(said.get("original", {}).get("dim", ())),
        origin=None if origin is None else Origin(**(_NO_ORIGIN | origin)),
        more={key: said[key] for key in _MORE if key in said},
    )


def _decoded(data: memoryview, message: Mapping[int, Field]) -> dict[str, Any]:
    """The fields of a message that are present; unknown ones are passed over, as protobuf asks."""
    found: dict[str, Any] = {}
    for number, kind, value, inner in fields(data):
        known = message.get(number)
        if known is None:
            continue
        if known.kind == NUMBERS:
            found.setdefault(known.key, []).extend(_numbers(kind, value, inner))
            if len(found[known.key]) > MOST_NUMBERS:
                raise WireError(f"a shape has more than {MOST_NUMBERS} dimensions")
        elif known.repeated:
            members = found.setdefault(known.key, [])
            members.append(_value(known, kind, value, inner))
            if len(members) > MOST_TENSORS:
                raise WireError(f"has more than {MOST_TENSORS} entries of {known.key}")
        else:
            found[known.key] = _value(known, kind, value, inner)
    return found


def _value(known: Field, kind: int, value: int, inner: memoryview) -> Any:
    wanted = VARINT if known.kind in (UINT, INT) else COUNTED
    if kind != wanted:
        raise WireError(f"{known.key} has wire type {kind}, but should have {wanted}")
    if known.message:
        return _decoded(inner, known.message)
    if known.kind == TEXT:
        return text(inner)
    if known.kind == INT:
        return signed(value)
    return value if known.kind == UINT else inner


def _numbers(kind: int, value: int, inner: memoryview) -> list[int]:
    """Repeated numbers, packed or one by one."""
    if kind == VARINT:
        return [value]
    if kind != COUNTED:
        raise WireError(f"a list of numbers has wire type {kind}")
    found: list[int] = []
    at = 0
    while at < len(inner) and len(found) <= MOST_NUMBERS:
        number, at = varint(inner, at)
        found.append(number)
    return found
