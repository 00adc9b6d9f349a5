"""report.json: it comes back as it was, it is strict JSON, and SCHEMA.md says what is in it."""

from __future__ import annotations

import importlib.util
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import parity.reports
from parity.harness.comparison import Result
from parity.harness.errors import UserError
from parity.reports.json_report import read_json, write_json


def _load(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parent / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


factory = _load("report_factory")


@pytest.fixture(scope="module")
def everything() -> Result:
    return factory.result([factory.diverging(), factory.passing(), factory.inconclusive(), factory.failed()])


def test_a_result_comes_back_as_it_was_written(everything: Result, tmp_path: Path) -> None:
    read = read_json(write_json(everything, tmp_path / "deep" / "report.json"))
    assert [c.verdict for c in read] == ["divergence", "parity", "inconclusive", "failed"]
    assert read.exit_code == everything.exit_code == 4
    assert plain(read) == plain(everything)


def plain(result: Result) -> Any:
    """The JSON data, without the rows' statistics: they are stored rounded."""
    data = json.loads(json.dumps(result.to_json()))
    for comparison in data["comparisons"]:
        for record in comparison["records"]:
            (record["metrics"] or {}).pop("rows", None)
    return data


def test_the_file_is_strict_json_with_one_record_per_line(everything: Result, tmp_path: Path) -> None:
    path = write_json(everything, tmp_path / "report.json")

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    json.loads(path.read_text(), parse_constant=refuse)
    records = sum(len(c.records) for c in everything)
    assert records < len(path.read_text().splitlines()) < records + 200


def test_infinite_errors_survive_and_stay_strict_json(tmp_path: Path) -> None:
    records = (factory.row(0, "embed", 0, 3.0, ratio=float("inf"), floor=float("nan")),)
    path = write_json(factory.result([factory.passing(records=records)]), tmp_path / "report.json")
    assert '{"$float":"inf"}' in path.read_text()
    row = read_json(path).comparisons[0].records[0]
    assert row.ratio == float("inf")
    assert row.floor is not None
    assert row.floor != row.floor


def test_a_provenance_that_holds_paths_and_numpy_numbers_can_be_written(tmp_path: Path) -> None:
    import numpy as np

    odd = {"path": tmp_path, "count": np.int64(3), "list": np.arange(2)}
    path = write_json(replace(factory.result([factory.failed()]), provenance=odd), tmp_path / "report.json")
    assert read_json(path).provenance == {"path": str(tmp_path), "count": 3, "list": [0, 1]}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "not JSON"),
        ("{", "not JSON"),
        ("[1, 2]", "not a report"),
        ('{"a": 1}', "not a report"),
        ('{"schema": 99}', "schema=99"),
        ('{"schema": 1, "comparisons": [{}]}', "damaged"),
        ('{"schema": 1, "comparisons": 7, "provenance": {}, "files": {}}', "damaged"),
        ("\xff\xfe", "not"),
    ],
    ids=["empty", "cut", "list", "foreign", "newer", "hollow", "wrong type", "binary"],
)
def test_a_file_that_is_no_report_is_refused_in_one_sentence(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=said):
        read_json(path)


def test_a_missing_report_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        read_json(tmp_path / "none.json")


def test_a_place_that_cannot_be_written_is_the_users_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        write_json(factory.result([]), tmp_path / "file" / "report.json")


def test_a_failed_write_leaves_the_old_report_and_nothing_else(
    everything: Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_json(everything, tmp_path / "report.json")
    before = path.read_bytes()

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(UserError, match="No space left"):
        write_json(everything, path)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.json"]


def documented() -> dict[str, set[str]]:
    """Field names of SCHEMA.md per heading."""
    text = (Path(parity.reports.__file__).parent / "SCHEMA.md").read_text()
    sections = re.split(r"^## ", text, flags=re.MULTILINE)[1:]
    return {
        part.split("\n", 1)[0]: set(re.findall(r"^\| `(\w+)`", part, flags=re.MULTILINE)) for part in sections
    }


def test_the_schema_page_names_exactly_the_fields_that_are_written(everything: Result) -> None:
    data = json.loads(json.dumps(everything.to_json()))
    onnx = data["comparisons"][0]
    detailed = next(row for row in onnx["records"] if row["metrics"] and "hist" in row["metrics"])
    written = {
        "Result": data,
        "Comparison": onnx,
        "Isolation": onnx["isolation"],
        "Record": onnx["records"][0],
        "First": onnx["first"],
        "Culprit": onnx["culprits"][0],
        "Cause": onnx["causes"][0],
        "Onset": onnx["onset"],
        "Stage": onnx["stages"][0],
        "Coverage": onnx["coverage"],
        "Tokens": onnx["tokens"],
        "Flip": onnx["tokens"]["flips"][0],
        "Side": onnx["reference"],
        "Finding": onnx["findings"][0],
        "Metrics": detailed["metrics"],
        "Logits": onnx["records"][-1]["logits"],
    }
    assert documented() == {name: set(fields) for name, fields in written.items()}
