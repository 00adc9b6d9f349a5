"""Segments to ONNX: names, shapes and values, both builds, both exporters, and the cache of builds."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from parity.harness.case import Port, Segment
from parity.harness.errors import CandidateError, UserError
from parity.harness.tracer import trace_tensor
from parity.models.klm import ROWS, KLMConfig, KLMModel, find
from parity.targets.onnx import build as builds
from parity.targets.onnx import export as exporting
from parity.targets.onnx import pins
from parity.targets.onnx.build import Recipe, build
from parity.targets.onnx.export import Exported, Job, export
from parity.targets.onnx.observe import examples, observe

MINI = KLMModel(
    "klm-mini",
    KLMConfig(
        max_length=64,
        effective_length=8,
        vocab_size=40,
        hidden_size=16,
        num_layers=2,
        num_attention_heads=4,
        num_kv_heads=2,
        ffn_hidden_size=24,
    ),
)
EXPORTERS = ("script", "dynamo")


def weights(model: KLMModel) -> dict[str, Tensor]:
    module = model.build()
    model.init_random(module, 0)
    return module.state_dict()


def job(model: KLMModel, name: str, *, masked: bool = False, batch: int = 1, **settings) -> Job:  # type: ignore[no-untyped-def]
    """A segment of a model, ready to be exported."""
    wiring = model.masked_wiring if masked else model.wiring
    segment = next(s for s in wiring.segments if s.name == name)
    module = model.split(weights(model), masked=masked)[name]
    sizes = {"B": batch, "T": 1, "W": model.window}
    inputs = examples(segment.inputs, sizes, vocab_size=model.vocab_size)
    return Job(segment, module, inputs, sizes, observe(module, segment, inputs), **settings)


def toy(module: nn.Module, taps: tuple[str, ...] = (), *, outputs: int = 1, **settings) -> Job:  # type: ignore[no-untyped-def]
    """A module of one input `x` `[2, 3]`."""
    ports = tuple(Port(f"y{i}", f"y{i}", "b d", (2, 3)) for i in range(outputs))
    segment = Segment("toy", (Port("x", "x", "b d", (2, 3)),), ports, taps)
    inputs = examples(segment.inputs, {}, vocab_size=2)
    return Job(segment, module, inputs, {}, observe(module, segment, inputs), **settings)


def run(graph: bytes, inputs: tuple[Tensor, ...]) -> dict[str, np.ndarray]:
    session = onnxruntime.InferenceSession(graph)
    feed = {pin.name: x.numpy() for pin, x in zip(session.get_inputs(), inputs, strict=True)}
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, feed), strict=True))


def canonical(model: onnx.ModelProto) -> list[tuple[object, ...]]:
    """A graph without its names: ops, attributes, weights by content, and who feeds whom."""
    known = {value.name: f"input{at}" for at, value in enumerate(model.graph.input)}
    for tensor in model.graph.initializer:
        content = hashlib.sha256(onnx.numpy_helper.to_array(tensor).tobytes()).hexdigest()
        known[tensor.name] = f"{content} {tensor.data_type} {list(tensor.dims)}"
    lines: list[tuple[object, ...]] = []
    for at, node in enumerate(model.graph.node):
        attributes = sorted((a.name, a.SerializeToString()) for a in node.attribute)
        lines.append((node.op_type, node.domain, attributes, [known.get(name, name) for name in node.input]))
        known |= {name: f"node{at}.{i}" for i, name in enumerate(node.output)}
    lines.append(tuple(known[output.name] for output in model.graph.output))
    return lines


@pytest.mark.parametrize(
    ("exporter", "masked"),
    [
        pytest.param("script", False, id="script"),
        pytest.param("script", True, id="script-masked"),
        pytest.param("dynamo", False, id="dynamo", marks=pytest.mark.slow),
        pytest.param("dynamo", True, id="dynamo-masked"),
    ],
)
def test_ports_and_taps_keep_their_names_order_and_static_shapes(exporter: str, masked: bool) -> None:
    made = export(job(MINI, "seg_0", masked=masked, batch=3, exporter=exporter))
    clean, tapped = map(onnx.load_model_from_string, (made.clean, made.tapped))
    inputs = [
        "residual float32[3, 1, 16]",
        "rotary_pos_emb float32[2, 3, 1, 4]",
        "q float32[3, 4, 1, 4]",
        "ks float32[3, 2, 7, 4]",
        "vs float32[3, 2, 7, 4]",
        *(["mask float32[3, 1, 1, 7]"] if masked else []),
    ]
    outputs = [
        "layer1.residual float32[3, 1, 16]",
        "layer1.q float32[3, 4, 1, 4]",
        "layer1.k float32[3, 2, 1, 4]",
        "layer1.v float32[3, 2, 1, 4]",
    ]
    for model in (clean, tapped):
        assert [str(pin) for pin in pins.inputs(model)] == inputs
    assert [str(pin) for pin in pins.outputs(clean)] == outputs
    shown = [str(pin) for pin in pins.outputs(tapped)]
    assert shown[:4] == outputs
    assert tuple(name.split()[0] for name in shown[4:]) == MINI.wiring.segments[1].taps


@pytest.mark.parametrize(
    ("exporter", "name"),
    [
        ("script", "seg_head"),
        ("script", "seg_0"),
        ("script", "seg_tail"),
        ("dynamo", "seg_0"),
        pytest.param("dynamo", "seg_head", marks=pytest.mark.slow),
        pytest.param("dynamo", "seg_tail", marks=pytest.mark.slow),
    ],
)
def test_both_builds_compute_what_the_torch_segment_computes(exporter: str, name: str) -> None:
    work = job(MINI, name, exporter=exporter)
    made = export(work)
    with torch.no_grad():
        returned = work.module(*work.inputs)
    expected = returned if isinstance(returned, tuple) else (returned,)
    for graph in (made.clean, made.tapped):
        got = run(graph, work.inputs)
        for port, value in zip(work.segment.outputs, expected, strict=True):
            np.testing.assert_allclose(got[port.value], value.numpy(), rtol=1e-5, atol=2e-6)


@pytest.mark.slow
def test_cutting_the_taps_off_gives_the_graph_of_a_separate_clean_export() -> None:
    for name in ("seg_0", "seg_tail"):
        work = job(MINI, name)
        cut = onnx.load_model_from_string(export(work).clean)
        with exporting._quiet():
            alone = torch.onnx.export(
                exporting._ported(work, tapped=False), work.inputs, dynamo=True, verbose=False
            )
        assert alone is not None
        assert canonical(cut) == canonical(alone.model_proto)


class Twins(nn.Module):
    """Taps that are the input, the output, and each other."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        trace_tensor("in", x, axes="b d")
        y = x * 2
        trace_tensor("one", y, axes="b d")
        trace_tensor("two", y, axes="b d")
        return y, y


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_one_tensor_under_several_names_is_an_output_under_each(exporter: str) -> None:
    work = toy(Twins(), outputs=2, exporter=exporter)
    made = export(work)
    got = run(made.tapped, work.inputs)
    x = work.inputs[0].numpy()
    assert list(got) == ["y0", "y1", "in", "one", "two"]
    np.testing.assert_array_equal(got["in"], x)
    for name in ("y0", "y1", "one", "two"):
        np.testing.assert_array_equal(got[name], x * 2)
    assert list(run(made.clean, work.inputs)) == ["y0", "y1"]


