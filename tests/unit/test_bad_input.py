"""What a person can get wrong: one paragraph on standard error, the right exit status, never a traceback."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

import parity
from parity.cli import main
from parity.harness.trace import TraceWriter

QUICK = ("--weights", "random:0", "--scenario", "one", "--steps", "1", "--tol", "fp32")


@dataclass(frozen=True)
class Outcome:
    """How a command ended."""

    status: int
    out: str
    err: str

    @property
    def message(self) -> str:
        """The paragraph that tells what is wrong: what follows the last word of progress."""
        found = [*re.finditer(r"^(parity|Error): ", self.err, re.MULTILINE)]
        assert found, f"nothing was said: {self.err}"
        return self.err[found[-1].start() :].strip()


Run = Callable[..., Outcome]


@pytest.fixture
def run(capsys, monkeypatch, tmp_path, cache) -> Run:
    """`run("compare", a, b)`: the command line in this process, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PARITY_CACHE", str(cache))

    def call(*args: object) -> Outcome:
        monkeypatch.setattr("sys.argv", ["parity", *map(str, args)])
        with pytest.raises(SystemExit) as stopped:
            main()
        said = capsys.readouterr()
        assert "Traceback" not in said.err + said.out
        assert "internal error" not in said.err, said.err
        return Outcome(int(stopped.value.code or 0), said.out, said.err)

    return call


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def trace(tmp_path_factory) -> Path:
    """A small recorded reference."""
    path = tmp_path_factory.mktemp("trace") / "ref.h5"
    parity.record("torch", out=path, weights="random:0", scenario="one", steps=1)
    return path


def refused(outcome: Outcome, *words: str, status: int = 2) -> None:
    """The status, one paragraph, and every word in it."""
    assert outcome.status == status, outcome.err
    assert "\n\n" not in outcome.message
    for word in words:
        assert word in outcome.message
    assert len(outcome.message) < 600


OPTIONS = {
    "target": (("--cand", "onx"), ("target='onx'", "Did you mean 'onnx'")),
    "reference": (("--ref", "torhc"), ("target='torhc'", "'torch'")),
    "model": (("--model", "klm-tyni"), ("model='klm-tyni'", "'klm-tiny'")),
    "scenario": (("--scenario", "wrapp"), ("scenario='wrapp'", "'wrap'")),
    "scenario file": (("--scenario", "no/such.toml"), ("no/such.toml", "no such file")),
    "replay": (("--replay", "forcd"), ("replay='forcd'", "'forced'")),
    "exporter": (("--exporter", "torchscript"), ("exporter='torchscript'", "script")),
    "cache policy": (("--cache", "ring"), ("cache='ring'", "window(N)")),
    "window": (("--cache", "window(x)"), ("window(x)", "whole number")),
    "tolerance": (("--tol", "fp23"), ("tol='fp23'", "'fp32'")),
    "map": (("--map", "nosuch.toml"), ("nosuch.toml",)),
    "dtype": (("--dtype", "fp31"), ("dtype='fp31'", "'fp32'")),
    "device": (("--device", "gpu"), ("device='gpu'", "cuda")),
    "negative steps": (("--steps", "-1"), ("steps=-1", "negative")),
    "steps are a number": (("--steps", "many"), ("--steps", "many")),
    "no batch": (("--batch", "0"), ("batch=0", "at least 1")),
    "no threads": (("--threads", "0"), ("threads=0", "at least 1")),
    "empty prompt": (("--prompt", ""), ("no tokens",)),
    "character outside the vocabulary": (("--prompt", "key \U0001f511"), ("\U0001f511",)),
    "checkpoint that is not there": (("--weights", "no/such.pt"), ("no/such.pt",)),
    "seed that is none": (("--weights", "random:x"), ("random:x", "random:0")),
    "candidate twice": (("--cand", "onnx", "--cand", "onnx"), ("'onnx'", "twice")),
    "empty candidate": (("--cand", ""), ("empty",)),
    "stored run that is not there": (("--ref", "nosuch.h5:torch"), ("nosuch.h5",)),
    "segments": (("--cand", "onnx", "--segments", "block*"), ("block*",)),
    "segments of torch": (
        ("--cand", "segmented", "--segments", "seg_tail"),
        ("seg_tail", "segmented", "onnx"),
    ),
    "segments of files": (("--cand", "prefilled", "--segments", "nosuch"), ("nosuch", "prefilled", "onnx")),
    "old opset": (("--cand", "onnx", "--opset", "3"), ("opset=3", "7")),
    "future opset": (("--cand", "onnx", "--exporter", "script", "--opset", "99"), ("opset=99", "script")),
    "inputs with our model": (("--inputs", "x.npz"), ("inputs",)),
    "own module without inputs": (("--model", "mypkg.net:build"), ("mypkg.net:build", "--inputs")),
    "unknown option": (("--stesp", "3"), ("--stesp", "--steps")),
    "argument of a target": (("--cand", "segmented:grwo"), ("grwo", "'grow'")),
    "prefilled folder": (("--cand", "prefilled:nosuch"), ("nosuch", "parity prefill")),
    "onnx folder": (("--cand", "onnx:no/such"), ("no/such",)),
}


