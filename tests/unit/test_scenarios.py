"""Scenario files: what they say, what they refuse, what a command line changes."""

from __future__ import annotations

from pathlib import Path

import pytest

from parity.fixtures import known_scenarios, load_scenario, override
from parity.fixtures.scenarios import KEYS
from parity.harness.case import CachePolicy, plan
from parity.harness.errors import UserError
from parity.models import find_model

TINY = find_model("klm-tiny")
README = Path(__file__).parents[2] / "fixtures" / "README.md"


def write(folder: Path, text: str) -> str:
    path = folder / "mine.toml"
    path.write_text(text, encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("name", known_scenarios())
@pytest.mark.parametrize("model", ["klm-tiny", "klm"])
def test_every_named_scenario_loads_for_every_model(name: str, model: str) -> None:
    scenario = load_scenario(name, find_model(model))
    assert scenario.name == name
    assert len(plan(scenario)) == scenario.steps + 1


def test_every_named_scenario_says_what_it_exercises() -> None:
    assert all(known_scenarios().values())


@pytest.mark.parametrize(("model", "window"), [("klm-tiny", 63), ("klm", 511)])
def test_the_default_prompt_overflows_the_window_of_its_model(model: str, window: int) -> None:
    scenario = load_scenario("default", find_model(model))
    assert scenario.policy == CachePolicy("window", window)
    assert scenario.prompt_length == window + 17
    assert scenario.texts[0] == find_model(model).decode(scenario.ids[0])


def test_the_wrap_scenario_runs_eighty_tokens_past_the_wrap() -> None:
    scenario = load_scenario("wrap", TINY)
    assert scenario.policy.window is not None
    last = scenario.prompt_length + scenario.steps - 1
    assert scenario.prompt_length < scenario.policy.window
    assert last - (scenario.policy.window - 1) == 80


@pytest.mark.parametrize(("name", "side"), [("batch3", "left"), ("batch3-right", "right")])
def test_a_batch_is_padded_on_the_stated_side(name: str, side: str) -> None:
    scenario = load_scenario(name, TINY)
    assert (scenario.batch, scenario.padding) == (3, side)
    edge = 0 if side == "left" else -1
    assert [row[edge] for row in plan(scenario)[0].positions].count(-1) == 2


def test_a_file_gives_every_key_its_meaning(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        'summary = "all"\ntext = "abcdefgh"\nlength = "window-3"\nbatch = 2\npadding = "left"\n'
        'pad_to = "window"\npad_id = 32\nsteps = 5\ncache = "window(8)"\nresets = [2]\n'
        'sampling = "greedy"\nseed = 7\n',
    )
    scenario = load_scenario(path, TINY)
    assert scenario.ids == (TINY.encode("abcde"),) * 2
    assert scenario.texts == ("abcde",) * 2
    assert (scenario.pad_to, scenario.pad_id, scenario.padding) == (8, 32, "left")
    assert (scenario.steps, scenario.resets, scenario.seed) == (5, (2,), 7)
    assert scenario.policy == CachePolicy("window", 8)


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("ids = [1, 2]", ((1, 2),)),
        ("ids = [[1, 2], [3]]", ((1, 2), (3,))),
        ('texts = ["a", "b"]', ((97,), (98,))),
    ],
    ids=["one-list", "list-of-lists", "texts"],
)
def test_prompts_come_in_several_forms(tmp_path: Path, text: str, rows: tuple[tuple[int, ...], ...]) -> None:
    assert load_scenario(write(tmp_path, text), TINY).ids == rows


def test_a_text_file_is_found_beside_the_scenario(tmp_path: Path) -> None:
    (tmp_path / "prompt.txt").write_text("Hi, ", encoding="utf-8")
    assert load_scenario(write(tmp_path, 'text_file = "prompt.txt"'), TINY).texts == ("Hi, ",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('txet = "a"', "unknown key 'txet'. Did you mean 'text'"),
        ("steps = 3", "needs exactly one of text, texts, text_file, ids; it has none"),
        ('text = "a"\nids = [1]', "it has text, ids"),
        ('text = ""', "has no tokens"),
        ("ids = []", "has no tokens"),
        ("ids = [[1], []]", "has no tokens"),
        ("text = 3", "text=3 should be a text"),
        ('text = "a"\nsteps = true', "steps=True should be a whole number"),
        ('text = "a"\nsteps = -1', "cannot be negative"),
        ("ids = [1, 2.5]", "should be a list of token ids"),
        ("ids = [600]", "600 at position 0 is no token of klm-tiny"),
        ('text = "caf\\u00e9 \\u4e2d"', "character '中' at position 5 has code 20013"),
        ('text = "a"\nlength = 2', "a prompt has only 1 tokens"),
        ('text = "a"\nlength = "all"', "length='all': should be a whole number or"),
        ('text = "a"\nlength = "window-63"', "comes to 0"),
        ('text = "a"\ncache = "windw"', "unknown cache policy"),
        ('text = "a"\ncache = "window(0)"', "at least 1"),
        ('text = "a"\npadding = "top"', "use left or right"),
        ('text = "a"\nsampling = "dice"', "only greedy"),
        ('text = "a"\nresets = [17]', "17 is not a decode step of 1..16"),
        ('text = "a"\nsteps = 4000', "reaches position 4000"),
        ('texts = ["a", "b"]\nbatch = 3', "only a single prompt can be replicated"),
        ('text_file = "gone.txt"', "cannot be read"),
        ('text = "a"\npad_id = 512', "512 at position 0 is no token"),
        ("text = ", "cannot be read as TOML"),
    ],
)
def test_a_bad_file_is_refused_in_words(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        load_scenario(write(tmp_path, text), TINY)
    assert message in str(caught.value)


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(UserError, match="Did you mean 'default'"):
        load_scenario("defualt", TINY)
    with pytest.raises(UserError, match="no such file"):
        load_scenario("nowhere/mine.toml", TINY)


def test_a_command_line_changes_only_what_it_names() -> None:
    scenario = load_scenario("default", TINY)
    assert override(scenario, TINY) == scenario
    changed = override(scenario, TINY, steps=3, batch=2, prompt="Hi", policy="window(9)", seed=5)
    assert (changed.steps, changed.seed, changed.policy) == (3, 5, CachePolicy("window", 9))
    assert (changed.ids, changed.texts) == ((TINY.encode("Hi"),) * 2, ("Hi", "Hi"))
    assert override(changed, TINY, policy="window").policy == CachePolicy("window", 63)
    assert override(changed, TINY, policy="full").policy == CachePolicy()


def test_an_empty_prompt_is_refused() -> None:
    with pytest.raises(UserError, match="has no tokens"):
        override(load_scenario("default", TINY), TINY, prompt="")


def test_the_readme_lists_the_schema_as_the_code_has_it() -> None:
    rows = {line for line in README.read_text(encoding="utf-8").splitlines() if line.startswith("| `")}
    assert rows == {f"| `{name}` | {key.shape} | {key.meaning} |" for name, key in KEYS.items()}
