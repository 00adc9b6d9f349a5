"""The dump folder: one stored .npz per step, and a manifest that is rewritten whole after each.

What a kill leaves reads as what it is: the manifest says "complete": false, and a step that was under way has
a file that no manifest names, under a name that no reader takes.
"""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Mapping
from typing import Any

from .files import npy
from .tensors import Failure

MANIFEST = "manifest.json"


class Dump:
    """A dump being written into a folder that is new or empty."""

    def __init__(self, folder: str, facts: Mapping[str, Any]) -> None:
        self._folder = folder
        try:
            os.makedirs(folder, exist_ok=True)
            if os.listdir(folder):
                raise Failure(f"out={folder!r}: is not empty; two dumps in one folder cannot be told apart")
            head = {"format": "parity-dump", "version": 1, "complete": False}
            self._manifest: dict[str, Any] = {**head, **facts, "steps": []}
            self._save()
        except OSError as error:
            raise Failure(f"out={folder!r}: cannot be written ({error.strerror})") from error

    def begin(self, index: int) -> None:
        """The records that follow belong to this step."""
        self._name = f"step_{index:06d}.npz"
        self._index = index
        self._records: list[dict[str, Any]] = []
        self._calls: dict[tuple[str, str], int] = {}
        self._file = zipfile.ZipFile(self._path(self._name) + ".part", "w", zipfile.ZIP_STORED)

    def add(self, record: Mapping[str, Any], raw: bytes) -> None:
        """One tensor; the same tap (or tensor, where no tap is known) again within a step is its next call.

        One tensor can stand under two taps: what the compiler found equal has one name.
        """
        key, name = f"{len(self._records):04d}", (record["segment"], record["tap"] or record["tensor"])
        call = self._calls[name] = self._calls.get(name, -1) + 1
        self._file.writestr(f"{key}.npy", npy(raw, record["format"], record["shape"]))
        self._records.append({"key": key, "call": call, **record})

    def end(self, tokens: list[list[int]], positions: list[list[int]]) -> None:
        """The step is on the disk when this returns."""
        self._file.close()
        part = self._path(self._name) + ".part"
        with open(part, "rb") as file:
            os.fsync(file.fileno())
        os.replace(part, self._path(self._name))
        self._manifest["steps"].append(
            {"index": self._index, "tokens": tokens, "positions": positions, "file": self._name,
             "records": self._records}
        )  # fmt: skip
        self._save()

    def complete(self) -> None:
        """Every step came."""
        self._manifest["complete"] = True
        self._save()

    def _save(self) -> None:
        beside = self._path(f"{MANIFEST}.part")
        with open(beside, "w", encoding="utf-8") as file:
            json.dump(self._manifest, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, self._path(MANIFEST))

    def _path(self, name: str) -> str:
        return os.path.join(self._folder, name)
