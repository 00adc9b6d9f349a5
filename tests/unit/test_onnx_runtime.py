"""The `onnx` target: graphs bound by name, sessions in every layout against eager torch, files of others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from parity.harness.case import CachePolicy, Case, Scenario
from parity.harness.errors import CandidateError, UserError
from parity.harness.progress import Silent
from parity.harness.replay import replay
from parity.harness.target import Options, Session
from parity.harness.tracer.memory import MemoryRun
from parity.harness.values import Values, rows_first
from parity.models.klm import KLMConfig, KLMModel
from parity.reference.torch_run import TorchTarget
from parity.targets.onnx import OnnxTarget, export_originals
from parity.targets.onnx.layout import rename
from parity.targets.onnx.runtime import Graph, Observer, Runtime
from parity.targets.onnx.target import parse_arg

MINI = KLMModel(
    "klm-mini",
    KLMConfig(
        max_length=128,
        effective_length=8,
        vocab_size=40,
        hidden_size=16,
        num_layers=2,
        num_attention_heads=4,
        num_kv_heads=2,
        ffn_hidden_size=24,
    ),
)
SCRIPT = Options(exporter="script")
WINDOW = CachePolicy("window", 7)
LONG, SHORT = tuple(range(3, 13)), (5, 1, 4)


@pytest.fixture(scope="session")
def workdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Exports are shared by all tests of this file."""
    return tmp_path_factory.mktemp("onnx")


def case(*ids: Sequence[int], steps: int = 4, policy: CachePolicy = WINDOW, **scenario) -> Case:  # type: ignore[no-untyped-def]
    module = MINI.build()
    MINI.init_random(module, 0)
    rows = tuple(tuple(row) for row in ids)
    return Case(MINI, module.state_dict(), "random:0", Scenario("test", rows, steps, policy, **scenario))


def reference(work: Case) -> Values:
    """The trusted run of a case."""
    run = MemoryRun("torch", provenance={"scenario": work.scenario.to_json()})
    session = TorchTarget().prepare(
        work, arg="", options=Options(), reference=None, workdir=Path(), progress=Silent()
    )
    replay(session, work.scenario, sink=run, progress=Silent(), title="")
    return Values(run, derived={row.cache: row.source for row in MINI.wiring.caches})  # type: ignore[arg-type]


def prepared(
    work: Case, workdir: Path, arg: str = "", *, trusted: Values | None = None, options: Options = SCRIPT
) -> Session:
    return OnnxTarget().prepare(
        work, arg=arg, options=options, reference=trusted, workdir=workdir, progress=Silent()
    )


def executed(session: Session, work: Case, trusted: Values | None, *, isolate: bool = False) -> MemoryRun:
    run = MemoryRun("onnx")
    replay(session, work.scenario, sink=run, progress=Silent(), title="", reference=trusted, isolate=isolate)
    return run


def worst(run: MemoryRun, trusted: Values, *, least: int) -> dict[str, float]:
    """Largest difference per tap over all rows that are no padding; at least so many rows were compared."""
    errors: dict[str, float] = {}
    compared = 0
    for record in run.records():
        if record.tap == "ids":
            continue
        rows = rows_first(record.read(), record.axes)
        positions = np.broadcast_to(np.atleast_2d(record.positions), rows.shape[:2])
        expected, found = trusted.rows(record.tap).at(record.step, positions)
        real = positions >= 0
        assert found[real].all()
        compared += int(real.sum())
        gap = np.abs(rows - expected)[real].max(initial=0.0)
        errors[record.tap] = max(errors.get(record.tap, 0.0), float(gap))
    assert compared >= least
    return errors


def test_a_full_window_is_prefilled_on_the_host_and_runs_without_a_mask(workdir: Path) -> None:
    work = case(LONG, steps=70)
    trusted = reference(work)
    session = prepared(work, workdir, trusted=trusted)
    isolated = MemoryRun("isolated")
    session.isolated_sink = isolated  # type: ignore[attr-defined]
    run = executed(session, work, trusted, isolate=True)
    assert session.facts.details["masked"] is False
    assert [(u.taps, u.steps) for u in session.facts.unobserved] == [("*", (0,))]
    assert any("prefilled on the host" in line for line in session.facts.substitutions)
    assert run.records("layer0.q")[0].step == 1
    errors = worst(run, trusted, least=70 * 40)
    assert set(errors) == set(MINI.taps)
    assert max(errors.values()) < 1e-4
    assert max(worst(isolated, trusted, least=70 * 20).values()) < 1e-4


