"""Weights of an ONNX graph in real numbers: initializers and constants, codes with their scales undone.

Where a matrix goes tells its layout: what a product reads as `[in, out]` is shown as `[out, in]`. A matrix
that an exporter gave a number for a name gets that of the bias that is added behind it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from parity.harness.errors import UserError
from parity.harness.weights import Weight

from ..dequantized import Array, dequantized
from . import pins

#: Smaller ones are constants of the arithmetic.
LEAST = 8
#: Op -> place of the scale and the zero point of the codes at a place.
CODED = {"QLinearMatMul": {3: (4, 5)}, "QLinearConv": {3: (4, 5)}, "DequantizeLinear": {0: (1, 2)}}
PASSED = ("DequantizeLinear", "Cast", "Identity")
QUANTIZED = "_quantized"


def read_weights(path: Path, place: str = "") -> list[Weight]:
    """Every weight of a graph file; UserError for what is no ONNX."""
    model = pins.load(path)
    try:
        return list(_Graph(model.graph, path.parent, place).weights())
    except (ValueError, OSError) as error:
        raise UserError(f"onnx={path}: its weights cannot be read: {error}") from error


@dataclass
class _Graph:
    graph: onnx.GraphProto
    folder: Path
    place: str

    def __post_init__(self) -> None:
        self.arrays: dict[str, Array] = {}
        for tensor in self.graph.initializer:
            self.arrays[tensor.name] = numpy_helper.to_array(tensor, base_dir=str(self.folder))
        for node in self.graph.node:
            if node.op_type == "Constant":
                for attribute in node.attribute:
                    if attribute.name == "value":
                        self.arrays[node.output[0]] = numpy_helper.to_array(attribute.t)
        self.users: dict[str, list[tuple[onnx.NodeProto, int]]] = {}
        for node in self.graph.node:
            for at, name in enumerate(node.input):
                self.users.setdefault(name, []).append((node, at))
        self.scales: set[str] = set()

    def weights(self) -> Iterator[Weight]:
        """In the file's order; scales and zero points belong to their codes."""
        found = {name: self._weight(name, array) for name, array in self.arrays.items()}
        for name, weight in found.items():
            if weight is not None and name not in self.scales and weight.values.size >= LEAST:
                yield replace(weight, name=self._named(name, weight), place=self.place)

    def _weight(self, name: str, array: Array) -> Weight | None:
        turned = self._turned(name)
        packed = self._packed(name)
        if packed is not None:
            return packed
        codes = self._codes(name)
        if codes is not None:
            scale, zero, axis, block = codes
            return _oriented(dequantized(name, array, scale, zero, axis, block), turned)
        kind = str(array.dtype)
        if array.dtype.kind in "iub" or "float" not in kind:
            return None
        return _oriented(Weight(name, np.asarray(array, np.float32), kind), turned)

    def _codes(self, name: str) -> tuple[Array, Array | None, int, int] | None:
        """Scale, zero point, axis and block of integers that stand for real numbers."""
        for node, at in self.users.get(name, ()):
            places = CODED.get(node.op_type, {}).get(at)
            if places is not None and len(node.input) > places[0] and node.input[places[0]] in self.arrays:
                scale, zero = (node.input[i] if i < len(node.input) else "" for i in places)
                self.scales |= {scale, zero}
                axis = _attribute(node, "axis", 1)
                return self.arrays[scale], self.arrays.get(zero), axis, _attribute(node, "block_size", 0)
        stem = name.removesuffix(QUANTIZED)
        if stem != name and f"{stem}_scale" in self.arrays:
            scale, zero = f"{stem}_scale", f"{stem}_zero_point"
            self.scales |= {scale, zero}
            return self.arrays[scale], self.arrays.get(zero), -1, 0
        return None

    def _packed(self, name: str) -> Weight | None:
        """4 and 8 bit codes of MatMulNBits: `[N, blocks, bytes]`, one scale a block."""
        for node, at in self.users.get(name, ()):
            if node.op_type == "MatMulNBits" and at == 1:
                self.scales |= set(node.input[2:])
                zero = self.arrays.get(node.input[3]) if len(node.input) > 3 else None
                sizes = {key: _attribute(node, key, 0) for key in ("K", "N", "bits", "block_size")}
                return unpacked(name, self.arrays[name], self.arrays[node.input[2]], zero, sizes)
        return None

    def _turned(self, name: str) -> bool:
        """Whether a matrix is read as `[in, out]` by the product that it goes to."""
        for node, at in self.users.get(name, ()):
            if node.op_type in PASSED and at == 0:
                return self._turned(node.output[0])
            if node.op_type == "Transpose":
                return not self._turned(node.output[0])
            if node.op_type == "Gemm" and at == 1:
                return not _attribute(node, "transB", 0)
            if (node.op_type, at) in (("MatMul", 1), ("MatMulInteger", 1), ("QLinearMatMul", 3)):
                return True
        return False

    def _named(self, name: str, weight: Weight) -> str:
        """The name, that of the module where only the bias has one."""
        name = name.removesuffix(QUANTIZED)
        if weight.values.ndim != 2 or name.endswith(".weight"):
            return name
        value: str | None = name
        for _ in range(6):
            users = self.users.get(value or "", ())
            if len(users) != 1:
                return name
            node, _ = users[0]
            bias = next((i for i in node.input if i.endswith(".bias") and i in self.arrays), None)
            if bias is not None:
                return f"{str(bias).removesuffix('bias')}weight"
            value = node.output[0]
            if node.op_type not in (
                *PASSED,
                "MatMul",
                "MatMulInteger",
                "MatMulNBits",
                "Transpose",
                "Gemm",
                "Mul",
            ):
                return name
        return name


