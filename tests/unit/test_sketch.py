"""Sketches instead of tensors: small, true to errors and permutations, looked at again where they depart."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
import torch

import parity
from parity.harness.errors import InconclusiveError, UserError
from parity.harness.sketch import Sketching, parse_capture, sketch
from parity.models.klm import segments
from parity.recorder import reference_values

HOW = Sketching(64)
CASE = {"weights": "random:0", "scenario": "short", "steps": 4}


def rows(size=256, count=200):
    return np.random.default_rng(0).standard_normal((count, size)).astype(np.float32)


def distance(one, two):
    a, b = (sketch(x, "", HOW)[0][:, : HOW.size].astype(np.float64) for x in (one, two))
    return np.sqrt(((a - b) ** 2).sum() / (b**2).sum())


@pytest.mark.parametrize("size", [1e-5, 1e-3, 0.1])
def test_a_sketch_tells_the_relative_error(size):
    x = rows()
    y = x + size * np.random.default_rng(1).standard_normal(x.shape).astype(np.float32)
    true = np.sqrt(((y - x) ** 2).sum() / (x**2).sum())
    assert distance(y, x) == pytest.approx(true, rel=0.05)


def test_a_sketch_sees_a_rotation_that_no_norm_sees():
    x = rows()
    y = np.roll(x, 1, axis=1)
    assert np.abs(y).max() == np.abs(x).max()
    assert distance(y, x) == pytest.approx(np.sqrt(2.0), rel=0.05)


def test_sketches_of_shards_add_up():
    x = rows()
    left, right = x.copy(), x.copy()
    left[:, 128:], right[:, :128] = 0.0, 0.0
    parts = sum(sketch(part, "", HOW)[0][:, : HOW.size] for part in (left, right))
    assert np.allclose(parts, sketch(x, "", HOW)[0][:, : HOW.size], atol=1e-5)


def test_sketches_have_the_size_of_what_they_stand_for():
    x = rows(count=500) * 7.0
    made = sketch(x, "", HOW)[0][:, : HOW.size]
    assert np.sqrt((made**2).mean()) == pytest.approx(np.sqrt((x**2).mean()), rel=0.05)


def test_the_signs_are_the_same_in_every_process_and_depend_on_the_seed():
    x = np.ones((1, 100), np.float32)
    made = sketch(x, "", Sketching(8, seed=3))[0][0, :4]
    signs = np.random.Generator(np.random.Philox(key=[3, 100])).integers(0, 2, (100, 8)) * 2 - 1
    assert np.allclose(made, signs.sum(axis=0)[:4] / 10.0)
    assert not np.allclose(made, sketch(x, "", Sketching(8, seed=4))[0][0, :4])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_moves_its_row_far_and_equal_ones_cancel(value):
    x, y = rows(), rows()
    y[5, 3] = value
    one, two = sketch(x, "", HOW)[0], sketch(y, "", HOW)[0]
    assert np.isfinite(two).all()
    assert np.abs(one[5] - two[5]).max() > 1.0
    assert np.array_equal(np.delete(one, 5, 0), np.delete(two, 5, 0))
    assert two[5, -1] == pytest.approx(1 / 256)
    assert np.array_equal(two, sketch(y.copy(), "", HOW)[0])
    y[5, 3] = -value
    if not np.isnan(value):
        assert np.abs(sketch(y, "", HOW)[0][5] - two[5]).max() > 1.0


def test_heads_are_part_of_their_token():
    made, axes = sketch(rows(64, 2 * 4 * 10).reshape(2, 4, 10, 64), "b h t d", HOW)
    assert made.shape == (2, 10, HOW.numbers)
    assert axes == "b t s"


def test_what_is_exact_or_small_already_is_not_sketched():
    assert sketch(np.arange(400).reshape(2, 200), "b t", HOW) is None
    assert sketch(rows(60), "", HOW) is None
    assert sketch(rows() > 0, "", HOW) is None
    assert sketch(rows().astype(ml_dtypes.bfloat16), "", HOW) is not None


@pytest.mark.parametrize("text", ["sketches", "sketch:", "sketch:1", "sketch:100000", "none", ""])
def test_an_unknown_level_is_refused(text):
    with pytest.raises(UserError, match=r"capture="):
        parse_capture(text)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sketch")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PARITY_CACHE", str(folder / "cache"))
        for level in ("full", "sketch"):
            parity.run("torch", ["segmented"], out=folder / level, capture=level, report=False, **CASE)
        yield folder


def test_a_healthy_run_is_at_parity_and_takes_less_room(runs, tmp_path):
    found = parity.run("torch", ["segmented"], out=tmp_path / "out", capture="sketch:16", **CASE)["segmented"]
    assert found.verdict == "parity"
    assert found.coverage.share > 0.9
    assert all(row.local is None for row in found.records if not row.tap.endswith("s"))
    full, small = (parity.Trace(path / "trace.h5").num_bytes for path in (runs / "full", tmp_path / "out"))
    assert small < 0.5 * full


def interleaved(self, x, rope):
    cos, sin = (part.unsqueeze(1) for part in rope)
    left, right = x[..., ::2], x[..., 1::2]
    half = x.shape[-1] // 2
    turned = (
        left * cos[..., :half] - right * sin[..., :half],
        right * cos[..., :half] + left * sin[..., :half],
    )
    return torch.stack(turned, -1).reshape(x.shape)


def test_a_departure_is_looked_at_again_in_full(runs, tmp_path, monkeypatch):
    monkeypatch.setattr(segments.LayerHead, "_rotated", interleaved)
    found = parity.run("torch", ["segmented"], out=tmp_path / "out", capture="sketch", **CASE)["segmented"]
    assert found.verdict == "divergence"
    assert (found.first.tap, found.first.step) == ("layer0.q", 0)
    row = next(row for row in found.records if row.tap == "layer0.q" and row.step == 0)
    assert row.axes == "b h t d"
    assert row.metrics is not None
    later = next(row for row in found.records if row.tap == "layer3.q" and row.step == 2)
    assert later.axes == "b t s"
    assert any("executed again and compared in full" in finding.text for finding in found.findings)


def test_sketches_and_full_tensors_compare_with_each_other(runs):
    for one, two in (("full", "sketch"), ("sketch", "full")):
        found = parity.compare_traces(
            runs / one / "trace.h5", runs / two / "trace.h5", ref_run="torch", cand_run="segmented"
        )
        assert found.verdict == "parity", found.first
        assert found.coverage.share > 0.9


def test_sketches_of_other_sizes_are_refused(runs, tmp_path):
    parity.record("torch", out=tmp_path / "other.h5", capture="sketch:16", **CASE)
    with pytest.raises(UserError, match="holds sketches of 32 numbers"):
        parity.compare_traces(runs / "sketch/trace.h5", tmp_path / "other.h5", ref_run="torch")


def test_nothing_can_be_fed_with_sketches(runs):
    values = reference_values(parity.Trace(runs / "sketch/trace.h5")["torch"])
    with pytest.raises(InconclusiveError, match="holds sketches"):
        values.like("layer0.residual", 0, np.zeros((1, 1), np.int64), np.zeros((1, 1, 128), np.float32))
