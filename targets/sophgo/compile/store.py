"""Folders that are whole or not there: made beside, flushed, renamed; what a killed process left is swept."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from parity.harness.errors import UserError
from parity.harness.room import no_room

#: The last one to be written: a folder without it is not whole.
MANIFEST = "manifest.json"
_SEAL = "digest"


@contextmanager
def fresh(cache: Path, name: str) -> Iterator[Path]:
    """A work folder beside the finished ones; gone afterwards unless `publish` moved it.

    UserError where the cache cannot be written to, or there is no room left in it.
    """
    try:
        cache.mkdir(parents=True, exist_ok=True)
        _sweep(cache)
        folder = Path(tempfile.mkdtemp(prefix=f".{name}@{platform.node()}@{os.getpid()}@", dir=cache))
    except OSError as error:
        raise UserError(
            f"cache={str(cache)!r}: cannot be written to ({error.strerror}); set PARITY_CACHE"
        ) from error
    try:
        yield folder
    except OSError as error:
        if (said := no_room(error, f"cache={str(cache)!r}")) is None:
            raise
        raise said from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def publish(folder: Path, place: Path, whole: Callable[[Path], object]) -> None:
    """Flush a finished folder and move it to its place.

    What lies there already stays if `whole` says so: another process made the same meanwhile, and may be
    reading it. Otherwise it is damaged and makes way.
    """
    for path in folder.iterdir():
        if path.is_file() and not path.is_symlink():
            _flush(path)
    try:
        os.replace(folder, place)
    except OSError:
        if whole(place):
            return
        shutil.rmtree(place, ignore_errors=True)
        os.replace(folder, place)


def sealed(facts: Mapping[str, Any], *, indent: int | None = None) -> str:
    """JSON that says itself whether it is whole: a digest of the rest is its last entry."""
    plain = json.loads(json.dumps(facts))
    return json.dumps({**plain, _SEAL: _digest(plain)}, indent=indent)


def unsealed(text: str) -> dict[str, Any]:
    """The facts of a sealed text; ValueError where a single character of them is another one."""
    facts: Any = json.loads(text)
    if not isinstance(facts, dict) or facts.pop(_SEAL, None) != _digest(facts):
        raise ValueError("the seal is broken")
    return facts


def _digest(facts: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def keep(folder: Path, place: Path) -> Path:
    """Put a failed work folder where a person can look into it; the last one of its name stays."""
    shutil.rmtree(place, ignore_errors=True)
    place.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(OSError):
        os.replace(folder, place)
    return place


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sweep(cache: Path) -> None:
    """Remove work folders of processes of this machine that are gone."""
    for path in cache.glob(".*@*@*@*"):
        _, host, pid, _ = path.name.rsplit("@", 3)
        if host == platform.node() and pid.isdigit() and not _alive(int(pid)):
            shutil.rmtree(path, ignore_errors=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
