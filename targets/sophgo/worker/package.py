"""The toolchain's Python modules, importable without the package's own start-up and without torch.

The package's `__init__` asks for modules that a lean environment has not, and its converter names torch in
one line that only custom operators reach. An empty package object takes the place of the former; modules
that nobody installed become dummies, found last, so that a real one always wins.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

#: Named by the toolchain's modules, used on none of our ways through them.
STAND_INS = (
    "PIL",
    "cv2",
    "graphviz",
    "onnxruntime_extensions",
    "pandas",
    "plotly",
    "psutil",
    "pycocotools",
    "skimage",
    "sklearn",
    "torch",
    "torchvision",
    "transformers",
)


def install(root: str) -> None:
    """Put the modules under `root`, the package's folder, on the import path of this process."""
    bare = ModuleType("tpu_mlir")
    bare.__path__ = [root]
    sys.modules["tpu_mlir"] = bare
    folders = ("python", "", os.path.join("customlayer", "python"))
    here = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    sys.path[:] = [path for path in sys.path if path not in ("", os.getcwd(), here)]
    sys.path[:0] = [os.path.join(root, folder) for folder in folders]
    sys.meta_path.append(_StandIns())


class _Kind(type):
    """Lets a class have every attribute."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Anything


class _Anything(metaclass=_Kind):
    """Is made from anything, can be subclassed, has every attribute, and hands a decorated function back."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Takes anything."""

    def __getattr__(self, name: str) -> Any:
        return getattr(type(self), name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return args[0] if args else self


class _StandIn(ModuleType):
    __file__ = "stand-in"

    def __getattr__(self, name: str) -> Any:
        return getattr(_Anything, name)


class _StandIns(MetaPathFinder, Loader):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname.partition(".")[0] not in STAND_INS:
            return None
        return ModuleSpec(fullname, self, is_package=True)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = _StandIn(spec.name)
        module.__path__ = []
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Nothing to execute."""
