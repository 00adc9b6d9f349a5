"""msprobe trees: names, taps, order, steps and processes, statistics, and files that do not belong."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from parity.harness.errors import UserError
from parity.targets.dumps.ascend.msprobe import MsprobeReader
from parity.targets.dumps.ascend.msprobe_writer import write_msprobe
from parity.targets.dumps.core import Contents, Dumped, ReadOptions

X = np.arange(6, dtype=np.float32).reshape(2, 3)
BF = np.array([1.5, np.nan, -0.0], ml_dtypes.bfloat16)
CALLS: dict[str, dict[str, Any]] = {
    "Functional.embedding.0.forward": {"input_args": [np.array([[1, 2]]), X], "output": [X + 1]},
    "Module.layers.0.attn.Attention.forward.0": {
        "input_args": [X, [X * 2, None], 2.0],
        "input_kwargs": {"mask": X * 3},
        "output": [X * 4, BF],
        "parameters": {"weight": X * 5},
    },
    "Module.layers.0.Layer.forward.0": {"input_args": [X], "output": [X * 6]},
    "Module.layers.0.Layer.forward.1": {"input_args": [X], "output": [X * 7]},
    "Module.layers.0.Layer.backward.0": {"input": [X * 8], "output": [X * 9, None]},
    "Module.layers.0.Layer.parameters_grad.0": {"weight": [X * 10]},
}


def read(path: Path, **settings: str) -> Contents:
    return MsprobeReader().read(path, ReadOptions(settings=settings))


def entries(path: Path, **settings: str) -> dict[str, Dumped]:
    return {entry.name: entry for entry in read(path, **settings).entries}


@pytest.fixture
def dump(tmp_path: Path) -> Path:
    write_msprobe(tmp_path / "step0" / "proc77", CALLS, crc=True)
    return tmp_path


def test_entries_have_the_files_names_in_the_order_of_the_json(dump: Path) -> None:
    found = entries(dump)
    assert [entry.name for entry in read(dump).entries] == [
        "Functional.embedding.0.forward.input.0",
        "Functional.embedding.0.forward.input.1",
        "Functional.embedding.0.forward.output.0",
        "Module.layers.0.attn.Attention.forward.input.0",
        "Module.layers.0.attn.Attention.forward.input.1.0",
        "Module.layers.0.attn.Attention.forward.kwargs.mask",
        "Module.layers.0.attn.Attention.forward.output.0",
        "Module.layers.0.attn.Attention.forward.output.1",
        "Module.layers.0.Layer.forward.input.0",
        "Module.layers.0.Layer.forward.output.0",
        "Module.layers.0.Layer.forward.input.0",
        "Module.layers.0.Layer.forward.output.0",
        "Module.layers.0.Layer.backward.input.0",
        "Module.layers.0.Layer.backward.output.0",
        "Module.layers.0.Layer.parameters_grad.0.weight",
    ]
    np.testing.assert_array_equal(found["Module.layers.0.Layer.backward.output.0"].load(), X * 9)
    bits = found["Module.layers.0.attn.Attention.forward.output.1"].load()
    assert bits.tobytes() == BF.tobytes()


def test_modules_know_their_own_taps_and_calls(dump: Path) -> None:
    taps = [(e.name.removeprefix("Module.layers.0."), e.tap, e.call) for e in read(dump).entries if e.tap]
    assert taps == [
        ("attn.Attention.forward.input.0", "module:layers.0.attn:in.0", 0),
        ("attn.Attention.forward.input.1.0", "module:layers.0.attn:in.1.0", 0),
        ("attn.Attention.forward.kwargs.mask", "module:layers.0.attn:in.mask", 0),
        ("attn.Attention.forward.output.0", "module:layers.0.attn.0", 0),
        ("attn.Attention.forward.output.1", "module:layers.0.attn.1", 0),
        ("Layer.forward.input.0", "module:layers.0:in.0", 0),
        ("Layer.forward.output.0", "module:layers.0", 0),
        ("Layer.forward.input.0", "module:layers.0:in.0", 1),
        ("Layer.forward.output.0", "module:layers.0", 1),
    ]


def test_parameters_are_read_when_asked_for_and_otherwise_said_to_be_left_out(dump: Path) -> None:
    assert any("every parameters" in note for note in read(dump).notes)
    assert list(entries(dump, parts="parameters")) == [
        "Module.layers.0.attn.Attention.forward.parameters.weight"
    ]
    with pytest.raises(UserError, match="should be some of"):
        read(dump, parts="weights")


def test_a_checksum_that_is_called_md5_is_called_what_it_is(dump: Path) -> None:
    assert len(next(iter(read(dump).entries)).meta["crc32"]) == 8


@pytest.mark.parametrize("deep", [".", "step0", "step0/proc77", "step0/proc77/dump.json"])
def test_any_folder_of_the_tree_may_be_given(dump: Path, deep: str) -> None:
    assert MsprobeReader().detects(dump / deep)
    assert len(list(read(dump / deep).entries)) == 15


@pytest.mark.parametrize("folder", ["proc5", "rank", "rank0", "rank3", "."])
def test_every_name_of_a_process_is_known(tmp_path: Path, folder: str) -> None:
    write_msprobe(tmp_path / "step4" / folder, CALLS)
    assert {entry.step for entry in read(tmp_path).entries} == {4}


def test_steps_are_ordered_by_number_and_chosen_when_asked(tmp_path: Path) -> None:
    for step in (10, 2):
        write_msprobe(tmp_path / f"step{step}" / "rank0", {"Functional.a.0.forward": {"output": [X * step]}})
    assert [(e.step, float(e.load()[0, 1])) for e in read(tmp_path).entries] == [(2, 2.0), (10, 10.0)]
    assert [e.step for e in read(tmp_path, steps="3-10").entries] == [10]


def test_several_processes_must_be_chosen(tmp_path: Path) -> None:
    for rank in (0, 1):
        write_msprobe(tmp_path / "step0" / f"rank{rank}", CALLS)
    with pytest.raises(UserError, match="several processes: rank0, rank1; say rank=NAME"):
        read(tmp_path)
    assert read(tmp_path, rank="rank1").facts["rank"] == "rank1"
    with pytest.raises(UserError, match="is not in it"):
        read(tmp_path, rank="rank2")


def test_statistics_become_records_of_their_own(tmp_path: Path) -> None:
    calls = {
        "Functional.a.0.forward": {
            "input_args": [np.array([3, -4])],
            "output": [X, np.zeros((0,), np.float32)],
        }
    }
    write_msprobe(tmp_path, calls, task="statistics")
    contents = read(tmp_path)
    found = {entry.name: entry for entry in contents.entries}
    assert {name: entry.meta["statistics"] for name, entry in found.items()} == {
        "Functional.a.0.forward.input.0:statistics": ["max", "min"],
        "Functional.a.0.forward.output.0:statistics": ["max", "min", "mean", "norm"],
    }
    np.testing.assert_array_equal(found["Functional.a.0.forward.output.0:statistics"].load()[:3], [5, 0, 2.5])
    assert any("compared with another statistics dump only" in note for note in contents.notes)


def test_bare_nan_tokens_are_read(tmp_path: Path) -> None:
    write_msprobe(tmp_path, {"Functional.a.0.forward": {"output": [X * np.nan]}}, task="statistics")
    assert "NaN" in (tmp_path / "dump.json").read_text()
    (entry,) = read(tmp_path).entries
    assert np.isnan(entry.load()).all()


def test_token_ids_are_taken_from_the_entry_that_is_named(dump: Path) -> None:
    fed = read(dump, ids="Functional.embedding.0.forward.input.0").fed
    assert {step: ids.tolist() for step, ids in fed.items()} == {0: [[1, 2]]}
    with pytest.raises(UserError, match=r"Did you mean .*input\.0"):
        read(dump, ids="Functional.embedding.0.forward.input.9")


def test_a_file_of_another_dump_is_refused(dump: Path) -> None:
    folder = dump / "step0" / "proc77"
    path = folder / "dump.json"
    path.write_text(path.read_text().replace("torch.bfloat16", "torch.float16"))
    with pytest.raises(UserError, match="another dump's file"):
        entries(dump)["Module.layers.0.attn.Attention.forward.output.1"].load()
    (folder / "dump_tensor_data" / "Functional.embedding.0.forward.input.0.pt").unlink()
    with pytest.raises(UserError, match="cannot be read"):
        entries(dump)["Functional.embedding.0.forward.input.0"].load()


def changed(dump: Path, change: Any) -> None:
    path = dump / "step0" / "proc77" / "dump.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize("name", ["../../../../../../etc/passwd.pt", "/etc/passwd.pt", "a\0.pt"])
def test_a_name_that_leaves_the_folder_is_refused(dump: Path, name: str) -> None:
    def change(content: Any) -> None:
        content["data"]["Functional.embedding.0.forward"]["output"][0]["data_name"] = name

    changed(dump, change)
    with pytest.raises(UserError, match=r"outside its folder|no name"):
        [entry.load() for entry in read(dump).entries]


def test_a_pickle_is_not_run(dump: Path, tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "ran",))

    path = dump / "step0/proc77/dump_tensor_data/Functional.embedding.0.forward.input.0.pt"
    path.write_bytes(pickle.dumps(Evil()))
    with pytest.raises(UserError):
        next(iter(read(dump).entries)).load()
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ([], "no object `data`"),
        ({"a.b": []}, "an object is expected"),
        ({}, "records no values"),
        (
            {"F.a.0.forward": {"output": [{"type": "torch.Tensor", "dtype": "x", "shape": [1]}]}},
            "number format 'x'",
        ),
        ({"F.a.0.forward": {"output": [{"type": "torch.Tensor", "shape": 3}]}}, "no list of at most"),
        ({"F.a.0.forward": {"output": [{"type": "torch.Tensor", "shape": [-1]}]}}, "impossible shape"),
        (
            {"F.a.0.forward": {"output": [{"type": "t.Tensor", "dtype": "int8", "shape": [], "Max": "big"}]}},
            "Max is 'big'",
        ),
    ],
)
def test_a_damaged_description_says_what_is_wrong(dump: Path, value: Any, told: str) -> None:
    changed(dump, lambda content: content.update(data=value))
    with pytest.raises(UserError, match=told):
        entries(dump)


def test_nesting_without_end_is_refused(dump: Path) -> None:
    nested: Any = []
    for _ in range(60):
        nested = [nested]
    changed(dump, lambda content: content.update(data={"F.a.0.forward": {"output": nested}}))
    with pytest.raises(UserError, match="nested deeper"):
        entries(dump)
    (dump / "step0/proc77/dump.json").write_text('{"task": "", "level": "", "data": ' + "[" * 100_000)
    with pytest.raises(UserError, match="no JSON"):
        entries(dump)


def test_other_folders_are_not_detected(tmp_path: Path) -> None:
    (tmp_path / "dump.json").write_text('{"outputs": []}')
    assert not MsprobeReader().detects(tmp_path)
    (tmp_path / "dump.json").unlink()
    with pytest.raises(UserError, match=r"holds no dump\.json"):
        read(tmp_path)