@pytest.mark.parametrize(
    ("work", "arg"),
    [
        pytest.param(case(SHORT), "", id="history shorter than the window"),
        pytest.param(case(LONG, steps=12), "masked", id="mask on a full window"),
        pytest.param(case(SHORT, policy=CachePolicy()), "", id="full"),
        pytest.param(case(LONG, SHORT, (1, 2, 3, 4, 5), steps=9), "", id="three, padded right"),
        pytest.param(case(LONG, SHORT, (7,), steps=9, padding="left"), "", id="three, padded left"),
        pytest.param(case(SHORT, SHORT, SHORT, policy=CachePolicy()), "", id="three alike"),
        pytest.param(case(LONG, steps=6, resets=(3,)), "masked", id="reset"),
        pytest.param(case(SHORT, steps=12), "whole", id="whole, windowed"),
        pytest.param(case(LONG, SHORT, (7,), padding="left"), "whole", id="whole, padded"),
        pytest.param(case(SHORT, policy=CachePolicy()), "opt=disable", id="no optimisation"),
    ],
)
def test_every_layout_agrees_with_eager_torch_at_every_tap(work: Case, arg: str, workdir: Path) -> None:
    trusted = reference(work)
    session = prepared(work, workdir, arg)
    errors = worst(executed(session, work, trusted), trusted, least=100)
    assert set(errors) == set(MINI.taps)
    assert max(errors.values()) < 1e-4
    assert session.facts.unobserved == ()


def test_the_whole_model_shows_every_row_of_a_cache_and_only_new_rows_elsewhere(workdir: Path) -> None:
    work = case(SHORT)
    run = executed(prepared(work, workdir, "whole"), work, None)
    last = {record.tap: record for record in run.records() if record.step == 4}
    assert np.atleast_2d(last["layer1.ks"].positions).tolist() == [[0, 1, 2, 3, 4, 5, 6]]
    assert np.atleast_2d(last["layer1.k"].positions).tolist() == [[6]]


def test_a_reset_prefills_the_static_build_again(workdir: Path) -> None:
    work = case(LONG, steps=8, resets=(4,))
    trusted = reference(work)
    session = prepared(work, workdir, trusted=trusted)
    assert session.facts.unobserved[0].steps == (0, 4)
    assert max(worst(executed(session, work, trusted), trusted, least=100).values()) < 1e-4


def test_a_free_replay_goes_on_with_its_own_tokens(workdir: Path) -> None:
    work = case(SHORT, steps=9)
    trusted = reference(work)
    run = MemoryRun("free")
    session = prepared(work, workdir)
    replay(session, work.scenario, sink=run, progress=Silent(), title="", reference=trusted, free=True)
    for step in range(1, 10):
        own = next(record.read() for record in run.records("ids") if record.step == step)
        np.testing.assert_array_equal(own, trusted.tokens(step))


def test_without_a_reference_a_full_window_is_fed_token_by_token(workdir: Path) -> None:
    work = case(LONG)
    session = prepared(work, workdir)
    assert session.facts.details["masked"] is True
    assert len(executed(session, work, None).records("layer0.q")) == len(LONG) + 4


def test_taps_come_in_execution_order(workdir: Path) -> None:
    work = case(SHORT, steps=1)
    run = executed(prepared(work, workdir), work, None)
    assert run.taps == ["ids", "rope", *(tap for tap in MINI.taps if tap != "rope")]


def test_the_observer_effect_is_stated_for_every_output(workdir: Path) -> None:
    work = case(SHORT, steps=1)
    session = prepared(work, workdir)
    executed(session, work, None)
    effect = session.facts.details["observer_effect"]
    assert set(effect) == {p.value for s in MINI.wiring.segments for p in s.outputs}
    assert all(seen["max_abs"] < 1e-5 for seen in effect.values())


