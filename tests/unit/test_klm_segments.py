"""KLM in segments: ports and shapes as listed, the same values as the whole, weights both ways."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from parity.harness.case import Port, Segment, Wiring
from parity.harness.errors import UserError
from parity.models.klm import KLMModel, find
from parity.models.klm.config import KLMConfig
from parity.models.klm.module import KLM
from parity.models.klm.weights import TABLE_KEYS, segment_keys, shapes

CONFIG = KLMConfig(
    max_length=128,
    effective_length=16,
    vocab_size=128,
    hidden_size=32,
    num_layers=3,
    num_attention_heads=4,
    ffn_hidden_size=48,
)
MODEL = KLMModel("small", CONFIG)
WHOLE = KLM(CONFIG).eval()
MODEL.init_random(WHOLE, 0)
STATE = WHOLE.state_dict()
NOISE = {"atol": 3e-5, "rtol": 1e-5}

State = dict[str, Tensor]


def run(parts: dict[str, nn.Module], wiring: Wiring, values: State, window: int | None = None) -> None:
    """One step by the wiring table; `values` keeps caches from step to step."""
    for segment in wiring.segments:
        for row in wiring.appends(segment.name):
            grown = (
                torch.cat((values[row.cache], values[row.source]), dim=2)
                if row.cache in values
                else values[row.source]
            )
            values[row.cache] = grown if window is None else grown[:, :, -window:]
        outputs = parts[segment.name](*(values[port.value] for port in segment.inputs))
        outputs = (outputs,) if isinstance(outputs, Tensor) else outputs
        values |= {port.value: output for port, output in zip(segment.outputs, outputs, strict=True)}


def some_ids(batch: int, length: int) -> Tensor:
    return torch.randint(0, CONFIG.vocab_size, (batch, length), generator=torch.Generator().manual_seed(1))


def rope(start: int, stop: int, batch: int) -> Tensor:
    return MODEL.rope(WHOLE, torch.arange(start, stop).expand(batch, -1))


def bound(shape: Sequence[int | str], **sizes: int) -> tuple[int, ...]:
    return tuple(sizes[size] if isinstance(size, str) else size for size in shape)


def test_the_default_build_has_the_inputs_and_outputs_of_the_original() -> None:
    wiring = find("klm").wiring
    names = [segment.name for segment in wiring.segments]
    assert names == ["seg_head", "seg_0", "seg_1", "seg_2", "seg_3", "seg_4", "seg_tail"]

    def listed(ports: tuple[Port, ...]) -> list[tuple[str, tuple[int, ...]]]:
        return [(port.name, bound(port.shape, B=1, T=1, W=511)) for port in ports]

    residual, q = ("residual", (1, 1, 512)), ("q", (1, 8, 1, 64))
    rotary = ("rotary_pos_emb", (2, 1, 1, 64))
    rows = [("ks", (1, 2, 511, 64)), ("vs", (1, 2, 511, 64))]
    handed = [residual, q, ("k", (1, 2, 1, 64)), ("v", (1, 2, 1, 64))]
    head, middle, tail = wiring.segments[0], wiring.segments[3], wiring.segments[-1]
    assert (listed(head.inputs), listed(head.outputs)) == ([("input_ids", (1, 1)), rotary], handed)
    assert (listed(middle.inputs), listed(middle.outputs)) == ([residual, rotary, q, *rows], handed)
    assert (listed(tail.inputs), listed(tail.outputs)) == ([residual, q, *rows], [("logits", (1, 1, 512))])
    assert [port.value for port in middle.outputs] == ["layer3.residual", "layer3.q", "layer3.k", "layer3.v"]
    assert [port.dtype for port in head.inputs] == ["int64", "float32"]


@pytest.mark.parametrize("masked", [False, True], ids=["unmasked", "masked"])
@pytest.mark.parametrize(("batch", "num_new", "rows"), [(1, 1, 15), (3, 1, 4), (2, 5, 9)])
def test_modules_take_and_return_exactly_the_shapes_of_their_ports(
    masked: bool, batch: int, num_new: int, rows: int
) -> None:
    wiring = MODEL.masked_wiring if masked else MODEL.wiring
    parts = MODEL.split(STATE, masked=masked)
    assert list(parts) == [segment.name for segment in wiring.segments]
    for segment in wiring.segments:
        inputs = [
            torch.zeros(bound(port.shape, B=batch, T=num_new, W=rows), dtype=getattr(torch, port.dtype))
            for port in segment.inputs
        ]
        outputs = parts[segment.name](*inputs)
        outputs = (outputs,) if isinstance(outputs, Tensor) else outputs
        expected = [bound(port.shape, B=batch, T=num_new) for port in segment.outputs]
        assert [tuple(output.shape) for output in outputs] == expected


def test_segments_agree_with_the_whole_over_chunks_of_any_length() -> None:
    ids, parts, values = some_ids(2, 24), MODEL.split(STATE), {}
    with torch.no_grad():
        full, _ = WHOLE(ids)
        logits = []
        for start, stop in ((0, 9), (9, 10), (10, 17), (17, 24)):
            values |= {"ids": ids[:, start:stop], "rope": rope(start, stop, 2)}
            run(parts, MODEL.wiring, values)
            logits.append(values["logits"])
    torch.testing.assert_close(torch.cat(logits, dim=1), full, **NOISE)


def test_segments_on_a_full_rolling_window_agree_with_the_whole_under_a_mask() -> None:
    window, ids, parts, values = CONFIG.window, some_ids(1, 40), MODEL.split(STATE), {}
    row = torch.arange(40)
    behind = row[:, None] - row
    logits = []
    with torch.no_grad():
        expected, _ = WHOLE(ids, mask_bts=((behind >= 0) & (behind < window))[None])
        for at in range(40):
            values |= {"ids": ids[:, at : at + 1], "rope": rope(at, at + 1, 1)}
            run(parts, MODEL.wiring, values, window)
            logits.append(values["logits"])
    torch.testing.assert_close(torch.cat(logits, dim=1), expected, **NOISE)


def test_an_additive_mask_hides_rows_of_a_static_window() -> None:
    ids, parts = some_ids(2, 6), MODEL.split(STATE, masked=True)
    garbage = {
        row.cache: torch.randn(2, 2, 10, 8, generator=torch.Generator().manual_seed(5))
        for row in MODEL.wiring.caches
    }
    hidden = torch.full((2, 1, 6, 10), -1e4)
    causal = torch.full((6, 6), -1e4).triu(1).expand(2, 1, 6, 6)
    values = garbage | {"ids": ids, "rope": rope(0, 6, 2), "mask": torch.cat((hidden, causal), dim=-1)}
    with torch.no_grad():
        full, _ = WHOLE(ids)
        run(parts, MODEL.masked_wiring, values)
    torch.testing.assert_close(values["logits"], full, **NOISE)


@pytest.mark.parametrize("masked", [False, True], ids=["unmasked", "masked"])
def test_a_mask_given_to_the_wrong_build_is_refused(masked: bool) -> None:
    tail = MODEL.split(STATE, masked=masked)["seg_tail"]
    inputs = [
        torch.zeros(1, 1, 32),
        torch.zeros(1, 4, 1, 8),
        torch.zeros(1, 2, 4, 8),
        torch.zeros(1, 2, 4, 8),
    ]
    with pytest.raises(UserError, match=f"masked={masked}"):
        tail(*inputs, *([] if masked else [torch.zeros(1, 1, 1, 4)]))


def test_split_and_merge_are_inverse() -> None:
    parts = {name: module.state_dict() for name, module in MODEL.split(STATE).items()}
    merged = MODEL.merge(parts, STATE)
    assert merged.keys() == STATE.keys()
    assert all(torch.equal(merged[key], STATE[key]) for key in STATE)


def test_every_weight_goes_into_exactly_one_segment() -> None:
    placed = [whole for keys in segment_keys(CONFIG).values() for whole in keys.values()]
    assert sorted(placed) == sorted(STATE.keys() - set(TABLE_KEYS))
    assert len(placed) == len(STATE) - 2


def test_segments_own_their_weights_in_the_dtype_of_the_checkpoint() -> None:
    state = {key: tensor.bfloat16() for key, tensor in STATE.items()}
    parts = MODEL.split(state)
    for module in parts.values():
        for parameter in module.parameters():
            assert parameter.dtype == torch.bfloat16
            assert not parameter.requires_grad
            parameter.data.zero_()
    assert state["final_ln.weight"].abs().sum() > 0


def test_shapes_are_those_of_the_module() -> None:
    for config in (CONFIG, find("klm-tiny").config):
        expected = {key: tuple(tensor.shape) for key, tensor in KLM(config).state_dict().items()}
        assert shapes(config) == expected


def broken(state: State, kind: str) -> State:
    state = dict(state)
    if kind == "missing":
        del state["body.blocks.1.ln2.bias"]
    elif kind == "unexpected":
        state["body.blocks.1.ln3.bias"] = torch.zeros(3)
    elif kind == "shape":
        state["final_ln.bias"] = torch.zeros(31)
    elif kind == "nan":
        state["body.blocks.2.mlp.up_proj.weight"] = state["body.blocks.2.mlp.up_proj.weight"].clone()
        state["body.blocks.2.mlp.up_proj.weight"][0, :3] = torch.nan
    elif kind == "vocabulary":
        for key in ("embedding.word_embeddings.weight", "lm_head.lm_head.weight"):
            state[key] = torch.zeros(500, 32)
    elif kind == "untied":
        state["lm_head.lm_head.weight"] = state["lm_head.lm_head.weight"] + 1
    return state


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing", "missing: body.blocks.1.ln2.bias; unexpected: none"),
        ("unexpected", "missing: none; unexpected: body.blocks.1.ln3.bias"),
        ("shape", r"final_ln.bias \(31,\), should be \(32,\)"),
        ("nan", r"NaN or infinity in body.blocks.2.mlp.up_proj.weight \(3 of 1536\)"),
        ("vocabulary", r"\(500, 32\), should be \(128, 32\)"),
        ("untied", "differ, but this model ties them"),
    ],
)
def test_a_checkpoint_that_cannot_be_right_is_refused_by_name(kind: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        MODEL.split(broken(STATE, kind))


def test_merge_refuses_incomplete_segments() -> None:
    parts = {name: dict(module.state_dict()) for name, module in MODEL.split(STATE).items()}
    del parts["seg_0"]["layer_bottom.out_proj.bias"]
    with pytest.raises(UserError, match=r"segment seg_0: .*missing: layer_bottom.out_proj.bias"):
        MODEL.merge(parts, STATE)
    del parts["seg_1"]
    with pytest.raises(UserError, match="missing: seg_1"):
        MODEL.merge(parts, STATE)
    with pytest.raises(UserError, match=r"tables: .*cos_cached"):
        MODEL.merge({name: module.state_dict() for name, module in MODEL.split(STATE).items()}, {})


def test_a_single_layer_has_a_head_and_a_tail() -> None:
    model = KLMModel("one", replace(CONFIG, num_layers=1))
    module = KLM(model.config).eval()
    assert list(model.split(module.state_dict())) == ["seg_head", "seg_tail"]
    assert [segment.name for segment in model.wiring.segments] == ["seg_head", "seg_tail"]


def test_the_table_tells_where_each_tap_is_computed() -> None:
    wiring = MODEL.wiring
    inside: list[Segment] = [s for s in wiring.segments if "layer1.attn" in s.taps]
    assert [segment.name for segment in inside] == ["seg_1"]
    assert wiring.producer("layer1.q") == "seg_0"
    assert wiring.producer("final") == "seg_tail"
    assert wiring.producer("layer1.ks") is None
