"""Parts: every parameter belongs to the right one, with or without an adapter; parts are frozen, listed and grouped."""

from __future__ import annotations

import pytest
import torch
from support import FAMILIES, random_model
from tolerances import assert_near

from ppe_npu.errors import InputError
from ppe_npu.training.adapters import Adapter, add_adapter
from ppe_npu.training.parts import (
    PARTS,
    decaying_names,
    freeze,
    parameter_groups,
    parameter_table,
    part_of,
    plain_name,
)

RATES = {"language": 1e-4, "merger": 1e-5, "vision": 2e-6}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_parameter_is_of_the_part_whose_module_holds_it(family):
    model = random_model(family=family)
    tower = model.model.visual
    mergers = [tower.merger, *getattr(tower, "deepstack_merger_list", [])]
    merger = {id(parameter) for module in mergers for parameter in module.parameters()}
    vision = {id(parameter) for parameter in tower.parameters()} - merger
    expected = {
        name: "merger" if id(parameter) in merger else "vision" if id(parameter) in vision else "language"
        for name, parameter in model.named_parameters()
    }
    assert {name: part_of(name) for name in expected} == expected
    assert set(expected.values()) == set(PARTS)
    assert len(mergers) == (3 if family == "qwen3_vl" else 1)

    wrapped = add_adapter(model, Adapter(rank=2, parts=PARTS))
    own = {plain_name(name): part_of(name) for name, _ in wrapped.named_parameters() if "lora_" not in name}
    assert own == expected
    added = [name for name, _ in wrapped.named_parameters() if "lora_" in name]
    assert all(part_of(name) == expected[plain_name(name).split(".lora_")[0] + ".weight"] for name in added)
    assert all(part_of(f"module.{name}") == part for name, part in expected.items())


def test_freeze_takes_parts_and_beginnings(model):
    freeze(model, ["vision", "model.language_model.layers.0"])
    for name, parameter in model.named_parameters():
        frozen = part_of(name) == "vision" or name.startswith("model.language_model.layers.0")
        assert parameter.requires_grad != frozen, name
    wrapped = add_adapter(model, Adapter(rank=2, parts=("language", "vision")))
    freeze(wrapped, ["model.visual", "model.language_model.layers.1"])
    learning = {plain_name(name) for name, parameter in wrapped.named_parameters() if parameter.requires_grad}
    assert {name.split(".self_attn")[0].split(".mlp")[0] for name in learning} == {
        "model.language_model.layers.0",
        "model.language_model.layers.2",
    }


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (
            ["visual"],
            "frozen='visual' is neither a part .* nor the start of a parameter's name: names start like 'model.visual",
        ),
        (["language", "merger", "vision"], "leaves no trainable parameter"),
    ],
)
def test_freeze_refuses(model, names, words):
    with pytest.raises(InputError, match=words):
        freeze(model, names)


def test_the_table_counts_each_part(model):
    freeze(model, ["vision"])
    counts = dict.fromkeys(PARTS, 0)
    for name, parameter in model.named_parameters():
        counts[part_of(name)] += parameter.numel()
    lines = [line.split() for line in parameter_table(model, RATES).splitlines()]
    assert lines[1] == ["language", f"{counts['language']:,}", f"{counts['language']:,}", "0.0001"]
    assert lines[2] == ["merger", f"{counts['merger']:,}", f"{counts['merger']:,}", "1e-05"]
    assert lines[3] == ["vision", f"{counts['vision']:,}", "0", "-"]
    assert lines[4] == ["total", f"{sum(counts.values()):,}", f"{counts['language'] + counts['merger']:,}"]
    # q_proj 128 -> 128 of three layers, rank 2: 3 * 2 * (128 + 128) more
    adapted = add_adapter(model, Adapter(rank=2, targets="q_proj"))
    lines = [line.split() for line in parameter_table(adapted, RATES).splitlines()]
    assert lines[1] == ["language", f"{counts['language'] + 1536:,}", "1,536", "0.0001", "(adapter)"]
    assert lines[2][2:] == ["0", "-"]


def test_groups_hold_each_trainable_parameter_once_with_its_parts_rate(model):
    freeze(model, ["model.visual.patch_embed"])
    groups = parameter_groups(model, RATES, weight_decay=0.1)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    listed = [names[id(parameter)] for group in groups for parameter in group["params"]]
    assert sorted(listed) == sorted(name for name, p in model.named_parameters() if p.requires_grad)
    assert len(groups) == 6
    for group in groups:
        assert group["params"]
        assert group["lr"] == RATES[group["part"]]
        for parameter in group["params"]:
            name = names[id(parameter)]
            assert part_of(name) == group["part"]
            # all matrices decay here; vectors are biases and norms
            assert (group["weight_decay"] == 0.1) == (parameter.ndim > 1), name


def test_groups_of_an_adapter_are_never_empty_and_an_optimizer_steps_by_them(model):
    wrapped = add_adapter(model, Adapter(rank=2, parts=("language", "vision")))
    groups = parameter_groups(wrapped, RATES, weight_decay=0.1)
    assert [(group["part"], group["weight_decay"]) for group in groups] == [("language", 0.1), ("vision", 0.1)]
    before = [parameter.detach().clone() for group in groups for parameter in group["params"]]
    for group in groups:
        for parameter in group["params"]:
            parameter.grad = torch.ones_like(parameter)
    optimizer = torch.optim.SGD([{**group, "weight_decay": 0.0} for group in groups])
    optimizer.step()
    after = [parameter for group in groups for parameter in group["params"]]
    rates = [group["lr"] for group in groups for _ in group["params"]]
    for old, new, rate in zip(before, after, rates):
        # The difference of two rounded weights.
        assert_near(old - new, torch.full_like(old, rate), roundings=2, size=old.detach().abs().max())


def test_groups_need_a_rate_for_what_learns(model):
    with pytest.raises(InputError, match="not of vision, which learns"):
        parameter_groups(model, {"language": 1e-4, "merger": 1e-5}, 0.0)
    freeze(model, ["vision"])
    assert parameter_groups(model, {"language": 1e-4, "merger": 1e-5}, 0.0)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_transformers_decays_decays_but_for_norms_that_it_misses(family):
    from transformers import Trainer

    model = random_model(family=family)
    missed = set(Trainer.get_decay_parameter_names(None, model)) - decaying_names(model)
    assert decaying_names(model) < set(dict(model.named_parameters()))
    assert {name.split(".")[-2] for name in missed} == ({"norm1", "norm2", "ln_q"} if family == "qwen2_5_vl" else set())
