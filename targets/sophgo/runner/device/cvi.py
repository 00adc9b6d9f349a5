"""CVI_NN_*: .cvimodel on cv180x, cv181x, cv182x and cv183x.

The structure's layout is that of LP64 and of 32-bit boards alike, as C lays it out.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
from typing import Any

from .native import function, library, view
from .tensors import Failure, Model, Slot

#: The runtime's format codes, by position.
FORMATS = ("float32", "int32", "uint32", "bfloat16", "int16", "uint16", "int8", "uint8")
_SHOW_ALL_TENSORS = 4


class _Tensor(ctypes.Structure):
    _fields_ = [
        ("name", ctypes.c_char_p), ("dims", ctypes.c_int32 * 6), ("rank", ctypes.c_size_t),
        ("format", ctypes.c_int), ("count", ctypes.c_size_t), ("nbytes", ctypes.c_size_t),
        ("memory", ctypes.c_void_p), ("physical", ctypes.c_uint64), ("memory_type", ctypes.c_int),
        ("scale", ctypes.c_float), ("zero_point", ctypes.c_int), ("pixel_format", ctypes.c_int),
        ("aligned", ctypes.c_bool), ("mean", ctypes.c_float * 3), ("factor", ctypes.c_float * 3),
        ("owner", ctypes.c_void_p), ("reserved", ctypes.c_char * 32),
    ]  # fmt: skip


class CviModel(Model):
    """One .cvimodel; with `all_tensors`, `inner` is every other tensor whose memory survives a call."""

    def __init__(self, runtime: ctypes.CDLL, path: str, all_tensors: bool) -> None:
        self._runtime, self._path = runtime, path
        self.inputs, self.outputs = self._open(False)
        self.inner = []
        if all_tensors:
            self.close()
            self.inputs, shown = self._open(True)
            taken = [slot.name for slot in self.inputs + self.outputs]
            self.inner = [slot for slot in shown if slot.name not in taken and slot.memory]
            self.outputs = [next(s for s in shown if s.name == slot.name) for slot in self.outputs]
        for slot in self.inputs + self.outputs:
            if not slot.memory:
                raise Failure(f"{path}: the runtime gives {slot.name} no memory")

    def forward(self) -> None:
        """From the inputs' memory to the outputs'."""
        inputs, num_inputs, outputs, num_outputs = self._tensors
        self._call("CVI_NN_Forward", self._handle, inputs, num_inputs, outputs, num_outputs)

    def close(self) -> None:
        """Free the model."""
        self._runtime.CVI_NN_CleanupModel(self._handle)

    def _open(self, all_tensors: bool) -> tuple[list[Slot], list[Slot]]:
        self._handle = ctypes.c_void_p()
        self._call("CVI_NN_RegisterModel", os.fsencode(self._path), ctypes.byref(self._handle))
        if all_tensors:
            self._call("CVI_NN_SetConfig", self._handle, ctypes.c_int(_SHOW_ALL_TENSORS), ctypes.c_int(1))
        self._tensors: list[Any] = [
            ctypes.POINTER(_Tensor)(), ctypes.c_int32(), ctypes.POINTER(_Tensor)(), ctypes.c_int32()
        ]  # fmt: skip
        self._call("CVI_NN_GetInputOutputTensors", self._handle, *map(ctypes.byref, self._tensors))
        return self._slots(*self._tensors[:2]), self._slots(*self._tensors[2:])

    def _slots(self, tensors: Any, count: Any) -> list[Slot]:
        return [self._slot(tensors[i]) for i in range(count.value)]

    def _slot(self, tensor: Any) -> Slot:
        name = tensor.name.decode()
        if tensor.aligned:
            raise Failure(f"{self._path}: {name} wants padded rows; compile it without aligned inputs")
        facts = (tensor.dims[: tensor.rank], FORMATS[tensor.format], tensor.scale, tensor.zero_point)
        slot = Slot(name, *facts, memory=memoryview(b""))
        if tensor.memory:
            slot.memory = view(tensor.memory, slot.nbytes)
        return slot

    def _call(self, name: str, *arguments: Any) -> None:
        code = function(self._runtime, name)(*arguments)
        if code:
            raise Failure(f"{self._path}: {name} failed with {code} ({code & 0xFFFFFFFF:#x})")


class CviRuntime:
    """libcviruntime. libcvicmodel is the chip itself: only the simulator has it."""

    suffix = ".cvimodel"

    def __init__(self, folder: str) -> None:
        for name in ("libcvikernel.so", "libcvicmodel.so"):
            with contextlib.suppress(Failure):
                library(folder, [name])
        self._runtime = library(folder, ["libcviruntime.so"])

    def load(self, path: str, net: str, chip: str, all_tensors: bool) -> CviModel:
        """A model; Failure where it is damaged or was built for another chip."""
        _check_file(path, chip)
        return CviModel(self._runtime, path, all_tensors)

    def close(self) -> None:
        """Nothing is held beside the models."""


def _check_file(path: str, chip: str) -> None:
    """The runtime itself reads whatever is there: a damaged file crashes it, or never comes to an end.

    Header: magic 8, size 4, version 2, md5 of all that follows the header 16, chip 16, padding to 48.
    """
    with open(path, "rb") as file:
        header, body = file.read(48), hashlib.md5()
        for block in iter(lambda: file.read(1 << 20), b""):
            body.update(block)
    if header[:8] != b"CviModel":
        raise Failure(f"{path}: is no cvimodel")
    if any(header[14:30]) and header[14:30] != body.digest():
        raise Failure(f"{path}: is damaged (its checksum does not match); compile or copy it again")
    built = header[30:46].split(b"\0")[0].decode("ascii", "replace")
    if chip and built != chip:
        raise Failure(f"{path}: was built for {built} and cannot run on {chip}; compile it for {chip}")
