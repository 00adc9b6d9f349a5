"""A live object with the interface of the original demo's device module, in place of a runtime.

    call_head(ids, rope) -> residual, q, k, v
    call_segment(layer, residual, rope, q, ks, vs) -> residual, q, k, v
    call_tail(residual, q, ks, vs) -> logits
    trace(trace_tensor, executing)                     (may be absent)

Its arrays are numpy's, which is therefore needed here and nowhere else in this program.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator, Mapping
from typing import Any

from .tensors import Failure, Model, Slot

_VERBS = ("call_head", "call_segment", "call_tail")


def load_object(text: str) -> Any:
    """`MODULE:CLASS[:ARGUMENT]` -> an instance, for example `cvi_klm:KLM:/home/debian/klm_models`."""
    module, _, rest = text.partition(":")
    name, _, argument = rest.partition(":")
    try:
        make = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise Failure(f"object={text!r}: cannot be found ({error}); write MODULE:CLASS:ARGUMENT") from error
    return make(*([argument] if argument else []))


def live_models(
    device: Any, wiring: Mapping[str, Any], sizes: Mapping[str, int], trace: Any = None, executing: Any = None
) -> dict[str, Model]:
    """The segments of the wiring as models; the first is the head, the last the tail, those between go by
    number. What the object traces becomes inner tensors, or goes to `trace` and `executing` if given."""
    for name in _VERBS:
        if not callable(getattr(device, name, None)):
            raise Failure(f"object={type(device).__name__}: has no {name}")
    segments = wiring["segments"]
    if any(port["value"] == "mask" for segment in segments for port in segment["inputs"]):
        raise Failure("object: its segments take no mask; use the package of a build without one")
    seen = _Seen()
    if callable(getattr(device, "trace", None)):
        device.trace(trace or seen.trace_tensor, executing or seen.executing)
    last = len(segments) - 1

    def call(at: int, arrays: list[Any]) -> Any:
        if at == 0:
            return device.call_head(*arrays)
        return device.call_tail(*arrays) if at == last else device.call_segment(at - 1, *arrays)

    return {part["name"]: _Segment(part, at, call, sizes, seen) for at, part in enumerate(segments)}


class _Seen:
    """What the object traced since the last call."""

    def __init__(self) -> None:
        self.slots: list[Slot] = []
        self._prefix: list[str] = []

    def trace_tensor(self, name: str, tensor: Any) -> None:
        """Keep a copy."""
        array = _float32(tensor)
        slot = Slot(".".join([*self._prefix, name]), array.shape, "float32")
        slot.memory[:] = array.data.cast("B")
        self.slots.append(slot)

    @contextlib.contextmanager
    def executing(self, name: str) -> Iterator[None]:
        """Names within are prefixed."""
        self._prefix.append(name)
        yield
        self._prefix.pop()


class _Segment(Model):
    def __init__(self, part: Any, at: int, call: Any, sizes: Mapping[str, int], seen: _Seen) -> None:
        self._name, self._at, self._call, self._seen = part["name"], at, call, seen
        self.inputs = [_slot(port, port["name"], sizes) for port in part["inputs"]]
        self.outputs = [_slot(port, port["value"], sizes) for port in part["outputs"]]
        self.inner = []

    def forward(self) -> None:
        """From the inputs' memory to the outputs'."""
        self._seen.slots = []
        returned = self._call(self._at, [_array(slot) for slot in self.inputs])
        arrays = list(returned) if isinstance(returned, (tuple, list)) else [returned]
        if len(arrays) != len(self.outputs):
            raise Failure(f"{self._name}: the object returned {len(arrays)} arrays, not {len(self.outputs)}")
        for slot, array in zip(self.outputs, map(_float32, arrays)):  # noqa: B905 (checked above)
            if _bare(array.shape) != _bare(slot.shape):
                raise Failure(
                    f"{self._name}: {slot.name} has shape {list(array.shape)}, but should have "
                    f"{list(slot.shape)}"
                )
            slot.memory[:] = array.data.cast("B")
        self.inner = self._seen.slots

    def close(self) -> None:
        """The object belongs to its maker."""


def _slot(port: Mapping[str, Any], name: str, sizes: Mapping[str, int]) -> Slot:
    shape = [sizes[size] if isinstance(size, str) else size for size in port["shape"]]
    return Slot(name, shape, "int32" if port["dtype"] == "int64" else "float32")


def _array(slot: Slot) -> Any:
    """A copy; ids as the object takes them."""
    import numpy as np

    found = np.frombuffer(slot.memory, slot.format).reshape(slot.shape)
    return found.astype(np.int64) if slot.format == "int32" else found.copy()


def _float32(array: Any) -> Any:
    import numpy as np

    return np.ascontiguousarray(array, np.float32)


def _bare(shape: Any) -> list[int]:
    """Devices pad shapes to four dimensions."""
    return [size for size in shape if size != 1]