def test_the_observer_tells_bits_values_and_nonfinite_apart() -> None:
    seen = Observer()
    seen.note("same", np.float32([1.0, np.nan]), np.float32([1.0, np.nan]))
    seen.note("off", np.float32([1.0, 2.0]), np.float32([1.0, 2.5]))
    seen.note("off", np.float32([1.0, 2.0]), np.float32([1.0, 2.0]))
    seen.note("bad", np.float32([1.0, 2.0]), np.float32([1.0, np.inf]))
    assert seen.effect["same"] == {"max_abs": 0.0, "bitwise": True}
    assert seen.effect["off"] == {"max_abs": 0.5, "bitwise": False}
    assert seen.effect["bad"] == {"max_abs": 0.0, "bitwise": False, "nonfinite": True}


def test_some_segments_may_be_left_to_torch(workdir: Path) -> None:
    work = case(SHORT)
    trusted = reference(work)
    session = prepared(work, workdir, options=Options(exporter="script", segments="seg_0"))
    assert session.facts.substitutions == ("run by torch instead of ONNX Runtime: seg_head, seg_tail",)
    assert max(worst(executed(session, work, trusted), trusted, least=100).values()) < 1e-4
    with pytest.raises(UserError, match=r"segments='sag_\*': matches no segment.*seg_"):
        prepared(work, workdir, options=Options(segments="sag_*"))


@pytest.fixture(scope="session")
def graph(workdir: Path) -> Graph:
    """A small graph: y = a - b, z = cast(ids)."""
    make = onnx.helper
    floats, whole = onnx.TensorProto.FLOAT, onnx.TensorProto.INT64
    model = make.make_model(
        make.make_graph(
            [make.make_node("Sub", ["a", "b"], ["y"]), make.make_node("Cast", ["ids"], ["z"], to=floats)],
            "small",
            [
                make.make_tensor_value_info("a", floats, [2]),
                make.make_tensor_value_info("b", floats, ["N"]),
                make.make_tensor_value_info("ids", whole, [1]),
            ],
            [make.make_tensor_value_info("y", floats, [2]), make.make_tensor_value_info("z", floats, [1])],
        ),
        opset_imports=[make.make_opsetid("", 17)],
        ir_version=8,
    )
    onnx.save(model, workdir / "small.onnx")
    return Graph(Runtime(), workdir / "small.onnx", "small")


def fed(**changes: np.ndarray) -> dict[str, np.ndarray]:
    """Fitting inputs, in an order that is not the graph's."""
    feed = {"ids": np.array([3]), "b": np.float32([1, 2]), "a": np.float32([5, 7])}
    return {**feed, **changes}


def test_a_graph_is_bound_by_name_both_ways(graph: Graph) -> None:
    z, y = graph.run(fed(), ["z", "y"])
    assert (z.tolist(), y.tolist()) == ([3.0], [4.0, 5.0])


