"""The size of a run is told before it starts, and is what the run then takes."""

from __future__ import annotations

import shutil
from collections import namedtuple

import pytest

import parity
from parity.harness import size
from parity.harness.errors import UserError
from parity.harness.trace import Trace


@pytest.mark.parametrize("spec", ["torch", "segmented", "segmented:recompute"])
@pytest.mark.parametrize(
    "scenario", ["wrap", *(pytest.param(name, marks=pytest.mark.slow) for name in ("one", "reset", "batch3"))]
)
def test_the_estimate_is_what_a_run_takes(tmp_path, monkeypatch, spec, scenario):
    told = []
    monkeypatch.setattr("parity.recorder.admit", lambda label, nbytes, *rest: told.append(nbytes))
    ref = None
    case = {"weights": "random:0", "scenario": scenario, "steps": 20}
    if spec != "torch":
        parity.record("torch", out=tmp_path / "ref.h5", **case)
        ref = f"{tmp_path / 'ref.h5'}:torch"
    parity.record(spec, out=tmp_path / "trace.h5", ref=ref, **({} if ref else case))
    found = Trace(tmp_path / "trace.h5").num_bytes
    assert told[-1] == pytest.approx(found, rel=0.08)


def test_a_run_that_does_not_fit_is_refused_before_it_starts(tmp_path, monkeypatch):
    case = {"weights": "random:0", "scenario": "one", "steps": 9}
    with pytest.raises(UserError, match="max_bytes=102400: torch will record about"):
        parity.record("torch", out=tmp_path / "trace.h5", max_bytes="100K", **case)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(1, 1, 1000))
    with pytest.raises(UserError, match="only 1 kB are free"):
        parity.record("torch", out=tmp_path / "trace.h5", **case)
    assert not (tmp_path / "trace.h5").exists()


@pytest.mark.parametrize(
    ("text", "nbytes"), [("1000", 1000), ("4K", 4096), ("2g", 2 << 30), ("3 MiB", 3 << 20)]
)
def test_sizes_are_read(text, nbytes):
    assert size.parse_size("max_bytes", text) == nbytes


@pytest.mark.parametrize("text", ["", "0", "-1", "1.5G", "many"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(UserError, match="is no size"):
        size.parse_size("max_bytes", text)