@pytest.mark.parametrize(("args", "words"), OPTIONS.values(), ids=OPTIONS)
def test_a_wrong_option_is_named_and_told_what_to_do(run, args, words):
    given = () if "--cand" in args else ("--cand", "segmented")
    weights = () if args[0] == "--weights" else ("--weights", "random:0")
    scenario = () if args[0] in ("--scenario", "--prompt") else ("--scenario", "one")
    refused(run("run", *weights, *scenario, "--tol", "fp32", *given, *args), *words)


def test_what_is_wrong_is_said_before_anything_runs(run, tmp_path):
    """A typing mistake in the last option must not cost the minutes of the reference."""
    for args in (
        ("--cand", "onx"),
        ("--tol", "fp23"),
        ("--map", "nosuch.toml"),
        ("--replay", "forcd"),
        ("--cand", "onnx", "--opset", "3"),
    ):
        outcome = run("run", *QUICK, "--cand", "segmented", "--out", "out", *args)
        assert outcome.status == 2
        assert "recording" not in outcome.err, args
        assert not list(tmp_path.rglob("trace.h5")), args


def test_a_tap_that_does_not_exist_is_no_pass(run, trace):
    outcome = run("compare", trace, _copy(run, trace), "--taps", "layer0.qq", "--tol", "fp32")
    assert outcome.status in (2, 3), outcome.out
    assert "layer0.qq" in outcome.out + outcome.err


def _copy(run: Run, trace: Path) -> Path:
    copy = Path.cwd() / "copy.h5"
    shutil.copy(trace, copy)
    return copy


def test_a_run_name_that_is_not_there_names_the_nearest(run, trace):
    refused(run("compare", trace, trace, "--ref-run", "toch"), "'toch'", "Did you mean 'torch'")
    refused(run("trace", "ls", f"{trace}:toch"), "'toch'", "Did you mean 'torch'")


def test_a_run_is_not_compared_with_itself(run, trace):
    refused(run("compare", trace, trace), "torch", "itself")


def test_a_tap_of_a_trace_that_is_not_there_names_the_nearest(run, trace):
    refused(run("trace", "show", trace, "layer0.kv"), "'layer0.kv'", "Did you mean")
    refused(run("trace", "show", trace, "layer0.q", "--step", "99"), "step=99")
    refused(run("trace", "show", trace, "layer0.q", "--step", "0", "--slice", "9,x"), "9,x")
    refused(run("trace", "export", trace, "x.npz", "--taps", "nosuch*"), "nosuch*")


