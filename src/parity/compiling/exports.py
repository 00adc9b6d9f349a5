"""What a model's segments were exported to, told without exporting them again, without torch.

The graphs themselves lie in the cache of exports, which needs the module to find them. This index says for
a model, its weights' file and the code that makes graphs, which digests came out; artefacts are looked up
by those.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from parity.harness.case import Model
from parity.targets.sophgo.compile.store import sealed, unsealed

from .order import Order

#: Packages and folders whose state decides what is exported.
_MAKERS = ("torch", "onnx", "onnxscript", "numpy")
_CODE = ("models/**/*.py", "targets/onnx/*.py", "targets/sophgo/*.py", "harness/tracer/*.py")


@dataclass(frozen=True)
class Graph:
    """One graph to compile: its digest and size, its outputs in order, and ONNX value -> tap."""

    name: str
    digest: str
    size: int
    outputs: tuple[str, ...]
    taps: Mapping[str, str]


class ExportIndex:
    """The digests that an order's export gave, or nothing if it was never made, or anything changed since."""

    def __init__(self, order: Order, model: Model, batch: int, rows: int, cache: Path) -> None:
        self._order, self._model = order, model
        self._path = cache / "index" / f"{model.name}-{self._key(batch, rows)}.json"

    def read(self) -> dict[str, Graph] | None:
        """Name -> graph, in execution order."""
        found = self._entry()
        if found is None:
            return None
        return {
            name: Graph(name, one["digest"], one["size"], tuple(one["outputs"]), one["taps"])
            for name, one in found["graphs"].items()
        }

    def tables(self, key: str) -> dict[str, Path] | None:
        """Name -> calibration table, as stored under a key of the calibration."""
        found = self._entry()
        paths = None if found is None else found.get("tables", {}).get(key)
        if paths is None or not all(Path(path).is_file() for path in paths.values()):
            return None
        return {name: Path(path) for name, path in paths.items()}

    def write(self, graphs: Mapping[str, Graph], weights: Path | None) -> None:
        """Store what an export gave; `weights` is the checkpoint's file, whose state is kept with it."""
        self._store(
            {
                "weights": _stat(weights),
                "graphs": {name: asdict(graph) for name, graph in graphs.items()},
                "tables": {},
            }
        )

    def add_tables(self, key: str, tables: Mapping[str, Path]) -> None:
        """Store tables beside the graphs that they belong to."""
        found = self._entry()
        if found is not None:
            found["tables"][key] = {name: str(path) for name, path in tables.items()}
            self._store(found)

    def _entry(self) -> dict[str, Any] | None:
        try:
            found = unsealed(self._path.read_text())
            file = found["weights"]
            fresh = file is None or _stat(Path(file["path"])) == file
            whole = fresh and {"graphs", "tables"} <= found.keys()
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return found if whole else None

    def _store(self, entry: Mapping[str, Any]) -> None:
        """Beside, then renamed. An index that cannot be written costs time, not truth."""
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            beside = self._path.with_name(f".{self._path.name}.{os.getpid()}")
            beside.write_text(sealed(entry))
            beside.replace(self._path)
        except OSError:
            return

    def _key(self, batch: int, rows: int) -> str:
        order = self._order
        plain = {
            "config": asdict(self._model.config),
            "weights": order.weights if order.weights is None else _spec(order.weights),
            "batch": batch,
            "rows": rows,
            "masked": order.masked,
            "tapped": order.tapped,
            "versions": {name: version(name) for name in _MAKERS},
            "code": _code(),
        }
        return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:24]


def _spec(weights: str) -> str:
    """The same file by another path is the same."""
    return weights if weights.startswith("random:") else str(Path(weights).expanduser().resolve())


def _stat(path: Path | None) -> dict[str, Any] | None:
    if path is None:
        return None
    found = path.stat()
    return {"path": str(path), "size": found.st_size, "modified": found.st_mtime_ns}


def _code() -> str:
    """Digest of the files that make graphs."""
    root = Path(__file__).resolve().parent.parent
    hasher = hashlib.sha256()
    for pattern in _CODE:
        folder, _, rest = pattern.partition("/")
        for path in sorted((root / folder).glob(rest)):
            hasher.update(path.read_bytes())
    return hasher.hexdigest()
