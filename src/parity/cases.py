"""From a request to a case: model, weights, scenario."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from parity.harness.case import Case, ModuleCase, Scenario
from parity.harness.progress import Progress

from .request import DEFAULT_MODEL, DEFAULT_SCENARIO, GRAPH, Request

if TYPE_CHECKING:
    from parity.harness.module_roles import ModuleOps
    from parity.harness.trace import Run


def build_case(request: Request, *, progress: Progress, like: Run | None = None) -> Case:
    """The case of one of our models; trains its checkpoint on the spot if the cache has none.

    What the request leaves open is taken from the stored run `like`, so that a candidate is executed on the
    case that its reference was recorded on; without one, from the defaults.
    """
    from parity.fixtures import load_scenario, override
    from parity.models import find_model
    from parity.reference.checkpoints import load_weights

    recorded: Mapping[str, Any] = (
        like.provenance if like is not None and "scenario" in like.provenance else {}
    )
    model = find_model(request.model or recorded.get("model") or DEFAULT_MODEL)
    if request.scenario is None and recorded:
        scenario = Scenario.from_json(recorded["scenario"])
    else:
        scenario = load_scenario(request.scenario or DEFAULT_SCENARIO, model)
    scenario = override(
        scenario,
        model,
        steps=request.steps,
        batch=request.batch,
        prompt=request.prompt,
        policy=request.cache,
        seed=request.seed,
        chunks=request.chunks,
    )
    weights = request.weights or recorded.get("weights_spec")
    state, digest, label = load_weights(weights, model, progress=progress)
    return Case(model, state, digest, scenario, weights_label=label, weights_spec=weights)


def build_module_case(request: Request) -> ModuleCase:
    """The case of a module of the user's: its factory and the arrays it is called with."""
    assert request.model is not None
    from parity.harness.imports import build_module, read_inputs
    from parity.reference.checkpoints import digest_of

    assert request.inputs is not None
    if request.model.endswith(GRAPH):
        from parity.targets.onnx.graph_model import OnnxGraph

        graph = OnnxGraph(request.model)
        inputs = graph.read_inputs(request.inputs)
        return ModuleCase(request.model, graph, inputs, graph.digest, executable=False)
    module = build_module(request.model, seed=request.seed or 0)
    inputs = read_inputs(request.inputs, module)
    return ModuleCase(request.model, module, inputs, digest_of(module.state_dict()))


def weights_of(case: Case | ModuleCase | None, reference: Run) -> Mapping[str, Any] | ModuleOps | None:
    """The weights that the reference was recorded with, by state key; None where the case has others.

    Of a user's module also what its ops are, which is found out when it is asked for.
    """
    if case is None or case.weights != reference.provenance.get("weights"):
        return None
    if isinstance(case, Case):
        return case.state
    from parity.harness.module_roles import ModuleOps

    return ModuleOps(case.module, case.inputs) if case.executable else None


def scenario_digest(scenario: Scenario) -> str:
    """Same exactly for the same inputs and protocol; names and texts do not count."""
    data = {key: value for key, value in scenario.to_json().items() if key not in ("name", "texts")}
    return _digest(data)


def case_provenance(case: Case | ModuleCase) -> dict[str, Any]:
    """What a run says of its case."""
    if isinstance(case, ModuleCase):
        return {
            "model": case.spec,
            "weights": case.weights,
            "scenario_digest": inputs_digest(case),
            "policy": "none",
        }
    scenario = case.scenario
    return {
        "model": case.model.name,
        "config": asdict(case.model.config),
        "weights": case.weights,
        "weights_from": case.weights_label,
        "weights_spec": case.weights_spec,
        "scenario": scenario.to_json(),
        "scenario_digest": scenario_digest(scenario),
        "policy": str(scenario.policy),
        "seed": scenario.seed,
        "wiring": case.model.wiring.to_json(),
        "roles": [asdict(role) for role in case.model.roles],
        "characters": True,
    }


def inputs_digest(case: ModuleCase) -> str:
    """Digest of names, dtypes, shapes and bytes of a module's inputs."""
    import numpy as np

    hasher = hashlib.sha256()
    for name in sorted(case.inputs):
        value = case.inputs[name]
        if isinstance(value, np.ndarray):
            hasher.update(f"{name}:{value.dtype}:{value.shape}:".encode())
            hasher.update(np.ascontiguousarray(value).tobytes())
        else:
            hasher.update(f"{name}:{value!r}:".encode())
    return hasher.hexdigest()


def _digest(data: Any) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()
