"""The list of overrides in seam.py is what compress() and add_pvc() do to a tiny model of every family."""

import functools
import re

import pytest
import torch
from families import EVERY, TINY, supported, together
from support import random_model

from ppe_npu import CompressionConfig, compress, restore
from ppe_npu.methods import IPCV, FastV
from ppe_npu.models import seam
from ppe_npu.models.forward_pass import ForwardPass
from ppe_npu.models.pvc import PVCConfig, add_pvc

pytestmark = supported

PPE = CompressionConfig.preset("ppe", k=2)
STAGED = CompressionConfig.preset("ppe", k=2, layers=[1])
COUNTED = CompressionConfig.preset("ppe_plus", k=2)
INSIDE = CompressionConfig(steps=[IPCV(prune_block=1)], positions="keep_one", k=1)
AHEAD = CompressionConfig(steps=[FastV(0.5, layer=2, released=True)], positions="keep_one", k=1)
ALWAYS = (*TINY, "qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe")  # run their decoder stage by stage


def entries(part: str) -> list[list[str]]:
    """For each entry of a list in seam's docstring, what stands in backticks. part: the words before that list."""
    listed = seam.__doc__.partition(part)[2].partition(":\n\n")[2].partition("\n\n")[0]
    return [re.findall(r"`(\S+)`", entry) for entry in re.split(r"\n    (?! )", "\n" + listed)[1:]]


def listed() -> set[tuple[str, str]]:
    """(module, method) of every override in the list."""
    found = set()
    for words in entries("Every override"):
        homes = [word for word in words if re.match(r"model|cache", word)]
        found |= {(home, method) for home in homes for method in words if method not in homes}
    return found


def place(name: str) -> str:
    """A module's name as in the list."""
    return re.sub(r"\.\d+", "[n]", f"model.{name}".rstrip("."))


def overrides(model) -> set[tuple[str, str]]:
    return {(place(name), method) for name, own in model.named_modules() for method in vars(own).get(seam._SAVED, ())}


@pytest.mark.parametrize("name", EVERY)
def test_every_override_is_listed(name):
    model, text = EVERY[name].model(), ("model.model.text_model", "model.model.language_model")
    for config, staged in ((PPE, name in ALWAYS), (STAGED, True), (COUNTED, True)):
        found = overrides(compress(model, config))
        assert ("model", "forward") in found
        assert found <= listed()
        assert ((text[name not in ("idefics3", "smolvlm")], "forward") in found) == staged


def test_every_entry_of_the_list_is_found():
    found = set()
    for name, config in (("qwen2_5_vl", INSIDE), ("internvl", INSIDE), ("idefics3", PPE)):
        found |= overrides(compress(EVERY[name].model(), config))
    model, tiny = compress(random_model(), AHEAD), EVERY["qwen2_5_vl"]
    inputs = together([tiny.sample(model, [2, "picture", 3], 0)])
    with torch.no_grad():
        cache = model(**inputs, use_cache=True).past_key_values
        model(**inputs, labels=inputs["input_ids"], ppe=ForwardPass(skip_logits=True))
    found |= overrides(model)
    found |= {("cache", name) for name, own in vars(cache).items() if isinstance(own, functools.partial)}
    assert found == listed()
    assert not overrides(restore(model))


def classes(model) -> dict[str, type]:
    return {name: type(module) for name, module in model.named_modules() if not name.endswith("rotary_emb")}


@pytest.mark.parametrize(("number", "name"), [(0, "internvl"), (1, "qwen2_5_vl")])
def test_classes_that_pvc_changes_and_compress_does_not(number, name):
    model = EVERY[name].model()
    before = classes(model)
    after = classes(add_pvc(model, PVCConfig(blocks=1, time_width=16)))
    changed = {place(key) for key, own in before.items() if after[key] is not own}
    assert changed == set(entries("add_pvc()")[number])
    assert classes(compress(model, PPE)) == after
