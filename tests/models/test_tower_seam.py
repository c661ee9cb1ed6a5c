"""Looking into the vision tower's blocks: only where a method declares it, with every kind of attention, and in
training."""

import copy

import pytest
import torch
from prompts import GREEDY, logits
from support import FAMILIES, IMAGE_ID, batch, family_of, model_with, random_model
from tolerances import assert_equal, assert_rounds_alike, exact
from towers import PROMPTS, TOWERS, VIEWS, Keys, Looks, clip, config, flat, given, looked, naive, naives, shown

from ppe_npu import CompressionConfig, compress, restore
from ppe_npu.errors import InputError
from ppe_npu.methods import GlobalCom2, get
from ppe_npu.models.fused import fuse
from ppe_npu.models.tower import Watch

pytestmark = pytest.mark.half

family, model = family_of(FAMILIES), model_with(TOWERS)


def calls(model, inputs):
    """Names of the vision tower's modules in the order of their calls."""
    names, hooks = [], []
    for name, module in model.model.visual.named_modules():
        hooks.append(module.register_forward_pre_hook(lambda *_, name=name: names.append(name)))
    model(**inputs)
    for hook in hooks:
        hook.remove()
    return names


def test_no_module_is_called_that_was_not_called_before(model, family):
    """ZeRO-3 hangs if processes call different modules."""
    inputs = given(family)
    with torch.no_grad():
        compress(model, CompressionConfig.preset("ppe", k=4))
        before = calls(model, inputs)
        compress(model, config())
        assert calls(model, inputs) == before


def test_nothing_is_looked_at_that_no_method_declares(model, family, monkeypatch):
    def never(*_):
        raise AssertionError("it was looked at")

    monkeypatch.setattr(Watch, "see", never)
    compress(model, CompressionConfig.preset("ppe", k=4))
    logits(model, given(family))
    monkeypatch.undo()
    asked = []
    see = Watch.see
    monkeypatch.setattr(Watch, "see", lambda self, number, *rest: asked.append(number) or see(self, number, *rest))
    compress(model, config(Looks(named=(2,))))
    logits(model, given(family))
    assert asked == [2]
    assert set(model.model.visual.blocks[1].attn._forward_pre_hooks) == set()
    assert set(model.model.visual.blocks[2].attn.qkv._forward_hooks) == set()


@pytest.mark.parametrize("kind", ["eager", "sdpa", "fused"])
def test_it_does_not_hang_on_how_the_tower_attends(model, family, kind):
    inputs = given(family)
    plain, true = naives(model, inputs)
    if kind == "fused":
        fuse(model)
    else:
        model.model.visual.set_attn_implementation(kind)
    assert_rounds_alike(flat(looked(model, inputs)), plain, true)


def check_compiled(part, family):
    """Check a part that was compiled before: compiled code runs no hooks, so it is bypassed when a method looks."""
    model, inputs = random_model(family=family, tower=TOWERS[family]), batch(PROMPTS[0])
    expected = looked(model, inputs)
    restore(model)
    visual = model.model.visual
    for module in {"block": visual.blocks[2:], "tower": [visual], "model": [model]}[part]:
        module.compile(backend="eager")
    with torch.no_grad():
        visual(inputs["pixel_values"], grid_thw=inputs["image_grid_thw"], return_dict=True)
    for one, other in zip(flat(looked(model, inputs)), flat(expected), strict=True):
        assert_equal(one, other)


@pytest.mark.ci
def test_it_does_not_hang_on_a_block_that_is_compiled():
    check_compiled("block", "qwen2_5_vl")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("part", "family"), [("block", "qwen2_vl"), ("block", "qwen3_vl"), ("tower", "qwen2_5_vl"), ("model", "qwen2_5_vl")]
)
def test_it_does_not_hang_on_what_is_compiled(part, family):
    check_compiled(part, family)


def test_in_bf16_it_is_as_near_as_a_naive_attention_in_bf16(model, family):
    inputs = given(family)
    true = exact(model, lambda: naive(model.bfloat16().double(), inputs, (1, 2)))
    model.bfloat16()
    plain = naive(model, inputs, (1, 2))
    assert_rounds_alike(flat(looked(model, inputs)), flat(plain), flat(true), dtype=torch.bfloat16)