class Through(nn.Module):
    """Hands its input on, and names an inner value like the port."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y0 = x + 1
        return x, y0 * 2


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_an_input_handed_through_is_an_output_of_its_own(exporter: str) -> None:
    work = toy(Through(), outputs=2, exporter=exporter)
    got = run(export(work).clean, work.inputs)
    np.testing.assert_array_equal(got["y0"], work.inputs[0].numpy())
    np.testing.assert_array_equal(got["y1"], (work.inputs[0].numpy() + 1) * 2)


class Repeated(nn.Module):
    """One tap hit twice."""

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(2):
            x = x + 1
            trace_tensor("loop", x, axes="b d")
        return x * 1


def test_a_tap_that_is_hit_again_gets_a_number() -> None:
    work = toy(Repeated(), exporter="script")
    assert list(run(export(work).tapped, work.inputs)) == ["y0", "loop", "loop#1"]


class Branching(nn.Module):
    """Control flow that depends on values."""

    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if x.sum() > 0 else x * 3


def test_what_dynamo_cannot_translate_is_the_candidates_failure_in_one_line() -> None:
    with pytest.raises(CandidateError, match="toy: the dynamo exporter failed") as caught:
        export(toy(Branching()))
    assert "\n" not in str(caught.value)


def test_a_branch_that_script_froze_is_noted() -> None:
    assert any(
        "Boolean" in note or "boolean" in note for note in export(toy(Branching(), exporter="script")).notes
    )


def test_no_warning_and_no_chatter_leaks(capfd: pytest.CaptureFixture[str]) -> None:
    for exporter in EXPORTERS:
        export(toy(Twins(), outputs=2, exporter=exporter))
    assert capfd.readouterr() == ("", "")


def test_the_opset_is_what_was_asked_for_or_the_export_fails() -> None:
    made = export(job(MINI, "seg_tail", exporter="script", opset=17))
    assert pins.opset(onnx.load_model_from_string(made.clean)) == 17
    with pytest.raises(CandidateError, match=r"asked for opset 11, the exporter gave .*--exporter script"):
        export(toy(Twins(), outputs=2, opset=11))


def test_what_an_exporter_logs_about_itself_is_not_shown(caplog, capfd) -> None:
    with pytest.raises(CandidateError):
        export(job(MINI, "seg_head", opset=9))
    assert not caplog.records
    assert not "".join(capfd.readouterr())


@pytest.mark.parametrize(
    ("exporter", "opset"), [("dynamo", 3), ("dynamo", 99), ("script", 6), ("script", 24)]
)
def test_an_opset_that_no_exporter_writes_is_refused(exporter: str, opset: int) -> None:
    with pytest.raises(UserError, match=f"opset={opset}: the {exporter} exporter writes 7 to"):
        export(job(MINI, "seg_tail", exporter=exporter, opset=opset))


def test_an_unknown_exporter_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UserError, match=r"exporter='dynmo'.*'dynamo'"):
        export(toy(Twins(), outputs=2, exporter="dynmo"))


def test_a_segment_that_returns_more_than_its_wiring_lists_is_refused() -> None:
    with pytest.raises(UserError, match="returns 2 values, its wiring lists 1"):
        toy(Twins())


class Turned(nn.Module):
    """Returns another shape than its port says."""

    def forward(self, x: Tensor) -> Tensor:
        return x.T * 2


def test_a_shape_that_differs_from_the_port_is_named() -> None:
    with pytest.raises(CandidateError, match=r"output y0 float32\[3, 2\], should be y0 float32\[2, 3\]"):
        export(toy(Turned(), exporter="script"))


def test_example_inputs_are_distinct_objects_and_the_same_every_time() -> None:
    ports = MINI.masked_wiring.segments[1].inputs
    first, second = (examples(ports, {"B": 1, "T": 1, "W": 7}, vocab_size=40) for _ in range(2))
    assert len({id(x) for x in first}) == len(first)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_full_size_segments_have_exactly_the_listed_ports() -> None:
    ports = {s.name: [*s.inputs, *s.outputs] for s in find("klm").wiring.segments}
    sizes = {"B": 1, "T": 1, "W": ROWS["klm"].window}
    shapes = {n: [pins.of_port(p, p.value, sizes).shape for p in own] for n, own in ports.items()}
    wide, keys = (1, 8, 1, 64), (1, 2, 511, 64)
    new = (1, 2, 1, 64)
    middle = [(1, 1, 512), (2, 1, 1, 64), wide, keys, keys, (1, 1, 512), wide, new, new]
    assert shapes["seg_head"] == [(1, 1), (2, 1, 1, 64), (1, 1, 512), wide, new, new]
    assert [shapes[f"seg_{i}"] for i in range(5)] == [middle] * 5
    assert shapes["seg_tail"] == [(1, 1, 512), wide, keys, keys, (1, 1, 512)]


@pytest.mark.slow
@pytest.mark.parametrize("exporter", EXPORTERS)
def test_full_size_segments_export_with_these_ports(exporter: str) -> None:
    model = find("klm")
    for name in ("seg_head", "seg_4", "seg_tail"):
        work = job(model, name, exporter=exporter)
        made = export(work)
        got = run(made.tapped, work.inputs)
        assert list(got) == [*work.outputs, *work.segment.taps]
        with torch.no_grad():
            returned = work.module(*work.inputs)
        first = returned[0] if isinstance(returned, tuple) else returned
        np.testing.assert_allclose(got[work.outputs[0]], first.numpy(), rtol=1e-4, atol=1e-4)


RECIPE = Recipe({"B": 1, "T": 1, "W": 7}, MINI.vocab_size, "script")


def built(folder: Path, *, recipe: Recipe = RECIPE, module: nn.Module | None = None) -> builds.Build:
    segment = MINI.wiring.segments[2]
    return build(module or MINI.split(weights(MINI))["seg_tail"], segment, recipe, folder)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the segments that were really exported."""
    made: list[str] = []

    def watched(work: Job) -> Exported:
        made.append(work.segment.name)
        return export(work)

    monkeypatch.setattr(builds, "export", watched)
    return made


