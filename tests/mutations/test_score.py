"""The score itself: what counts as found, what as under the floor, and when an aim is missed."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner
from mutations import catalogue, schedule
from mutations.plant import Birth, Plant, part_of
from mutations.score import Alarm, Outcome, Score
from mutations.table import lines

import parity.selftesting
from parity.cli import cli
from parity.harness.errors import UserError


def outcome(**about) -> Outcome:
    said = {"name": "a", "family": "f", "cand": "segmented", "verdict": "divergence", "expected": "x@0"}
    return Outcome(**{**said, **about})


FOUND = outcome(detected=True, exact=True, part=True, explained=True)
UNDER = outcome(name="b", verdict="parity", size=0.4)
MISSED = outcome(name="c", verdict="parity", size=3.0)
IDLE = outcome(name="d", verdict="parity", size=0.0)


def test_a_bug_under_the_floor_is_no_miss_and_one_above_it_is():
    score = Score((FOUND, UNDER, MISSED, IDLE))
    assert [one.name for one in score.above] == ["a", "c"]
    assert score.share("detected") == 0.5
    assert (UNDER.undetectable, MISSED.missed, IDLE.idle, UNDER.missed) == (True, True, True, False)


def test_a_bug_whose_size_nobody_knows_is_missed():
    assert outcome(verdict="parity", size=float("nan")).missed
    assert outcome(verdict="inconclusive").missed
    assert outcome(verdict="failed").missed


@pytest.mark.parametrize(
    ("score", "said"),
    [
        (Score((FOUND,)), []),
        (Score((FOUND, MISSED)), ["detected: 50.0%", "exact: 50.0%", "explained: 50.0%"]),
        (Score((), (Alarm("h", "f", "onnx", "divergence", True),)), ["false alarms: 1"]),
        (Score((), (Alarm("h", "f", "onnx", "parity", False),)), []),
    ],
)
def test_aims_are_missed_in_words(score, said):
    aims = score.missed_aims()
    assert len(aims) == len(said)
    assert all(aim.startswith(want) for aim, want in zip(aims, said, strict=True))


def test_the_table_lists_everything_that_is_not_as_it_should_be():
    elsewhere = outcome(name="e", detected=True, tap="y", step=2)
    text = "\n".join(
        lines(Score((FOUND, UNDER, MISSED, elsewhere), (Alarm("h", "f", "onnx", "divergence", True),)))
    )
    assert "c on segmented: parity, 3 times" in text
    assert "b on segmented: 0.4 times" in text
    assert "e on segmented: at y, step 2; born at x@0" in text
    assert "h on onnx" in text
    assert "AIM MISSED" in text


def test_a_score_is_plain_data():
    data = json.loads(json.dumps(Score((FOUND, outcome(size=float("nan")))).to_json(), allow_nan=False))
    assert data["planted"] == 1
    assert data["runs"] == 2


def test_the_catalogue_is_as_large_as_it_should_be():
    plants, changes = catalogue.plants(), catalogue.changes()
    assert len(plants) >= 90
    assert len(changes) >= 40
    assert all(plant.says for plant in plants if plant.name != "graph-weight-noise")
    assert all(plant.on for plant in plants)


def test_a_plain_run_takes_each_bug_where_it_is_at_home_and_a_seeded_few_of_the_rest():
    plants = catalogue.plants()
    one, two = (schedule.planted(plants, schedule.Chosen(seed=seed)) for seed in (0, 1))
    homes = [(plant, cand) for plant in plants for cand in plant.on]
    assert one[: len(homes)] == two[: len(homes)] == homes
    assert one != two
    assert len(schedule.planted(plants, schedule.Chosen(full=True))) > len(one)


def test_a_glob_and_a_target_choose():
    found = schedule.planted(catalogue.plants(), schedule.Chosen("rope-sign*", ("onnx",)))
    assert {(plant.name, cand) for plant, cand in found} == {
        ("rope-sign", "onnx"),
        ("rope-sign-on-keys", "onnx"),
    }


def test_where_a_bug_is_born_depends_on_the_target():
    plant = Plant("n", "f", "layer0.q", lambda patch: None, where={"onnx": "layer0.q@2"})
    assert plant.birth("segmented") == Birth("layer0.q", 0)
    assert plant.birth("prefilled") == Birth("layer0.q", 1)
    assert plant.birth("onnx") == Birth("layer0.q", 2)


def test_the_part_of_a_tap():
    assert part_of("layer1.ks") == "cache"
    assert part_of("layer1.o") == part_of("layer1.mlp") == "seg_1"
    assert part_of("module:layers.1.attention.qkv") == "module:layers.1"
    assert part_of("rope") == "rope"


def test_the_command_scores_what_it_is_asked_for():
    done = CliRunner().invoke(
        cli, ["selftest", "-k", "rope-cos-sin-swapped", "--cand", "segmented", "--json"]
    )
    data = json.loads(done.stdout)
    assert data["planted"] == data["runs"] == 1
    assert data["detected"] == data["exact"] == 1.0
    assert done.exit_code == (1 if data["missed_aims"] else 0)


def test_a_name_that_nothing_has_is_said():
    with pytest.raises(UserError, match="nothing of the catalogue is named 'no-such'"):
        parity.selftest("no-such")


def test_an_installed_package_says_that_it_needs_the_checkout(monkeypatch, tmp_path):
    monkeypatch.setattr(parity.selftesting, "__file__", str(tmp_path / "lib" / "parity" / "selftesting.py"))
    with pytest.raises(UserError, match="source checkout"):
        parity.selftest()
