"""The originals' folder: shapes of their Makefile, names of their runner and board, their weights."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor

from parity.harness.errors import UserError
from parity.models.klm import KLMConfig, KLMModel, find
from parity.targets.onnx import export_originals, pins

MINI = KLMModel(
    "klm-mini",
    KLMConfig(
        max_length=128,
        effective_length=8,
        vocab_size=40,
        hidden_size=16,
        num_layers=3,
        num_attention_heads=4,
        num_kv_heads=2,
        ffn_hidden_size=24,
    ),
)
FILES = ["seg_head.onnx", "seg_0.onnx", "seg_1.onnx", "seg_tail.onnx"]

#: The shapes in the originals' Makefile, `--input_shapes` of model_transform.py, in the order of the inputs.
MAKEFILE = {
    "seg_head": "[[1,1],[2,1,1,64]]",
    "seg_4": "[[1,1,512],[2,1,1,64],[1,8,1,64],[1,2,511,64],[1,2,511,64]]",
    "seg_tail": "[[1,1,512],[1,8,1,64],[1,2,511,64],[1,2,511,64]]",
}
#: What the board code looks up by prefix, among inputs and among outputs.
BOARD = {
    "seg_head": (["input_ids", "rotary_pos_emb"], ["residual", "q", "k", "v"]),
    "seg_0": (["residual", "q", "ks", "vs", "rotary_pos_emb"], ["residual", "q", "k", "v"]),
    "seg_tail": (["residual", "q", "ks", "vs"], ["logits"]),
}


def weights(model: KLMModel) -> dict[str, Tensor]:
    module = model.build()
    model.init_random(module, 0)
    return module.state_dict()


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The default export of a small model."""
    out = tmp_path_factory.mktemp("originals") / "klm_models" / "segmented"
    written = export_originals(MINI, weights(MINI), out)
    assert [path.name for path in written] == [*FILES, "manifest.json", "rope.npz", "pytorch_model.bin"]
    return out


def test_the_files_are_what_their_compiler_reads(folder: Path) -> None:
    for name in FILES:
        model = onnx.load(folder / name)
        assert pins.opset(model) == 17
        assert model.ir_version <= 9
        assert not any(pin.shape != tuple(map(int, pin.shape)) for pin in pins.inputs(model))


@pytest.mark.parametrize("name", BOARD)
def test_each_prefix_that_the_board_looks_up_finds_exactly_one_tensor(folder: Path, name: str) -> None:
    model = onnx.load(folder / f"{name}.onnx")
    for prefixes, found in zip(BOARD[name], (pins.inputs(model), pins.outputs(model)), strict=True):
        for prefix in prefixes:
            assert len([pin.name for pin in found if pin.name.startswith(prefix)]) == 1, prefix


def test_their_runner_gets_the_reference_logits(folder: Path) -> None:
    """The loop of their ONNX runner: its input names, outputs by place, 6 past rows and the current one."""
    sessions = {name: onnxruntime.InferenceSession(folder / name) for name in FILES}
    module = MINI.build()
    module.load_state_dict(weights(MINI))
    rope = np.load(folder / "rope.npz")["rope"]
    ids = torch.arange(3, 15)[None]
    positions = torch.arange(12)[None]
    band = (positions[0][:, None] - positions[0]).clamp(min=-1)
    with torch.no_grad():
        logits, caches = module.eval()(ids, mask_bts=((band >= 0) & (band < 7))[None])
    past = {
        f"{kind}{i}": getattr(caches, kind)[i][:, :, 4:10].numpy() for kind in ("ks", "vs") for i in range(3)
    }
    for at in (10, 11):
        rows = rope[:, :, [at]]
        residual, q, k, v = sessions["seg_head.onnx"].run(
            None, {"input_ids": ids[:, at : at + 1].numpy(), "rotary_pos_emb": rows}
        )
        for i in range(3):
            ks = past[f"ks{i}"] = np.concatenate([past[f"ks{i}"][:, :, -6:], k], axis=2)
            vs = past[f"vs{i}"] = np.concatenate([past[f"vs{i}"][:, :, -6:], v], axis=2)
            if i < 2:
                feed = {"residual.1": residual, "rotary_pos_emb": rows, "q.3": q, "ks": ks, "vs": vs}
                residual, q, k, v = sessions[f"seg_{i}.onnx"].run(None, feed)
        (got,) = sessions["seg_tail.onnx"].run(None, {"residual": residual, "q": q, "ks": ks, "vs": vs})
        np.testing.assert_allclose(got[0, 0], logits[0, at].numpy(), atol=1e-4)


