"""Live tensors that go on with other values, and what must not be written to."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from parity.harness.pinning import Known, Pinner


class Kept(nn.Module):
    """A parameter, a buffer and a plain tensor of its own."""

    table: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(2, 2)
        self.register_buffer("table", torch.zeros(4, 2))
        self.plain = torch.zeros(3)


def test_every_holder_of_the_tensor_goes_on_with_the_new_values() -> None:
    own = torch.zeros(2, 3)
    other = own.transpose(0, 1)
    assert Pinner(nn.Identity()).write(own, torch.arange(6.0).reshape(2, 3))
    assert other[2, 1] == 5.0


def test_what_was_written_over_is_put_back_the_last_first() -> None:
    own = torch.ones(3)
    pinner = Pinner(nn.Identity())
    assert pinner.write(own, torch.full((3,), 2.0))
    assert pinner.write(own, torch.full((3,), 3.0))
    pinner.restore()
    assert own.tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("name", ["fc.weight", "table", "plain"])
def test_what_belongs_to_a_module_is_not_written_to(name: str) -> None:
    module = Kept()
    own = module.fc.weight.detach() if name == "fc.weight" else getattr(module, name)
    for tensor in (own, own[:1]):
        assert not Pinner(module).write(tensor, torch.ones_like(tensor))
    assert not torch.equal(own, torch.ones_like(own))


def test_a_tensor_of_another_shape_or_whose_places_overlap_is_left_alone() -> None:
    pinner = Pinner(nn.Identity())
    assert not pinner.write(torch.zeros(2), torch.ones(3))
    assert not pinner.write(torch.zeros(1, 3).expand(2, 3), torch.ones(2, 3))
    assert pinner.write(torch.zeros(6).view(2, 3), torch.ones(2, 3))


def test_values_are_cast_to_the_ports_number_format() -> None:
    own = torch.zeros(2, dtype=torch.bfloat16)
    assert Pinner(nn.Identity()).write(own, torch.tensor([1.0, 0.1]))
    assert own.tolist() == [1.0, torch.tensor(0.1).bfloat16().item()]


def test_a_known_tensor_is_fresh_again_when_code_has_written_to_it() -> None:
    known, own = Known(), torch.zeros(4)
    assert known.fresh(own)
    known.add(own)
    assert not known.fresh(own)
    assert not known.fresh(own[:4])
    own += 1.0
    assert known.fresh(own)


def test_a_part_of_a_tensor_is_never_fresh() -> None:
    own = torch.zeros(4, 2)
    assert not Known().fresh(own[:, 0])
    assert not Known().fresh(own[1:])
