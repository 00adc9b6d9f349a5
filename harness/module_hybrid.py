"""Modules put together from two that have the same tree: each part's own code and weights from one of them.

A part is a path of `named_modules` whose children have the same names on both sides; below a part whose
children differ nothing is exchanged alone. The empty path is called `(root)`.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator, Mapping

from torch import nn

ROOT = "(root)"


def parts(reference: nn.Module, candidate: nn.Module, path: str = "") -> Iterator[str]:
    """Paths whose own code can be exchanged, outer ones first; containers have no code of their own."""
    if not _container(reference) or not _container(candidate):
        yield path or ROOT
    if matching(reference, candidate):
        for name, child in _children(reference).items():
            yield from parts(child, _children(candidate)[name], f"{path}.{name}".lstrip("."))


def matching(reference: nn.Module, candidate: nn.Module) -> bool:
    """Whether the children of both have the same names, so that each can be exchanged alone."""
    return list(_children(reference)) == list(_children(candidate))


def hybrid(reference: nn.Module, candidate: nn.Module, taken: Collection[str], path: str = "") -> nn.Module:
    """A module whose parts in `taken` are the candidate's and all others the reference's.

    Parameters, buffers and code are shared with the originals, which stay as they are.
    """
    chosen = candidate if (path or ROOT) in taken else reference
    made = copy.copy(chosen)
    if not matching(reference, candidate):
        return made
    theirs = _children(candidate)
    made.__dict__["_modules"] = {
        name: hybrid(child, theirs[name], taken, f"{path}.{name}".lstrip("."))
        for name, child in _children(reference).items()
    }
    return made


def _children(module: nn.Module) -> Mapping[str, nn.Module]:
    """As they are called, a child that has two names under both."""
    return {name: child for name, child in module._modules.items() if child is not None}


def _container(module: nn.Module) -> bool:
    """Whether a module is only a list or a table of others, which is never called itself."""
    return type(module) in (nn.ModuleList, nn.ModuleDict)
