"""From a path to an opened dump: which kind it is, and how a person says it."""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

from parity.harness.errors import UserError, did_you_mean

from . import READERS
from .core import Contents, Reader, ReadOptions, bad, opened

#: Kinds that say nothing of where a file comes from: they step back where another kind is recognised.
GENERAL = ("npz", "npy", "safetensors")
_WORD = re.compile(r"\+(?=[a-z_]+=)")


def reader(kind: str) -> Reader:
    """The reader of a kind; UserError for one that is unknown."""
    if kind not in READERS:
        raise UserError(f"kind={kind!r}: is no kind of dump. {did_you_mean(kind, READERS)}")
    module, _, name = READERS[kind].partition(":")
    made: Reader = getattr(import_module(module), name)()
    return made


def parse(arg: str) -> tuple[Path, str | None, ReadOptions]:
    """`PATH[+kind=KIND][+manifest=FILE][+NAME=VALUE ...]` -> path, kind, options; UserError for none."""
    text, *words = _WORD.split(arg)
    said: dict[str, str] = {}
    for word in words:
        name, _, value = word.partition("=")
        if name in said or not value:
            raise UserError(f"dump:{arg}: {name} is {'given twice' if name in said else 'empty'}")
        said[name] = value
    if not text:
        raise UserError("dump: names no path; write for example dump:board/dump")
    kind, manifest = said.pop("kind", None), said.pop("manifest", None)
    return Path(text), kind, ReadOptions(Path(manifest) if manifest else None, said)


def detect(path: Path, manifest: Path | None = None) -> str:
    """The one kind that a file or folder looks like; UserError where there is none, or several.

    A plain .npz with a sidecar named by hand is the CVI board's, the only .npz that has one.
    """
    if not path.exists():
        raise bad(path, "is not there")
    found = [kind for kind in READERS if _detects(kind, path.absolute())]
    special = [kind for kind in found if kind not in GENERAL]
    found = special or found
    if len(found) == 1:
        return "cvi-npz" if found == ["npz"] and manifest is not None else found[0]
    if found:
        raise bad(path, f"could be of kind {' or '.join(found)}; say which with kind=NAME")
    raise bad(path, f"looks like no kind of dump; say which with kind=NAME, one of {', '.join(READERS)}")


def _detects(kind: str, path: Path) -> bool:
    try:
        return reader(kind).detects(path)
    except (OSError, ValueError, UserError):
        return False


def open_dump(path: Path, kind: str | None, options: ReadOptions) -> Contents:
    """Open a dump of a kind, or of the kind that it looks like."""
    if not path.exists():
        raise bad(path, "is not there")
    if not path.absolute().name:
        raise bad(path, "is no dump; name the folder or file that is one")
    return reader(kind or detect(path, options.manifest)).read(path.absolute(), options)


def digest(path: Path) -> dict[str, Any]:
    """Number, bytes and SHA-256 of a dump's files: of their names inside the folder, sizes and contents."""
    total, count, hasher = 0, 0, hashlib.sha256()
    piece = memoryview(bytearray(1 << 20))
    for name, file in _files(path):
        with opened(file) as stream:
            size = os.fstat(stream.fileno()).st_size
            hasher.update(f"{name}\0{size}\0".encode("utf-8", "surrogateescape"))
            while read := os.readv(stream.fileno(), [piece]):
                hasher.update(piece[:read])
        total, count = total + size, count + 1
    return {"files": count, "bytes": total, "sha256": hasher.hexdigest()}


def _files(path: Path) -> Iterator[tuple[str, Path]]:
    """Regular files, links left out, in the order of their names."""
    if not path.is_dir():
        yield path.name, path
        return
    for folder, folders, files in os.walk(path):
        folders.sort()
        for name in sorted(files):
            file = Path(folder, name)
            if stat.S_ISREG(file.lstat().st_mode):
                yield os.path.relpath(file, path), file
