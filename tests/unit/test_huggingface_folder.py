"""Hugging Face folders: shards and their index are held against each other, and nothing leaves the folder."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from parity.harness.errors import UserError
from parity.reference.huggingface import read_folder, write_folder

pytest.importorskip("safetensors")
STATE = {f"layer{i}.weight": torch.arange(12.0).reshape(3, 4) + i for i in range(5)}
INDEX = "model.safetensors.index.json"


def sharded(path: Path, kind: str = "safetensors") -> Path:
    write_folder(path, {"model_type": "small"}, STATE, kind=kind, shard_bytes=100)
    return path


def edited(path: Path, name: str, change: Callable[[dict[str, str]], None]) -> None:
    data = json.loads((path / name).read_text())
    change(data["weight_map"])
    (path / name).write_text(json.dumps(data))


def test_shards_hold_what_fits_and_the_index_says_where(tmp_path: Path) -> None:
    big = {**STATE, "table": torch.zeros(100)}
    files = write_folder(tmp_path, {}, big, shard_bytes=100)
    assert files == tuple(f"model-{i}-of-00004.safetensors" for i in ("00001", "00002", "00003", "00004"))
    index = json.loads((tmp_path / INDEX).read_text())
    assert index["metadata"] == {"total_size": 5 * 48 + 400}
    assert index["weight_map"]["layer2.weight"] == files[1]
    assert index["weight_map"]["table"] == files[3]
    assert sorted(os.listdir(tmp_path)) == sorted([*files, INDEX, "config.json"])


def test_views_are_saved_as_the_tensors_that_they_show(tmp_path: Path) -> None:
    whole = torch.arange(10_000.0)
    state = {"a": whole[:3], "b": whole[1:4], "c": whole[:6].view(2, 3).T}
    for kind in ("safetensors", "bin"):
        write_folder(tmp_path / kind, {}, state, kind=kind)
        back = read_folder(tmp_path / kind).state
        assert all(torch.equal(back[key], value) for key, value in state.items())
        assert all(file.stat().st_size < 10_000 for file in (tmp_path / kind).iterdir())


def test_safetensors_are_preferred_to_bin_and_the_files_are_named(tmp_path: Path) -> None:
    write_folder(tmp_path / "a", {}, STATE)
    write_folder(tmp_path / "b", {}, {"other": torch.ones(1)}, kind="bin")
    (tmp_path / "b" / "pytorch_model.bin").rename(tmp_path / "a" / "pytorch_model.bin")
    folder = read_folder(tmp_path / "a")
    assert folder.files == ("model.safetensors",)
    assert folder.state.keys() == STATE.keys()


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_a_folder_that_holds_weights_is_not_written_into(tmp_path: Path, kind: str) -> None:
    sharded(tmp_path)
    with pytest.raises(UserError, match=r"holds model\.safetensors\.index\.json already"):
        write_folder(tmp_path, {}, STATE, kind=kind)


def test_missing_shards_are_listed(tmp_path: Path) -> None:
    sharded(tmp_path)
    (tmp_path / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(UserError, match=r"1 of 3 shards are missing: model-00002-of-00003\.safetensors"):
        read_folder(tmp_path)


def test_an_index_that_disagrees_with_a_shard_is_refused_with_both_lists(tmp_path: Path) -> None:
    sharded(tmp_path)
    edited(tmp_path, INDEX, lambda table: table.update({"ghost": table["layer0.weight"]}))
    with pytest.raises(UserError, match=r"absent: ghost; not in the index: none"):
        read_folder(tmp_path)
    edited(tmp_path, INDEX, lambda table: table.__delitem__("ghost"))
    edited(tmp_path, INDEX, lambda table: table.__delitem__("layer1.weight"))
    with pytest.raises(UserError, match=r"absent: none; not in the index: layer1\.weight"):
        read_folder(tmp_path)


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd", "sub/model.safetensors", ".."])
def test_an_index_that_leaves_its_folder_is_refused(tmp_path: Path, name: str) -> None:
    sharded(tmp_path / "in")
    edited(tmp_path / "in", INDEX, lambda table: table.update({"layer0.weight": name}))
    with pytest.raises(UserError, match="outside its folder"):
        read_folder(tmp_path / "in")


class Trap:
    """Runs code when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return os.mkdir, (str(self.path),)


def test_a_bin_file_that_would_run_code_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    torch.save({"a": Trap(tmp_path / "sprung")}, tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match="no torch checkpoint of plain tensors"):
        read_folder(tmp_path)
    assert not (tmp_path / "sprung").exists()


def cut(path: Path) -> None:
    whole = (path / "model.safetensors").read_bytes()
    (path / "model.safetensors").write_bytes(whole[:-7])


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (cut, "no safetensors file, or is damaged"),
        (lambda path: (path / "model.safetensors").unlink(), "holds neither"),
        (lambda path: (path / "config.json").unlink(), r"config\.json cannot be read: No such file"),
        (lambda path: (path / "config.json").write_text("{"), "is not JSON"),
        (lambda path: (path / "config.json").write_text("[]"), "should hold a JSON object"),
    ],
    ids=["cut", "no-weights", "no-config", "half-a-config", "a-list"],
)
def test_damaged_folders_are_refused_in_a_sentence(
    tmp_path: Path, damage: Callable[[Path], None], words: str
) -> None:
    write_folder(tmp_path, {}, STATE)
    damage(tmp_path)
    with pytest.raises(UserError, match=words):
        read_folder(tmp_path)


@pytest.mark.parametrize("content", ["{}", '{"weight_map": {}}', '{"weight_map": {"a": 3}}'])
def test_an_index_without_a_map_is_refused(tmp_path: Path, content: str) -> None:
    sharded(tmp_path)
    (tmp_path / INDEX).write_text(content)
    with pytest.raises(UserError, match="has no weight_map"):
        read_folder(tmp_path)


def test_an_unknown_kind_of_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="kind='gguf': use one of safetensors, bin"):
        write_folder(tmp_path, {}, STATE, kind="gguf")


def test_a_write_that_fails_leaves_no_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []

    def failing(source: Path, target: Path) -> None:
        if len(written) == 2:
            raise OSError(28, "No space left on device")
        written.append(Path(target).name)
        os.rename(source, target)

    monkeypatch.setattr(os, "replace", failing)
    with pytest.raises(UserError, match="cannot be written: No space left"):
        sharded(tmp_path)
    monkeypatch.undo()
    assert sorted(os.listdir(tmp_path)) == sorted(written)
    sharded(tmp_path)
    back: dict[str, Tensor] = read_folder(tmp_path).state
    assert back.keys() == STATE.keys()
