"""Folders of links that the loader searches first, instead of edits inside the package.

The package carries a whole libc beside its binaries; with an empty LD_LIBRARY_PATH they would pick it up
under this host's loader and crash. A view links this host's own files, and the simulator of one chip under
the name that the runtime asks for. Views are named after their contents and never changed, so that any number
of processes share one.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path

from parity.harness.errors import UserError
from parity.harness.folders import cache_folder

from .chips import chip_libraries
from .hostlibs import Host, host


def view(package: Path, chip: str) -> Path:
    """The folder of links for `chip`, made if it is not there. UserError if this host lacks a library."""
    found = host()
    if problems := found.problems():
        raise UserError("; ".join(problems))
    links = links_of(package, chip, found)
    digest = hashlib.sha256(json.dumps(links, sort_keys=True).encode()).hexdigest()[:16]
    folder = cache_folder().absolute() / "toolchains" / "views" / f"{chip}-{digest}"
    if not all((folder / name).exists() for name in links):
        _make(folder, links)
    return folder


def links_of(package: Path, chip: str, found: Host) -> dict[str, str]:
    """Soname -> file. Where the host's libstdc++ is too old, the package's works under the host's libc."""
    shipped = package / "lib" / "third_party"
    files = {name: file for name, file in found.libraries.items() if file}
    if not found.new_libstdcxx:
        files["libstdc++.so.6"] = shipped / "libstdc++.so.6"
    files.setdefault("libgcc_s.so.1", shipped / "libgcc_s.so.1")
    bent = {name: file for name, file in chip_libraries(package, chip).items() if file.name != name}
    return {name: str(file) for name, file in {**files, **bent}.items() if file.exists()}


def _make(folder: Path, links: dict[str, str]) -> None:
    """Beside, then renamed: another process either sees all of it or nothing."""
    beside = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(beside, ignore_errors=True)
    try:
        beside.mkdir(parents=True)
        for name, file in links.items():
            (beside / name).symlink_to(file)
        _replace(beside, folder)
    except OSError as error:
        raise UserError(
            f"cache={str(folder.parent)!r}: cannot be written to: {error}; "
            "set PARITY_CACHE to a folder that can"
        ) from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _replace(beside: Path, folder: Path) -> None:
    """Rename; where a half-emptied or simultaneous one lies already, fill what it lacks."""
    try:
        beside.rename(folder)
    except OSError:
        if not folder.is_dir():
            raise
        for link in beside.iterdir():
            if not (folder / link.name).exists():
                link.replace(folder / link.name)
