"""What this machine has: libraries, targets, arithmetic, disk. Everything is probed, nothing assumed."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import registry

if TYPE_CHECKING:
    from parity.targets.sophgo.toolchain.advice import Advice

#: Distribution -> what it is for; a run needs every one of them.
REQUIRED = {
    "torch": "the reference",
    "numpy": "arrays",
    "ml_dtypes": "bf16, fp8 and int4 as numpy types",
    "h5py": "trace files",
    "numba": "the comparison kernel",
    "onnx": "export",
    "onnxscript": "export",
    "onnxruntime": "the onnx target",
    "click": "the command line",
    "rich": "the console report",
    "jinja2": "the HTML report",
}
OPTIONAL = {
    "pytest": "the pytest plugin",
    "hypothesis": "property tests",
    "transformers": "Hugging Face models",
    "safetensors": "safetensors checkpoints",
    "playwright": "browser tests",
}
#: Flag in /proc/cpuinfo -> why results may differ from a machine without it.
CPU_FLAGS = {
    "fma": "products are not rounded before they are added",
    "f16c": "fp16 conversion in hardware",
    "avx2": "8 float32 lanes; sums are taken in another order",
    "avx512f": "16 float32 lanes; sums are taken in another order",
    "avx512_vnni": "int8 products without saturation of 16-bit partial sums",
    "avx_vnni": "int8 products without saturation of 16-bit partial sums",
    "avx512_bf16": "bf16 products in hardware, subnormals flushed",
    "avx512_fp16": "fp16 arithmetic in hardware, not widened to fp32",
    "amx_bf16": "bf16 tiles, subnormals flushed",
    "amx_int8": "int8 tiles, 32-bit sums",
    "asimddp": "int8 dot products",
    "fphp": "fp16 arithmetic in hardware, not widened to fp32",
    "bf16": "bf16 products in hardware",
    "i8mm": "int8 matrix products",
}
OLDEST_PYTHON = (3, 11)


@dataclass(frozen=True)
class Package:
    """A library: its version, or None; `broken` says why it cannot be imported."""

    name: str
    purpose: str
    version: str | None
    required: bool
    broken: str = ""


@dataclass(frozen=True)
class TargetState:
    """A target: its summary, and why it cannot run here (None when it can)."""

    name: str
    summary: str
    missing: str | None


@dataclass(frozen=True)
class Examination:
    """What was found; `problems` are what keeps `parity run` from working."""

    python: str
    packages: tuple[Package, ...]
    targets: tuple[TargetState, ...]
    machine: dict[str, Any]
    arithmetic: dict[str, Any]
    storage: dict[str, Any]
    toolchain: tuple[Advice, ...]
    problems: tuple[str, ...] = field(default=())


def examine() -> Examination:
    """Look at everything; takes a second or two, since each library is really imported."""
    packages = (*_packages(REQUIRED, required=True), *_packages(OPTIONAL, required=False))
    storage = _storage()
    return Examination(
        python=f"{platform.python_version()} ({sys.executable})",
        packages=packages,
        targets=targets(),
        machine=_machine(),
        arithmetic={
            name: probe() for name, probe in (("numpy", _numpy_subnormals), ("torch", _torch_subnormals))
        },
        storage=storage,
        toolchain=_toolchain(),
        problems=tuple(_problems(packages, storage)),
    )


def targets() -> tuple[TargetState, ...]:
    """Every target; one that breaks while it is loaded says so and hides no other."""
    return tuple(_target(name, path) for name, path in registry.targets().items())


def _target(name: str, path: str) -> TargetState:
    try:
        target = registry.load(path)()
        return TargetState(name, target.summary, target.missing())
    except Exception as error:
        return TargetState(name, path, f"cannot be loaded: {type(error).__name__}: {error}")


def _toolchain() -> tuple[Advice, ...]:
    """What compiling for real chips needs; no run of another target minds what is missing there."""
    from parity.targets.sophgo.toolchain.advice import advise

    return tuple(advise())


def _packages(table: dict[str, str], *, required: bool) -> Iterator[Package]:
    for name, purpose in table.items():
        try:
            found: str | None = version(name)
        except PackageNotFoundError:
            found = None
        broken = _import_failure(name) if found and required else ""
        yield Package(name, purpose, found, required, broken)


def _import_failure(name: str) -> str:
    try:
        import_module(name)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def _problems(packages: tuple[Package, ...], storage: dict[str, Any]) -> Iterator[str]:
    if sys.version_info < OLDEST_PYTHON:
        yield f"python={platform.python_version()}: parity needs {'.'.join(map(str, OLDEST_PYTHON))} or newer"
    for package in packages:
        if package.required and package.version is None:
            yield f"{package.name}: is not installed ({package.purpose}); pip install {package.name}"
        elif package.broken:
            yield f"{package.name}={package.version}: cannot be imported: {package.broken}"
    if not storage["writable"]:
        yield f"cache={storage['cache']}: cannot be written to; set PARITY_CACHE to a folder that can"


def _machine() -> dict[str, Any]:
    return {
        "system": platform.platform(),
        "processor": _cpuinfo().get("model name") or platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": _threads(),
        "cuda": _cuda(),
        "flags": cpu_flags(),
    }


def cpu_flags() -> dict[str, str] | None:
    """The flags of this processor that change arithmetic, with why; None where /proc/cpuinfo has none."""
    info = _cpuinfo()
    words = set((info.get("flags") or info.get("Features") or "").split())
    return {flag: reason for flag, reason in CPU_FLAGS.items() if flag in words} if words else None


def _cpuinfo() -> dict[str, str]:
    """The first processor's lines."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return {}
    lines = (line.partition(":") for line in text.split("\n\n")[0].splitlines())
    return {key.strip(): value.strip() for key, _, value in lines}