def test_the_rotary_table_is_the_checkpoints_own_in_float32(folder: Path) -> None:
    state = weights(MINI)
    rope = np.load(folder / "rope.npz")["rope"]
    assert (rope.dtype, rope.shape) == (np.float32, (2, 1, 128, 4))
    np.testing.assert_array_equal(rope[0, 0], state["body.rotary_embedding.cos_cached"].numpy())
    np.testing.assert_array_equal(rope[1, 0], state["body.rotary_embedding.sin_cached"].numpy())


def test_the_weights_have_the_keys_of_their_segmented_model(folder: Path) -> None:
    kept = torch.load(folder / "pytorch_model.bin", weights_only=True)
    state = weights(MINI)
    pairs = {
        "head.embedding.word_embeddings.weight": "embedding.word_embeddings.weight",
        "head.layer_head.ln1.weight": "body.blocks.0.ln1.weight",
        "segments.0.layer_bottom.out_proj.bias": "body.blocks.0.attention.out_proj.bias",
        "segments.1.layer_head.k_proj.weight": "body.blocks.2.attention.k_proj.weight",
        "tail.layer_bottom.mlp.gate_proj.weight": "body.blocks.2.mlp.gate_proj.weight",
        "tail.final_ln.bias": "final_ln.bias",
        "tail.lm_head.weight": "lm_head.lm_head.weight",
    }
    for theirs, whole in pairs.items():
        assert torch.equal(kept[theirs], state[whole]), theirs
    assert len(kept) == len(state) - 2


def test_the_manifest_ties_their_names_to_taps(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    assert (manifest["window"], manifest["batch"], manifest["masked"]) == (7, 1, False)
    assert manifest["segments"]["seg_0"]["inputs"]["q.3"] == "layer0.q"
    assert manifest["segments"]["seg_0"]["outputs"]["q"] == "layer1.q"
    assert manifest["segments"]["seg_tail"]["outputs"] == {"logits": "logits"}
    assert manifest["segments"]["seg_head"]["input_shapes"] == "[[1,1],[2,1,1,4]]"


def test_a_glob_writes_these_segments_only(tmp_path: Path) -> None:
    export_originals(MINI, weights(MINI), tmp_path, segments="seg_[01]")
    assert sorted(path.name for path in tmp_path.glob("*.onnx")) == ["seg_0.onnx", "seg_1.onnx"]


def test_batch_window_and_mask_are_parameters(tmp_path: Path) -> None:
    export_originals(MINI, weights(MINI), tmp_path, batch=3, window=9, masked=True, segments="seg_tail")
    shown = [str(pin) for pin in pins.inputs(onnx.load(tmp_path / "seg_tail.onnx"))]
    assert shown[2:] == ["ks float32[3, 2, 9, 4]", "vs float32[3, 2, 9, 4]", "mask float32[3, 1, 1, 9]"]


@pytest.mark.slow
def test_dynamo_gives_the_same_names(tmp_path: Path) -> None:
    export_originals(MINI, weights(MINI), tmp_path, exporter="dynamo", segments="seg_0")
    model = onnx.load(tmp_path / "seg_0.onnx")
    assert [pin.name for pin in pins.inputs(model)] == ["residual.1", "rotary_pos_emb", "q.3", "ks", "vs"]
    assert [pin.name for pin in pins.outputs(model)] == ["residual", "q", "k", "v"]


@pytest.mark.slow
def test_the_full_size_export_has_the_shapes_of_their_makefile(tmp_path: Path) -> None:
    model = find("klm")
    export_originals(model, weights(model), tmp_path)
    manifest = json.loads((tmp_path / "manifest.json").read_text())["segments"]
    assert list(manifest) == ["seg_head", *(f"seg_{i}" for i in range(5)), "seg_tail"]
    assert {name: manifest[name]["input_shapes"] for name in MAKEFILE} == MAKEFILE
    assert np.load(tmp_path / "rope.npz")["rope"].shape == (2, 1, 8192, 64)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"batch": 0}, "batch=0"),
        ({"window": -1}, "window=-1"),
        ({"segments": "sag"}, "segments='sag': matches no segment"),
        ({"exporter": "onnx"}, "exporter='onnx'"),
    ],
)
def test_parameters_that_make_no_sense_are_refused(
    tmp_path: Path, settings: dict[str, object], sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence):
        export_originals(MINI, weights(MINI), tmp_path, **settings)  # type: ignore[arg-type]


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"out=.*cannot be written"):
        export_originals(MINI, weights(MINI), tmp_path / "file", segments="seg_head")
