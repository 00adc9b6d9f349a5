"""The keyboard's protocol: what the original's serve scripts got wrong about positions, one by one.

The oracle is a fresh feed of the whole text through the board's calls, without any rewinding.
"""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from parity.harness.case import Case
from parity.targets.prefilled_files import Prefilled
from parity.targets.sophgo.runner.device.serve import READY, Keyboard, serve
from parity.targets.torch_segments import RopeTable


def _load(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parent / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


factory = _load("runner_factory")
ROWS = 12


class Writing(factory.TorchBoard):
    """Predicts printable characters, and a newline at about one place in five, as its inputs decide."""

    def call_tail(self, residual: np.ndarray, *arrays: np.ndarray) -> Any:
        logits = super().call_tail(residual, *arrays).copy()
        logits[0, 0, :97] = logits[0, 0, 123:] = logits.min() - 1
        if int(abs(float(residual.sum())) * 1000) % 5 == 0:
            logits[0, 0, 10] = logits.max() + 1
        return logits


@dataclass(repr=False)
class Oracle:
    """Greedy continuation of prompt + text, every token fed anew."""

    case: Case
    filled: Prefilled
    board: Any
    _known: dict[tuple[int, ...], int] = field(default_factory=dict)

    def next(self, tokens: Sequence[int]) -> int:
        key = tuple(tokens)
        if key not in self._known:
            self._known[key] = self._fed(key)
        return self._known[key]

    def _fed(self, tokens: tuple[int, ...]) -> int:
        caches = [list(self.filled.past_k), list(self.filled.past_v)]
        logits = np.zeros(1)
        for at, token in enumerate(tokens):
            rope = self.filled.rope[:, :, [at]]
            residual, q, k, v = self.board.call_head(np.array([[token]]), rope)
            for layer in range(len(caches[0])):
                for plane, new in zip(caches, (k, v), strict=True):
                    plane[layer] = np.concatenate([plane[layer], new.reshape(1, 2, 1, -1)], axis=2)
                ks, vs = (np.ascontiguousarray(plane[layer][:, :, -ROWS:]) for plane in caches)
                residual = residual.reshape(1, 1, -1)
                if layer == len(caches[0]) - 1:
                    logits = self.board.call_tail(residual, q, ks, vs)
                else:
                    residual, q, k, v = self.board.call_segment(layer, residual, rope, q, ks, vs)
        return int(np.argmax(logits))

    def suggestion(self, tokens: Sequence[int], count: int) -> str:
        """What may follow, up to a newline; after no tokens at all it begins from an unseen space."""
        tokens, found = list(tokens) or [32], []
        while len(found) < count and (token := self.next([*tokens, *found])) != 10:
            found.append(token)
        return "".join(map(chr, found))


@dataclass(repr=False)
class Setting:
    """The case, a package of it, and its prefilled cache."""

    case: Case
    package: Any
    filled: Prefilled


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    case = factory.make_case(prompt="A prompt of many tokens", cache=f"window({ROWS})", steps=0)
    config, length = case.model.config, len(case.scenario.ids[0])
    shape = (config.num_layers, 1, config.num_kv_heads, length, config.head_dim)
    noise = np.random.default_rng(0).standard_normal((2, *shape)).astype(np.float32)
    rope = RopeTable(case, torch.float32)(np.arange(length, length + 200)[None])
    filled = Prefilled(noise[0], noise[1], rope, np.arange(length)[None], length)
    folder = tmp_path_factory.mktemp("serve") / "package"
    return Setting(case, factory.board_package(folder, case, rows=ROWS, prefilled=filled), filled)


@pytest.fixture
def talk(setting):
    loop = factory.board_loop(setting.package, Writing(setting.case))
    keyboard = Keyboard(loop, setting.case.model.vocab_size)

    def say(*lines: str) -> list[str]:
        out = io.StringIO()
        serve(keyboard, [f"{line}\n" for line in lines], out)
        ready, *answers = out.getvalue().splitlines()
        assert ready == READY
        return answers

    say.keyboard = keyboard
    return say


@pytest.fixture(scope="module")
def oracle(setting):
    return Oracle(setting.case, setting.filled, Writing(setting.case))


def codes(text: str) -> list[int]:
    return [ord(character) for character in text]


def typed(text: str) -> list[str]:
    return [f"#{character}" for character in text]


def test_what_is_printed_is_what_comes_after_the_text(talk, oracle):
    assert talk(*typed("he"), "@pred3") == [oracle.suggestion(codes("he"), 3)]


def test_a_suggestion_has_as_many_characters_as_were_asked_for(talk, oracle):
    """After `#c` the original's buffer held a predicted character already, and `@predN` printed N + 1."""
    text = first_text(oracle, 4)
    assert [len(line) for line in talk(*typed(text), "@pred1", "@pred2", "@pred 4", "@pred[3]")] == [
        1,
        2,
        4,
        3,
    ]


def test_after_typing_predicting_and_accepting_no_position_is_skipped(talk, oracle):
    """The original's pointer went one too far: a gap with stale keys, and rotary rows off by one."""
    text = first_text(oracle, 4)
    (suggested,) = talk(*typed(text), "@pred4", "@accept")
    after = f"{text}{suggested}x"
    assert talk("#x", "@pred5") == [oracle.suggestion(codes(after), 5)]
    held = talk.keyboard._loop.cache.positions
    assert held == list(range(len(held)))


def test_a_newline_ends_a_suggestion_and_the_last_accepted_character_stays(talk, oracle):
    """The original shortened its buffer, so that the next character overwrote the last accepted one."""
    text = next(t for t in texts() if 0 < len(oracle.suggestion(codes(t), 30)) < 30)
    (suggested,) = talk(*typed(text), "@pred30", "@accept")
    assert "\n" not in suggested
    assert talk("#x", "@pred5") == [oracle.suggestion(codes(f"{text}{suggested}x"), 5)]
    assert talk.keyboard.text == f"{text}{suggested}x"


def test_after_a_newline_the_model_goes_on_from_a_space_that_nobody_sees(talk, oracle):
    text = next(t for t in texts() if 0 < len(oracle.suggestion(codes(t), 30)) < 30)
    (suggested,) = talk(*typed(text), "@pred30", "@accept")
    assert talk("@pred5") == [oracle.suggestion([*codes(text + suggested), 32], 5)]
    talk("@accept")
    assert " " not in talk.keyboard.text[len(text) :]


def test_back_takes_the_prediction_back_too(talk, oracle):
    """The original moved its pointer and went on from the token it had predicted after the deleted one."""
    text = next(t for t in texts() if oracle.next(codes(t)) != oracle.next(codes(t[:-1])))
    assert talk(*typed(text), "@back", "@pred5") == [oracle.suggestion(codes(text[:-1]), 5)]
    assert talk(f"#{text[-1]}", "@pred2", "@back", "@pred5")[1] == oracle.suggestion(codes(text[:-1]), 5)
    assert talk("@back", "@back", "@back", "@pred5") == [oracle.suggestion([], 5)]


def test_clear_forgets_the_text_the_suggestion_and_the_token(talk, oracle):
    """The original kept its buffer and the newest token."""
    first = oracle.suggestion([], 6)
    assert talk("@pred6") == [first]
    assert talk(*typed("hello"), "@pred4", "@clear", "@accept", "@pred6")[-1] == first
    assert talk.keyboard.text == ""


def test_predicting_twice_says_the_same_twice(talk, oracle):
    """The original began again at the old pointer, with the newest token, and printed both."""
    once, again = talk(*typed("h"), "@pred5", "@pred5")
    assert once == again == oracle.suggestion(codes("h"), 5)
    assert talk("@pred9") == [oracle.suggestion(codes("h"), 9)]


def test_accepting_twice_or_without_a_suggestion_changes_nothing(talk, oracle):
    (suggested,) = talk("@accept", *typed("h"), "@accept", "@pred3", "@accept", "@accept")
    assert talk.keyboard.text == f"h{suggested}"


def test_typing_instead_of_accepting_drops_the_suggestion(talk, oracle):
    talk(*typed("he"), "@pred7", "#y")
    assert talk("@pred7") == [oracle.suggestion(codes("hey"), 7)]


def test_lines_that_are_no_command_are_reported_and_change_nothing(talk, oracle, capsys):
    answers = talk(*typed("h"), "@pred x", "@nonsense", "#", "#ab", "#é" + "", "", "#\u4e2d", "@pred3")
    complaints = capsys.readouterr().err
    assert len(complaints.splitlines()) == 5
    assert "'\u4e2d' is not among the 512 characters" in complaints
    assert "use #c, @pred[N], @accept, @back, @clear or @debug" in complaints
    assert answers == ["", oracle.suggestion(codes("hé"), 3)]


def test_where_rotary_rows_end_a_prediction_is_still_answered_by_one_line(talk, oracle, capsys):
    """200 rows are shipped; what was typed beyond them can be taken back."""
    answers = talk(*typed("a" * 201), "@pred3")
    assert "positions 23..222 are shipped, but position 223 is needed" in capsys.readouterr().err
    assert answers == [""]
    assert talk("@back", "@back", "@debug")[0].startswith(f"text={'a' * 199!r} ")
    assert talk("@pred1") == [oracle.suggestion(codes("a" * 199), 1)]


def texts() -> list[str]:
    return [a + b for a in "abcdefghijklmnop" for b in "qrstuvwxyz"]


def first_text(oracle: Oracle, count: int) -> str:
    """A text after which so many characters come before a newline."""
    return next(text for text in texts() if len(oracle.suggestion(codes(text), count)) == count)


@dataclass
class Page:
    """What a person would expect to be on the page, with nothing cached."""

    oracle: Oracle
    text: list[tuple[int, bool]] = field(default_factory=list)
    lead: int | None = 32
    waiting: tuple[list[int], bool] | None = None

    def tell(self, line: str) -> str | None:
        if line.startswith("#"):
            self.text.append((ord(line[1]), True))
            self.lead = self.waiting = None
        elif line == "@clear":
            self.text, self.lead, self.waiting = [], 32, None
        elif line == "@back":
            self._back()
        elif line == "@accept" and self.waiting is not None:
            self._accept(*self.waiting)
        elif line.startswith("@pred"):
            return self._predict(int(line[5:]))
        return None

    def _back(self) -> None:
        seen = [at for at, (_, visible) in enumerate(self.text) if visible]
        self.text = self.text[: seen[-1]] if seen else []
        while self.text and not self.text[-1][1]:
            self.text.pop()
        self.lead, self.waiting = (None if self.text else 32), None

    def _accept(self, suggested: list[int], ended: bool) -> None:
        if suggested:
            self.text += [(32, False)] if self.lead is not None else []
            self.text += [(token, True) for token in suggested]
            self.lead = None
        if ended:
            self.lead = 32
        self.waiting = None

    def _predict(self, count: int) -> str:
        tokens = [token for token, _ in self.text] + ([32] if self.lead is not None else [])
        found = self.oracle.suggestion(tokens, count)
        self.waiting = codes(found), len(found) < count
        return found


LINES = st.lists(
    st.one_of(
        st.sampled_from([f"#{c}" for c in "abz "]),
        st.integers(1, 5).map("@pred{}".format),
        st.sampled_from(["@accept", "@accept", "@back", "@clear"]),
    ),
    max_size=14,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lines=LINES)
def test_any_conversation_goes_as_if_the_text_were_fed_anew(setting, oracle, lines):
    loop = factory.board_loop(setting.package, Writing(setting.case))
    keyboard = Keyboard(loop, setting.case.model.vocab_size)
    page = Page(oracle)
    for line in lines:
        out = io.StringIO()
        serve(keyboard, [line], out)
        answer = out.getvalue().splitlines()[1:]
        expected = page.tell(line)
        assert answer == ([] if expected is None else [expected])
        assert keyboard.text == "".join(chr(token) for token, visible in page.text if visible)
        held = keyboard._loop.cache.positions
        assert held == list(range(len(held)))
