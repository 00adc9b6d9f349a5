"""Fields of a manifest in JSON, each checked when it is taken; every mistake names the entry it is in."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .core import bad, checked_shape
from .formats import Where

_KINDS: dict[type, str] = {
    str: "text",
    int: "whole number",
    dict: "object",
    list: "list",
    bool: "true or false",
}


class Fields:
    """One object of a manifest; `what` says which in an error."""

    def __init__(self, path: Path, what: str, content: Any) -> None:
        if not isinstance(content, dict):
            raise bad(path, f"{what} should be an object, not {str(content)[:40]!r}")
        self.path, self.what, self.content = path, what, content

    def take(self, name: str, kind: type, default: Any = None) -> Any:
        """A field of a type; `default` where it is absent or null. UserError for another type."""
        found = self.content.get(name)
        if found is None:
            if default is None:
                raise bad(self.path, f"{self.what} lacks {name!r}; the manifest is incomplete")
            return default
        if type(found) is not kind:
            raise bad(self.path, f"{self.what} has {name}={str(found)[:40]!r}, which is no {_KINDS[kind]}")
        return found

    def text(self, name: str, default: str | None = None) -> str:
        """A text; UserError for an empty one that is needed."""
        found: str = self.take(name, str, default)
        if not found and default is None:
            raise bad(self.path, f"{self.what} has an empty {name!r}")
        return found

    def count(self, name: str, default: int | None = None, *, below: int = 1 << 48) -> int:
        """A whole number from 0 on."""
        found: int = self.take(name, int, default)
        if not 0 <= found < below:
            raise bad(self.path, f"{self.what} has {name}={found}, which cannot be")
        return found

    def shape(self, name: str) -> tuple[int, ...]:
        """A shape."""
        return checked_shape(self.take(name, list), self.path, self.what)

    def objects(self, name: str) -> list[Fields]:
        """A list of objects, each named by its place."""
        return [
            Fields(self.path, f"{name}[{place}]", item) for place, item in enumerate(self.take(name, list))
        ]

    def integers(self, name: str, dimensions: tuple[int, ...]) -> np.ndarray | None:
        """Nested lists of whole numbers as int64, None where absent; UserError for another depth."""
        found = self.content.get(name)
        if found is None:
            return None
        try:
            array = np.asarray(found)
        except (ValueError, OverflowError, RecursionError) as error:
            raise bad(self.path, f"{self.what} has {name} of unequal lengths") from error
        if array.dtype.kind not in "iu" or array.ndim not in dimensions or not array.size:
            raise bad(self.path, f"{self.what} has {name}={str(found)[:40]!r}, which are no whole numbers")
        return array.astype(np.int64)

    def tokens(self, name: str) -> np.ndarray | None:
        """Token ids `[B, T]`; one list is one sequence."""
        found = self.integers(name, (1, 2))
        return None if found is None else found.reshape(-1, found.shape[-1])

    def where(self, shape: tuple[int, ...], *, step: int | None = None) -> Where:
        """Step, call, axes, positions and tap of an entry, held against its shape."""
        axes = " ".join(self.text("axes", "").split())
        if axes and (len(axes.split()) != len(shape) or any(len(letter) > 8 for letter in axes.split())):
            raise bad(self.path, f"{self.what} has axes {axes!r}, but the shape {list(shape)}")
        positions = self.integers("positions", (1, 2))
        sizes = [n for letter, n in zip(axes.split(), shape, strict=False) if letter in ("t", "p")]
        if positions is not None and sizes and positions.shape[-1] not in sizes:
            raise bad(self.path, f"{self.what} has {positions.shape[-1]} positions for {sizes[0]} rows")
        return Where(
            self.count("step", 0) if step is None else step,
            self.count("call", 0, below=1 << 31),
            axes,
            positions,
            self.text("tap", "") or None,
        )


def facts_of(content: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """The named fields of a manifest that it has, for the provenance."""
    return {name: content[name] for name in names if content.get(name) is not None}
