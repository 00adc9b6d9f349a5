"""A Python 3.10 on this machine, found by executing what looks like one."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from parity.harness.errors import UserError

#: The bindings of TPU-MLIR are built for this one.
WANTED = (3, 10)
VARIABLE = "PARITY_PYTHON310"
REMEDY = (
    "Install one (`apt install python3.10-venv`, `pyenv install 3.10`, `uv python install 3.10` or "
    f"`conda create -n p310 python=3.10`), then name it: --python PATH, or {VARIABLE}=PATH. "
    "Without one, `parity toolchain install tpu-mlir --without-converter` runs what was compiled elsewhere"
)
#: Where version managers put it, relative to a folder that a variable may name.
_MANAGED = (
    ("PYENV_ROOT", "~/.pyenv", "versions/3.10*/bin/python3.10"),
    ("UV_PYTHON_INSTALL_DIR", "~/.local/share/uv/python", "cpython-3.10*/bin/python3.10"),
    ("ASDF_DATA_DIR", "~/.asdf", "installs/python/3.10*/bin/python3.10"),
    ("MISE_DATA_DIR", "~/.local/share/mise", "installs/python/3.10*/bin/python3.10"),
)
_FIXED = ("/usr/bin", "/usr/local/bin", "/opt/python/cp310-cp310/bin", "/opt/homebrew/bin")
_CONDA_VARIABLES = ("CONDA_PREFIX", "MAMBA_ROOT_PREFIX")
_CONDA = (
    "~/miniconda3",
    "~/anaconda3",
    "~/miniforge3",
    "~/mambaforge",
    "~/micromamba",
    "~/.conda",
    "/opt/conda",
)
_SECONDS = 20
_QUESTION = """
import json, sys
missing = []
for name in ("venv", "ensurepip"):
    try:
        __import__(name)
    except ImportError:
        missing.append(name)
print(json.dumps({"version": list(sys.version_info[:3]), "kind": sys.implementation.name,
                  "wide": sys.maxsize > 2**32, "missing": missing}))
"""


@dataclass(frozen=True)
class Tried:
    """A candidate: where it was looked for, and why it does not do (empty: it does)."""

    path: Path
    version: str
    reason: str


def find_python(chosen: str | Path | None = None) -> tuple[Path, list[Tried]]:
    """The first candidate that is a CPython 3.10 able to make an environment, and what was tried before it.

    A `chosen` one, or that of PARITY_PYTHON310, is the only candidate. UserError names what was tried.
    """
    named = chosen or os.environ.get(VARIABLE)
    if named:
        tried = try_python(Path(named).expanduser().absolute())
        if tried.reason:
            word = "python" if chosen else VARIABLE
            raise UserError(f"{word}={str(named)!r}: {tried.reason}; TPU-MLIR needs Python 3.10. {REMEDY}")
        return tried.path, [tried]
    seen: list[Tried] = []
    for path in candidates():
        seen.append(try_python(path))
        if not seen[-1].reason:
            return path, seen
    raise UserError(f"python: no Python 3.10 was found. Tried: {_listed(seen)}. {REMEDY}")


def _listed(seen: list[Tried]) -> str:
    if not seen:
        return "nothing on PATH, nor with pyenv, uv, asdf, mise or conda, looks like one"
    return "; ".join(f"{tried.path} {tried.reason}" for tried in seen)


def candidates() -> Iterator[Path]:
    """Whatever might be one, each file once; plain `python` of conda environments included."""
    seen: set[str] = set()
    for path in _everywhere():
        real = os.path.realpath(path)
        if real not in seen and path.is_file():
            seen.add(real)
            yield path


def _everywhere() -> Iterator[Path]:
    folders = [Path(part) for part in os.environ.get("PATH", os.defpath).split(os.pathsep) if part]
    yield from (folder / "python3.10" for folder in folders)
    for variable, usual, pattern in _MANAGED:
        yield from sorted(Path(os.environ.get(variable) or usual).expanduser().glob(pattern), reverse=True)
    yield from (Path(folder) / "python3.10" for folder in _FIXED)
    roots = [os.environ[name] for name in _CONDA_VARIABLES if os.environ.get(name)]
    for root in (Path(root).expanduser() for root in (*roots, *_CONDA)):
        yield root / "bin" / "python3.10"
        yield from sorted(root.glob("envs/*/bin/python3.10"))
    yield from (folder / name for folder in folders for name in ("python3", "python"))


def try_python(path: Path) -> Tried:
    """Execute it; shims that lead nowhere, other versions and cut-down ones are passed over with a reason."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    try:
        done = subprocess.run(
            [path, "-I", "-c", _QUESTION], capture_output=True, text=True, errors="replace",
            timeout=_SECONDS, check=False, env=clean, stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return Tried(path, "", f"does not answer within {_SECONDS} s")
    except OSError as error:
        return Tried(path, "", f"cannot be executed ({error.strerror})")
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip()).splitlines()
        return Tried(path, "", f"exits {done.returncode} ({said[0][:100] if said else 'without a word'})")
    try:
        answer = json.loads(done.stdout)
        return Tried(path, ".".join(map(str, answer["version"])), _judge(answer))
    except (ValueError, KeyError, TypeError):
        return Tried(path, "", "does not answer as a Python does")


def _judge(answer: dict[str, object]) -> str:
    version, missing = answer["version"], answer["missing"]
    assert isinstance(version, list)
    assert isinstance(missing, list)
    if tuple(version[:2]) != WANTED:
        return f"is Python {'.'.join(map(str, version))}"
    if answer["kind"] != "cpython" or not answer["wide"]:
        return f"is {answer['kind']}, not a 64-bit CPython"
    if missing:
        return f"lacks {' and '.join(missing)} (the system package python3.10-venv)"
    return ""
