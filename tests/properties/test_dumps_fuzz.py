"""A damaged dump is a sentence: whatever bytes change, nothing else than a UserError comes, in little memory.

A mutation that leaves a valid dump (a flipped bit among the values of a file without checksum) may be read.
"""

from __future__ import annotations

import importlib.util
import io
import json
import tempfile
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from parity.harness.errors import UserError
from parity.harness.trace import Trace
from parity.importing import import_dump
from parity.targets.dumps.detect import detect


def _load(name: str) -> Any:
    path = Path(__file__).parents[1] / "unit" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


samples = _load("dumps_samples")

#: Bytes that reading any of these dumps of a few KB may take, damaged or not.
LITTLE = 40 << 20
ABSURD = [0, 1, 0x7F, 0xFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, (1 << 40) + 1, (1 << 63) - 1, (1 << 64) - 1]
JUNK = st.sampled_from(
    [
        *(None, True, -1, 0, 1 << 40, 1 << 62, 1 << 100, 1.5, float("nan"), "", "x", "\ud800", "a\0b"),
        *("../../etc/passwd", "/etc/passwd", "../dump/manifest.json"),
        *([], {}, [[]], [1 << 40, 1 << 40], ["x"], [[1, 2], [3]]),
    ]
)
Mutation = Callable[[bytes], bytes]


@st.composite
def mutations(draw: st.DrawFn) -> Mutation:
    """Some edits of a file's bytes, at places that are shares of its length."""
    at = st.floats(0, 1, exclude_max=True)
    edits = draw(
        st.lists(
            st.one_of(
                st.tuples(st.just("flip"), at, st.integers(0, 7)),
                st.tuples(st.just("cut"), at, st.just(0)),
                st.tuples(st.just("drop"), at, st.integers(1, 16)),
                st.tuples(st.just("append"), at, st.integers(1, 40)),
                st.tuples(st.just("repeat"), at, st.integers(1, 64)),
                st.tuples(st.just("double"), at, st.just(0)),
                st.tuples(st.just("absurd"), at, st.integers(0, 4 * len(ABSURD) - 1)),
            ),
            min_size=1,
            max_size=4,
        ),
        label="edits",
    )

    def mutate(data: bytes) -> bytes:
        for kind, share, number in edits:
            data = _edited(data, kind, int(share * len(data)), number)
        return data

    return mutate


def _edited(data: bytes, kind: str, at: int, number: int) -> bytes:
    if kind == "flip" and data:
        return data[:at] + bytes([data[at] ^ 1 << number]) + data[at + 1 :]
    if kind == "cut":
        return data[:at]
    if kind == "drop":
        return data[:at] + data[at + number :]
    if kind == "append":
        return data + bytes(range(number))
    if kind == "repeat":
        return data[:at] + data[at : at + number] * 2 + data[at + number :]
    if kind == "double":
        return data + data
    value, width = ABSURD[number // 4], 1 << number % 4
    return data[:at] + (value & (1 << 8 * width) - 1).to_bytes(width, "little") + data[at + width :]


@st.composite
def broken_objects(draw: st.DrawFn) -> Mutation:
    """One value of a JSON file replaced by junk, or left out."""
    path = draw(st.lists(st.integers(0, 1 << 16), min_size=1, max_size=6), label="path")
    drop, junk = draw(st.booleans(), label="drop"), draw(JUNK, label="junk")

    def mutate(data: bytes) -> bytes:
        content = node = json.loads(data)
        parent: Any = {}
        key: Any = None
        for number in path:
            if isinstance(node, (dict, list)) and node:
                keys = list(node) if isinstance(node, dict) else range(len(node))
                parent, key = node, keys[number % len(keys)]
                node = node[key]
        if drop:
            del parent[key]
        else:
            parent[key] = junk
        return json.dumps(content).encode()

    return mutate


@st.composite
def broken_members(draw: st.DrawFn) -> Mutation:
    """One member of a zip mutated, so that the zip around it is whole and its checksum right."""
    number, inner = draw(st.integers(0, 1 << 16), label="member"), draw(mutations())
    deflate = draw(st.booleans(), label="deflate")

    def mutate(data: bytes) -> bytes:
        out = io.BytesIO()
        with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w") as new:
            names = old.namelist()
            for place, name in enumerate(names):
                content = old.read(name)
                content = inner(content) if place == number % len(names) else content
                new.writestr(name, content, zipfile.ZIP_DEFLATED if deflate else zipfile.ZIP_STORED)
        return out.getvalue()

    return mutate


def _refusal(call: Callable[[], object]) -> str:
    """What a person is told; empty when the call went through."""
    try:
        call()
    except UserError as error:
        return str(error)
    return ""


def _told(refusal: str) -> bool:
    return not refusal or 10 < len(refusal) < 2000


def _damaged(folder: Path, kind: str, file: int, mutate: Mutation, suffix: str) -> Path:
    path: Path = samples.SAMPLES[kind](folder)
    files = [item for item in sorted(folder.rglob("*")) if item.is_file() and item.suffix.endswith(suffix)]
    chosen = files[file % len(files)]
    chosen.write_bytes(mutate(chosen.read_bytes()))
    return path


def _check(kind: str, file: int, mutate: Mutation, suffix: str = "") -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = _damaged(Path(folder), kind, file, mutate, suffix)
        tracemalloc.start()
        try:
            assert _told(_refusal(lambda: detect(path)))
            assert _told(_refusal(lambda: samples.values(samples.read(kind, path))))
        finally:
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        assert peak < LITTLE, f"{peak >> 20} MB"


fuzz = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)
numbers = st.integers(0, 1 << 16)


@pytest.mark.slow
@pytest.mark.parametrize("kind", samples.SAMPLES)
@fuzz
@given(number=numbers, mutate=mutations())
def test_any_bytes_may_change(kind: str, number: int, mutate: Mutation) -> None:
    _check(kind, number, mutate)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["parity", "raw"])
@fuzz
@given(mutate=broken_objects())
def test_any_value_of_a_manifest_may_be_junk(kind: str, mutate: Mutation) -> None:
    _check(kind, 0, mutate, ".json")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["parity", "cvi-npz", "soc-npz", "npz"])
@fuzz
@given(number=numbers, mutate=broken_members())
def test_any_array_inside_a_zip_may_be_broken(kind: str, number: int, mutate: Mutation) -> None:
    _check(kind, number, mutate, ".npz")


@pytest.mark.slow
@fuzz
@given(mutate=broken_members())
def test_any_part_of_a_torch_file_may_be_broken(mutate: Mutation) -> None:
    _check("traced", 0, mutate, ".pt")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["parity", "raw"])
@settings(fuzz, max_examples=30)
@given(mutate=broken_objects())
def test_a_broken_manifest_breaks_no_trace(kind: str, mutate: Mutation) -> None:
    """Names, axes, positions and steps that a reader lets pass are checked again where they are recorded."""
    with tempfile.TemporaryDirectory() as folder:
        path, out = _damaged(Path(folder), kind, 0, mutate, ".json"), Path(folder, "t.h5")
        assert _told(_refusal(lambda: import_dump(path, kind=kind, out=out)))
        if out.exists():
            with Trace(out) as trace:
                assert all(run.verify() == [] for run in trace.runs)