@pytest.fixture(params=["missing", "text", "empty", "truncated", "foreign", "newer", "folder"])
def broken(request, tmp_path, trace) -> Path:
    """A file that is no trace, in seven ways."""
    path = tmp_path / f"{request.param}.h5"
    data = trace.read_bytes()
    if request.param == "text":
        path.write_text("this is not HDF5\n" * 100)
    elif request.param == "empty":
        path.touch()
    elif request.param == "truncated":
        path.write_bytes(data[: len(data) // 3])
    elif request.param == "foreign":
        with h5py.File(path, "w") as file:
            file["weights"] = np.zeros(4)
    elif request.param == "newer":
        path.write_bytes(data)
        with h5py.File(path, "a") as file:
            file.attrs["version"] = 99
    elif request.param == "folder":
        path.mkdir()
    return path


def test_a_file_that_is_no_trace_is_refused_everywhere(run, broken, trace):
    for args in (
        ("compare", trace, broken, "--tol", "fp32"),
        ("compare", broken, trace, "--tol", "fp32"),
        ("trace", "ls", broken),
        ("trace", "repair", broken),
        ("run", *QUICK, "--ref", f"{broken}:torch", "--cand", "segmented"),
        ("record", "segmented", *QUICK[:-2], "--ref", f"{broken}:torch"),
    ):
        refused(run(*args), broken.name)


def test_a_file_that_is_no_trace_is_not_written_to(run, broken):
    if not broken.is_file():
        pytest.skip("nothing is there that could be lost")
    before = broken.read_bytes()
    outcome = run("record", *QUICK[:-2], "--out", broken)
    assert broken.read_bytes() == before or not before
    refused(outcome, broken.name) if before else None


def checkpoint(change: Callable[[dict[str, torch.Tensor]], object]) -> Path:
    """A random checkpoint of klm-tiny with something wrong in it."""
    from parity.models import find_model
    from parity.reference.checkpoints import load_weights

    state, *_ = load_weights("random:0", find_model("klm-tiny"))
    data = {key: tensor.clone() for key, tensor in state.items()}
    changed = change(data)
    path = Path.cwd() / "bad.pt"
    torch.save(data if changed is None else changed, path)
    return path


def _embedding(data: dict[str, torch.Tensor]) -> str:
    return next(key for key, tensor in data.items() if tensor.shape[0] == 512)


def _nan(data: dict[str, torch.Tensor]) -> None:
    data[_embedding(data)][3, 5] = float("nan")


def _vocabulary(data: dict[str, torch.Tensor]) -> None:
    for key, tensor in data.items():
        if tensor.shape[0] == 512:
            data[key] = tensor[:300]


def _missing(data: dict[str, torch.Tensor]) -> None:
    data.pop(_embedding(data))


CHECKPOINTS = {
    "NaN": (_nan, ("NaN",)),
    "another vocabulary": (_vocabulary, ("300", "512")),
    "a key is missing": (_missing, ("weights",)),
    "no state_dict": (lambda data: [1, 2, 3], ("bad.pt",)),
}


@pytest.mark.parametrize(("change", "words"), CHECKPOINTS.values(), ids=CHECKPOINTS)
def test_a_checkpoint_that_cannot_be_the_models_is_refused(run, change, words):
    refused(run("run", *QUICK[2:], "--cand", "segmented", "--weights", checkpoint(change)), *words)


def test_a_file_that_is_no_checkpoint_is_refused(run, tmp_path):
    (tmp_path / "bad.pt").write_text("not a checkpoint")
    refused(run("run", *QUICK[2:], "--cand", "segmented", "--weights", "bad.pt"), "bad.pt")


def test_a_pickle_that_would_run_code_is_refused(run, tmp_path):
    class Trap:
        def __reduce__(self) -> tuple[object, tuple[str, ...]]:
            return Path.touch, (Path(tmp_path / "ran"),)

    torch.save({"trap": Trap()}, tmp_path / "bad.pt")
    refused(run("run", *QUICK[2:], "--cand", "segmented", "--weights", "bad.pt"), "bad.pt")
    assert not (tmp_path / "ran").exists()


SCENARIOS = {
    "empty": ("", "needs exactly one of"),
    "no texts": ("texts = []", "no tokens"),
    "no ids": ("ids = []", "no tokens"),
    "an empty text": ('text = ""', "no tokens"),
    "unknown key": ('text = "a"\nstpes = 3', "Did you mean 'steps'"),
    "negative steps": ('text = "a"\nsteps = -1', "steps=-1"),
    "no token": ("ids = [1, 9999]", "9999"),
    "no TOML": ("text = ", "TOML"),
    "reset after the end": ('text = "a"\nsteps = 2\nresets = [7]', "resets=[7]"),
    "sampling": ('text = "a"\nsampling = "top_k"', "top_k"),
}


@pytest.mark.parametrize(("text", "said"), SCENARIOS.values(), ids=SCENARIOS)
def test_a_scenario_that_cannot_be_run_is_refused(run, tmp_path, text, said):
    (tmp_path / "mine.toml").write_text(text)
    args = ("--weights", "random:0", "--cand", "segmented", "--scenario", "mine.toml")
    refused(run("run", *args), said)


@pytest.mark.parametrize(
    "args",
    [
        ("run", *QUICK, "--cand", "segmented", "--out", "file/below"),
        ("record", *QUICK[:-2], "--out", "file/below.h5"),
        ("record", *QUICK[:-2], "--out", "no-trace.txt"),
        ("prefill", "--prompt", "a", "--weights", "random:0", "--out", "file/below"),
        ("export", "--weights", "random:0", "--segments", "seg_tail", "--out", "file/below"),
        ("train", "klm-tiny", "--steps", "1"),
    ],
    ids=["run", "record", "record no trace", "prefill", "export", "train"],
)
def test_an_output_that_cannot_be_written_is_refused(run, tmp_path, args):
    (tmp_path / "file").write_text("in the way")
    refused(run(*args))
    assert (tmp_path / "file").read_text() == "in the way"


def test_a_report_that_is_none_is_refused(run, tmp_path):
    (tmp_path / "report.json").write_text("{}")
    refused(run("report", tmp_path), "report.json")
    refused(run("report", "nosuch"), "nosuch")
    (tmp_path / "report.json").write_text("not JSON")
    refused(run("report", tmp_path), "not JSON")


def test_prompts_are_given_once(run):
    refused(run("prefill", "--weights", "random:0"), "--prompt")
    refused(run("prefill", "--weights", "random:0", "--prompt", "a", "--prompt-file", "b"), "--prompt-file")
    refused(run("prefill", "--weights", "random:0", "--prompt-file", "nosuch.txt"), "nosuch.txt")


def two_traces(first: np.ndarray, second: np.ndarray) -> tuple[Path, Path]:
    """One tap on each side, nothing else."""
    paths = (Path.cwd() / "a.h5", Path.cwd() / "b.h5")
    for path, array in zip(paths, (first, second), strict=True):
        with TraceWriter(path) as writer, writer.run("torch") as run:
            run.record("x", array, axes="b d")
    return paths


def test_another_shape_is_a_divergence_that_says_both(run):
    two, three = np.zeros((2, 3), np.float32), np.zeros((3, 2), np.float32)
    outcome = run("compare", *two_traces(two, three), "--tol", "fp32")
    assert outcome.status == 1
    assert "shape=(3, 2), but should be (2, 3)" in outcome.out


def test_another_number_format_is_said(run):
    ones = np.ones((2, 3))
    outcome = run("compare", *two_traces(ones.astype("f4"), ones.astype("f2")), "--tol", "fp16", "--json")
    assert outcome.status == 0
    (row,) = json.loads(outcome.out)["comparisons"][0]["records"]
    assert (row["expected_dtype"], row["dtype"]) == ("float32", "float16")


def test_nan_in_the_reference_is_inconclusive(run):
    bad = np.array([[1.0, np.nan]], np.float32)
    assert run("compare", *two_traces(bad, bad), "--tol", "fp32").status == 3


def test_nan_in_the_candidate_is_a_divergence(run):
    good = np.ones((1, 2), np.float32)
    bad = np.array([[1.0, np.nan]], np.float32)
    assert run("compare", *two_traces(good, bad), "--tol", "fp32").status == 1


def test_a_run_without_records_is_inconclusive(run):
    paths = (Path.cwd() / "a.h5", Path.cwd() / "b.h5")
    for path in paths:
        with TraceWriter(path) as writer, writer.run("torch"):
            pass
    assert run("compare", *paths, "--tol", "fp32").status == 3


def test_runs_of_different_weights_are_not_compared(run, trace, tmp_path):
    assert run("record", *QUICK[2:-2], "--weights", "random:1", "--out", "other.h5").status == 0
    refused(run("compare", trace, "other.h5", "--tol", "fp32"), "weights", "--force")
    assert run("compare", trace, "other.h5", "--tol", "fp32", "--force").status == 1


def test_python_calls_refuse_unknown_words():
    with pytest.raises(TypeError, match="'stpes'"):
        parity.run(cand="onnx", stpes=3)
    with pytest.raises(TypeError, match="'stpes'"):
        parity.record("torch", stpes=3)


def test_a_target_refuses_its_argument_before_anything_is_recorded(run, tmp_path):
    for spec, word in (
        ("segmented:grwo", "grwo"),
        ("onnx:mskd", "mskd"),
        ("onnx:whole+opt=most", "most"),
        ("prefilled:nowhere", "nowhere"),
        ("torch:fp31", "fp31"),
        ("segmented@cuda:9", "cuda"),
    ):
        refused(run("run", *QUICK, "--cand", spec, "--out", "result"), word)
        assert not (tmp_path / "result" / "trace.h5").exists(), spec


def test_a_mistake_in_one_candidate_loses_no_other(run, tmp_path):
    asked = ("--cache", "full", "--cand", "segmented", "--cand", "segmented:window", "--out", "result")
    outcome = run("run", *QUICK, *asked)
    assert outcome.status == 2
    assert "cache policy is full" in " ".join(outcome.out.split())
    stored = json.loads((tmp_path / "result" / "report.json").read_text())
    assert [found["verdict"] for found in stored["comparisons"]] == ["parity", "refused"]


def test_results_have_no_truth_value(tmp_path):
    case = {"weights": "random:0", "scenario": "one", "steps": 1, "tol": "fp32"}
    found = parity.run(cand="segmented", out=tmp_path / "result", report=False, **case)
    with pytest.raises(TypeError, match="exit_code"):
        bool(found)
    with pytest.raises(TypeError, match="verdict"):
        bool(found["segmented"])
