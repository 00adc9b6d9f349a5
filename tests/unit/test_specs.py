"""How a side of a comparison is written: targets, stored runs, modules, labels, lists."""

from __future__ import annotations

import pytest

from parity.harness.errors import UserError
from parity.harness.target import Spec, parse_spec, split_specs


@pytest.mark.parametrize(
    ("text", "label", "kind", "name", "arg", "device"),
    [
        ("torch", "torch", "target", "torch", "", None),
        ("torch:bf16", "torch:bf16", "target", "torch", "bf16", None),
        ("torch:fp64@cuda", "torch:fp64", "target", "torch", "fp64", "cuda"),
        ("onnx@cuda:1", "onnx", "target", "onnx", "", "cuda:1"),
        ("fast=torch:fp64@cuda", "fast", "target", "torch", "fp64", "cuda"),
        (
            "onnx:/some/dir/model.onnx",
            "onnx:/some/dir/model.onnx",
            "target",
            "onnx",
            "/some/dir/model.onnx",
            None,
        ),
        ("module:pkg.net:build", "module:pkg.net:build", "target", "module", "pkg.net:build", None),
        ("mine=module:pkg.net:build", "mine", "target", "module", "pkg.net:build", None),
        ("trace.h5", "trace", "stored", "trace.h5", "", None),
        ("trace.h5:torch", "torch", "stored", "trace.h5", "torch", None),
        ("old=out/trace.hdf5:torch#2", "old", "stored", "out/trace.hdf5", "torch#2", None),
        ("a/t.h5:torch:bf16", "torch:bf16", "stored", "a/t.h5", "torch:bf16", None),
        ("/d/x=y/trace.h5", "trace", "stored", "/d/x=y/trace.h5", "", None),
        ("/d/a@b/trace.h5:onnx", "onnx", "stored", "/d/a@b/trace.h5", "onnx", None),
    ],
)
def test_a_side_is_read(text: str, label: str, kind: str, name: str, arg: str, device: str | None) -> None:
    spec = parse_spec(text)
    assert (spec.label, spec.kind, spec.name, spec.arg, spec.device) == (label, kind, name, arg, device)


@pytest.mark.parametrize("text", ["", "  ", "a= "])
def test_an_empty_side_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="empty"):
        parse_spec(text)


def test_the_text_of_a_labelled_side_is_what_the_person_named() -> None:
    assert parse_spec("fast=torch:fp64@cuda").text == "torch:fp64@cuda"
    assert parse_spec("torch@cuda").text == "torch@cuda"


def test_an_at_sign_in_a_path_is_no_device() -> None:
    spec = parse_spec("onnx:/models/a@b/net.onnx")
    assert (spec.arg, spec.device) == ("/models/a@b/net.onnx", None)


def test_a_device_without_a_target_is_refused() -> None:
    with pytest.raises(UserError):
        parse_spec("@cuda")


@pytest.mark.parametrize("text", ["trace.h5:", "torch@"])
def test_a_side_that_breaks_off_is_refused(text: str) -> None:
    with pytest.raises(UserError):
        parse_spec(text)


def names(specs: list[Spec]) -> list[str]:
    return [spec.label for spec in specs]


def test_bare_names_are_listed_with_commas_and_options_repeat() -> None:
    assert names(split_specs(["onnx,prefilled"])) == ["onnx", "prefilled"]
    assert names(split_specs(["onnx, prefilled"])) == ["onnx", "prefilled"]
    assert names(split_specs(["onnx", "torch:bf16"])) == ["onnx", "torch:bf16"]
    assert names(split_specs(["onnx,prefilled", "torch:bf16"])) == ["onnx", "prefilled", "torch:bf16"]
    assert split_specs([]) == []


def test_a_comma_inside_a_path_does_not_split_it() -> None:
    assert names(split_specs(["onnx:/a,b/net.onnx"])) == ["onnx:/a,b/net.onnx"]
    assert split_specs(["/a,b/trace.h5:run"])[0].name == "/a,b/trace.h5"


@pytest.mark.parametrize("text", ["onnx,torch:bf16", "onnx,", "onnx,,prefilled"])
def test_a_list_of_other_things_than_bare_names_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="only bare names"):
        split_specs([text])


@pytest.mark.parametrize(
    "texts",
    [
        ["onnx", "onnx"],
        ["onnx,onnx"],
        ["a/trace.h5", "b/trace.h5"],
        ["x=onnx", "x=torch"],
        ["torch@cpu", "torch@cuda"],
    ],
)
def test_two_sides_of_one_label_are_refused_with_a_way_out(texts: list[str]) -> None:
    with pytest.raises(UserError, match="named twice; give one of them a label"):
        split_specs(texts)
    assert (
        len(split_specs([f"{'abc'[i]}={t.split('=')[-1]}" for i, t in enumerate(",".join(texts).split(","))]))
        == 2
    )
