"""From a request to a case: model, weights, scenario."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from typing import Any

from parity.harness.case import Case, ModuleCase, Scenario
from parity.harness.errors import UserError
from parity.harness.progress import Progress
from parity.harness.target import Spec

from .request import Request


def build_case(request: Request, *, progress: Progress) -> Case:
    """The case of one of our models; trains its checkpoint on the spot if the cache has none."""
    from parity.fixtures import load_scenario, override
    from parity.models import find_model
    from parity.reference.checkpoints import load_weights

    model = find_model(request.model)
    scenario = override(
        load_scenario(request.scenario, model),
        model,
        steps=request.steps,
        batch=request.batch,
        prompt=request.prompt,
        policy=request.cache,
        seed=request.seed,
    )
    state, digest, label = load_weights(request.weights, model, progress=progress)
    return Case(model, state, digest, scenario, weights_label=label)


def build_module_case(request: Request) -> ModuleCase:
    """The case of a module of the user's: its factory and the arrays it is called with."""
    from parity.harness.imports import load_factory, read_inputs
    from parity.reference.checkpoints import digest_of

    if request.inputs is None:
        raise UserError(
            f"model={request.model!r}: a module of your own needs --inputs FILE.npz, one array per argument of forward"
        )
    module = load_factory(request.model)()
    inputs = read_inputs(request.inputs, module)
    return ModuleCase(request.model, module, inputs, digest_of(module.state_dict()))


def scenario_digest(scenario: Scenario) -> str:
    """Same exactly for the same inputs and protocol; names and texts do not count."""
    data = {key: value for key, value in scenario.to_json().items() if key not in ("name", "texts")}
    return _digest(data)


def case_provenance(case: Case | ModuleCase) -> dict[str, Any]:
    """What a run says of its case."""
    if isinstance(case, ModuleCase):
        return {"model": case.spec, "weights": case.weights, "scenario_digest": inputs_digest(case), "policy": "none"}
    scenario = case.scenario
    return {
        "model": case.model.name,
        "config": asdict(case.model.config),
        "weights": case.weights,
        "weights_from": case.weights_label,
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
        array = np.ascontiguousarray(case.inputs[name])
        hasher.update(f"{name}:{array.dtype}:{array.shape}:".encode())
        hasher.update(array.tobytes())
    return hasher.hexdigest()


def label_of(spec: Spec, taken: set[str]) -> str:
    """The name of a run: the label, made unique among the runs of one file."""
    label, number = spec.label, 2
    while label in taken:
        label, number = f"{spec.label}-{number}", number + 1
    return label


def _digest(data: Any) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()
