"""Model x target x scenario through the product's own pytest plugin; later work only adds rows."""

from __future__ import annotations

from pathlib import Path

import pytest

from parity.harness.comparison import Result

#: Model and its weights.
MODELS = {"klm-tiny": {"model": "klm-tiny", "weights": "random:0"}}
#: Candidate -> the share of the reference's values that it must at least have shown. A static build without a
#: mask starts from a prompt that was prefilled on the host, as `prefilled` always does.
TARGETS = {
    "segmented": 1.0,
    "segmented:grow": 1.0,
    "segmented:recompute": 1.0,
    "onnx": 0.15,
    "prefilled": 0.05,
}
#: Scenario -> the steps it is cut to; None keeps its own.
SCENARIOS = {
    "short": 4,
    "one": 4,
    "batch3": 3,
    "batch3-right": 3,
    "reset": 17,
    "exact": 4,
    "full": 4,
    "default": None,
    "wrap": None,
}
#: What a target cannot be asked, and why; everything else must pass.
EXCEPT: dict[tuple[str, str], str] = {}
#: Left out of the fast suite.
SLOW = {"default", "wrap", "reset", "batch3", "batch3-right", "exact", "full"}


def rows() -> list[object]:
    """One row of the table per test."""
    return [
        pytest.param(
            model,
            target,
            scenario,
            id=f"{model}-{target}-{scenario}",
            marks=[
                pytest.mark.parity(
                    cand=[target],
                    scenario=scenario,
                    **MODELS[model],
                    **({} if steps is None else {"steps": steps}),
                ),
                *([pytest.mark.slow] if scenario in SLOW else []),
            ],
        )
        for model in MODELS
        for target in TARGETS
        for scenario, steps in SCENARIOS.items()
        if (target, scenario) not in EXCEPT
    ]


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Exports and noise floors of this session."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def _own_cache(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PARITY_CACHE", str(cache))


@pytest.mark.parametrize(("model", "target", "scenario"), rows())
def test_a_target_is_at_parity(parity_result: Result, model: str, target: str, scenario: str) -> None:
    found = parity_result[target]
    assert found.verdict == "parity"
    assert found.coverage.share >= TARGETS[target]
    assert found.tokens.agreed == found.tokens.compared > 0
    assert Path(parity_result.files["html"]).stat().st_size > 0