def _threads() -> dict[str, Any]:
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
    found: dict[str, Any] = {name: os.environ[name] for name in names if name in os.environ}
    torch = _torch()
    return {"torch": torch.get_num_threads(), **found} if torch else found


def _cuda() -> str | None:
    torch = _torch()
    return torch.cuda.get_device_name() if torch and torch.cuda.is_available() else None


def _torch() -> Any:
    try:
        return import_module("torch")
    except Exception:  # reported as a problem of the package
        return None


def _numpy_subnormals() -> str:
    import numpy as np

    tiny = np.full(64, np.finfo(np.float32).tiny, np.float32)
    return _kept(bool((tiny * np.float32(0.5) > 0).all()))


def _torch_subnormals() -> str:
    torch = _torch()
    if torch is None:
        return "not known"
    tiny = torch.full((64, 64), torch.finfo(torch.float32).tiny)
    by_element = bool((tiny * 0.5 > 0).all())
    by_product = bool((tiny @ (torch.eye(64) * 0.5) > 0).all())
    return (
        _kept(by_element)
        if by_element == by_product
        else f"{_kept(by_element)}, in products {_kept(by_product)}"
    )


def _kept(kept: bool) -> str:
    return "subnormals kept" if kept else "subnormals flushed to zero"


def _storage() -> dict[str, Any]:
    here = {"here_free": shutil.disk_usage(Path.cwd()).free}
    if _torch() is None:  # the reference's folder is not known without it; that is a problem already
        return {"cache": "not known", "cache_bytes": 0, "cache_free": 0, "writable": True, **here}
    from parity.harness.folders import cache_folder

    cache = cache_folder()
    nearest = next(folder for folder in (cache, *cache.parents) if folder.exists())
    return {
        "cache": str(cache),
        "cache_bytes": sum(file.stat().st_size for file in cache.rglob("*") if file.is_file()),
        "cache_free": shutil.disk_usage(nearest).free,
        "writable": os.access(nearest, os.W_OK),
        **here,
    }
