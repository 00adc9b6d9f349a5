"""How a patch of the catalogue is run: a real case, a real target, the path from recording to verdict."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import parity
from parity.harness.comparison import Comparison

Hold = Callable[..., Comparison]

# The catalogue is imported as `mutations`, here and by `parity selftest` alike; ports of `zoo.py` are
# named in that way on the command line too.
sys.path.insert(0, str(Path(__file__).parents[1]))


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory):
    """References, floors and exports, shared by all tests and by the processes that share them out."""
    from mutations.lab import Lab

    base = tmp_path_factory.getbasetemp()
    return Lab((base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "lab")


@pytest.fixture(scope="session")
def shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Floors and exports are shared by the tests of one process, checkpoints are not needed."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def hold(tmp_path: Path, shared_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Hold:
    """`hold("segmented", scenario="short")` -> the comparison of that candidate with the torch reference."""
    monkeypatch.setenv("PARITY_CACHE", str(shared_cache))

    def run(cand: str = "segmented", **options: object) -> Comparison:
        chosen = {"scenario": "short", "weights": "random:0", "steps": 4, **options}
        result = parity.run("torch", [cand], out=tmp_path / cand.replace(":", "-"), report=False, **chosen)
        return next(iter(result))

    return run
