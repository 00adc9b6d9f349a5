"""The device program's loop against the harness's own: the same segments and scenario, the same bits."""

from __future__ import annotations

import importlib.util
import json
import signal
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from parity.harness.case import Case
from parity.harness.dtypes import logical_dtype
from parity.harness.errors import CandidateError, UserError
from parity.harness.progress import Silent
from parity.harness.replay import replay
from parity.harness.segmented import Recorded
from parity.harness.target import Facts
from parity.harness.tracer.memory import MemoryRun
from parity.harness.values import Values
from parity.targets.dumps.core import ReadOptions
from parity.targets.dumps.parity_dump import ParityReader
from parity.targets.onnx.session import assemble, plan_cache
from parity.targets.prefilled import collect
from parity.targets.sophgo.runner import arrays
from parity.targets.sophgo.runner.client import Tensor
from parity.targets.sophgo.runner.device.dump import Dump
from parity.targets.sophgo.runner.device.files import Package
from parity.targets.sophgo.runner.device.live import live_models
from parity.targets.sophgo.runner.device.main import main
from parity.targets.sophgo.runner.device.run import run
from parity.targets.sophgo.runner.device.tensors import Failure, Slot
from parity.targets.sophgo.runner.deviceobject import DeviceObject
from parity.targets.torch_segments import TorchExecutor


