"""Forms that a chip is known to abort on, or to compute wrongly, found in the ONNX graph before compiling.

Each was measured on the compiler and the simulator; tests/toolchain holds every rule to both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import onnx
import onnx.checker

from parity.harness.errors import UserError

from . import forms_converter as converter
from . import forms_cv18xx as cv18xx
from . import forms_products as products
from .chips import CHIPS, MODES, Chip, Mode, chip_named, mode_for
from .finding import Finding
from .forms import Found
from .opset import load
from .view import View

Rule = Callable[[View, Chip, Mode], Iterator[Found]]

#: The first chips of the family: they share one instruction set.
CV18XX = ("cv180x", "cv181x", "cv182x", "cv183x")
EVERY = tuple(CHIPS)

#: Rule -> the chips that it belongs to.
RULES: tuple[tuple[Rule, tuple[str, ...]], ...] = (
    (converter.outputs_of_nothing, EVERY),
    (converter.branches, EVERY),
    (converter.attributes_left_out, EVERY),
    (converter.slopes_from_outside, EVERY),
    (cv18xx.missing_operators, CV18XX),
    (cv18xx.chosen_at_run_time, CV18XX),
    (cv18xx.lone_erf, (*CV18XX, "bm1684")),
    (cv18xx.picked_before_the_end, CV18XX),
    (cv18xx.wrong_floor, CV18XX),
    (cv18xx.fused_rms_norm, (*CV18XX, "bm1684")),
    (cv18xx.wide_gather, CV18XX),
    (cv18xx.large_repeats, CV18XX),
    (cv18xx.empty_program, CV18XX),
    (cv18xx.missing_on_bm1684, ("bm1684",)),
    (products.relu_on_halves, ("bm1684x", "bm1688", "cv186x")),
    (products.residual_twice, ("bm1684x",)),
    (products.lost_relu, (*CV18XX, "bm1684", "bm1684x", "bm1684x2")),
    (products.attention_kernel, ("bm1688", "cv186x")),
)


def lint(
    graph: bytes | onnx.ModelProto, chip: str, mode: str, *, taps: Mapping[str, str] | None = None
) -> list[Finding]:
    """What is known to go wrong with a graph on a chip in a mode, in execution order.

    `taps` maps ONNX values to taps, so that a finding has the name that a person knows.
    """
    row = chip_named(chip)
    rules = (rule for rule, chips in RULES if chip in chips)
    return _linted(graph, taps or {}, row, mode_for(row, mode), rules)


def lint_conversion(graph: bytes | onnx.ModelProto, *, taps: Mapping[str, str]) -> list[Finding]:
    """What is known to go wrong before a chip is asked for."""
    rules = (rule for rule, chips in RULES if chips == EVERY)
    return _linted(graph, taps, CHIPS["bm1684x"], MODES["f32"], rules)


def _linted(
    graph: bytes | onnx.ModelProto, taps: Mapping[str, str], chip: Chip, mode: Mode, rules: Iterable[Rule]
) -> list[Finding]:
    """UserError where a graph cannot be looked through because it is no valid ONNX."""
    model = load(graph) if isinstance(graph, bytes) else graph
    try:
        return _Linter(View(model), dict(taps)).findings(chip, mode, rules)
    except (ValueError, LookupError, TypeError) as error:
        if (wrong := _invalid(model)) is None:
            raise
        raise UserError(f"onnx: is no valid graph ({wrong}); export it again") from error


def _invalid(model: onnx.ModelProto) -> str | None:
    """The first complaint of ONNX's own checker."""
    try:
        onnx.checker.check_model(model)
    except (onnx.checker.ValidationError, ValueError, TypeError) as error:
        return str(error).strip().splitlines()[0]
    return None


@dataclass(frozen=True)
class _Linter:
    view: View
    taps: dict[str, str]

    def findings(self, chip: Chip, mode: Mode, rules: Iterable[Rule]) -> list[Finding]:
        """What those rules find."""
        found = [one for rule in rules for one in rule(self.view, chip, mode)]
        order = {name: at for at, node in enumerate(self.view.nodes) for name in node.output}
        found.sort(key=lambda one: order[one.node.output[0]])
        return [*self._open_sizes(), *self._bare_outputs(), *map(self._named, found)]

    def _named(self, found: Found) -> Finding:
        value = found.node.output[0]
        op = f"{found.node.op_type} {value}"
        return Finding(op, self._tap(value), found.what, found.rewrite, found.severity, value)

    def _tap(self, value: str) -> str | None:
        """The tap on a value, or on the next one that hangs on it alone."""
        for _ in range(3):
            if value in self.taps:
                return self.taps[value]
            readers = self.view.readers.get(value, [])
            if len(readers) != 1:
                return None
            value = readers[0].output[0]
        return None

    def _open_sizes(self) -> Iterator[Finding]:
        what, rewrite = "has open sizes, which the converter refuses", "export with fixed shapes"
        for name in self.view.inputs:
            if self.view.shape(name) is None and name not in self.view.outputs:
                yield Finding(f"input {name}", None, what, rewrite, "abort", name)

    def _bare_outputs(self) -> Iterator[Finding]:
        """Outputs that no operator makes: an input or a weight under its own name."""
        what = "is an input or a constant itself, which the compiler does not hand out"
        for name in self.view.outputs:
            if name not in self.view.producer:
                yield Finding(f"output {name}", self.taps.get(name), what, "leave it away", "abort", name)
