"""tests/twins.py returns the model that was asked for, and no two copies share anything."""

import pytest
import torch
from support import random_model
from twins import Twins, twin

FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_5", "qwen3_vl_moe", "qwen3_5_moe")


class Made(torch.nn.Module):
    """Has tied weights, a frozen one, buffers that are saved or not, a plain attribute and a shared one."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.one, self.other = torch.nn.Linear(3, 3), torch.nn.Linear(3, 3)
        self.other.weight = self.one.weight
        self.one.bias.requires_grad_(False)
        self.register_buffer("saved", torch.randn(2, 3).T)
        self.register_buffer("passing", torch.randn(2, dtype=torch.float64), persistent=False)
        self.rows, self.settings = [torch.arange(3)], {"layers": [1]}
        self.same = self.settings


def places(model) -> set[int]:
    return {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}


def test_copies_are_what_was_made_and_share_nothing():
    made, twins = Made(), Twins(Made)
    one, other = twins.one(), twins.one()
    assert not places(one) & places(other)
    with torch.no_grad():
        one.one.weight.zero_()
        one.passing.zero_()
    one.rows[0][0] = 9
    one.settings["layers"].append(2)
    for model in (other, twins.one()):
        assert model.one.weight is model.other.weight
        assert model.settings is model.same
        assert model.settings == {"layers": [1]}
        assert model.rows[0].tolist() == [0, 1, 2]
        assert model.saved.stride() == made.saved.stride()
        assert "passing" not in model.state_dict()
        for (name, found), (_, wanted) in zip(model.named_parameters(), made.named_parameters(), strict=True):
            assert torch.equal(found, wanted), name
            assert found.requires_grad == wanted.requires_grad, name
        for (name, found), (_, wanted) in zip(model.named_buffers(), made.named_buffers(), strict=True):
            assert torch.equal(found, wanted), name


def test_random_numbers_go_on_as_after_a_model_that_is_made(monkeypatch):
    """This includes the numbers of other devices, which manual_seed seeds."""
    Made()
    wanted = torch.rand(4)
    seeds, seed = [], torch.manual_seed
    for _ in range(2):
        torch.rand(5)
        monkeypatch.setattr(torch, "manual_seed", lambda number: seeds.append(number) or seed(number))
        monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
        twin(("test_twins", "numbers"), Made)
        assert torch.equal(torch.rand(4), wanted)
        assert seeds[-1] == 3
        monkeypatch.undo()
    assert len(seeds) == 3  # made and copied, then copied


@pytest.mark.parametrize("family", FAMILIES)
def test_a_random_model_is_its_own(family):
    one, other = random_model(family=family), random_model(family=family)
    assert not places(one) & places(other)
    assert one.config is not other.config
    assert one.config is one.model.config
    assert one.config.text_config is one.model.language_model.config
    for (name, found), (_, wanted) in zip(one.state_dict().items(), other.state_dict().items(), strict=True):
        assert torch.equal(found, wanted), name
    assert not torch.equal(random_model(seed=1, family=family).lm_head.weight, one.lm_head.weight)
