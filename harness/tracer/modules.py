"""Records of any nn.Module, by hooks that are gone when the context ends."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from ..errors import UserError, did_you_mean
from .nested import padded
from .state import in_dynamo, local
from .store import say
from .taps import deliver, trace_compiled

if TYPE_CHECKING:
    from torch import nn


@dataclass
class ModuleTaps:
    """What tap_modules() hooked.

    `paths` are the hooked module paths. A module that stands under several paths is recorded under the
    first; `shared` maps that to the others. `calls` counts forward calls by path.
    """

    paths: tuple[str, ...]
    shared: Mapping[str, tuple[str, ...]]
    calls: Counter[str] = field(default_factory=Counter)
    gradients_due: int = 0
    gradients_seen: int = 0


@contextmanager
def tap_modules(
    model: nn.Module,
    *,
    include: str | Sequence[str] = "*",
    exclude: str | Sequence[str] = (),
    inputs: bool = False,
    gradients: bool = False,
) -> Iterator[ModuleTaps]:
    """Record the output of every submodule as `module:<path>` while a recording is on.

    include, exclude: globs on module paths; the model itself has the path "". Tuples, lists and dicts
    are opened (`module:attn.0`, `module:attn.k`), anything but tensors is passed over. inputs=True adds
    `module:<path>:in.<n>`, gradients=True `module:<path>:grad`, the gradient by that output; backward()
    must run inside. A value that trace_tensor records too is one record (see alias.py).

    Footgun: some torch modules (nn.TransformerEncoderLayer in eval mode) leave their fused fast path when
    they carry hooks, so their own outputs can change in the last bits, and nn.TransformerEncoder computes
    padded rows that it else leaves out.

    UserError for compiled modules, which do not see hooks, and for globs that match nothing.
    """
    found = _choose(model, _globs(include), _globs(exclude))
    taps = ModuleTaps(tuple(found), {path: others for path, (_, others) in found.items() if others})
    handles: list[Any] = []
    local.hooked += 1
    try:
        for path, (module, _) in found.items():
            _hook(module, path, taps, handles, inputs=inputs, gradients=gradients)
        with padded(model):
            yield taps
        _report(taps, gradients=gradients)
    finally:
        local.hooked -= 1
        for handle in handles:
            handle.remove()
        if local.recorder is not None:
            local.recorder.flush()


def _globs(given: str | Sequence[str]) -> tuple[str, ...]:
    return (given,) if isinstance(given, str) else tuple(given)


def _choose(
    model: nn.Module, include: tuple[str, ...], exclude: tuple[str, ...]
) -> dict[str, tuple[nn.Module, tuple[str, ...]]]:
    """First path -> module and its other paths, of the modules that are wanted."""
    paths: dict[int, list[str]] = {}
    modules: dict[int, nn.Module] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        _refuse_compiled(path, module)
        modules[id(module)] = module
        paths.setdefault(id(module), []).append(path)
    known = [path for group in paths.values() for path in group]
    for name, globs in (("include", include), ("exclude", exclude)):
        for glob in globs:
            if not any(fnmatchcase(path, glob) for path in known):
                raise UserError(f"{name}={glob!r}: matches no module. {did_you_mean(glob, known)}")
    found = {}
    for key, group in paths.items():
        wanted = [path for path in group if _matches(path, include) and not _matches(path, exclude)]
        if wanted:
            found[wanted[0]] = (modules[key], tuple(path for path in group if path != wanted[0]))
    return found


def _matches(path: str, globs: tuple[str, ...]) -> bool:
    return any(fnmatchcase(path, glob) for glob in globs)


def _refuse_compiled(path: str, module: nn.Module) -> None:
    compiled = type(module).__name__ == "OptimizedModule" or getattr(module, "_compiled_call_impl", None)
    if compiled:
        raise UserError(
            f"model={path or type(module).__name__!r}: is compiled, and compiled code does not see hooks; "
            "tap the module before torch.compile, or use trace_tensor inside it"
        )


def _hook(
    module: nn.Module, path: str, taps: ModuleTaps, handles: list[Any], *, inputs: bool, gradients: bool
) -> None:
    tap = f"module:{path}"

    def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if local.live:
            for suffix, value in [*_tensors(args), *_tensors(kwargs)]:
                _give(f"{tap}:in{suffix}", value)

    def after(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        taps.calls[path] += 1
        if not local.live:
            return
        for suffix, value in _tensors(output):
            _give(tap + suffix, value)
            if gradients:
                _await_gradient(f"{tap}:grad{suffix}", value, taps, handles)

    if inputs:
        handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
    handles.append(module.register_forward_hook(after))


def _give(tap: str, value: Any) -> None:
    if in_dynamo():
        trace_compiled(tap, value, hook=True)
    else:
        deliver(tap, value, hook=True)


def _tensors(value: Any, suffix: str = "") -> Iterator[tuple[str, Any]]:
    """Tensors in nested tuples, lists and dicts, each with its `.0` or `.key` suffix."""
    import torch

    if isinstance(value, torch.Tensor):
        yield suffix, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _tensors(item, f"{suffix}.{key}")
    elif isinstance(value, (tuple, list)):
        for index, item in enumerate(value):
            yield from _tensors(item, f"{suffix}.{index}")


def _await_gradient(tap: str, value: Any, taps: ModuleTaps, handles: list[Any]) -> None:
    """Record the gradient by this output when backward brings it, on whichever thread."""
    recorder, mark = local.recorder, local.mark
    if recorder is None or not value.requires_grad:
        return
    taps.gradients_due += 1

    def arrived(gradient: Any) -> None:
        if recorder.open:
            taps.gradients_seen += 1
            recorder.take(tap, gradient, mark, hook=True)

    handles.append(value.register_hook(arrived))


def _report(taps: ModuleTaps, *, gradients: bool) -> None:
    """Say what a person would otherwise take for a recorded run."""
    if not taps.calls:
        say(f"tap_modules: none of the {len(taps.paths)} hooked modules ran")
    elif gradients and not taps.gradients_due:
        say("tap_modules: gradients=True, but no output required a gradient; running() turns them off")
    elif gradients and not taps.gradients_seen:
        say("tap_modules: no gradient arrived while it was open; call backward() inside it")
