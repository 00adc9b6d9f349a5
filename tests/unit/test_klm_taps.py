"""KLM's names: taps in execution order on both sides, roles for each, original names mapped."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from parity.harness.dtypes import from_any
from parity.harness.errors import UserError
from parity.harness.tracer import recording
from parity.models import MODELS, find_model
from parity.models.klm import KLMModel
from parity.models.klm.config import KLMConfig
from parity.models.klm.module import KLM

CONFIG = KLMConfig(
    max_length=64,
    effective_length=16,
    vocab_size=128,
    hidden_size=32,
    num_layers=3,
    num_attention_heads=4,
    ffn_hidden_size=48,
)
MODEL = KLMModel("small", CONFIG)
TINY = find_model("klm-tiny")


class Sink:
    """Keeps what is recorded: tap -> (array, axes, positions)."""

    def __init__(self) -> None:
        self.seen: dict[str, tuple[np.ndarray, str, Any]] = {}

    def record(
        self,
        tap: str,
        array: Any,
        *,
        step: int = 0,
        call: int = 0,
        axes: str = "",
        positions: np.ndarray | None = None,
        meta: Mapping[str, Any] | None = None,
        **_: Any,
    ) -> None:
        assert call == 0, f"{tap} is recorded twice in one step"
        self.seen[tap] = (from_any(array)[0].copy(), axes, positions)


def whole_and_segments() -> tuple[Sink, Sink]:
    module = KLM(CONFIG).eval()
    MODEL.init_random(module, 0)
    ids = torch.arange(65, 72)[None]
    values: dict[str, Tensor] = {"ids": ids, "rope": MODEL.rope(module, torch.arange(7)[None])}
    parts, whole, segmented = MODEL.split(module.state_dict()), Sink(), Sink()
    with torch.no_grad(), recording(whole):
        module(ids)
    with torch.no_grad(), recording(segmented):
        for segment in MODEL.wiring.segments:
            values |= {row.cache: values[row.source] for row in MODEL.wiring.appends(segment.name)}
            outputs = parts[segment.name](*(values[port.value] for port in segment.inputs))
            outputs = (outputs,) if isinstance(outputs, Tensor) else outputs
            values |= {port.value: output for port, output in zip(segment.outputs, outputs, strict=True)}
    return whole, segmented


def test_the_whole_model_records_its_taps_in_execution_order() -> None:
    whole, _ = whole_and_segments()
    assert tuple(whole.seen) == MODEL.taps
    assert len(MODEL.taps) == 4 + 13 * CONFIG.num_layers


def test_axes_name_every_dimension() -> None:
    whole, segmented = whole_and_segments()
    for sink in (whole, segmented):
        for tap, (array, axes, _) in sink.seen.items():
            assert len(axes.split()) == array.ndim, tap


def test_cache_rows_say_their_positions() -> None:
    whole, _ = whole_and_segments()
    for tap in ("layer0.ks", "layer2.vs"):
        _, axes, positions = whole.seen[tap]
        assert axes == "b h p d"
        assert np.asarray(positions).reshape(-1).tolist() == list(range(7))


def test_segments_record_what_they_list_with_the_values_of_the_whole() -> None:
    whole, segmented = whole_and_segments()
    inner = {tap for segment in MODEL.wiring.segments for tap in segment.taps}
    ports = {port.value for segment in MODEL.wiring.segments for port in segment.outputs}
    listed = [tap for tap in MODEL.taps if tap in inner | ports]
    assert list(segmented.seen) == listed
    for tap in listed:
        np.testing.assert_allclose(
            segmented.seen[tap][0], whole.seen[tap][0], atol=3e-5, rtol=1e-5, err_msg=tap
        )
        assert segmented.seen[tap][1] == whole.seen[tap][1]


def test_ports_inner_taps_and_caches_together_are_all_taps() -> None:
    wiring = MODEL.wiring
    shown = {tap for segment in wiring.segments for tap in segment.taps}
    shown |= {port.value for segment in wiring.segments for port in (*segment.inputs, *segment.outputs)}
    assert shown - {"ids"} == set(MODEL.taps)
    assert {row.cache for row in wiring.caches} == {tap for tap in MODEL.taps if tap.endswith((".ks", ".vs"))}


def test_roles_cover_the_taps_in_order_and_name_things_that_exist() -> None:
    assert tuple(role.taps for role in MODEL.roles) == MODEL.taps
    weights = set(KLM(CONFIG).state_dict())
    known = {"ids", "positions"}
    for role in MODEL.roles:
        assert set(role.inputs) <= known, role
        assert set(role.weights) <= weights, role
        known.add(role.taps)
    used = {key for role in MODEL.roles for key in role.weights}
    assert used == weights


def test_each_family_of_original_programs_has_its_own_meaning() -> None:
    families = MODEL.rename_families
    assert families["inputs"]["seg1.q"] == "layer1.q"
    assert families["outputs"]["seg1_q"] == "layer2.q"
    assert families["outputs"]["head_q"] == "layer0.q"
    assert families["outputs"]["seg1_ks"] == families["inputs"]["seg1.ks"] == "layer1.ks"
    assert families["whole"]["layer2.attn_output"] == "layer2.attn"
    assert {families[name]["tail_logits"] for name in ("inputs", "outputs")} == {"logits"}


@pytest.mark.parametrize("dot", ["", "."], ids=["plain", "leading-dot"])
def test_original_names_lead_to_canonical_taps(dot: str) -> None:
    expected = {
        "input_embed": "embed",
        "rotary_pos_emb": "rope",
        "layer0.q": "layer0.q",
        "layer0.attn_output": "layer0.attn",
        "seg2.residual": "layer2.residual",
        "seg0_residual": "layer1.residual",
        "tail_logits": "logits",
    }
    assert {name: MODEL.renames[dot + name] for name in expected} == expected
    assert set(MODEL.renames.values()) <= set(MODEL.taps)
    assert not any("repeated" in name for name in MODEL.renames)


def test_text_goes_to_codes_and_back() -> None:
    assert TINY.encode("Hi\u01ff") == (72, 105, 511)
    assert TINY.decode(TINY.encode("Hi, \n")) == "Hi, \n"
    with pytest.raises(UserError, match="'\u0200' at position 2 has code 512"):
        TINY.encode("ab\u0200")


def test_rotary_rows_end_with_the_table() -> None:
    module = KLM(CONFIG)
    assert MODEL.rope(module, torch.tensor([[-1, 63]])).shape == (2, 1, 2, 8)
    with pytest.raises(UserError, match="position=64"):
        MODEL.rope(module, torch.tensor([[64]]))


def test_models_are_found_by_name() -> None:
    assert {name: find_model(name).name for name in MODELS} == {"klm": "klm", "klm-tiny": "klm-tiny"}
    with pytest.raises(UserError, match="Did you mean 'klm-tiny'"):
        find_model("klm-tny")
