"""A mistake planted into the segments is read off the report, `parity explain` and the Python call."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

import parity
from parity.cli import cli
from parity.models.klm import segments

SENTENCE = "candidate = reference with interleaved RoPE, base 1e4 (residual 0; next best 0."


def interleaved(self, x, rope):
    """Channels 2i and 2i + 1 turn together, by the angles that halves would turn by."""
    cos, sin = (plane[:, None, :, : x.shape[-1] // 2] for plane in rope)
    even, odd = x[..., ::2], x[..., 1::2]
    return torch.stack((even * cos - odd * sin, odd * cos + even * sin), -1).flatten(-2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A finished run whose candidate rotates wrongly."""
    patch = pytest.MonkeyPatch()
    patch.setattr(segments.LayerHead, "_rotated", interleaved)
    patch.setenv("PARITY_CACHE", str(tmp_path_factory.mktemp("cache")))
    out = tmp_path_factory.mktemp("runs") / "out"
    case = {"scenario": "short", "weights": "random:0", "steps": 2, "tol": "fp32"}
    result = parity.run("torch", ["segmented"], out=out, **case)
    patch.undo()
    return out, result["segmented"]


def printed(*arguments) -> str:
    done = CliRunner().invoke(cli, ["explain", *map(str, arguments)])
    assert done.exit_code == 0, done.output
    return done.stdout


def test_a_run_says_what_was_done_differently(folder):
    _, found = folder
    assert [cause.tap for cause in found.explain()] == [culprit.tap for culprit in found.culprits]
    assert found.causes[0].evidence.startswith(SENTENCE)
    assert found.causes[0].residual < 1e-5
    assert found.causes[0].next_best > 0.2


def test_a_finished_run_is_explained_from_its_folder(folder):
    out, found = folder
    assert SENTENCE in printed(out)
    (again,) = parity.explain(out)
    assert tuple(item.cause.name for item in again.explanations) == tuple(c.name for c in found.causes)


def test_stored_traces_are_explained_with_the_weights_of_their_case(folder):
    trace = folder[0] / "trace.h5"
    for sources in ([trace], [f"{trace}:torch", f"{trace}:segmented"]):
        (found,) = json.loads(printed(*sources, "--tap", "layer1.q", "--json"))
        (only,) = found["explanations"]
        assert found["notes"] == []
        assert only["cause"]["evidence"].startswith(SENTENCE)
        assert only["kinds"] == ["the other partners"]


def test_a_glob_without_culprits_says_which_there_are(folder):
    with pytest.raises(parity.UserError, match=r"tap='layer0.p': matches no culprit.*layer0\.q"):
        parity.explain(folder[0], tap="layer0.p")


@pytest.mark.parametrize(
    ("sources", "told"),
    [
        (["nowhere"], "holds no report.json"),
        (["nowhere.h5"], "no such file"),
        (["one", "two"], "is no trace"),
        (["a.h5", "b.h5", "c.h5"], "give the folder of a run"),
    ],
)
def test_what_cannot_be_explained_is_said(sources, told, tmp_path: Path):
    with pytest.raises(parity.UserError, match=told):
        parity.explain(*(tmp_path / source for source in sources))