def _load(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parent / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


factory = _load("runner_factory")


def host_run(case: Case, *, masked: bool, reference: Values | None = None) -> MemoryRun:
    """What the harness's session over torch segments records, forced to the reference's tokens."""
    rows = plan_cache(case, masked=masked, reference=reference is not None)
    wiring = case.model.masked_wiring if rows.masked else case.model.wiring
    modules = case.model.split(case.state, masked=rows.masked)
    executor = TorchExecutor(modules, wiring, torch.float32)
    session = assemble(case, wiring, executor, rows, Facts("float32", "static"), reference)
    recorded = MemoryRun("host", provenance={"scenario": case.scenario.to_json()})
    replay(session, case.scenario, sink=recorded, progress=Silent(), title="", reference=reference)
    return recorded


def values(case: Case, recorded: MemoryRun) -> Values:
    return Values(recorded, derived={row.cache: row.source for row in case.model.wiring.caches})


def dumped(folder: Path) -> dict[tuple[str, int, int], Any]:
    """(tap, step, call) -> entry, as our reader reads the dump."""
    contents = ParityReader().read(folder, ReadOptions())
    assert contents.facts["complete"]
    return {(entry.tap, entry.step, entry.call): entry for entry in contents.entries}


def assert_same(case: Case, recorded: MemoryRun, found: dict[tuple[str, int, int], Any]) -> None:
    """Every tensor that the loop sees is the harness's, bit for bit, at the same positions."""
    wiring = case.model.wiring
    seen = {"rope", *(row.cache for row in wiring.caches)}
    seen |= {port.value for segment in wiring.segments for port in segment.outputs}
    expected = {
        (tap, record.step, record.call): record
        for tap in recorded.taps
        if tap in seen
        for record in recorded.records(tap)
    }
    assert set(found) == set(expected)
    for key, record in expected.items():
        np.testing.assert_array_equal(found[key].load(), record.read(), err_msg=str(key))
        assert found[key].axes == record.axes
        assert np.array_equal(np.asarray(found[key].positions), np.asarray(record.positions)), key


@pytest.fixture(scope="module")
def wrapped() -> Case:
    """A prompt longer than its window, so that rows fall off while it decodes."""
    return factory.make_case(prompt="The return value is the list.", cache="window(16)", steps=6)


@pytest.fixture(scope="module")
def reference(wrapped: Case) -> Values:
    return values(wrapped, host_run(wrapped, masked=True))


def test_a_masked_build_is_stepped_as_the_harness_steps_it(tmp_path, wrapped, reference):
    package = factory.board_package(tmp_path / "p", wrapped, rows=16, wiring=wrapped.model.masked_wiring)
    run(package, factory.torch_models(wrapped, 16), str(tmp_path / "d"), say=lambda _: None)
    assert_same(wrapped, reference.run, dumped(tmp_path / "d"))


def test_a_live_object_started_from_a_prefilled_cache_gives_the_harness_values(tmp_path, wrapped, reference):
    recorded = host_run(wrapped, masked=False, reference=reference)
    package = factory.board_package(
        tmp_path / "p", wrapped, rows=16, prefilled=collect(wrapped, reference), forced=reference
    )
    board = factory.TorchBoard(wrapped)
    models = live_models(board, package.wiring, package.facts["sizes"])
    run(package, models, str(tmp_path / "d"), say=lambda _: None)
    assert_same(wrapped, recorded, dumped(tmp_path / "d"))
    assert board.calls == wrapped.scenario.steps * len(wrapped.model.wiring.segments)
    fed = ParityReader().read(tmp_path / "d", ReadOptions()).fed
    assert fed is not None
    assert [fed[step].tolist() for step in range(7)] == [reference.tokens(s).tolist() for s in range(7)]


@pytest.mark.parametrize(
    "options",
    [
        {"scenario": "one", "steps": 5, "cache": "window(16)"},
        {"scenario": "reset", "prompt": "abcde", "cache": "window(8)"},
        {"prompt": "ab", "steps": 4, "cache": "full"},
    ],
    ids=["one-token", "resets", "full"],
)
def test_other_scenarios_are_stepped_as_the_harness_steps_them(tmp_path, options):
    case = factory.make_case(**options)
    rows = plan_cache(case, masked=True, reference=False).rows
    package = factory.board_package(tmp_path / "p", case, rows=rows, wiring=case.model.masked_wiring)
    run(package, factory.torch_models(case, rows), str(tmp_path / "d"), say=lambda _: None)
    assert_same(case, host_run(case, masked=True), dumped(tmp_path / "d"))


class Narrow(factory.TorchModel):
    """A segment whose inputs and outputs are bfloat16, as a build without casts at its ends has them."""

    def __init__(self, model: Any) -> None:
        self._whole = model
        self.inputs, self.outputs = (
            [Slot(s.name, s.shape, "bfloat16" if s.format == "float32" else s.format) for s in side]
            for side in (model.inputs, model.outputs)
        )
        self.inner = []

    def forward(self) -> None:
        for own, slot in zip(self.inputs, self._whole.inputs, strict=True):
            raw = np.frombuffer(own.memory, logical_dtype(own.format))
            slot.memory[:] = raw.astype(slot.format).data.cast("B")
        self._whole.forward()
        for own, slot in zip(self.outputs, self._whole.outputs, strict=True):
            rounded = np.frombuffer(slot.memory, np.float32).astype(logical_dtype("bfloat16"))
            own.memory[:] = rounded.view(np.uint8).data


class NarrowExecutor:
    """The same for the harness's loop."""

    def __init__(self, case: Case, models: dict[str, Any]) -> None:
        self._ports = {segment.name: segment for segment in case.model.masked_wiring.segments}
        self._models = models

    def call(self, segment: str, inputs: Any) -> list[Recorded]:
        model = self._models[segment]
        for slot in model.inputs:
            slot.memory[:] = arrays.lowered(Tensor(**slot.facts()), inputs[slot.name])
        model.forward()
        found = []
        for port, slot in zip(self._ports[segment].outputs, model.outputs, strict=True):
            raw = np.frombuffer(slot.memory, logical_dtype(slot.format)).reshape(slot.shape)
            found.append(Recorded(port.value, arrays.real(Tensor(**slot.facts()), raw), port.axes))
        return found

    def close(self) -> None: ...


def test_models_that_take_and_give_bfloat16_are_stepped_alike(tmp_path, wrapped, reference):
    models = {name: Narrow(model) for name, model in factory.torch_models(wrapped, 16).items()}
    rows = plan_cache(wrapped, masked=True, reference=False)
    session = assemble(
        wrapped, wrapped.model.masked_wiring, NarrowExecutor(wrapped, models), rows,
        Facts("bfloat16", "static"), None,
    )  # fmt: skip
    host = MemoryRun("host")
    replay(session, wrapped.scenario, sink=host, progress=Silent(), title="", reference=reference)
    package = factory.board_package(
        tmp_path / "p", wrapped, rows=16, wiring=wrapped.model.masked_wiring, forced=reference
    )
    run(package, models, str(tmp_path / "d"), say=lambda _: None)
    found = dumped(tmp_path / "d")
    assert found["logits", 3, 0].dtype == "bfloat16"
    assert found["layer0.ks", 3, 0].dtype == "float32"
    for (tap, step, call), entry in found.items():
        other = next(item for item in host.records(tap) if (item.step, item.call) == (step, call))
        np.testing.assert_array_equal(entry.load().astype(np.float32), other.read())


def test_what_a_live_object_traces_is_dumped_beside_it(tmp_path, wrapped, reference):
    class Tracing(factory.TorchBoard):
        def trace(self, trace_tensor: Any, executing: Any) -> None:
            self.hooks = trace_tensor, executing

        def call_segment(self, layer: int, *arrays: np.ndarray) -> Any:
            trace_tensor, executing = self.hooks
            with executing(f"seg{layer}"):
                trace_tensor("ks", arrays[3])
            return super().call_segment(layer, *arrays)

    package = factory.board_package(
        tmp_path / "p", wrapped, rows=16, prefilled=collect(wrapped, reference), forced=reference
    )
    models = live_models(Tracing(wrapped), package.wiring, package.facts["sizes"])
    run(package, models, str(tmp_path / "d"), say=lambda _: None)
    entries = list(ParityReader().read(tmp_path / "d", ReadOptions()).entries)
    theirs = [entry for entry in entries if entry.name == "seg_0/seg0.ks"]
    ours = [entry for entry in entries if entry.tap == "layer0.ks"]
    assert len(theirs) == len(ours) == wrapped.scenario.steps
    for one, other in zip(theirs, ours, strict=True):
        np.testing.assert_array_equal(one.load(), other.load())


@pytest.mark.parametrize(
    ("flaw", "sentence"),
    [
        ({"call_segment": lambda self, layer, *arrays: arrays[:2]}, "returned 2 arrays, not 4"),
        ({"call_tail": lambda self, *arrays: np.zeros((1, 1, 7, 1))}, "shape \\[1, 1, 7, 1\\]"),
        ({"call_head": None}, "has no call_head"),
    ],
)
def test_a_live_object_that_answers_wrongly_is_told_so(tmp_path, wrapped, reference, flaw, sentence):
    board = type("Wrong", (factory.TorchBoard,), flaw)(wrapped)
    package = factory.board_package(
        tmp_path / "p", wrapped, rows=16, prefilled=collect(wrapped, reference), forced=reference
    )
    with pytest.raises(Failure, match=sentence):
        run(
            package,
            live_models(board, package.wiring, package.facts["sizes"]),
            str(tmp_path / "d"),
            say=lambda _: None,
        )


def test_rows_that_hold_nothing_are_never_attended_to(tmp_path, wrapped, reference):
    """The original's softmax ran over uninitialised rows: here that is an error before anything runs."""
    with pytest.raises(UserError, match="prefill a prompt of at least 15 tokens"):
        factory.board_package(tmp_path / "p", wrapped, rows=16, forced=reference)
    package = factory.board_package(
        tmp_path / "q", wrapped, rows=16, prefilled=collect(wrapped, reference), forced=reference
    )
    package.facts["prefilled"] = None
    board = factory.TorchBoard(wrapped)
    with pytest.raises(Failure, match="only 1 of the 16 cache rows would be filled"):
        factory.board_loop(package, board).step(5)
    assert board.calls == 0


def test_a_scenario_that_does_not_fit_a_full_cache_says_what_to_do(tmp_path):
    case = factory.make_case(prompt="abcdef", steps=1, cache="full")
    package = factory.board_package(tmp_path / "p", case, rows=4, wiring=case.model.masked_wiring)
    with pytest.raises(Failure, match="position 4 does not fit into the 4 rows"):
        run(package, factory.torch_models(case, 4), str(tmp_path / "d"), say=lambda _: None)
    manifest = json.loads((tmp_path / "d" / "manifest.json").read_text())
    assert manifest["complete"] is False
    assert manifest["steps"] == []


def test_a_second_dump_into_the_same_folder_is_refused(tmp_path, wrapped):
    package = factory.board_package(tmp_path / "p", wrapped, rows=16, wiring=wrapped.model.masked_wiring)
    models = factory.torch_models(wrapped, 16)
    run(package, models, str(tmp_path / "d"), say=lambda _: None)
    before = (tmp_path / "d" / "manifest.json").read_bytes()
    with pytest.raises(Failure, match="is not empty; two dumps in one folder"):
        run(package, models, str(tmp_path / "d"), say=lambda _: None)
    assert (tmp_path / "d" / "manifest.json").read_bytes() == before


def test_calls_are_counted_by_tap_also_where_two_taps_are_one_tensor(tmp_path):
    """A compiler gives values that it finds equal one name: `embed` and `layer0.residual`."""
    dump = Dump(str(tmp_path / "d"), {"chip": "cv181x"})
    dump.begin(0)
    record = {"segment": "seg_head", "tensor": "x", "format": "float32", "shape": [1]}
    for tap in ("embed", "layer0.residual", "embed", None, None):
        dump.add({**record, "tap": tap}, bytes(4))
    dump.end([[5]], [[0]])
    (step,) = json.loads((tmp_path / "d" / "manifest.json").read_text())["steps"]
    assert [(item["tap"], item["call"]) for item in step["records"]] == [
        ("embed", 0), ("layer0.residual", 0), ("embed", 1), (None, 0), (None, 1)
    ]  # fmt: skip


def test_an_interrupted_dump_keeps_its_steps_and_says_that_it_is_not_complete(tmp_path, wrapped):
    package = factory.board_package(tmp_path / "p", wrapped, rows=16, wiring=wrapped.model.masked_wiring)

    def stop(line: str) -> None:
        if line.startswith("step 2"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(package, factory.torch_models(wrapped, 16), str(tmp_path / "d"), say=stop)
    contents = ParityReader().read(tmp_path / "d", ReadOptions())
    assert contents.facts["complete"] is False
    assert {entry.step for entry in contents.entries} == {0, 1, 2}


def test_a_package_is_checked_when_it_is_written(tmp_path, wrapped):
    masked = {"rows": 16, "wiring": wrapped.model.masked_wiring}
    factory.board_package(tmp_path / "p", wrapped, **masked)
    with pytest.raises(UserError, match="is not an empty folder"):
        factory.board_package(tmp_path / "p", wrapped, **masked)
    with pytest.raises(UserError, match="without a mask all 20 rows are attended to; use window\\(20\\)"):
        factory.board_package(tmp_path / "q", wrapped, rows=20)
    batch = factory.make_case(prompt="ab", batch=2, steps=1)
    with pytest.raises(UserError, match="batch=2: a board steps one sequence"):
        factory.board_package(tmp_path / "q", batch, rows=63, wiring=batch.model.masked_wiring)
    assert not (tmp_path / "q").exists()


def test_the_first_token_after_a_prefilled_prompt_must_be_given(tmp_path, wrapped, reference):
    with pytest.raises(UserError, match="nothing on the board predicts the first token"):
        factory.board_package(tmp_path / "p", wrapped, rows=16, prefilled=collect(wrapped, reference))


def test_rotary_rows_that_are_not_shipped_are_missed_by_name(tmp_path, wrapped):
    package = factory.board_package(
        tmp_path / "p", wrapped, rows=16, wiring=wrapped.model.masked_wiring, rope_rows=12
    )
    with pytest.raises(Failure, match=r"positions 0..11 are shipped, but position 12"):
        run(package, factory.torch_models(wrapped, 16), str(tmp_path / "d"), say=lambda _: None)


def test_a_package_reaches_nothing_outside_of_it(tmp_path, wrapped):
    package = factory.board_package(tmp_path / "p", wrapped, rows=16, wiring=wrapped.model.masked_wiring)
    for name in ("../x.npy", "/etc/passwd", "models/../../x"):
        with pytest.raises(Failure, match="lies outside"):
            package.path(name)


def test_the_program_plays_a_live_object_that_its_command_names(tmp_path, wrapped, reference, monkeypatch):
    """As on a board that has the original's extension module: MODULE:CLASS:ARGUMENT."""
    package = factory.board_package(
        tmp_path / "p", wrapped, rows=16, prefilled=collect(wrapped, reference), forced=reference
    )
    made: list[str] = []

    def make(folder: str) -> Any:
        made.append(folder)
        return factory.TorchBoard(wrapped)

    monkeypatch.setitem(sys.modules, "cvi_klm", SimpleNamespace(KLM=make))
    before = signal.getsignal(signal.SIGTERM)
    try:
        arguments = ["run", package.folder, "--out", str(tmp_path / "d"), "--object", "cvi_klm:KLM:/models"]
        assert main(arguments) == 0
        assert main(["run", package.folder, "--out", str(tmp_path / "e")]) == 2
        assert main([*arguments[:-1], "cvi_klm:Nothing"]) == 2
    finally:
        signal.signal(signal.SIGTERM, before)
    assert made == ["/models"]
    assert_same(wrapped, host_run(wrapped, masked=False, reference=reference), dumped(tmp_path / "d"))


def test_a_live_object_is_an_executor_of_the_harness(wrapped, reference):
    rows = plan_cache(wrapped, masked=False, reference=True)
    executor = DeviceObject(
        factory.TorchBoard(wrapped), wrapped.model.wiring, {"B": 1, "T": 1, "W": rows.rows}
    )
    session = assemble(wrapped, wrapped.model.wiring, executor, rows, Facts("float32", "static"), reference)
    found = MemoryRun("object")
    replay(session, wrapped.scenario, sink=found, progress=Silent(), title="", reference=reference)
    expected = host_run(wrapped, masked=False, reference=reference)
    for tap in found.taps:
        for one, other in zip(found.records(tap), expected.records(tap), strict=True):
            np.testing.assert_array_equal(one.read(), other.read())
    with pytest.raises(CandidateError, match="take no mask"):
        DeviceObject(factory.TorchBoard(wrapped), wrapped.model.masked_wiring, {"B": 1, "T": 1, "W": 16})


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda folder: (folder / "rope.npy").write_bytes(b"x"), "rope.npy: is no .npy file"),
        (lambda folder: (folder / "rope.npy").unlink(), "rope.npy: cannot be read"),
        (lambda folder: (folder / "wiring.json").write_text("{"), "wiring.json: is no JSON"),
        (lambda folder: (folder / "package.json").write_text("{}"), "is no board package of version 1"),
        (lambda folder: _without(folder, "steps"), "package.json lacks 'steps'"),
    ],
)
def test_a_damaged_package_is_one_sentence(tmp_path, wrapped, damage, sentence):
    package = factory.board_package(tmp_path / "p", wrapped, rows=16, wiring=wrapped.model.masked_wiring)
    damage(tmp_path / "p")
    with pytest.raises(Failure, match=sentence):
        Package(package.folder)


def _without(folder: Path, key: str) -> None:
    facts = json.loads((folder / "package.json").read_text())
    del facts[key]
    (folder / "package.json").write_text(json.dumps(facts))
