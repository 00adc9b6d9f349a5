"""The search for the smallest set of parts that makes a run fail: exact, logarithmic, resumable, proven."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import parity
from parity.cli import main
from parity.harness.errors import InconclusiveError, UserError
from parity.harness.searching import BAD, GOOD, UNKNOWN, Trials, search, shown, tree

CASE = {"weights": "random:0", "scenario": "short", "steps": 2}


def failing(*groups: Collection[str]) -> Callable[[tuple[str, ...]], str]:
    """An oracle that fails as soon as one of the groups is taken whole."""
    return lambda taken: BAD if any(set(group) <= set(taken) for group in groups) else GOOD


def names(count: int) -> tuple[str, ...]:
    return tuple(f"part{number}" for number in range(count))


@given(st.integers(1, 120), st.data())
def test_every_culprit_is_found_within_a_logarithmic_number_of_trials(count: int, data: Any):
    items = names(count)
    culprits = data.draw(st.sets(st.sampled_from(items), max_size=3), label="culprits")
    trials = Trials(items, failing(*({culprit} for culprit in culprits)))
    found = search(trials)
    assert set(found.parts) == culprits
    assert found.proven == bool(culprits)
    assert trials.executed <= 2 + len(culprits) * (2 * math.ceil(math.log2(count)) + 2)


def test_parts_that_fail_only_together_are_one_group():
    trials = Trials(names(16), failing({"part2", "part11"}, {"part7"}))
    found = search(trials)
    assert found.groups == (("part2", "part11"), ("part7",))
    assert found.proven


def test_a_run_that_passes_has_no_culprits_and_costs_one_trial():
    trials = Trials(names(9), failing())
    assert search(trials).groups == ()
    assert trials.executed == 1


def test_what_fails_without_the_candidate_is_no_verdict_on_it():
    with pytest.raises(InconclusiveError, match="every part from the reference"):
        search(Trials(names(4), lambda taken: BAD))


def test_a_check_that_cannot_tell_anything_is_inconclusive():
    with pytest.raises(InconclusiveError, match="whole candidate"):
        search(Trials(names(4), lambda taken: UNKNOWN))


def test_trials_that_cannot_tell_leave_a_larger_set_and_say_so():
    def oracle(taken: tuple[str, ...]) -> str:
        return UNKNOWN if len(taken) == 1 else failing({"part3"})(taken)

    found = search(Trials(names(4), oracle))
    assert "part3" in found.parts
    assert found.unsure


def test_a_search_that_was_killed_goes_on_and_repeats_nothing(tmp_path: Path):
    log, asked = tmp_path / "log.json", list[tuple[str, ...]]()

    def dying(taken: tuple[str, ...]) -> str:
        if len(asked) == 4:
            raise KeyboardInterrupt
        asked.append(taken)
        return failing({"part5"})(taken)

    with pytest.raises(KeyboardInterrupt):
        search(Trials(names(16), dying, log))
    again = Trials(names(16), failing({"part5"}), log)
    again.resume()
    assert search(again).parts == ("part5",)
    whole = Trials(names(16), failing({"part5"}))
    search(whole)
    assert again.executed == whole.executed - 4
    assert [path.name for path in tmp_path.iterdir()] == ["log.json"]


def test_the_log_of_another_search_is_refused(tmp_path: Path):
    search(Trials(names(3), failing({"part1"}), tmp_path / "log.json", {"cand": "onnx"}))
    with pytest.raises(UserError, match=r"another search \(cand differ\)"):
        Trials(names(3), failing(), tmp_path / "log.json", {"cand": "cvi"}).resume()


def test_a_tree_puts_each_trial_under_the_failing_one_that_holds_it():
    trials = Trials(names(4), failing({"part2"}))
    search(trials)
    assert tree(trials.tried, trials.items)[:3] == [
        "everything from the candidate: bad",
        "├─ nothing from the candidate: good",
        "├─ part0..part1: good",
    ]


def test_neighbours_are_shown_as_a_range():
    assert shown(("a", "b", "c", "e"), tuple("abcde")) == "a..c, e"


@pytest.fixture
def cached(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PARITY_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


def plant(monkeypatch: pytest.MonkeyPatch, *segments: str) -> None:
    """The candidate's executor computes these segments wrongly; the reference's own do not."""
    from parity.targets import segmented
    from parity.targets.torch_segments import TorchExecutor

    class Wrong(TorchExecutor):
        def __init__(self, modules: Any, *rest: Any) -> None:
            super().__init__(modules, *rest)
            with torch.no_grad():
                for name in segments:
                    next(iter(modules[name].parameters())).mul_(1.1)

    monkeypatch.setattr(segmented, "TorchExecutor", Wrong)


@pytest.mark.parametrize("culprits", [(), ("seg_1",), ("seg_0", "seg_tail")], ids=["none", "one", "two"])
def test_segments_at_fault_are_found_exactly(culprits, cached, monkeypatch, tmp_path):
    plant(monkeypatch, *culprits)
    result = parity.bisect(cand="segmented", out=tmp_path / "out", **CASE)
    assert result.culprits == culprits
    assert result.exit_code == bool(culprits)
    assert result.found.proven == bool(culprits)
    assert "own segments in the places" in result.method
    assert result.executed <= 2 + len(culprits) * (2 * math.ceil(math.log2(len(result.items))) + 2)


def test_a_fault_in_the_reference_s_segments_as_well_is_found_on_what_was_recorded(
    cached, monkeypatch, tmp_path
):
    from parity.models.klm.model import KLMModel

    split = KLMModel.split

    def wrong(self: KLMModel, state: Any, *, masked: bool = False) -> Any:
        built = split(self, state, masked=masked)
        for name in ("seg_1", "seg_2"):
            built[name].layer_bottom.ln2.eps = 1e-2
        return built

    monkeypatch.setattr(KLMModel, "split", wrong)
    result = parity.bisect(cand="segmented", out=tmp_path / "out", **CASE)
    assert result.culprits == ("seg_1", "seg_2")
    assert result.found.proven
    assert "recorded values" in result.method


def turned(rope: np.ndarray) -> np.ndarray:
    """Cosines and sines by one channel too far."""
    return np.roll(rope, 1, axis=3)


def stale(view: np.ndarray) -> np.ndarray:
    """The newest row is the first one."""
    return np.concatenate([view[:, :, :-1], view[:, :, :1]], axis=2)


@pytest.mark.parametrize(
    ("owner", "name", "change", "part"),
    [("RopeTable", "__call__", turned, "(rope)"), ("WindowCache", "view", stale, "(cache)")],
)
def test_what_stands_around_the_segments_can_be_at_fault(
    owner, name, change, part, cached, monkeypatch, tmp_path
):
    from parity.targets import segmented

    original = getattr(segmented, owner)
    inner = getattr(original, name)
    wrong = type("Wrong", (original,), {name: lambda self, x: change(inner(self, x))})
    monkeypatch.setattr(segmented, owner, wrong)
    result = parity.bisect(cand="segmented", out=tmp_path / "out", **CASE)
    assert result.culprits == (part,)
    assert result.found.proven


class Block(torch.nn.Module):
    def __init__(self, factor: float = 1.0) -> None:
        super().__init__()
        self.norm, self.ff = torch.nn.LayerNorm(8), torch.nn.Linear(8, 8)
        self.factor = factor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.factor * self.ff(self.norm(x))


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = torch.nn.ModuleList(Block() for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        return x


def net() -> Net:
    return Net()


def good_port() -> Net:
    return Net()


def bad_port() -> Net:
    made = Net()
    made.blocks[1].factor = 1.3
    made.blocks[2].norm.eps = 0.1
    return made


@pytest.mark.parametrize(
    ("port", "culprits"), [("good_port", ()), ("bad_port", ("blocks.1", "blocks.2.norm"))]
)
def test_submodules_at_fault_are_found_down_to_their_own_code(port, culprits, cached, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "nets", sys.modules[__name__])
    result = parity.bisect(
        cand=f"module:nets:{port}",
        model="nets:net",
        inputs={"x": np.linspace(-1, 1, 40, dtype=np.float32).reshape(5, 8)},
        share_weights=True,
        out=tmp_path / "out",
    )
    assert result.culprits == culprits
    assert "(root)" in result.items
    assert result.exit_code == bool(culprits)


def call(monkeypatch: pytest.MonkeyPatch, *args: object) -> int:
    monkeypatch.setattr("sys.argv", ["parity", "bisect", *map(str, args)])
    with pytest.raises(SystemExit) as stopped:
        main()
    return int(stopped.value.code or 0)


def test_any_command_can_be_the_oracle(tmp_path, monkeypatch, capsys):
    check = 'case " $PARITY_ITEMS " in *" c "*) echo c; exit 7;; esac; test "$PARITY_ITEMS" = "{items}"'
    items = tmp_path / "items"
    items.write_text("# parts\na\nb\nc\nd\n")
    status = call(monkeypatch, "--items", items, "--check", check, "--out", tmp_path / "out", "--json")
    found = json.loads(capsys.readouterr().out)
    assert status == found["exit_code"] == 1
    assert found["culprits"] == [["c"]]
    assert found["proven"] is True
    assert (tmp_path / "out" / "check.log").read_text().count("PARITY_ITEMS=") == found["executed"]
    again = call(
        monkeypatch, "--items", items, "--check", check, "--out", tmp_path / "out", "--resume", "--json"
    )
    assert (again, json.loads(capsys.readouterr().out)["executed"]) == (1, 0)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("--items", "a,b", "--check", "kill -9 $$"), "neither good nor bad"),
        (("--items", "a,b", "--check", "exit 128"), "neither good nor bad"),
        (("--items", "a b,c", "--check", "true"), "has spaces"),
        (("--items", "a,a", "--check", "true"), "named twice"),
        (("--check", "true"), "belong together"),
        ((), "name the candidate"),
        (("--cand", "trace.h5:x"), "cannot be executed anew"),
        pytest.param(
            ("--cand", "onnx:whole", "--weights", "random:0", "--scenario", "one"),
            "runs as one piece",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_what_cannot_be_searched_is_refused_in_a_sentence(args, said, cached, tmp_path, monkeypatch, capsys):
    assert call(monkeypatch, *args, "--out", tmp_path / "out") == 2
    assert said in capsys.readouterr().err


def test_a_check_that_cannot_tell_ends_inconclusive(tmp_path, monkeypatch, capsys):
    assert call(monkeypatch, "--items", "a,b", "--check", "exit 125", "--out", tmp_path / "out") == 3
    assert "inconclusive" in capsys.readouterr().out


def test_a_finished_search_is_not_overwritten(tmp_path, monkeypatch, capsys):
    args = ("--items", "a,b", "--check", "true", "--out", tmp_path / "out")
    assert call(monkeypatch, *args) == 0
    assert call(monkeypatch, *args) == 2
    assert "holds a search already" in capsys.readouterr().err


def test_what_the_command_takes_beyond_the_options_of_a_run_is_frozen():
    """A new one needs a user's opinion, an explanation without internals, and two users who differ."""
    from parity.cli.bisect import command
    from parity.cli.run import command as run

    of_a_run = {name for item in run.params for name in item.opts}
    own = {name for item in command.params for name in item.opts if name.startswith("-")}
    assert own - of_a_run == {"--check", "--items", "--resume"}
