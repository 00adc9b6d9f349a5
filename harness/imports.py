"""What a person names on the command line and has written in Python: `PKG.MOD:ATTR` factories.

The working folder comes first on the import path while their code is imported and called, and the path is
put back afterwards. Whatever goes wrong in there is told in one paragraph that names their file and line.
"""

from __future__ import annotations

import importlib
import os
import pkgutil
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from .errors import UserError, did_you_mean
from .inputs import read_inputs as read_inputs

if TYPE_CHECKING:
    from torch import nn

_OURS = Path(__file__).resolve().parent
_LIBRARIES = tuple(sysconfig.get_paths()[key] for key in ("stdlib", "platstdlib", "purelib", "platlib"))


@contextmanager
def working_folder_first() -> Iterator[None]:
    """The working folder is the first place that imports look into; the path is restored at the end."""
    before = list(sys.path)
    sys.path.insert(0, os.getcwd())
    try:
        yield
    finally:
        sys.path[:] = before


def load_factory(spec: str) -> Callable[..., Any]:
    """The callable that `PKG.MOD:ATTR` names; UserError for what is not there or breaks on import."""
    module_name, attribute = _split(spec)
    with working_folder_first():
        found: Any = _import(spec, module_name)
    for part in attribute.split("."):
        if not hasattr(found, part):
            public = [name for name in vars(found) if not name.startswith("_")]
            raise UserError(f"model={spec!r}: {module_name} has no {part!r}. {did_you_mean(part, public)}")
        found = getattr(found, part)
    if not callable(found):
        raise UserError(
            f"model={spec!r}: is a {type(found).__name__}, but should be a function that returns a module"
        )
    factory: Callable[..., Any] = found
    return factory


def build_module(spec: str, *, seed: int = 0) -> nn.Module:
    """The `nn.Module` that a factory returns, or that `PKG.MOD:ATTR` itself is.

    torch's generator is seeded first and put back afterwards, so random weights are the same in each run.
    """
    import torch

    with working_folder_first(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        factory = load_factory(spec)
        if isinstance(factory, torch.nn.Module):
            return factory
        torch.manual_seed(seed)
        try:
            module = factory()
        except Exception as error:
            raise UserError(f"model={spec!r}: the factory failed: {describe(error)}") from error
    if not isinstance(module, torch.nn.Module):
        raise UserError(
            f"model={spec!r}: returned a {type(module).__name__}, but should return a torch.nn.Module"
        )
    return module


def describe(error: BaseException) -> str:
    """One sentence: the error and the last line of the user's own code that led to it."""
    text = f"{type(error).__name__}: {error}".rstrip(": ")
    if isinstance(error, SyntaxError):
        return f"{text} ({error.filename}:{error.lineno})"
    frames = traceback.extract_tb(error.__traceback__)
    theirs = [frame for frame in frames if _is_theirs(frame.filename)]
    if not theirs:
        return text
    last = theirs[-1]
    return f"{text} ({last.filename}:{last.lineno}, in {last.name}: {last.line})"


def _is_theirs(filename: str) -> bool:
    if filename.startswith("<"):
        return False
    path = Path(filename).resolve()
    return path.parent != _OURS and not str(path).startswith(_LIBRARIES)


def _split(spec: str) -> tuple[str, str]:
    module_name, colon, attribute = spec.partition(":")
    words = [*module_name.split("."), *attribute.split(".")]
    if not colon or not all(word.isidentifier() for word in words):
        raise UserError(
            f"model={spec!r}: is not PKG.MOD:FACTORY; for build() in mypkg/net.py write mypkg.net:build"
        )
    return module_name, attribute


def _import(spec: str, module_name: str) -> ModuleType:
    importlib.invalidate_caches()
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and (module_name == error.name or module_name.startswith(error.name + ".")):
            raise UserError(_not_found(spec, module_name, error.name)) from None
        raise UserError(f"model={spec!r}: importing it failed: {describe(error)}") from error
    except (Exception, SystemExit) as error:
        raise UserError(f"model={spec!r}: importing it failed: {describe(error)}") from error


def _not_found(spec: str, module_name: str, missing: str) -> str:
    parent, _, leaf = missing.rpartition(".")
    path = list(sys.modules[parent].__path__) if parent in sys.modules else [os.getcwd()]
    beside = [item.name for item in pkgutil.iter_modules(path)]
    where = f"in {parent}" if parent else f"in {os.getcwd()} or among the installed packages"
    return f"model={spec!r}: there is no module {missing!r} {where}. {did_you_mean(leaf, beside)}"