def test_a_second_build_exports_nothing(tmp_path: Path, counted: list[str]) -> None:
    first = built(tmp_path)
    assert built(tmp_path) == first
    assert counted == ["seg_tail"]
    assert first.axes["layer1.attn"] == "b t h d"


def test_other_weights_sizes_exporters_and_code_export_anew(
    tmp_path: Path, counted: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = {built(tmp_path).clean}
    module = MINI.split(weights(MINI))["seg_tail"]
    with torch.no_grad():
        module.final_ln.bias[3] += 1e-3  # type: ignore[union-attr, index, operator]
    seen.add(built(tmp_path, module=module).clean)
    seen.add(built(tmp_path, recipe=Recipe({"B": 1, "T": 1, "W": 6}, 40, "script")).clean)
    seen.add(built(tmp_path, recipe=Recipe({"B": 1, "T": 1, "W": 7}, 40, "script", 17)).clean)
    patched = MINI.split(weights(MINI))["seg_tail"]
    patched.layer_bottom.scale = 0.123  # type: ignore[union-attr, assignment]
    seen.add(built(tmp_path, module=patched).clean)
    assert len(seen) == len(counted) == 5


@pytest.mark.parametrize("damage", ["truncate", "remove", "garble"])
def test_a_damaged_entry_is_built_anew(tmp_path: Path, counted: list[str], damage: str) -> None:
    made = built(tmp_path)
    whole = made.clean.read_bytes()
    if damage == "truncate":
        made.clean.write_bytes(whole[:100])
    elif damage == "remove":
        made.tapped.unlink()
    else:
        (made.clean.parent / "build.json").write_text("{")
    again = built(tmp_path)
    assert len(counted) == 2
    assert again.clean.stat().st_size == len(whole)
    assert sorted(path.name for path in tmp_path.iterdir()) == [made.clean.parent.name]


def test_a_cache_that_cannot_be_written_is_the_users_to_mend(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"workdir=.*cannot be written"):
        built(tmp_path / "file" / "cache")
