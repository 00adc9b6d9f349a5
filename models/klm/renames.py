"""Names that the original KLM programs gave their tensors -> canonical taps, per family of programs.

Three families exist, and names that look alike mean different tensors in them: `seg0.q` (family `inputs`)
is what segment 0 was handed, `seg0_q` (family `outputs`) what it returned, which feeds layer 1.

- `whole`: the reference model and its segmented form. Their `k_repeated` and `v_repeated` are `ks` and `vs`
  with each head repeated for its group: another shape, so no rename can tie them, and they stay unmapped.
  `input_embed`, `rotary_pos_emb`, `q`, `attn_output` and `logits` hold the last position alone.
- `inputs`: the windowed runner in torch and the native runner on the board.
- `outputs`: the windowed runners on ONNX and on the board with its cache kept in Python.
"""

from __future__ import annotations

from collections.abc import Mapping

from .config import KLMConfig

Renames = Mapping[str, str]


def families(config: KLMConfig) -> dict[str, Renames]:
    """Original name -> canonical tap, for each family."""
    layers = range(config.num_layers)
    return {"whole": _whole(layers), "inputs": _inputs(layers), "outputs": _outputs(layers)}


def renames(config: KLMConfig) -> dict[str, str]:
    """The union of the families, each name with and without the leading dot that the original store wrote."""
    union: dict[str, str] = {}
    for table in families(config).values():
        for name, tap in table.items():
            assert union.setdefault(name, tap) == tap, f"{name} means two taps"
    return union | {f".{name}": tap for name, tap in union.items()}


def _whole(layers: range) -> Renames:
    per_layer = {
        f"layer{i}.{name}": f"layer{i}.{tap}"
        for i in layers
        for name, tap in (("q", "q"), ("attn_output", "attn"))
    }
    return {"input_embed": "embed", "rotary_pos_emb": "rope", **per_layer, "logits": "logits"}


def _inputs(layers: range) -> Renames:
    handed = ("ks", "vs", "residual", "q", "k", "v")
    return {f"seg{i}.{name}": f"layer{i}.{name}" for i in layers for name in handed} | {
        "tail_logits": "logits"
    }


def _outputs(layers: range) -> Renames:
    returned = ("residual", "q", "k", "v")
    table = {"rotary_pos_emb": "rope", **{f"head_{name}": f"layer0.{name}" for name in returned}}
    for i in layers[:-1]:
        table |= {f"seg{i}_{name}": f"layer{i}.{name}" for name in ("ks", "vs")}
        table |= {f"seg{i}_{name}": f"layer{i + 1}.{name}" for name in returned}
    return table | {"tail_logits": "logits"}