@pytest.mark.parametrize(
    ("feed", "sentence"),
    [
        pytest.param(fed(a=np.zeros(2)), r"input a float64\[2\], should be a float32\[2\]", id="format"),
        pytest.param(fed(a=np.zeros(3, np.float32)), r"input a float32\[3\], should be", id="shape"),
        pytest.param(fed(ids=np.int32([3])), r"input ids int32\[1\], should be ids int64", id="ids"),
        pytest.param(fed(c=np.zeros(2)), "small: has no input c", id="spare"),
        pytest.param({"a": np.float32([1, 2])}, "input .* is not fed", id="lacking"),
        pytest.param(fed(b=np.zeros(3, np.float32)), "small: ONNX Runtime failed", id="inside"),
    ],
)
def test_an_input_that_does_not_fit_is_named(
    graph: Graph, feed: Mapping[str, np.ndarray], sentence: str
) -> None:
    with pytest.raises(CandidateError, match=sentence):
        graph.run(feed, ["y"])


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"level": "al"}, "opt='al'.*'all'"),
        ({"threads": 0}, "threads=0"),
        ({"device": "gpu"}, "device='gpu'"),
        ({"device": "cuda"}, "has no CUDAExecutionProvider"),
    ],
)
def test_a_setting_that_onnx_runtime_has_not_is_refused(settings: dict[str, object], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        Runtime(**settings)  # type: ignore[arg-type]


def test_the_argument_is_a_word_or_a_path_and_a_level(tmp_path: Path) -> None:
    assert parse_arg("masked").masked
    assert (parse_arg("whole+opt=basic").whole, parse_arg("opt=basic").level) == (True, "basic")
    assert parse_arg(str(tmp_path)).path == tmp_path
    with pytest.raises(UserError, match=r"onnx:hole: 'hole' is neither.*'whole'"):
        parse_arg("hole")


def test_only_fp32_is_computed() -> None:
    with pytest.raises(UserError, match=r"dtype='bf16'.*fp32 only"):
        OnnxTarget().check("", Options(dtype="bf16"))


@pytest.fixture(scope="session")
def folder(workdir: Path) -> Path:
    """Files with the originals' names."""
    work = case(LONG)
    export_originals(MINI, work.state, workdir / "originals")
    return workdir / "originals"


@pytest.fixture
def copied(folder: Path, tmp_path: Path) -> Path:
    """The same, to be spoilt."""
    for path in folder.glob("*.onnx"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def test_a_folder_of_files_runs_in_the_same_loop(folder: Path, workdir: Path) -> None:
    work = case(LONG, steps=9)
    trusted = reference(work)
    session = prepared(work, workdir, str(folder), trusted=trusted)
    errors = worst(executed(session, work, trusted), trusted, least=100)
    assert max(errors.values()) < 1e-4
    hidden = {u.taps for u in session.facts.unobserved if u.steps is None}
    assert hidden == set(MINI.taps) - set(errors)
    assert "layer0.attn" in hidden


def test_a_planted_fault_in_a_file_is_born_in_its_segment_alone(copied: Path, workdir: Path) -> None:
    model = onnx.load(copied / "seg_0.onnx")
    bias = next(t for t in model.graph.initializer if t.name.endswith("layer_head.v_proj.bias"))
    bias.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(bias) + np.float32(0.1), bias.name))
    onnx.save(model, copied / "seg_0.onnx")
    work = case(LONG)
    trusted = reference(work)
    session = prepared(work, workdir, str(copied), trusted=trusted)
    isolated = MemoryRun("isolated")
    session.isolated_sink = isolated  # type: ignore[attr-defined]
    executed(session, work, trusted, isolate=True)
    wrong = {tap for tap, error in worst(isolated, trusted, least=20).items() if error > 1e-3}
    assert wrong == {"layer1.v"}


def test_outputs_without_known_names_are_taken_in_declared_order_and_it_is_said(
    copied: Path, workdir: Path
) -> None:
    model = onnx.load(copied / "seg_0.onnx")
    rename(model, {"residual": "o0", "q": "o1", "k": "o2", "v": "o3"})
    onnx.save(model, copied / "seg_0.onnx")
    work = case(LONG)
    trusted = reference(work)
    session = prepared(work, workdir, str(copied), trusted=trusted)
    assert "outputs of seg_0 taken in their declared order" in session.facts.substitutions
    assert max(worst(executed(session, work, trusted), trusted, least=50).values()) < 1e-4


def _retyped(path: Path, name: str, shape: Sequence[int]) -> None:
    model = onnx.load(path)
    value = next(value for value in (*model.graph.input, *model.graph.output) if value.name == name)
    value.CopyFrom(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape))
    onnx.save(model, path)


def _renamed(path: Path, old: str, new: str) -> None:
    model = onnx.load(path)
    rename(model, {old: new})
    onnx.save(model, path)


SPOILT = {
    "lost": (lambda at: (at / "seg_0.onnx").unlink(), r"lacks seg_0\.onnx"),
    "text": (lambda at: (at / "seg_0.onnx").write_text("hello"), "is not an ONNX file"),
    "empty": (lambda at: (at / "seg_0.onnx").write_bytes(b""), "is not an ONNX file"),
    "cut": (
        lambda at: (at / "seg_0.onnx").write_bytes((at / "seg_0.onnx").read_bytes()[:900]),
        "is not an ONNX",
    ),
    "input": (lambda at: _renamed(at / "seg_0.onnx", "ks", "keys"), "needs one input 'ks'"),
    "shape": (
        lambda at: _retyped(at / "seg_tail.onnx", "logits", [1, 1, 41]),
        r"logits float32\[1, 1, 41\], should",
    ),
    "rows": (
        lambda at: _retyped(at / "seg_0.onnx", "ks", [1, 2, 9, 4]),
        "disagree on the number of cache rows",
    ),
}


@pytest.mark.parametrize("kind", SPOILT)
def test_files_that_do_not_fit_are_named_with_what_is_wrong(copied: Path, workdir: Path, kind: str) -> None:
    spoil, sentence = SPOILT[kind]
    spoil(copied)
    work = case(LONG)
    with pytest.raises(UserError, match=sentence):
        prepared(work, workdir, str(copied), trusted=reference(work))


