"""Steps segments over tokens as the wiring table says; the cache is kept outside the graphs.

One sequence, one token at a time. The same loop as the host's, in plain Python: values are float32 bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .cache import Cache
from .files import Package
from .numbers import real, stored, whole
from .tensors import Failure, Model, Slot

if TYPE_CHECKING:
    from collections.abc import Callable

    #: Is told of every tensor: its record (what the dump's manifest says of it) and its stored bytes.
    See = Callable[[dict[str, Any], bytes], None]


class Loop:
    """A package and its loaded models; `rounding` is how float32 becomes bfloat16 for those that take it."""

    def __init__(self, package: Package, models: Mapping[str, Model], rounding: str = "nearest") -> None:
        self._package, self._models, self._rounding = package, models, rounding
        self._segments: list[dict[str, Any]] = package.wiring["segments"]
        self._sources = {row["cache"]: row for row in package.wiring["caches"]}
        self._masked = any(port["value"] == "mask" for part in self._segments for port in part["inputs"])
        self.cache = Cache(list(self._sources), package.rows, package.window)
        for segment in self._segments:
            self._check(segment)

    def reset(self) -> bool:
        """Forget the context, take the prefilled rows if the package has some; says whether it has."""
        filled = self._package.prefilled()
        self.cache.clear()
        if filled is not None:
            self.cache.fill(*filled)
        return filled is not None

    def step(self, token: int, see: See | None = None, *, whole_caches: bool = False) -> bytes:
        """Feed one token at the next position; returns the logits, float32.

        With `whole_caches` a cache is shown as the segment is handed it, else its new row alone.
        """
        self._refuse_holes()
        position = self.next_position
        values = {"rope": self._package.rope(position)}
        self.cache.advance(position)
        told = _Teller(see, position)
        told.input("rope", "c b t d", [2, 1, 1, len(values["rope"]) // 8], values["rope"], [[position]])
        for segment in self._segments:
            self._append(segment, values, told, whole_caches)
            self._run(segment, token, values, told)
        return values[self._package.wiring["output"]]

    @property
    def next_position(self) -> int:
        """Where the next token stands."""
        return self.cache.positions[-1] + 1 if self.cache.positions else 0

    def _append(self, segment: Any, values: dict[str, bytes], told: _Teller, whole_caches: bool) -> None:
        ports = {port["value"]: port for port in segment["inputs"]}
        for name, row in self._sources.items():
            if row["segment"] != segment["name"]:
                continue
            heads, width = ports[name]["shape"][1], ports[name]["shape"][3]
            self.cache.append(name, values[row["source"]], heads)
            values[name] = self.cache.view(name)
            held = self.cache.held() if whole_caches else told.here
            shown = values[name] if whole_caches else self.cache.newest(name)
            told.input(name, "b h p d", [1, heads, len(held), width], shown, [held])

    def _run(self, segment: Any, token: int, values: dict[str, bytes], told: _Teller) -> None:
        name = segment["name"]
        model, ports = self._models[name], {port["name"]: port for port in segment["inputs"]}
        if self._masked:
            values["mask"] = self.cache.mask()
        for slot in model.inputs:
            value = ports[slot.name]["value"]
            raw = whole(slot, token) if value == "ids" else stored(slot, values[value], self._rounding)
            slot.memory[:] = raw
        model.forward()
        for role, slot, facts in self._shown(name):
            raw = bytes(slot.memory)
            if role == "output":
                values[facts["tap"]] = real(slot, raw)
            told.made(role, name, slot, facts, raw)

    def _shown(self, name: str) -> list[tuple[str, Slot, dict[str, Any]]]:
        """A model's tensors with what the package knows of them, in the order in which they are computed;
        inner ones that it does not know are left out, but for those that a live object chose to trace."""
        model, known = self._models[name], self._package.models[name]
        shown = list(zip(["output"] * len(model.outputs), model.outputs, known["outputs"]))  # noqa: B905
        for slot in model.inner:
            if slot.name in known["inner"]:
                shown.append(("inner", slot, known["inner"][slot.name]))
            elif known["file"] is None:
                unnamed = {"tap": None, "axes": "", "shape": list(slot.shape), "rank": 1 << 30}
                shown.append(("inner", slot, unnamed))
        return sorted(shown, key=lambda item: item[2]["rank"])

    def _refuse_holes(self) -> None:
        """A segment without a mask attends to every row that it is handed, those that hold nothing too."""
        filled, rows = len(self.cache.positions) + 1, self._package.rows
        if not self._masked and filled < rows:
            raise Failure(
                f"only {filled} of the {rows} cache rows would be filled, and this build has no mask; "
                "prefill the cache on the host, or compile the masked build"
            )

    def _check(self, segment: Any) -> None:
        """The artefact is one of this segment: its inputs by name, its outputs by number, all by size."""
        name, model = segment["name"], self._models[segment["name"]]
        ports = {port["name"]: port["shape"] for port in segment["inputs"]}
        if sorted(ports) != sorted(slot.name for slot in model.inputs):
            found = ", ".join(slot.name for slot in model.inputs)
            raise Failure(f"{name}: takes {found}, but the wiring has {', '.join(ports)}")
        outputs = self._package.models[name]["outputs"]
        if len(outputs) != len(model.outputs):
            raise Failure(
                f"{name}: gives {len(model.outputs)} tensors, but the package names {len(outputs)}; it was "
                "written for another build"
            )
        for slot in model.inputs:
            _check_size(name, slot, [self._size(size) for size in ports[slot.name]])
        for slot, facts in zip(model.outputs, outputs):  # noqa: B905
            _check_size(name, slot, facts["shape"])

    def _size(self, size: Any) -> int:
        return size if isinstance(size, int) else self._package.facts["sizes"][size]


def _check_size(name: str, slot: Slot, shape: list[int]) -> None:
    count = 1
    for size in shape:
        count *= size
    if count != slot.count:
        raise Failure(
            f"{name}: {slot.name} has {slot.count} values, but the package means {shape}; "
            "it was compiled for another window or model"
        )


class _Teller:
    """Hands tensors on with their records."""

    def __init__(self, see: See | None, position: int) -> None:
        self._see, self.here = see, [position]

    def input(self, tap: str, axes: str, shape: list[int], raw: bytes, positions: list[list[int]]) -> None:
        """A value that the loop itself brings: float32."""
        self._tell(
            {"tap": tap, "segment": "", "tensor": tap, "role": "input", "axes": axes, "positions": positions,
             "format": "float32", "scale": 1.0, "zero_point": 0, "shape": shape},
            raw,
        )  # fmt: skip

    def made(self, role: str, segment: str, slot: Slot, facts: Mapping[str, Any], raw: bytes) -> None:
        """A tensor that a segment gave."""
        positions = [self.here] if " t" in f" {facts['axes']}" else None
        said = {"segment": segment, "tensor": slot.name, "role": role, "positions": positions}
        number = {"format": slot.format, "scale": slot.scale, "zero_point": slot.zero_point}
        where = {"tap": facts["tap"], "axes": facts["axes"], "shape": facts["shape"]}
        self._tell({**where, **said, **number}, raw)

    def _tell(self, record: dict[str, Any], raw: bytes) -> None:
        if self._see is not None:
            self._see(record, raw)
