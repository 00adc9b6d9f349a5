"""A module of the user's as ONNX: a clean build, and one whose taps are graph outputs under their own names.

Taps are put there while the exporter traces: hooks on the submodules and `trace_tensor` calls hand over the
live tensors, so a tap is tied to its module path and call whatever names the exporter invents.
"""

from __future__ import annotations

import ast
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from parity.harness.errors import CandidateError, ParityError
from parity.harness.imports import describe
from parity.harness.inputs import arguments
from parity.harness.outputs import named_outputs
from parity.harness.target import Options
from parity.harness.tracer import collecting, tap_modules

from .onnx.export import silenced
from .onnx_scopes import SCOPES


@dataclass
class Returned:
    """What the last call returned. An object of its own, because torch.export puts a module's lists back."""

    outputs: tuple[str, ...] = ()
    taps: tuple[str, ...] = ()

    @property
    def names(self) -> list[str]:
        """All of them."""
        return [*self.outputs, *self.taps]


class Flat(nn.Module):
    """The module with tensors in and tensors out: named inputs by position, outputs first, then taps."""

    def __init__(self, module: nn.Module, inputs: Mapping[str, Any], *, tapped: bool) -> None:
        super().__init__()
        self.module = module
        self.returned = Returned()
        self._tapped = tapped
        self._leaves = [name for name, value in inputs.items() if isinstance(value, Tensor)]
        self._inputs = dict(inputs)
        self.eval()

    @property
    def leaves(self) -> list[str]:
        """Names of the tensors among the inputs."""
        return list(self._leaves)

    def example(self) -> tuple[Tensor, ...]:
        """Copies of the tensors: forward may write to what it is given."""
        return tuple(self._inputs[name].clone() for name in self._leaves)

    def forward(self, *leaves: Tensor) -> tuple[Tensor, ...]:
        """Call the module by name."""
        args, kwargs = arguments(
            self.module, {**self._inputs, **dict(zip(self._leaves, leaves, strict=True))}
        )
        watched: AbstractContextManager[dict[str, Any]] = collecting() if self._tapped else nullcontext({})
        with watched as taps:
            value = self.module(*args, **kwargs)
        outputs = _distinct(named_outputs(value).tensors, leaves)
        self.returned.outputs, self.returned.taps = tuple(outputs), tuple(taps)
        return (*outputs.values(), *taps.values())

    def hooks(self) -> AbstractContextManager[Any]:
        """Hooks on every submodule. Opened around an export, not inside forward: there the exporter hands out
        a proxy per path, and a shared module would be hooked once for each."""
        many = len(list(self.module.modules())) > 1
        return tap_modules(self.module, exclude="") if self._tapped and many else nullcontext()


def _distinct(outputs: Mapping[str, Tensor], inputs: Sequence[Tensor]) -> dict[str, Tensor]:
    """A tensor that is returned twice, or is an input, is copied: a graph output has one name."""
    seen = {id(tensor) for tensor in inputs}
    made: dict[str, Tensor] = {}
    for name, tensor in outputs.items():
        made[name] = tensor.clone() if id(tensor) in seen else tensor
        seen.add(id(tensor))
    return made


@dataclass(frozen=True)
class Builds:
    """Both graphs on disk; `outputs` and `taps` are the tapped one's; `name#1` is a second call."""

    clean: Path
    tapped: Path
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    taps: tuple[str, ...]


def export(module: nn.Module, inputs: Mapping[str, Any], folder: Path, options: Options) -> Builds:
    """Write `clean.onnx` and `tapped.onnx`. CandidateError in the exporter's words where it refuses."""
    flat = Flat(module, inputs, tapped=True)
    clean, tapped = folder / "clean.onnx", folder / "tapped.onnx"
    try:
        with quiet(), unfused(), torch.no_grad():
            if options.exporter == "dynamo":
                _dynamo(flat, clean, tapped, options.opset)
            else:
                _script(Flat(module, inputs, tapped=False), clean, options.opset)
                _script(flat, tapped, options.opset)
    except ParityError:
        raise
    except Exception as error:  # whatever an exporter cannot translate, in its own words
        raise CandidateError(f"onnx: the {options.exporter} exporter failed: {first_line(error)}") from error
    return Builds(clean, tapped, tuple(flat.leaves), flat.returned.outputs, flat.returned.taps)


def _dynamo(flat: Flat, clean: Path, tapped: Path, opset: int | None) -> None:
    """Translate once, cut the taps off a copy, optimise each copy alone, as a clean export would be."""
    with flat.hooks():
        program = torch.export.export(flat, flat.example(), strict=False)
    raw = torch.onnx.export(program, (), dynamo=True, optimize=False, opset_version=opset, verbose=False)
    assert raw is not None
    whole = raw.model
    raw.model = whole.clone()
    del raw.model.graph.outputs[len(flat.returned.outputs) :]
    _finish(raw, flat, clean)
    raw.model = whole
    _finish(raw, flat, tapped)


def _finish(program: Any, flat: Flat, path: Path) -> None:
    """Optimise, give inputs and outputs our names, write. Values that have such a name give way."""
    program.optimize()
    graph = program.model.graph
    wanted = [
        *zip(graph.inputs, flat.leaves, strict=True),
        *zip(graph.outputs, flat.returned.names, strict=False),
    ]
    ours = {name for _, name in wanted}
    held = [value for node in graph for value in node.outputs] + list(graph.initializers.values())
    for value in held:
        if value.name in ours:
            value.name = f"{value.name}__inner"
    for value, name in wanted:
        value.name = name
    for node in graph:
        if SCOPES in node.metadata_props:
            node.metadata_props[SCOPES] = _without_wrapper(node.metadata_props[SCOPES])
    program.save(path)


def _without_wrapper(scopes: str) -> str:
    """Module paths as the user's module has them: `Flat` put one level above."""
    names = [str(name) for name in ast.literal_eval(scopes)]
    return repr([name.removeprefix("module.") for name in names if name != "module"])


def _script(flat: Flat, path: Path, opset: int | None) -> None:
    with flat.hooks():
        example = flat.example()
        flat(*example)
        torch.onnx.export(
            flat,
            example,
            str(path),
            dynamo=False,
            input_names=flat.leaves,
            output_names=flat.returned.names,
            opset_version=opset,
        )


def first_line(error: Exception) -> str:
    """The sentence of an exporter's error that says what is wrong; its reports run over pages."""
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    return describe(cause).strip().splitlines()[0]


@contextmanager
def unfused() -> Iterator[None]:
    """torch's fused transformer layer is one op that no ONNX exporter knows; its parts are exported."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


@contextmanager
def quiet() -> Iterator[None]:
    """Exporters warn about themselves (deprecated internals, torchvision not there); none of it is ours."""
    with silenced(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
