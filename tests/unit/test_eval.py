"""Scores over a text: what torch computes directly, ties told apart, windows that cover the whole."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import parity
from parity.cli import main
from parity.harness.errors import InconclusiveError, UserError
from parity.harness.evaluation import Tally, wilson

TEXT = "The return value is a new object that holds the names of the module. " * 4


@pytest.fixture(autouse=True)
def cached(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PARITY_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return path


def evaluated(*cand: str, **options: Any) -> parity.Evaluations:
    return parity.evaluate(cand=cand, weights="random:0", **options)


def directly(dtype: torch.dtype, tokens: int) -> torch.Tensor:
    """Logits `[tokens, V]` of the first window by the plain module, one prefill."""
    from parity.fixtures import load_scenario
    from parity.models import find_model
    from parity.reference.checkpoints import load_weights
    from parity.reference.training.measure import windowed

    model = find_model("klm-tiny")
    module = model.build()
    module.load_state_dict(load_weights("random:0", model)[0])
    ids = torch.tensor([model.encode(TEXT)[: model.window + tokens]])
    with torch.no_grad():
        logits = windowed(module.to(dtype), ids, load_scenario("default", model).policy)
    return logits[0, model.window :].double()


def test_scores_are_those_of_a_direct_computation(text: Path):
    tokens = 40
    found = evaluated("torch:bf16", text=text, tokens=tokens, length=tokens).candidates[0].found
    assert found is not None
    own, ref = (torch.log_softmax(directly(dtype, tokens), -1) for dtype in (torch.bfloat16, torch.float32))
    start = 63
    targets = torch.tensor([ord(letter) for letter in TEXT[start + 1 : start + 1 + tokens]])
    kl = (ref.exp() * (ref - own)).sum(-1)
    assert found.own.count == tokens
    assert found.kl_mean == pytest.approx(float(kl.mean()), rel=1e-6)
    assert found.kl_max == pytest.approx(float(kl.max()), rel=1e-6)
    for side, rows in ((found.own, own), (found.reference, ref)):
        loss = -rows[torch.arange(tokens), targets].mean()
        assert side.perplexity == pytest.approx(float(loss.exp()), rel=1e-6)
        assert side.accuracy == pytest.approx(float((rows.argmax(-1) == targets).double().mean()))
    assert len(found.flips) == int((own.argmax(-1) != ref.argmax(-1)).sum())


@pytest.mark.slow
def test_segments_and_graphs_are_scored_as_the_whole_model_is(text: Path):
    result = evaluated("segmented", "onnx", "torch:grow", text=text, tokens=24, length=10)
    assert (result.windows, result.tokens) == (3, 24)
    for one in result.candidates:
        assert one.found is not None, one.failure
        assert one.found.own.count == 24
        assert one.found.kl_max < 1e-8
        assert one.found.flips == ()
    assert result.exit_code == 0


def test_a_limit_that_is_exceeded_is_an_exit_status(text: Path, monkeypatch, capsys):
    args = ["parity", "eval", "--cand", "torch:bf16", "--text", str(text), "--weights", "random:0"]
    for more, status in (([], 0), (["--max-kl", "1e-12"], 1), (["--max-kl", "1"], 0)):
        monkeypatch.setattr("sys.argv", [*args, "--tokens", "20", "--json", *more])
        with pytest.raises(SystemExit) as stopped:
            main()
        found = json.loads(capsys.readouterr().out)
        assert int(stopped.value.code or 0) == found["exit_code"] == status
        assert bool(found["candidates"]["torch:bf16"]["exceeded"]) == bool(status)


def test_a_candidate_that_breaks_loses_no_other_s_scores(text: Path, monkeypatch):
    from parity.targets.torch_segments import TorchExecutor

    def broken(*args: Any) -> Any:
        raise RuntimeError("out of order")

    monkeypatch.setattr(TorchExecutor, "call", broken)
    result = evaluated("segmented", "torch:bf16", text=text, tokens=10)
    assert "out of order" in result.candidates[0].failure
    assert result.candidates[1].found is not None
    assert result.exit_code == 4


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"text": "nowhere.txt"}, "cannot be read"),
        ({"prompt": "short"}, "too short"),
        ({"tokens": 0}, "at least 1"),
        ({"model": "a.b:c", "inputs": {}}, "has no tokens"),
        ({"model": "a.b:c"}, "takes a language model row"),
        ({"model": "net.onnx"}, "takes a language model row"),
        ({"max_kl": -1.0}, "max_kl=-1: a limit is 0 or more"),
        ({"max_flips": math.nan}, "max_flips=nan: a limit is 0 or more"),
    ],
)
def test_what_cannot_be_scored_is_refused_in_a_sentence(options, said):
    with pytest.raises(UserError, match=said):
        evaluated("torch:bf16", **options)


def test_flips_between_equal_tokens_are_ties():
    expected = np.log(np.array([[0.5, 0.49, 0.01], [0.9, 0.05, 0.05], [0.6, 0.3, 0.1]]))
    actual = np.log(np.array([[0.49, 0.5, 0.01], [0.05, 0.9, 0.05], [0.6, 0.3, 0.1]]))
    tally = Tally()
    tally.add(actual, expected, np.array([0, 1, 0]), first=10)
    found = tally.result()
    assert [(flip.place, flip.tie) for flip in found.flips] == [(10, True), (11, False)]
    assert found.ties == 1
    assert found.flips[1].expected_margin == pytest.approx(math.log(18))
    assert found.flips_per_1000 == pytest.approx(2000 / 3)
    assert found.own.correct == 2


def test_pieces_add_up_to_the_whole():
    generator = np.random.default_rng(0)
    expected = generator.standard_normal((30, 7))
    actual, targets = expected + 0.1 * generator.standard_normal((30, 7)), generator.integers(0, 7, 30)
    whole, parts = Tally(), Tally()
    whole.add(actual, expected, targets)
    for at in range(0, 30, 10):
        parts.add(*(array[at : at + 10] for array in (actual, expected, targets)), first=at)
    assert whole.result().flips == parts.result().flips
    assert whole.result().kl_mean == pytest.approx(parts.result().kl_mean)
    assert whole.result().own.loss == pytest.approx(parts.result().own.loss)


def test_logits_that_are_not_finite_are_counted_and_fail():
    from parity.harness.evaluation import budget_exceeded

    tally = Tally()
    tally.add(np.array([[1.0, np.nan], [1.0, 2.0]]), np.array([[1.0, 2.0], [1.0, 2.0]]), np.array([1, 1]))
    found = tally.result()
    assert (found.nonfinite, found.own.count) == (1, 1)
    assert "not finite" in budget_exceeded(found, {})[0]
    with pytest.raises(InconclusiveError, match="the reference's are not finite"):
        tally.add(np.zeros((1, 2)), np.array([[np.inf, 0.0]]), np.array([0]))


@pytest.mark.parametrize(("hits", "count"), [(0, 50), (5, 100), (50, 50)])
def test_the_interval_holds_the_share_and_stays_a_share(hits: int, count: int):
    low, high = wilson(hits, count)
    assert 0 <= low <= hits / count <= high <= 1
    assert high - low > 0
    assert wilson(0, 0) == (0.0, 1.0)


def test_what_the_command_takes_beyond_the_options_of_a_run_is_frozen():
    """A new one needs a user's opinion, an explanation without internals, and two users who differ."""
    from parity.cli.eval import command
    from parity.cli.run import command as run

    of_a_run = {name for item in run.params for name in item.opts}
    own = {name for item in command.params for name in item.opts if name.startswith("-")}
    assert own - of_a_run == {"--text", "--tokens", "--length", "--max-kl", "--max-flips"}