def test_a_future_opset_is_the_files_fault(copied: Path, workdir: Path) -> None:
    model = onnx.load(copied / "seg_head.onnx")
    model.opset_import[0].version = 99
    onnx.save(model, copied / "seg_head.onnx")
    work = case(LONG)
    with pytest.raises(UserError, match=r"seg_head\.onnx.*its opset is 99"):
        prepared(work, workdir, str(copied), trusted=reference(work))


@pytest.mark.parametrize(
    ("work", "sentence"),
    [
        pytest.param(case(SHORT), "no mask, so all 7 rows must be real: .* prompt of at least 7", id="short"),
        pytest.param(case(LONG, policy=CachePolicy("window", 6)), r"choose --cache window\(7\)", id="window"),
        pytest.param(case(LONG, policy=CachePolicy()), r"choose --cache window\(7\)", id="full"),
        pytest.param(case(LONG, LONG), "should be", id="batch"),
    ],
)
def test_a_scenario_that_the_files_were_not_made_for_is_refused(
    work: Case, sentence: str, folder: Path, workdir: Path
) -> None:
    with pytest.raises(UserError, match=sentence):
        prepared(work, workdir, str(folder), trusted=reference(work))


def test_masked_files_take_any_scenario_that_fits_their_rows(tmp_path: Path, workdir: Path) -> None:
    work = case(SHORT, policy=CachePolicy())
    export_originals(MINI, work.state, tmp_path, masked=True, window=12)
    trusted = reference(work)
    session = prepared(work, workdir, str(tmp_path), trusted=trusted)
    assert max(worst(executed(session, work, trusted), trusted, least=50).values()) < 1e-4
    with pytest.raises(UserError, match="23 rows for --cache full, these files take 12"):
        prepared(case(SHORT, steps=20, policy=CachePolicy()), workdir, str(tmp_path))


class Alone(torch.nn.Module):
    """The whole model as others export it: ids and positions in, logits out, causal."""

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, input_ids: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
        return self.module(input_ids, positions_bt=position_ids)[0]  # type: ignore[no-any-return]


@pytest.fixture(scope="session")
def lone(workdir: Path) -> Path:
    """A lone file of fixed width 12."""
    module = MINI.build()
    module.load_state_dict(dict(case(SHORT).state))
    from parity.targets.onnx.export import _quiet

    ids = torch.arange(12)[None]
    with _quiet():
        torch.onnx.export(
            Alone(module).eval(),
            (ids, ids.clone()),
            workdir / "lone.onnx",
            dynamo=False,
            input_names=["input_ids", "position_ids"],
            output_names=["out"],
        )
    return workdir / "lone.onnx"


def test_a_lone_file_of_fixed_width_is_fed_by_its_input_names(lone: Path, workdir: Path) -> None:
    work = case(SHORT, policy=CachePolicy())
    trusted = reference(work)
    session = prepared(work, workdir, str(lone))
    assert session.facts.substitutions == ("output 'out' taken for the logits",)
    errors = worst(executed(session, work, trusted), trusted, least=7)
    assert set(errors) == {"logits"}
    assert errors["logits"] < 1e-4
    assert {u.taps for u in session.facts.unobserved} == set(MINI.taps) - {"logits"}


@pytest.mark.parametrize(
    ("work", "sentence"),
    [
        pytest.param(
            case(SHORT, steps=9), "no mask input, so it attends to all 12.*--cache full", id="window"
        ),
        pytest.param(
            case(SHORT, steps=12, policy=CachePolicy()), "takes 12 tokens.*fewer --steps", id="long"
        ),
        pytest.param(
            case(SHORT, (1,), policy=CachePolicy()), "made for batch 1, the scenario has 2", id="batch"
        ),
    ],
)
def test_a_lone_file_that_cannot_run_the_scenario_says_why(
    work: Case, sentence: str, lone: Path, workdir: Path
) -> None:
    with pytest.raises(UserError, match=sentence):
        prepared(work, workdir, str(lone))


def test_a_lone_file_with_an_unknown_input_is_refused(workdir: Path, graph: Graph) -> None:
    with pytest.raises(UserError, match=r"input a float32\[2\] is unknown"):
        prepared(case(SHORT), workdir, str(workdir / "small.onnx"))