def trained(model, inputs, checkpointing):
    labels = torch.where(inputs["attention_mask"].bool(), inputs["input_ids"], -100)
    model = copy.deepcopy(model).train()
    if checkpointing is not None:
        model.gradient_checkpointing_enable({"use_reentrant": checkpointing})
    VIEWS.clear()
    model(**inputs, labels=labels).loss.backward()
    return shown(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_changes_nothing(model, family, reentrant):
    inputs = given(family)
    compress(model, config())
    frames, gradients = trained(model, inputs, None)
    again, same = trained(model, inputs, reentrant)
    assert len(again) == len(frames)  # the recomputation is not looked at
    for one, other in zip(flat(again), flat(frames), strict=True):
        assert_equal(one, other)
    assert same.keys() == gradients.keys()
    for name, gradient in gradients.items():
        assert_equal(same[name], gradient, name)


def test_blocks_that_attend_in_windows_are_refused_or_seen_whole(family):
    model = random_model(family=family, tower=TOWERS[family])
    if family != "qwen2_5_vl":
        compress(model, config(Looks(named=(0, 1, 2))))
        return
    with pytest.raises(InputError, match=r"toy_looks looks at attention in block 0 of .* whole frames \(1, 2\), or"):
        compress(model, config(Looks(named=(0, 1))))
    inputs = given(family)
    plain, true = naives(model, inputs, (0, 2))
    assert_rounds_alike(flat(looked(model, inputs, Looks(named=(0, 2), windows="frame"))), plain, true)
    skipped = looked(model, inputs, Looks(named=(0, 2), windows="skip"))
    assert [part.dim() for _, part in skipped] == [1] * len(skipped)
    with pytest.raises(InputError, match="in block 0 of the vision tower"):
        compress(model, config(Looks(named=(0,), windows="skip")))
    whole, alone = looked(model, inputs, Looks(named=(0,), windows="frame")), looked(model, inputs, Keys(named=(0,)))
    for (expected, _), (keys, saliency) in zip(whole, alone, strict=True):
        assert saliency is None
        assert_equal(keys, expected)  # keys do not depend on windows


def test_hiprune_chooses_by_the_block_that_is_left_where_the_other_is_skipped():
    """Block 0 attends in windows, and block 2 is the last one."""
    inputs, found = given("qwen2_5_vl"), []
    for fields in ({"object_layer": 0, "tower_windows": "skip"}, {"object_layer": 2}):
        model = random_model(tower=TOWERS["qwen2_5_vl"])
        with torch.no_grad():
            found.append(compress(model, config(get("hiprune", ratio=0.5, **fields)))(**inputs).logits)
    assert torch.equal(*found)


def test_a_method_that_chooses_within_frames_sees_the_blocks_that_it_names():
    """The outer method also shows frames that do not exist, where a video has fewer than another."""
    looks = Looks(named=(0, 2), windows="frame")
    model, inputs = random_model(tower=TOWERS["qwen2_5_vl"]), given("qwen2_5_vl")
    alone, within = (looked(model, inputs, method) for method in (looks, get("globalcom2", by=looks)))
    for _, saliency in alone:
        assert saliency.shape[0] == 2
        assert any(torch.equal(saliency, seen) for _, seen in within)


@pytest.mark.parametrize("windows", ["refuse", "skip"])
def test_where_all_blocks_attend_in_windows_it_is_the_whole_frame(windows):
    model = random_model(tower={**TOWERS["qwen2_5_vl"], "fullatt_block_indexes": []})
    inputs, blocks = given("qwen2_5_vl"), (0, 2)
    plain, true = naives(model, inputs, blocks)
    assert_rounds_alike(flat(looked(model, inputs, Looks(named=blocks, windows=windows))), plain, true)


def test_a_method_within_globalcom2_is_shown_what_it_is_shown_alone(family):
    model, video = random_model(family=family, tower=TOWERS[family]), batch(clip(family))
    inputs = {name: value for name, value in video.items() if family == "qwen2_5_vl" or name != "second_per_grid_ts"}
    for by in (Looks(named=(0, 2), windows="frame"), Looks(named=(1,))):
        alone = looked(model, inputs, by)
        assert len(alone) == 2  # frames
        for (keys, saliency), (own_keys, own) in zip(looked(model, inputs, GlobalCom2(by=by)), alone, strict=True):
            assert_equal(keys, own_keys)
            assert_equal(saliency, own)
    with pytest.raises(InputError, match="toy_looks: the vision tower has 3 blocks, but no block 3"):
        compress(model, config(GlobalCom2(by=Looks(named=(3,)))))
    if family == "qwen2_5_vl":
        with pytest.raises(InputError, match=r"globalcom2 by=toy_looks looks at .* block 0 .*\"frame\" of that method"):
            compress(model, config(GlobalCom2(by=Looks(named=(0, 1)))))


@pytest.mark.parametrize("block", [3, -4])
def test_a_block_that_is_not_there_is_refused_by_its_number(model, block):
    with pytest.raises(InputError, match=f"toy_looks: the vision tower has 3 blocks, but no block {block}"):
        compress(model, config(Looks(named=(1, block))))


def test_an_attention_that_is_not_known_is_refused_by_name(model):
    class Other(torch.nn.Module):
        pass

    model.model.visual.blocks[1].attn = Other()
    with pytest.raises(InputError, match=r"the vision tower has attention of class 'Other': .*load a model"):
        compress(model, config())
    compress(model, CompressionConfig.preset("ppe", k=4))  # this method does not look


def test_what_the_tower_made_before_is_refused_by_name(model, family):
    """The tower's output does not contain the keys and saliency of its blocks."""
    inputs = batch(PROMPTS[0])
    compress(model, config())
    with torch.no_grad():
        made = model.model.visual(inputs["pixel_values"], grid_thw=inputs["image_grid_thw"], return_dict=True)
        embeds = model.get_input_embeddings()(inputs["input_ids"])
        embeds[inputs["input_ids"] == IMAGE_ID] = made.pooler_output
    pixels = inputs.pop("pixel_values")
    with pytest.raises(InputError, match=r"toy_looks must look .* inputs_embeds .*: give pixel_values"):
        model(**inputs, inputs_embeds=embeds)
    with pytest.raises(InputError, match=r"toy_looks must look .* mm_encoder_outputs .*: give pixel_values"):
        model(**inputs, mm_encoder_outputs={"image": made})
    compress(model, CompressionConfig.preset("ppe", k=4))
    same = logits(model, inputs | {"mm_encoder_outputs": {"image": made}})
    assert_equal(same, logits(model, inputs | {"pixel_values": pixels}))


def test_generate_looks_into_the_tower_once(model, family, monkeypatch):
    inputs = given(family)
    compress(model, config())
    expected = logits(model, inputs)[:, -1].argmax(-1)
    VIEWS.clear()
    with torch.no_grad():
        model(**inputs)
    once = len(VIEWS)
    VIEWS.clear()
    settings = GREEDY | {"suppress_tokens": None}
    ids = model.generate(**inputs, max_new_tokens=3, **settings)
    assert len(VIEWS) == once
    assert torch.equal(ids[:, inputs["input_ids"].shape[1]], expected)


def test_text_alone_needs_no_tower(model):
    compress(model, config())
    VIEWS.clear()
    logits(model, batch(PROMPTS[1]))
    model.train()
    inputs = batch(PROMPTS[1])
    model(**inputs, labels=inputs["input_ids"]).loss.backward()
    assert not VIEWS


def test_a_token_that_was_merged_goes_by_its_representative(model, family):
    """A second step, before the decoder or on entry of a layer, sees the same data of each kept token as the first."""
    inputs, first = given(family), Looks(ratio=0.6)
    for second in (Looks(ratio=0.5, named=(2, 1)), Looks(ratio=0.5, named=(2, 1), layer=1)):
        VIEWS.clear()
        compress(model, config(first, second))
        logits(model, inputs)
        half = len(VIEWS) // 2
        for before, after in zip(VIEWS[:half], VIEWS[half:], strict=True):
            for cell in range(len(before.tokens)):
                there = after.present[cell]
                made = first.group(before)
                kept = made.representatives[cell][: int(there.sum())]
                assert_equal(after.tower_saliency[cell][1, there], before.tower_saliency[cell][0, kept])
                assert_equal(after.tower_saliency[cell][0, there], before.tower_saliency[cell][1, kept])
