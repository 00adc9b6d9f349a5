"""`parity import`: dumps become runs, names are tied by declared rules, and what is left over is said."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import helper

import parity
from parity.cli import main
from parity.harness.errors import UserError
from parity.harness.mapping import TapMap
from parity.importing import import_dump
from parity.targets.dumps import npz, parity_dump, raw, traced
from parity.targets.dumps.core import Dumped
from parity.targets.dumps.cvi import FOUR_DIMENSIONS
from parity.targets.dumps.naming import Naming, unpadded

Cli = Callable[..., tuple[int, str, str]]


def _load(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parent / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


samples = _load("dumps_samples")
Q, CODES = samples.Q, samples.CODES


@pytest.fixture
def cli(capsys, monkeypatch, tmp_path) -> Cli:
    """`cli("import", path)`: exit status, standard output, standard error."""
    monkeypatch.chdir(tmp_path)

    def call(*args: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["parity", *map(str, args)])
        with pytest.raises(SystemExit) as stopped:
            main()
        said = capsys.readouterr()
        assert "internal error" not in said.err, said.err
        return int(stopped.value.code or 0), said.out, said.err

    return call


@pytest.mark.parametrize("kind", samples.SAMPLES)
def test_every_kind_becomes_a_run_with_its_origin(kind, tmp_path):
    path = samples.SAMPLES[kind](tmp_path)
    wanted = samples.values(samples.read(kind, path))
    done = import_dump(path, out=tmp_path / "t.h5", run="board")
    with parity.Trace(tmp_path / "t.h5") as trace:
        run = trace["board"]
        assert run.complete
        assert run.verify() == []
        assert run.provenance["dump"]["kind"] == done.kind == kind
        assert len(run.provenance["dump"]["sha256"]) == 64
        found = {
            (r.meta.get("dump name", r.tap), r.step, r.call): r.read()
            for r in run.records()
            if r.tap != "ids"
        }
        assert found.keys() == wanted.keys()
        assert all(np.array_equal(found[place], wanted[place]) for place in wanted)
    assert done.records == len(wanted)


def test_ids_of_each_step_stand_before_its_records(tmp_path):
    import_dump(samples.make_parity(tmp_path), out=tmp_path / "t.h5", run="board", step_offset=2)
    records = parity.Trace(tmp_path / "t.h5")["board"].records()
    assert [(r.tap, r.step) for r in records][::4] == [("ids", 2), ("ids", 3)]
    assert records[0].read().tolist() == [[7]]


def test_scales_that_were_undone_stand_in_the_record(tmp_path):
    import_dump(samples.make_parity(tmp_path), out=tmp_path / "t.h5", run="board")
    run = parity.Trace(tmp_path / "t.h5")["board"]
    meta = run.records("layer0.k")[0].meta
    assert meta["dequantized"] == {
        "format": "int8", "scale": 0.25, "zero_point": -1, "rule": "(q - zero_point) * scale",
    }  # fmt: skip
    assert run.provenance["substitutions"][0] == "2 records of int8 made real by their scales"
    assert run.provenance["dtype"] == "w8a8"


def test_a_second_import_is_kept_beside_the_first(tmp_path):
    path = samples.make_npz(tmp_path)
    for _ in range(2):
        done = import_dump(path, out=tmp_path / "t.h5")
    assert done.run == "any"
    assert any("kept beside it as any#2" in note for note in done.notes)


def test_a_runner_that_was_stopped_leaves_an_incomplete_run(tmp_path):
    parity_dump.write(tmp_path / "d", [{"index": 0, "records": [{"array": Q, "tap": "q"}]}], complete=False)
    done = import_dump(tmp_path / "d", out=tmp_path / "t.h5")
    assert not done.complete
    assert not parity.Trace(tmp_path / "t.h5")[done.run].complete


def test_what_the_dump_does_not_hold_is_unobserved_to_a_comparison(tmp_path):
    with parity.TraceWriter(tmp_path / "ref.h5") as writer, writer.run("torch") as run:
        run.record("layer0.q", Q)
        run.record("layer0.k", Q)
    npz.write(tmp_path / "any.npz", {("layer0.q", 0, 0): Q})
    import_dump(tmp_path / "any.npz", out=tmp_path / "t.h5")
    found = parity.compare_traces(tmp_path / "ref.h5", tmp_path / "t.h5", tol="fp32")
    assert found.verdict == "parity"
    assert {row.tap: row.reason for row in found.rows()}["layer0.k"] == "not in the dump"


# --- names ----------------------------------------------------------------------------------------------


def entry(name: str, tap: str | None = None) -> Dumped:
    return Dumped(name, Q.shape, "float32", lambda: Q, tap=tap)


def test_names_are_tied_by_declared_rules_in_their_order():
    naming = Naming(
        TapMap("map.toml", {"blk.*.q": "layer*.q", "wrong": "layer0.v"}),
        ["layer0.q", "layer0.k", "layer0.v", "logits"],
        {"seg0.k": "layer0.k", ".seg0.k": "layer0.k"},
        {"Op_12:output:0": "layer0.k", "Op_13:output:0": "node:3"}.get,
    )
    said = {
        ("blk.0.q", None): ("layer0.q", "renamed by map.toml"),
        ("0007", "wrong"): ("layer0.v", "renamed by map.toml"),
        ("x", "layer0.k"): ("layer0.k", "named by the dump"),
        ("logits", None): ("logits", "of the same name"),
        ("seg0.k", None): ("layer0.k", "by their names in the original programs"),
        ("Op_12:output:0", None): ("layer0.k", "of the same name, through the atc json"),
        ("Op_13:output:0", None): ("node:3", ""),
        ("layer0.kk", None): ("layer0.kk", ""),
        ("x", "layer9.k"): ("layer9.k", ""),
    }
    for (name, tap), wanted in said.items():
        assert naming.tap(entry(name, tap)) == wanted


def test_without_a_reference_every_name_is_taken_as_it_is():
    naming = Naming(origin={"Op_12": "node:3"}.get)
    assert naming.tap(entry("anything")) == ("anything", "")
    assert naming.tap(entry("x", "layer0.q")) == ("layer0.q", "named by the dump")
    assert naming.tap(entry("Op_12")) == ("node:3", "named by the atc json")


def test_names_left_over_on_either_side_are_listed(tmp_path):
    with parity.TraceWriter(tmp_path / "ref.h5") as writer, writer.run("torch") as run:
        for tap in ("layer0.q", "layer0.k"):
            run.record(tap, Q)
    npz.write(tmp_path / "any.npz", {("layer0.q", 0, 0): Q, ("layer0.kk", 0, 0): Q, ("layer0.kk", 1, 0): Q})
    done = import_dump(tmp_path / "any.npz", out=tmp_path / "t.h5", against=f"{tmp_path}/ref.h5:torch")
    assert (done.unmatched, done.absent, done.known) == (("layer0.kk",), ("layer0.k",), True)
    assert done.rules == {"of the same name": 1}


def test_entries_of_a_compiled_graph_are_tied_through_the_atc_json(tmp_path):
    """To a value where the graph is given, else to `node:index`, which a map file can rename."""
    names = [{"key": "_datadump_original_op_names", "value": {"list": {"s": ["/relu"]}}}]
    op = {
        "name": "Op_1",
        "type": "T",
        "id": 1,
        "attr": names,
        "output_desc": [{"dtype": "DT_FLOAT", "attr": []}],
    }
    (tmp_path / "net.json").write_text(json.dumps({"name": "net", "graph": [{"name": "g", "op": [op]}]}))
    given, made = (helper.make_tensor_value_info(name, 1, [2]) for name in ("x", "layer0.q"))
    node = helper.make_node("Relu", ["x"], ["layer0.q"], name="/relu")
    graph = helper.make_model(helper.make_graph([node], "g", [given], [made]))
    (tmp_path / "net.onnx").write_bytes(graph.SerializeToString())
    npz.write(tmp_path / "any.npz", {("Op_1:output:0", 0, 0): Q})
    said = {"atc_json": str(tmp_path / "net.json"), "model": "klm-tiny", "out": tmp_path / "t.h5"}
    done = import_dump(tmp_path / "any.npz", onnx=str(tmp_path / "net.onnx"), **said)
    assert done.rules == {"of the same name, through the atc json": 1}
    assert parity.Trace(tmp_path / "t.h5")["any"].taps == ["layer0.q"]
    assert import_dump(tmp_path / "any.npz", **said).unmatched == ("Op_1:output:0",)
    (tmp_path / "map.toml").write_text('[rename]\n"/relu:0" = "layer0.q"\n')
    done = import_dump(tmp_path / "any.npz", map=str(tmp_path / "map.toml"), **said)
    assert done.rules == {"renamed by map.toml": 1}


def test_two_names_that_become_one_tap_are_refused(tmp_path):
    npz.write(tmp_path / "any.npz", {("a", 0, 0): Q, ("layer0.q", 1, 0): Q})
    (tmp_path / "map.toml").write_text('[rename]\n"a" = "layer0.q"\n')
    with pytest.raises(UserError, match=r"'a' and 'layer0\.q' of the dump are both named so"):
        import_dump(tmp_path / "any.npz", out=tmp_path / "t.h5", map=str(tmp_path / "map.toml"))


def test_two_records_of_one_place_are_two_dumps(tmp_path):
    raw.write(tmp_path / "d", [({"name": "q"}, Q), ({"name": "q"}, Q)])
    with pytest.raises(UserError, match=r"two records at step 0, call 0 .* are two dumps in one"):
        import_dump(tmp_path / "d", out=tmp_path / "t.h5")


@pytest.mark.parametrize("name", ["a\nb", "a\x7f", "x" * 5000])
def test_a_name_that_is_none_is_refused(name, tmp_path):
    raw.write(tmp_path / "d", [({"name": name}, Q)])
    with pytest.raises(UserError, match="is no name for a tap"):
        import_dump(tmp_path / "d", out=tmp_path / "t.h5")


def test_a_map_file_renames_lays_out_and_gives_axes(tmp_path):
    npz.write(tmp_path / "any.npz", {("blk0", 0, 0): CODES.reshape(3, 1), ("other", 0, 0): Q})
    (tmp_path / "map.toml").write_text(
        '[rename]\n"blk*" = "layer*.q"\n[axes]\n"blk*" = "b d"\n'
        '[[transform]]\ntaps = "blk0"\nop = "transpose"\nargs = [1, 0]\n'
        '[[transform]]\ntaps = "blk0"\nop = "dequantize"\nargs = { scale = 0.5 }\n'
    )
    import_dump(tmp_path / "any.npz", out=tmp_path / "t.h5", map=str(tmp_path / "map.toml"))
    (record,) = parity.Trace(tmp_path / "t.h5")["any"].records("layer0.q")
    assert record.read().tolist() == [[-1.5, 0.0, 2.5]]
    assert record.axes == "b d"
    assert record.meta["dump name"] == "blk0"
    assert "dequantize" in record.meta["transformed"]


def test_padding_is_undone_only_where_the_rule_gives_the_very_shape():
    padded = Dumped("x", (1, 32, 64, 1), "float32", lambda: Q, meta={"layout": FOUR_DIMENSIONS})
    array = np.zeros((1, 32, 64, 1), np.float32)
    assert unpadded(padded, array, (1, 32, 64))[0].shape == (1, 32, 64)
    assert unpadded(padded, array, (1, 64, 32))[0] is array
    assert unpadded(padded, array, (32, 64))[0] is array
    assert unpadded(padded, array, None)[0] is array
    assert unpadded(entry("x"), array, (1, 32, 64))[0] is array


# --- prompts --------------------------------------------------------------------------------------------


def test_the_prompt_is_checked_against_ids_given(tmp_path):
    path, out = samples.make_parity(tmp_path), tmp_path / "t.h5"
    assert not any("not checked" in note for note in import_dump(path, out=out, tokens="7").notes)
    assert not any("not checked" in note for note in import_dump(path, out=out, tokens=[7]).notes)
    (tmp_path / "ids.json").write_text("[[7]]")
    import_dump(path, out=out, tokens=str(tmp_path / "ids.json"))
    with pytest.raises(UserError, match=r"fed \[7\] \[1, 1\], but should be \[8\].*another prompt"):
        import_dump(path, out=out, tokens="8")
    with pytest.raises(UserError, match=r"should be \[7 7\]"):
        import_dump(path, out=out, tokens="7,7")
    with pytest.raises(UserError, match="are no ids"):
        import_dump(path, out=out, tokens="1.5")
    with pytest.raises(UserError, match="cannot be read as ids"):
        import_dump(path, out=out, tokens="a,b")


def test_the_prompt_is_checked_against_a_text(tmp_path):
    path, out = samples.make_parity(tmp_path), tmp_path / "t.h5"
    import_dump(path, out=out, model="klm-tiny", prompt="\x07")
    with pytest.raises(UserError, match="another prompt"):
        import_dump(path, out=out, model="klm-tiny", prompt="T")
    with pytest.raises(UserError, match="its ids need a model"):
        import_dump(path, out=out, prompt="T")
    with pytest.raises(UserError, match="either --prompt or --tokens"):
        import_dump(path, out=out, prompt="T", tokens="7")


def test_the_prompt_is_checked_against_the_reference(tmp_path):
    with parity.TraceWriter(tmp_path / "ref.h5") as writer, writer.run("torch") as run:
        for step, token in ((0, 7), (1, 9)):
            run.record("ids", np.array([[token]]), step=step)
    path = samples.make_parity(tmp_path)
    with pytest.raises(UserError, match=r"step 1 of the dump was fed \[8\]"):
        import_dump(path, out=tmp_path / "t.h5", against=f"{tmp_path}/ref.h5")
    assert not (tmp_path / "t.h5").exists()


def test_ids_that_cannot_be_checked_are_said_to_be_unchecked(tmp_path):
    done = import_dump(samples.make_parity(tmp_path), out=tmp_path / "t.h5")
    assert "its token ids were not checked: nothing to hold them against" in done.notes
    done = import_dump(samples.make_npz(tmp_path), out=tmp_path / "t.h5")
    assert "its token ids were not checked: it has none" in done.notes
    with pytest.raises(UserError, match="the dump holds none"):
        import_dump(samples.make_npz(tmp_path), out=tmp_path / "t.h5", tokens="7")


# --- mistakes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"step_offset": -1}, "would be step -1"),
        ({"dtype": "int77"}, "unknown number format"),
        ({"model": "klm-tinny"}, "Did you mean"),
        ({"against": "absent.h5:torch"}, "absent.h5"),
        ({"against": "torch"}, "is no stored run"),
        ({"kind": "npzz"}, "Did you mean"),
        ({"settings": {"colour": "blue"}}, "is no setting"),
        ({"onnx": "x.onnx"}, "without --atc-json"),
        ({"out": "folder"}, "no trace file"),
    ],
)
def test_a_mistake_is_a_sentence(options, match, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=match):
        import_dump(samples.make_npz(tmp_path), **options)


def test_a_dump_that_names_another_model_is_refused(tmp_path):
    parity_dump.write(tmp_path / "d", [], provenance={"model": "klm"})
    with pytest.raises(UserError, match="the dump says it is of 'klm'"):
        import_dump(tmp_path / "d", out=tmp_path / "t.h5", model="klm-tiny")
    assert import_dump(tmp_path / "d", out=tmp_path / "t.h5").known


def test_the_case_that_a_dump_states_is_held_against_the_reference(tmp_path):
    """A stored run of other weights is refused by the comparison, like any other run."""
    for name, weights in (("ref", "1"), ("dump", "2")):
        steps = [{"index": 0, "records": [{"array": Q, "tap": "layer0.q"}]}]
        parity_dump.write(tmp_path / name, steps, provenance={"model": "klm", "weights": weights})
        import_dump(tmp_path / name, out=tmp_path / f"{name}.h5")
    with pytest.raises(UserError, match="weights: 1 against 2"):
        parity.compare_traces(tmp_path / "ref.h5", tmp_path / "dump.h5")


def test_a_broken_dump_leaves_an_incomplete_run_and_a_sound_file(tmp_path):
    path = samples.make_parity(tmp_path)
    whole = (path / "step_000001.npz").read_bytes()
    at = whole.index(Q.tobytes())
    (path / "step_000001.npz").write_bytes(whole[:at] + b"\xff" + whole[at + 1 :])
    with pytest.raises(UserError, match="damaged"):
        import_dump(path, out=tmp_path / "t.h5", run="board")
    with parity.Trace(tmp_path / "t.h5") as trace:
        assert not trace["board"].complete
        assert trace["board"].verify() == []


# --- the command ----------------------------------------------------------------------------------------


def test_the_command_says_what_it_did(cli, tmp_path):
    code, out, _ = cli("import", samples.make_npz(tmp_path), "-o", "t.h5", "--model", "klm-tiny")
    assert code == 0
    assert "t.h5:any: 4 records of 2 steps from a dump of kind npz" in out
    assert "2 of the same name" in out
    assert "2 of the dump's names have no tap: bits, codes" in out
    assert "of the reference's taps are not in the dump: ids, embed" in out
    assert "(--json lists all)" in out


def test_the_command_prints_json(cli, tmp_path):
    code, out, _ = cli("import", samples.make_npz(tmp_path), "--run", "board", "--json")
    assert code == 0
    said = json.loads(out)
    assert (said["run"], said["trace"], said["kind"], said["records"]) == ("board", "trace.h5", "npz", 4)


def test_the_command_lists_the_kinds(cli):
    code, out, _ = cli("import", "--kinds")
    assert code == 0
    assert "traced" in out
    assert "run: which run of the file" in out
    code, out, _ = cli("import", "--kinds", "--json")
    assert {item["kind"] for item in json.loads(out)} >= {"parity", "npz", "atb"}


def test_a_setting_is_passed_to_the_reader(cli, tmp_path):
    path = tmp_path / "traced_tensors.pt"
    traced.write(path, {".q": {"ref": Q, "seg": Q}})
    code, _, err = cli("import", path)
    assert code == 2
    assert "holds the runs 'ref', 'seg'" in err
    code, out, _ = cli("import", path, "--set", "run=seg")
    assert code == 0
    assert "trace.h5:seg: 1 records" in out


@pytest.mark.parametrize(
    ("args", "match"),
    [
        (["import"], "name a dump"),
        (["import", "absent"], "is not there"),
        (["import", ".", "--set", "x"], "should be NAME=VALUE"),
        (["import", ".", "--set", "a=1", "--set", "a=2"], "each NAME once"),
        (["import", "."], "looks like no kind of dump"),
        (["import", "/"], "looks like no kind of dump"),
    ],
)
def test_the_commands_mistakes_are_usage_errors(args, match, cli):
    code, _, err = cli(*args)
    assert code == 2
    assert match in err
