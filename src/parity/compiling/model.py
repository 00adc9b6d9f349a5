"""A model's segments as graphs to compile: from the index where nothing changed, exported where it did."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from parity.harness.case import Case, Model, Scenario, Wiring
from parity.harness.errors import UserError
from parity.harness.progress import Progress, Silent
from parity.targets.sophgo.compile.job import sha256
from parity.targets.sophgo.compile.store import fresh

from ..request import Request
from .exports import ExportIndex, Graph
from .order import Order

if TYPE_CHECKING:
    from parity.targets.sophgo.graphs import ChipGraph

Inputs = Mapping[str, np.ndarray]


@dataclass
class ModelGraphs:
    """The segments of one model. Nothing is exported, and torch not loaded, before something asks for it."""

    order: Order
    work: Path
    progress: Progress
    model: Model = field(init=False)

    def __post_init__(self) -> None:
        from parity.models import find_model

        self.model = find_model(self.order.model_name)
        self._fresh: dict[str, Graph] | None = None

    @cached_property
    def scenario(self) -> Scenario:
        """The activations for int8 come from it; its batch is the graphs'."""
        from parity.fixtures import load_scenario, override

        policy = None if self.order.window is None else f"window({self.order.window})"
        scenario = load_scenario(self.order.scenario_name, self.model)
        return override(scenario, self.model, policy=policy)

    @property
    def rows(self) -> int:
        """Cache rows that a segment is handed."""
        return self.order.window or self.model.window

    @property
    def wiring(self) -> Wiring:
        """Who feeds whom, in the build that was asked for."""
        return self.model.masked_wiring if self.order.masked else self.model.wiring

    @cached_property
    def graphs(self) -> dict[str, Graph]:
        """Name -> digest and names, in execution order."""
        return self.index.read() or self._exported()

    @cached_property
    def index(self) -> ExportIndex:
        """What earlier exports gave."""
        return ExportIndex(self.order, self.model, self.scenario.batch, self.rows, self.work)

    def content(self, name: str) -> bytes:
        """The ONNX file of a segment; exported now, or taken from the cache of exports."""
        found = self.built[name]
        return found.tapped if self.order.tapped else found.clean

    @cached_property
    def built(self) -> dict[str, ChipGraph]:
        """Every segment's graphs."""
        from parity.targets.sophgo.graphs import graphs

        names = {segment.name for segment in self.wiring.segments}
        with self.progress.stage("exporting", 1) as bar:
            made = graphs(
                self.case,
                self.wiring,
                names,
                masked=self.order.masked,
                rows=self.rows,
                cache=self.work / "cache" / "onnx",
            )
            bar.advance()
        return made

    @cached_property
    def case(self) -> Case:
        """Model, weights, scenario."""
        from ..cases import build_case

        request = Request(
            model=self.model.name,
            weights=self.order.weights,
            scenario=self.order.scenario_name,
            cache=None if self.order.window is None else f"window({self.order.window})",
        )
        return build_case(request, progress=self.progress)

    def samples(self) -> dict[str, Sequence[Inputs]]:
        """What each segment is handed over decode steps of the scenario, by the reference's own values.

        UserError where the scenario cannot fill the rows of a build without a mask.
        """
        from parity.targets.onnx.session import plan_cache
        from parity.targets.sophgo.calibrating import segment_inputs
        from parity.targets.torch_segments import TorchExecutor

        from ..recorder import Job, record, reference_values
        from ..stages import trace_file

        rows = plan_cache(self.case, masked=self.order.masked, reference=True)
        if rows.masked != self.order.masked or rows.rows != self.rows:
            raise UserError(
                f"scenario={self.scenario.name!r}: its {self.scenario.prompt_length} tokens do not fill the "
                f"{self.rows} rows of a build without mask; use a longer prompt, or --masked"
            )
        import torch

        from parity.harness.target import parse_spec
        from parity.harness.trace import Trace

        executor = TorchExecutor(
            self.case.model.split(self.case.state, masked=self.order.masked), self.wiring, torch.float32
        )
        with fresh(self.work / "reference", "calibration") as folder:
            trace = trace_file(folder / "reference.h5")
            job = Job(parse_spec("torch"), self.case, Request().options, trace, folder)
            record(job, progress=self.progress)
            reference = reference_values(Trace(trace)["torch"])
            return dict(segment_inputs(self.case, self.wiring, rows, executor, reference))

    def _exported(self) -> dict[str, Graph]:
        graphs = {}
        for name, made in self.built.items():
            data = made.tapped if self.order.tapped else made.clean
            outputs = (*made.outputs, *made.inner) if self.order.tapped else made.outputs
            graphs[name] = Graph(name, sha256(data), len(data), outputs, made.taps)
        self.index.write(graphs, _checkpoint(self.order, self.model))
        return graphs


def _checkpoint(order: Order, model: Model) -> Path | None:
    """The file that the weights came from."""
    if order.weights is None:
        from parity.reference.checkpoints import ensure_checkpoint

        return ensure_checkpoint(model.name, progress=Silent())
    return None if order.weights.startswith("random:") else Path(order.weights).expanduser().resolve()
