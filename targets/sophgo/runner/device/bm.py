"""bmrt_*: .bmodel on BM1684X and its relatives."""

from __future__ import annotations

import ctypes
import os
from typing import Any

from .native import function, library
from .tensors import Failure, Model, Slot

#: The runtime's format codes, by position; 9 and 10 (4-bit) never are inputs or outputs.
FORMATS = ("float32", "float16", "int8", "uint8", "int16", "uint16", "int32", "uint32", "bfloat16")


class _Shape(ctypes.Structure):
    _fields_ = [("rank", ctypes.c_int), ("dims", ctypes.c_int * 8)]


class _Stage(ctypes.Structure):
    _fields_ = [("inputs", ctypes.POINTER(_Shape)), ("outputs", ctypes.POINTER(_Shape))]


_NAMES, _CODES, _SCALES = (ctypes.POINTER(kind) for kind in (ctypes.c_char_p, ctypes.c_int, ctypes.c_float))


class _Net(ctypes.Structure):
    """The first part of the runtime's description of a net; what follows is not read."""

    _fields_ = [
        ("name", ctypes.c_char_p), ("dynamic", ctypes.c_bool),
        ("input_count", ctypes.c_int), ("input_names", _NAMES),
        ("input_formats", _CODES), ("input_scales", _SCALES),
        ("output_count", ctypes.c_int), ("output_names", _NAMES),
        ("output_formats", _CODES), ("output_scales", _SCALES),
        ("stage_count", ctypes.c_int), ("stages", ctypes.POINTER(_Stage)),
        ("input_limits", ctypes.c_void_p), ("output_limits", ctypes.c_void_p),
        ("input_zeros", _CODES), ("output_zeros", _CODES),
    ]  # fmt: skip


class BmModel(Model):
    """One net of a .bmodel; only a build with taps as outputs shows what happens inside."""

    def __init__(self, runtime: ctypes.CDLL, handle: int, path: str, net: Any) -> None:
        self._runtime, self._handle, self._path, self._net = runtime, handle, path, net
        if net.dynamic or net.stage_count != 1:
            raise Failure(f"{path}: {net.name.decode()} has more than one shape; compile it static")
        self.inputs, self.outputs, self.inner = self._slots("input"), self._slots("output"), []

    def forward(self) -> None:
        """From the inputs' memory to the outputs'."""
        shapes = (_Shape * len(self.outputs))()
        done = self._runtime.bmrt_launch_data(
            self._handle, self._net.name,
            _pointers(self.inputs), self._net.stages[0].inputs, len(self.inputs),
            _pointers(self.outputs), shapes, len(self.outputs), True,
        )  # fmt: skip
        if not done:
            raise Failure(f"{self._path}: bmrt_launch_data failed")

    def close(self) -> None:
        """The runtime frees its nets."""

    def _slots(self, side: str) -> list[Slot]:
        fact = {key: getattr(self._net, f"{side}_{key}") for key in ("names", "formats", "scales", "zeros")}
        shapes = getattr(self._net.stages[0], f"{side}s")
        slots = []
        for at in range(getattr(self._net, f"{side}_count")):
            name, code = fact["names"][at].decode(), fact["formats"][at]
            if code >= len(FORMATS):
                raise Failure(f"{self._path}: {name} has number format {code}, which is not understood here")
            zero_point = fact["zeros"][at] if FORMATS[code] in ("int8", "uint8") and fact["zeros"] else 0
            shape = shapes[at].dims[: shapes[at].rank]
            slots.append(Slot(name, shape, FORMATS[code], fact["scales"][at], zero_point))
        return slots


def _pointers(slots: list[Slot]) -> Any:
    addresses = [ctypes.addressof(ctypes.c_char.from_buffer(slot.memory)) for slot in slots]
    return (ctypes.c_void_p * len(slots))(*addresses)


class BmRuntime:
    """libbmrt: one runtime for all files, as several on one device disturb each other."""

    suffix = ".bmodel"

    def __init__(self, folder: str) -> None:
        self._bmlib = library(folder, ["libbmlib.so.0", "libbmlib.so"])
        self._runtime = library(folder, ["libbmrt.so.1.0", "libbmrt.so"])
        _declare(self._runtime)
        self._device = ctypes.c_void_p()
        code = function(self._bmlib, "bm_dev_request")(ctypes.byref(self._device), 0)
        if code:
            raise Failure(f"bm_dev_request failed with {code}: no device answers")
        self._handle = self._runtime.bmrt_create(self._device)
        self._files: dict[str, list[str]] = {}

    def load(self, path: str, net: str, chip: str, all_tensors: bool) -> BmModel:
        """The net of that name, or the only one of the file."""
        if all_tensors:
            raise Failure(f"{path}: a bmodel shows its outputs alone; compile it with taps as outputs")
        if path not in self._files:
            self._files[path] = self._read(path)
        nets = self._files[path]
        if len(nets) != 1 and net not in nets:
            raise Failure(f"{path}: holds the nets {', '.join(nets)}, none of them is {net}")
        name = net if net in nets else nets[0]
        info = self._runtime.bmrt_get_network_info(self._handle, name.encode())
        return BmModel(self._runtime, self._handle, path, info.contents)

    def _read(self, path: str) -> list[str]:
        """Names of the nets that a file adds; the runtime silently drops one whose name is taken."""
        before = self._nets()
        if not self._runtime.bmrt_load_bmodel(self._handle, os.fsencode(path)):
            raise Failure(f"{path}: bmrt_load_bmodel failed")
        added = self._nets()[len(before) :]
        if not added or set(added) & set(before):
            taken = ", ".join(sorted(set(added) & set(before)) or before)
            raise Failure(f"{path}: another file has a net of the same name ({taken}); name them apart")
        return added

    def _nets(self) -> list[str]:
        names = _NAMES()
        self._runtime.bmrt_get_network_names(self._handle, ctypes.byref(names))
        return [names[i].decode() for i in range(self._runtime.bmrt_get_network_number(self._handle))]

    def close(self) -> None:
        """Without this the library aborts when the process ends."""
        self._runtime.bmrt_destroy(self._handle)
        self._bmlib.bm_dev_free(self._device)


def _declare(runtime: ctypes.CDLL) -> None:
    pointer, text, count = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int
    for name, result, arguments in (
        ("bmrt_create", pointer, [pointer]),
        ("bmrt_destroy", None, [pointer]),
        ("bmrt_load_bmodel", ctypes.c_bool, [pointer, text]),
        ("bmrt_get_network_number", count, [pointer]),
        ("bmrt_get_network_names", None, [pointer, pointer]),
        ("bmrt_get_network_info", ctypes.POINTER(_Net), [pointer, text]),
        ("bmrt_launch_data", ctypes.c_bool, [pointer, text, *[pointer, pointer, count] * 2, ctypes.c_bool]),
    ):
        declared = function(runtime, name)
        declared.restype, declared.argtypes = result, arguments
