"""The pytest plugin: fixture `parity`, marker `parity(...)` with the fixture `parity_result`.

    def test_attention(parity):
        parity.check("layer0.attn", mine(x), theirs(x), atol=1e-5, axes="b h t d")

    @pytest.mark.parity(model="klm-tiny", cand=["onnx"], scenario="wrap")
    def test_onnx_agrees(parity_result):
        assert parity_result["onnx"].coverage.share > 0.9

Loading it costs nothing: arrays, models and reports are imported by the first test that uses them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from parity.harness.comparison import Result
    from parity.harness.metrics import Metrics

MARKER = (
    "parity(ref='torch', cand=[...], **options): run candidates against a reference before the test, with "
    "the options of parity.run; the test fails unless all are at parity, and gets the Result as "
    "`parity_result`"
)


class Parity:
    """What the `parity` fixture gives a test."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._runs = folder, 0

    def check(
        self,
        name: str,
        actual: Any,
        expected: Any,
        *,
        atol: float | None = None,
        rtol: float | None = None,
        axes: str = "",
    ) -> Metrics:
        """Assert that two arrays agree; see `parity.checking.check`."""
        __tracebackhide__ = True
        from .checking import check

        return check(name, actual, expected, atol=atol, rtol=rtol, axes=axes)

    def run(self, ref: str = "torch", cand: str | Sequence[str] = (), **options: Any) -> Result:
        """`parity.run` into the test's temporary folder; asserts that every candidate is at parity."""
        __tracebackhide__ = True
        from .checking import check_result
        from .driver import run

        if not cand:
            raise pytest.UsageError('parity: name the candidates, for example cand=["onnx"]')
        self._runs += 1
        result = run(ref, cand, **{"out": self._folder / f"parity-{self._runs}", **options})
        check_result(result)
        return result


@pytest.fixture
def parity(tmp_path: Path) -> Parity:
    """`check` two arrays, `run` candidates against a reference."""
    return Parity(tmp_path)


@pytest.fixture
def parity_result(request: pytest.FixtureRequest, parity: Parity) -> Result:
    """The result of the run that the test's `parity` marker describes; a failed one fails the test."""
    __tracebackhide__ = True
    from parity.harness.errors import ParityError

    marker = request.node.get_closest_marker("parity")
    if marker is None:
        pytest.fail(f"{request.node.nodeid}: parity_result needs @pytest.mark.parity(cand=[...])", False)
    _check_marker(marker)
    try:
        return parity.run(*marker.args, **marker.kwargs)
    except (ParityError, pytest.UsageError) as error:
        pytest.fail(f"{request.node.nodeid}: {error}", pytrace=False)


def _check_marker(marker: pytest.Mark) -> None:
    """Fail, with a suggestion, where the marker says what `parity.run` does not take."""
    __tracebackhide__ = True
    from parity.harness.errors import did_you_mean

    from .request import Request

    if len(marker.args) > 2:
        pytest.fail("@pytest.mark.parity: takes ref and cand by place, everything else by name", False)
    known = (*Request.__dataclass_fields__, "report", "progress")
    for key in marker.kwargs:
        if key not in known:
            pytest.fail(f"@pytest.mark.parity({key}=...): unknown. {did_you_mean(key, known)}", False)
    for key in ("ref", "cand")[: len(marker.args)]:
        if key in marker.kwargs:
            pytest.fail(f"@pytest.mark.parity({key}=...): is given twice, by place and by name", False)


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker."""
    config.addinivalue_line("markers", MARKER)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A marked test runs its comparison also when it does not ask for the result: nothing passes unseen."""
    for item in items:
        if isinstance(item, pytest.Function) and item.get_closest_marker("parity"):
            item.fixturenames.extend({"parity_result"} - {*item.fixturenames})
