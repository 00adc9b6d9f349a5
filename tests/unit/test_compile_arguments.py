"""The compiler's command lines, and which modes a chip is given."""

from __future__ import annotations

import pytest

from parity.harness.errors import UserError
from parity.targets.sophgo.compile.arguments import Files, Lowering, canonical, generate, lay_out, lower
from parity.targets.sophgo.compile.chips import CHIPS, MODES, chip_named, group_size_for, mode_for

FILES = Files("seg_0", ".cvimodel")


def setting(words: list[str], name: str) -> dict[str, str]:
    """The settings of one pass."""
    (word,) = [word for word in words if word.startswith(f"--{name}=")]
    return dict(pair.split("=", 1) for pair in word.partition("=")[2].split(" ") if pair)


def test_every_stage_reads_what_the_one_before_wrote():
    stages = [canonical(FILES), lower(FILES, FILES.top, Lowering("cv181x", "BF16")), lay_out(FILES)]
    for before, after in zip(stages, [*stages[1:], generate(FILES)], strict=True):
        assert before[before.index("-o") + 1] == after[0]
    assert setting(generate(FILES), "codegen")["model_file"] == "seg_0.cvimodel"


def test_chip_mode_and_group_size_reach_the_compiler():
    words = lower(FILES, FILES.top, Lowering("bm1684x", "W4F16", group_size=64))
    assert setting(words, "processor-assign") | {"chip": "bm1684x", "mode": "W4F16"} == setting(
        words, "processor-assign"
    )
    assert setting(words, "convert-top-to-tpu")["q_group_size"] == "64"


def test_tables_are_named_only_where_there_are_some():
    bare = lower(FILES, FILES.top, Lowering("cv181x", "BF16"))
    assert not any("calibration" in word or "qtable" in word for word in bare)
    full = lower(FILES, FILES.top, Lowering("cv181x", "INT8", 0, "t.txt", "q.txt"))
    assert setting(full, "import-calibration-table")["file"] == "t.txt"
    assert setting(full, "convert-top-to-tpu")["qtable"] == "q.txt"


def test_the_table_is_read_before_operators_are_converted():
    words = lower(FILES, FILES.top, Lowering("cv181x", "INT8", 0, "t.txt"))
    at = [
        next(i for i, word in enumerate(words) if word.startswith(f"--{name}"))
        for name in ("processor-assign", "import-calibration-table", "convert-top-to-tpu")
    ]
    assert at == sorted(at)


def test_no_word_holds_a_quote_or_a_path():
    words = [*canonical(FILES), *lower(FILES, FILES.top, Lowering("cv181x", "INT8", 0, "t", "q"))]
    assert not any(char in word for word in [*words, *lay_out(FILES)] for char in "\"'/$")


@pytest.mark.parametrize(
    ("chip", "mode", "instead"),
    [
        ("cv181x", "f16", "bf16"),
        ("cv180x", "w8bf16", "bf16"),
        ("cv183x", "w4bf16", "bf16"),
        ("cv182x", "int4", "int8"),
        ("cv184x", "f16", "bf16"),
        ("bm1684", "int4", "int8"),
    ],
)
def test_a_mode_that_the_compiler_would_replace_is_refused_with_what_it_would_do(chip, mode, instead):
    with pytest.raises(UserError, match=f"{chip} has no {mode}: .* compute {instead} without a word"):
        mode_for(chip_named(chip), mode)


@pytest.mark.parametrize(("chip", "mode"), [("cv181x", "f32"), ("bm1684", "bf16"), ("bm1684x2", "f32")])
def test_a_mode_that_the_compiler_has_not_for_a_chip_is_refused(chip, mode):
    with pytest.raises(UserError, match=f"no {mode} for {chip}; it has"):
        mode_for(chip_named(chip), mode)


def test_modes_are_taken_in_any_case():
    assert mode_for(chip_named("cv181x"), "BF16") is MODES["bf16"]


def test_unknown_names_are_refused_with_the_nearest():
    with pytest.raises(UserError, match="Did you mean 'cv181x'"):
        chip_named("cv181")
    with pytest.raises(UserError, match="mode='bf61': unknown"):
        mode_for(chip_named("cv181x"), "bf61")


def test_every_chip_has_modes_that_exist_and_a_file_that_its_runtime_loads():
    for chip in CHIPS.values():
        assert chip.modes
        assert set(chip.modes) <= set(MODES)
        assert chip.suffix == {"cvi": ".cvimodel", "bm": ".bmodel"}[chip.family]


def test_groups_of_weights_belong_to_modes_that_have_them():
    assert group_size_for(MODES["w4f16"], None) == 64
    assert group_size_for(MODES["w4f16"], 32) == 32
    assert group_size_for(MODES["bf16"], None) == 0
    with pytest.raises(UserError, match="group_size=48: should be one of"):
        group_size_for(MODES["w4f16"], 48)
    with pytest.raises(UserError, match="bf16 has no groups"):
        group_size_for(MODES["bf16"], 64)
