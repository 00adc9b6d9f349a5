"""Weights by content: every way in which they go wrong has a name, and a right conversion raises no alarm."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

import parity
from parity.cli import main
from parity.harness.errors import UserError
from parity.harness.weights import Report, match
from parity.targets.weight_files import of_state, weights_of

State = dict[str, torch.Tensor]
NAMES = ("emb", "q", "k", "v", "o", "up", "down", "norm", "bias")


def reference() -> State:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    shapes = [(40, 16), (16, 16), (8, 16), (8, 16), (16, 16), (32, 16), (16, 32), (16,), (32,)]
    return {name: draw(*shape) for name, shape in zip(NAMES, shapes, strict=True)}


def held(candidate: State, trusted: State | None = None) -> Report:
    return match(of_state(candidate), {k: v.float().numpy() for k, v in (trusted or reference()).items()})


def only(report: Report, name: str) -> tuple[str, str]:
    """The one row that is not healthy: its kind and detail."""
    odd = [row for row in report.rows if row.relation.level != "ok"]
    assert [row.candidate for row in odd] == [name]
    return odd[0].relation.kind, odd[0].relation.detail


def test_the_same_weights_are_at_parity_under_any_names():
    assert held(reference()).exit_code == 0
    renamed = held({f"x{at}": value for at, value in enumerate(reference().values())})
    assert (renamed.exit_code, renamed.matched, renamed.missing) == (0, len(NAMES), ())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_rounded_cast_is_healthy_and_a_cut_off_one_is_named(dtype):
    state = reference()
    assert held({name: value.to(dtype) for name, value in state.items()}).exit_code == 0
    if dtype == torch.bfloat16:
        cut = (state["q"].view(torch.int32) & -65536).view(torch.float32).to(dtype)
        kind, detail = only(held({**{n: v.to(dtype) for n, v in state.items()}, "q": cut}), "q")
        assert kind == "truncated"
        assert "instead of rounded" in detail


def half_to_interleaved(rows: torch.Tensor, width: int) -> torch.Tensor:
    return rows.view(-1, 2, width // 2, rows.shape[1]).transpose(1, 2).reshape(rows.shape)


def quantized_by_hand(value: torch.Tensor, scale: float) -> tuple[torch.Tensor, torch.Tensor]:
    codes = (value / scale).round().clamp(-128, 127).to(torch.int8)
    return codes, torch.tensor([scale])


FAULTS: dict[str, tuple[Callable[[torch.Tensor], torch.Tensor], str, str]] = {
    "transposed": (lambda w: w.T.contiguous(), "transposed", "as no other is"),
    "interleaved": (lambda w: half_to_interleaved(w, 8), "permuted", "half to interleaved per head of 8"),
    "rolled": (lambda w: w.roll(-3, 0), "permuted", "rows rolled by 3"),
    "reversed": (lambda w: w.flip(0), "permuted", "rows reversed"),
    "heads": (lambda w: w.view(4, 4, 16)[[1, 0, 3, 2]].reshape(16, 16), "permuted", "blocks of 4 rows in"),
    "columns": (lambda w: w[:, torch.arange(16).roll(5)], "permuted", "columns rolled by -5"),
    "two-rows": (lambda w: w[[0, 9, *range(2, 9), 1, *range(10, 16)]], "permuted", "rows 1 and 9 exchanged"),
    "scaled": (lambda w: w * 0.25, "scaled", "by 0.25"),
    "one-row": (lambda w: w * (1 + 0.1 * (torch.arange(16) == 7))[:, None], "scaled", "row 7 by 1.1"),
    "scale-axis": (lambda w: w * torch.linspace(0.5, 2, 16), "scaled", "each column by a factor of its own"),
    "sign": (lambda w: -w, "sign flipped", "other sign"),
    "one-value": (lambda w: w + (torch.arange(256).view(16, 16) == 40), "differs", "1 of 256 values"),
    "nan": (lambda w: w / (torch.arange(256).view(16, 16) != 40), "nonfinite", "1 values"),
    "other": (lambda w: torch.linspace(-3, 3, 256).view(16, 16), "differs", "only name and shape agree"),
    "shape": (lambda w: w[:, :12].contiguous(), "shape", "[16, 12], should be [16, 16]"),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_in_one_weight_has_its_name_and_no_other_weight_is_accused(name):
    change, kind, words = FAULTS[name]
    state = reference()
    report = held({**state, "q": change(state["q"])})
    if name == "shape":
        assert [(row.candidate, row.relation.kind) for row in report.faults] == []
        assert next(row for row in report.rows if row.candidate == "q").relation.kind == "part"
        return
    found = only(report, "q")
    assert found[0] == kind
    assert words in found[1]
    assert report.exit_code == 1


def test_two_weights_under_each_other_s_names_are_swapped():
    state = reference()
    report = held({**state, "k": state["v"], "v": state["k"]})
    assert [(r.candidate, r.relation.kind, r.relation.detail) for r in report.faults] == [
        ("k", "swapped", "with v"), ("v", "swapped", "with k"),
    ]  # fmt: skip


def test_a_weight_in_the_place_of_another_is_named_and_the_other_is_missing():
    state = reference()
    report = held({**state, "k": state["v"]})
    assert only(report, "k") == ("wrong place", "holds v, should hold k")
    assert report.missing == ("k",)
    without = held({name: value for name, value in state.items() if name != "up"})
    assert (without.faults, without.missing, without.exit_code) == ((), ("up",), 1)


def test_what_is_no_weight_of_the_reference_is_unused_and_no_fault():
    report = held({**reference(), "extra": torch.linspace(0, 1, 48).view(3, 16)})
    assert only(report, "extra")[0] == "unused"
    assert report.exit_code == 0


def test_a_tensor_that_two_weights_hold_is_used_twice_and_ties_are_no_double_use():
    state = reference()
    assert only(held({**state, "copy": state["up"]}), "copy")[0] == "used twice"
    tied = {**state, "head": state["emb"]}
    report = held({name: value for name, value in tied.items() if name != "head"}, tied)
    assert (report.exit_code, report.tied) == (0, (("emb", "head"),))
    assert held(tied, tied).exit_code == 0
    constant = {**state, "one": torch.ones(16), "other": torch.ones(16)}
    assert held(constant, constant).tied == ()


def test_weights_joined_in_the_reference_s_order_are_right_and_in_another_are_not():
    state = reference()
    rest = {name: value for name, value in state.items() if name not in "qkv"}
    right = held({**rest, "qkv": torch.cat([state["q"], state["k"], state["v"]])})
    assert right.exit_code == 0
    wrong = held({**rest, "qkv": torch.cat([state["q"], state["v"], state["k"]])})
    assert only(wrong, "qkv")[0] == "joined in another order"


def test_a_tensor_split_in_another_order_is_named():
    state = reference()
    fused = torch.cat([state["q"], state["k"], state["v"]])
    trusted = {**{n: v for n, v in state.items() if n not in "qkv"}, "qkv": fused}
    rest = {n: v for n, v in trusted.items() if n != "qkv"}
    right = held({**rest, "a": fused[:16], "b": fused[16:24], "c": fused[24:]}, trusted)
    assert right.exit_code == 0
    wrong = held({**rest, "a": fused[:16], "b": fused[24:], "c": fused[16:24]}, trusted)
    assert {row.relation.kind for row in wrong.faults} == {"split in another order"}


def test_codes_are_held_with_their_scales_undone():
    state = reference()
    codes, scale = quantized_by_hand(state["up"], float(state["up"].abs().max()) / 127)
    rest = {name: value for name, value in state.items() if name != "up"}
    report = held({**rest, "up.weight": codes, "up.weight_scale": scale})
    row = next(row for row in report.rows if row.candidate == "up.weight")
    assert (report.exit_code, row.reference, row.relation.kind) == (0, "up", "quantized")


@pytest.mark.parametrize(
    ("factor", "kind", "exit_code"),
    [(0.3, "saturated", 1), (0.9, "saturated", 0), (9.0, "unused range", 0)],
)
def test_codes_beyond_their_range_and_ranges_that_are_not_used_are_named(factor, kind, exit_code):
    state = reference()
    largest = float(state["emb"].abs().max())
    codes, scale = quantized_by_hand(state["emb"], factor * largest / 127)
    report = held({**state, "emb": codes, "emb_scale": scale})
    assert only(report, "emb")[0] == kind
    assert report.exit_code == exit_code


def test_codes_with_another_scale_are_scaled():
    state = reference()
    codes, scale = quantized_by_hand(state["emb"], float(state["emb"].abs().max()) / 127)
    kind, detail = only(held({**state, "emb": codes, "emb_scale": 2 * scale}), "emb")
    assert (kind, round(float(detail.removeprefix("by ")), 2)) == ("scaled", 2.0)


def graph(path: Path, initializers: dict[str, np.ndarray], nodes: list[Any], width: int = 16) -> Path:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, width])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    tensors = [numpy_helper.from_array(value, name) for name, value in initializers.items()]
    made = helper.make_model(
        helper.make_graph(nodes, "g", [x], [y], tensors), opset_imports=[helper.make_opsetid("", 21)]
    )
    onnx.save(made, path)
    return path


def test_a_product_s_matrix_gets_its_layout_and_name_from_the_graph(tmp_path: Path):
    state = reference()
    q = np.ascontiguousarray(state["q"].numpy().T)
    nodes = [helper.make_node("MatMul", ["x", "m_7"], ["a"]), helper.make_node("Add", ["a", "o.bias"], ["y"])]
    path = graph(tmp_path / "g.onnx", {"m_7": q, "o.bias": state["norm"].numpy()}, nodes)
    weight = weights_of(str(path))[0]
    assert (weight.name, weight.turned) == ("o.weight", True)
    np.testing.assert_array_equal(weight.values, state["q"].numpy())


@pytest.mark.parametrize("per_channel", [False, True])
def test_quantize_dequantize_pairs_are_undone(per_channel, tmp_path: Path):
    w = np.ascontiguousarray(reference()["up"].numpy().T)
    scale = np.abs(w).max(axis=0 if per_channel else None) / np.float32(127)
    codes = np.round(w / scale).astype(np.int8)
    nodes = [
        helper.make_node("DequantizeLinear", ["codes", "scale", "zero"], ["w"], axis=1),
        helper.make_node("MatMul", ["x", "w"], ["y"]),
    ]
    zero = np.zeros_like(scale, dtype=np.int8)
    path = graph(tmp_path / "g.onnx", {"codes": codes, "scale": np.float32(scale), "zero": zero}, nodes)
    (weight,) = weights_of(str(path))
    report = match([weight], {"up": reference()["up"].numpy()})
    assert (report.exit_code, report.rows[0].relation.kind) == (0, "quantized")


@pytest.fixture
def cached(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PARITY_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported")
    parity.export(folder / "onnx", model="klm-tiny", weights="random:0")
    return folder / "onnx"


def call(monkeypatch: pytest.MonkeyPatch, *args: object) -> int:
    monkeypatch.setattr("sys.argv", ["parity", "weights", *map(str, args)])
    with pytest.raises(SystemExit) as stopped:
        main()
    return int(stopped.value.code or 0)


def test_exported_segments_hold_the_checkpoint(exported, cached, monkeypatch, capsys):
    assert call(monkeypatch, exported, "--weights", "random:0") == 0
    assert "76 of 76 tensors are the reference's" in capsys.readouterr().out
    assert call(monkeypatch, exported / "seg_0.onnx", "--weights", "random:0", "--json") == 0
    assert json.loads(capsys.readouterr().out)["missing"] == []


def test_weights_of_other_training_are_a_divergence(exported, cached, monkeypatch, capsys):
    assert call(monkeypatch, exported, "--weights", "random:1") in (1, 3)


def edited(path: Path, name: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
    """Change the matrix that is added to the bias `name`."""
    model = onnx.load(path)
    add = next(node for node in model.graph.node if f"{name}.bias" in " ".join(node.input))
    product = next(node for node in model.graph.node if node.output[0] in add.input)
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name in product.input)
    tensor.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(tensor)), tensor.name))
    onnx.save(model, path)


def test_interleaved_heads_in_a_graph_are_named_without_running_it(exported, cached, tmp_path):
    """The weight form of the commonest bug: the graph and all its names stay as they are."""
    import shutil

    other = Path(shutil.copytree(exported, tmp_path / "bad"))
    edited(other / "seg_1.onnx", "layer_head.q_proj", lambda w: np.ascontiguousarray(
        half_to_interleaved(torch.from_numpy(w.T.copy()), 32).numpy().T
    ))  # fmt: skip
    report = parity.weights(str(other), weights="random:0")
    (row,) = report.faults
    assert row.reference == "body.blocks.2.attention.q_proj.weight"
    assert (row.relation.kind, row.relation.detail) == ("permuted", "rows half to interleaved per head of 32")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("bits", [4, 8])
def test_graphs_that_onnx_runtime_quantized_hold_the_checkpoint(bits, exported, cached, tmp_path):
    from onnxruntime.quantization import quantize_dynamic
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    for path in exported.glob("*.onnx"):
        if bits == 8:
            quantize_dynamic(path, tmp_path / path.name)
            continue
        made = MatMulNBitsQuantizer(onnx.load(path), block_size=32, is_symmetric=False)
        made.process()
        made.model.save_model_to_file(str(tmp_path / path.name))
    report = parity.weights(str(tmp_path), weights="random:0")
    assert (report.exit_code, report.matched) == (0, 76)
    assert sum(row.relation.kind == "quantized" for row in report.rows) >= 29


def test_two_segments_that_were_swapped_are_seen_by_their_weights(exported, cached, tmp_path):
    import shutil

    other = tmp_path / "swapped"
    shutil.copytree(exported, other)
    for mine, theirs in (("seg_0", "seg_1"), ("seg_1", "seg_0")):
        shutil.copy(exported / f"{mine}.onnx", other / f"{theirs}.onnx")
    report = parity.weights(str(other), model="klm-tiny", weights="random:0")
    assert {row.candidate.partition(":")[0] for row in report.faults} == {"seg_0", "seg_1"}
    assert {row.relation.kind for row in report.faults} == {"swapped"}
    assert report.missing == ()


@pytest.mark.parametrize("name", ["a.safetensors", "a.npz", "a.pt", "a.bin"])
def test_files_of_every_kind_are_read(name, tmp_path: Path):
    state, path = reference(), tmp_path / name
    arrays = {key: value.numpy() for key, value in state.items()}
    if path.suffix == ".npz":
        np.savez(path, **arrays)
    elif path.suffix == ".safetensors":
        from parity.targets.dumps.safetensors import write

        write(path, arrays)
    else:
        torch.save({"state_dict": state}, path)
    torch.save(state, tmp_path / "ref.pt")
    assert parity.weights(str(path), ref=str(tmp_path / "ref.pt")).exit_code == 0


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("a.cvimodel", "packed for the chip"),
        ("a.gguf", "no known kind"),
        ("none.pt", "there is no such file"),
    ],
)
def test_what_cannot_be_read_is_refused_in_a_sentence(name, said, tmp_path: Path):
    if not name.startswith("none"):
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(UserError, match=said):
        weights_of(str(tmp_path / name))


@pytest.mark.parametrize("name", ["none.pt", "folder", "junk.h5"])
def test_the_candidate_is_looked_at_before_a_checkpoint_is_trained(name, tmp_path: Path, monkeypatch):
    (tmp_path / "folder").mkdir()
    (tmp_path / "junk.h5").write_bytes(b"x")
    monkeypatch.setattr("parity.reference.checkpoints.load_weights", None)
    with pytest.raises(UserError, match=name):
        parity.weights(str(tmp_path / name))


def test_nothing_in_common_is_inconclusive():
    report = held({"x": torch.linspace(0, 1, 64).view(8, 8)})
    assert (report.matched, report.exit_code) == (0, 3)


def test_a_large_checkpoint_is_matched_without_comparing_all_with_all(monkeypatch):
    """Of equal shapes only those with near sketches are looked at in full."""
    from parity.harness.weights import matching as module

    generator = torch.Generator().manual_seed(1)
    state = {f"w{at}": torch.randn(8, 8, generator=generator) ** (1 + at % 3) for at in range(300)}
    looked, plain = [], module.plain
    monkeypatch.setattr(module, "plain", lambda *args: looked.append(1) or plain(*args))
    assert held({f"x{name}": value for name, value in state.items()}, state).exit_code == 0
    assert len(looked) <= 300 * module.NEAREST


def test_what_the_command_takes_beyond_the_options_of_a_run_is_frozen():
    """A new one needs a user's opinion, an explanation without internals, and two users who differ."""
    from parity.cli.run import command as run
    from parity.cli.weights import command

    of_a_run = {name for item in run.params for name in item.opts}
    own = {name for item in command.params for name in item.opts if name.startswith("-")}
    assert own - of_a_run == set()