def unpacked(name: str, packed: Array, scale: Array, zero: Array | None, sizes: Mapping[str, int]) -> Weight:
    """`[N, K]` of MatMulNBits' bytes; without zero points the middle code is zero."""
    bits, n, k = sizes["bits"], sizes["N"], sizes["K"]
    if bits not in (4, 8):
        raise ValueError(f"{name} is packed with {bits} bits; 4 and 8 can be read")
    blocks = -(-k // sizes["block_size"])
    codes = _nibbles(packed.reshape(n, blocks, -1)) if bits == 4 else packed.reshape(n, blocks, -1)
    middle = 1 << (bits - 1)
    offset: Array = np.full((n, blocks, 1), middle, np.float32)
    if zero is not None:
        rows = zero.reshape(n, -1)
        offset = np.asarray(_nibbles(rows) if bits == 4 and zero.dtype == np.uint8 else rows, np.float32)
        offset = offset[:, :blocks, None]
    steps = np.asarray(scale, np.float32).reshape(n, blocks, 1)
    real = (np.asarray(codes, np.float32) - offset) * steps
    step = np.broadcast_to(steps, real.shape).reshape(n, -1)[:, :k]
    ends = float(((codes == 0) | (codes == 2 * middle - 1)).mean())
    return Weight(name, np.ascontiguousarray(real.reshape(n, -1)[:, :k]), f"uint{bits}", step, ends)


def _nibbles(packed: Array) -> Array:
    """Two codes a byte, the low one first."""
    return np.stack((packed & 0xF, packed >> 4), axis=-1).reshape(*packed.shape[:-1], -1)


def _oriented(weight: Weight, turned: bool) -> Weight:
    if not turned or weight.values.ndim != 2:
        return weight
    step = None if weight.step is None else np.broadcast_to(weight.step, weight.values.shape).T
    return replace(weight, values=np.ascontiguousarray(weight.values.T), step=step, turned=True)


def _attribute(node: onnx.NodeProto, name: str, default: int) -> int:
    return next((int(item.i) for item in node.attribute if item.name == name), default)
