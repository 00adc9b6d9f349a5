"""Numbers between a model's own format and float32, by the rules that the host uses too.

Real values are float32 bytes. What the host does in numpy is done here with `array`: products are rounded to
float32 one by one, so that both give the same bits (tested).
"""

from __future__ import annotations

import math
import struct
from array import array

from .tensors import STORED, Failure, Slot

_LIMITS = {"int8": (-128, 127), "uint8": (0, 255)}
#: How float32 becomes bfloat16: to the nearest even, or cut off as the vendor's own runner does.
ROUNDINGS = ("nearest", "truncate")


def real(slot: Slot, raw: bytes) -> bytes:
    """float32 of what a model gave: (q - zero_point) * scale for 8-bit integers, else the value."""
    if slot.format == "float32":
        return raw
    if slot.format == "float16":
        return array("f", struct.unpack(f"<{slot.count}e", raw)).tobytes()
    stored = array(STORED[slot.format], raw)
    if slot.format == "bfloat16":
        return array("I", [bits << 16 for bits in stored]).tobytes()
    if slot.format in _LIMITS:
        return array("f", [(q - slot.zero_point) * slot.scale for q in stored]).tobytes()
    return array("f", stored).tobytes()


def stored(slot: Slot, values: bytes, rounding: str = "nearest") -> bytes:
    """What a model takes for float32 `values`: bfloat16 by `rounding`, float16 to the nearest even, 8-bit
    integers as clip(round_half_away(x * scale + zero_point))."""
    if slot.format == "float32":
        return values
    if slot.format == "bfloat16":
        cut = rounding == "truncate"
        return array("H", [b >> 16 if cut else _nearest(b) for b in array("I", values)]).tobytes()
    if slot.format == "float16":
        return struct.pack(f"<{slot.count}e", *map(_half, array("f", values)))
    if slot.format in _LIMITS:
        return _quantized(slot, array("f", values)).tobytes()
    raise Failure(f"{slot.name} takes {slot.format}, which no float32 value is turned into")


def whole(slot: Slot, number: int) -> bytes:
    """A token id as a model takes it."""
    try:
        return array(STORED[slot.format], [number]).tobytes()
    except (OverflowError, TypeError) as error:
        raise Failure(f"{slot.name} takes {slot.format}, which cannot hold the token {number}") from error


def largest(values: bytes) -> int:
    """Index of the first largest float32 value; Failure where one is not a number."""
    numbers = array("f", values)
    if any(number != number for number in numbers):
        raise Failure("the logits hold NaN, so that no token can be chosen")
    return numbers.index(max(numbers))


def _nearest(bits: int) -> int:
    if bits & 0x7FFFFFFF > 0x7F800000:
        return bits >> 31 << 15 | 0x7FC0
    return (bits + 0x7FFF + (bits >> 16 & 1)) >> 16


def _half(number: float) -> float:
    """struct refuses what rounds to infinity."""
    if abs(number) >= 65520.0:
        return math.copysign(math.inf, number)
    return number


def _quantized(slot: Slot, numbers: array[float]) -> array[int]:
    low, high = _LIMITS[slot.format]
    scaled = array("f", [number * slot.scale for number in numbers])
    moved = array("f", [number + slot.zero_point for number in scaled])
    if any(number != number for number in moved):
        raise Failure(f"{slot.name} is given NaN, which {slot.format} cannot hold")
    rounded = map(_away, array("f", [abs(number) + 0.5 for number in moved]), moved)
    return array(STORED[slot.format], [int(min(max(number, low), high)) for number in rounded])


def _away(half_more: float, number: float) -> float:
    """|x| + 0.5 and x -> x rounded half away from zero; what is beyond any limit stays there."""
    return math.copysign(min(half_more, 512.0) // 1.0, number)
