"""What methods are shown of the vision tower's blocks, against a naive attention in fp64."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass

import pytest
import torch
from prompts import GREEDY, logits
from support import FAMILIES, IMAGE_ID, Prompt, batch, random_model
from tolerances import assert_equal, assert_near, assert_rounds_alike, exact
from torch.utils._python_dispatch import TorchDispatchMode

from ppe_npu import CompressionConfig, compress, restore
from ppe_npu.engine import tower
from ppe_npu.errors import InputError
from ppe_npu.methods.base import Method, register, share
from ppe_npu.methods.grouping import Grouping
from ppe_npu.methods.view import View
from ppe_npu.models.fused import fuse
from ppe_npu.models.tower import Watch

TOWERS = {
    "qwen2_vl": {"depth": 3},
    "qwen2_5_vl": {"depth": 3, "fullatt_block_indexes": [1, 2], "window_size": 16},  # windows of 2 x 2 tokens
    "qwen3_vl": {"depth": 3},
}
PROMPTS = [
    Prompt([2, ("image", (1, 5, 7)), 3, ("image", (1, 2, 3)), 1], seed=1),
    Prompt([3], seed=2),
    Prompt([1, ("image", (1, 1, 1)), 2, ("image", (1, 5, 7)), 4], seed=3),
]
VIEWS = []
SYNCS = ("_local_scalar_dense", "nonzero", "item", "is_nonzero", "equal", "unique")


@register("toy_looks")
@dataclass(frozen=True)
class Looks(Method):
    """Keeps the most salient tokens of the first block that it names, and notes what it was shown."""

    ratio: float = share(0.5)
    named: tuple[int, ...] = (1, -1)
    windows: str = "refuse"
    needs = frozenset({"tokens", "places", "tower_keys", "tower_saliency"})

    @property
    def tower_blocks(self):
        return self.named

    @property
    def tower_windows(self):
        return self.windows

    def group(self, view: View) -> Grouping:
        VIEWS.append(view)
        scores = view.tower_saliency if view.tower_saliency.dim() == 2 else view.tower_saliency[:, 0]
        kept = scores.masked_fill(~view.present, -1).sort(dim=1, descending=True, stable=True).indices
        return Grouping.of_kept(view, kept[:, : view.most])


@register("toy_keys")
@dataclass(frozen=True)
class Keys(Looks):
    """Looks at keys alone."""

    needs = frozenset({"tokens", "tower_keys"})

    def group(self, view: View) -> Grouping:
        VIEWS.append(view)
        return Grouping.of_kept(view, torch.arange(view.most).expand(len(view.tokens), -1))


@pytest.fixture(params=FAMILIES)
def family(request):
    return request.param


@pytest.fixture
def model(family):
    return random_model(family=family, tower=TOWERS[family])


def clip(family):
    return Prompt([1, ("frames" if family == "qwen3_vl" else "video", (2, 3, 4)), 2], seed=4)


def given(family, **settings):
    inputs = batch(*PROMPTS, clip(family), **settings)
    return {name: value for name, value in inputs.items() if family == "qwen2_5_vl" or name != "second_per_grid_ts"}


def config(*methods, **settings):
    return CompressionConfig(steps=methods or [Looks()], **{"positions": "ppe", "k": 4} | settings)


def looked(model, inputs, method=None, **settings):
    """Of every frame the (keys [N, D], saliency [N] or [B, N]) that a method was shown, in the order of the prompt."""
    VIEWS.clear()
    compress(model, config(method or Looks(), **settings))
    with torch.no_grad():
        model(**inputs)
    return shown()


def shown():
    frames = []
    for view in VIEWS:
        for cell in range(len(view.tokens)):
            there = view.present[cell]
            saliency = None if view.tower_saliency is None else view.tower_saliency[cell][..., there]
            frames.append((view.tower_keys[cell, there], saliency))
    return frames


def naive(model, inputs, blocks, whole=True):
    """The same by definition, one frame, head and query at a time, in the precision of the model's weights.

    Which rows of the tower a token's patches are is found by its features: the merger gives one row for each token in
    the order of the tower, and the tower's output has them in the order of the prompt.
    """
    visual, caught, made = model.model.visual, {}, []
    pixels = [inputs[name] for name in ("pixel_values", "pixel_values_videos") if name in inputs]
    grids = [inputs[name] for name in ("image_grid_thw", "video_grid_thw") if name in inputs]
    hooks = [visual.merger.register_forward_hook(lambda _m, _a, out: made.append(out))]
    for block in blocks:

        def catch(_module, args, kwargs, block=block):
            hidden = args[0] if args else kwargs["hidden_states"]
            caught[block] = hidden, kwargs["position_embeddings"]

        hooks.append(visual.blocks[block].register_forward_pre_hook(catch, with_kwargs=True))
    with torch.no_grad():
        out = visual(torch.cat(pixels).to(visual.dtype), grid_thw=torch.cat(grids), return_dict=True)
        for hook in hooks:
            hook.remove()
        features = out.pooler_output
        apart = (features[:, None] - made[-1][None]).abs().sum(-1)
        order = apart.argmin(1)
        assert sorted(order.tolist()) == list(range(len(order)))
        assert (apart.gather(1, order[:, None]) == 0).all()
        scores = [_naive_block(visual.blocks[block], *caught[block], torch.cat(grids), order) for block in blocks]
    return [
        (frames[0][0], frames[0][1] if len(blocks) == 1 else torch.stack([scored for _, scored in frames]))
        for frames in zip(*scores)
    ]


def _naive_block(block, hidden, table, grids, order):
    attention = block.attn
    query, key, _ = attention.qkv(block.norm1(hidden)).unflatten(-1, (3, attention.num_heads, -1)).unbind(1)
    query, key = (_turned(part, *(part.to(hidden.dtype) for part in table)) for part in (query, key))
    frames, at = [], 0
    for t, h, w in grids.tolist():
        for _ in range(t):
            tokens = order[at : at + h * w // 4]
            at += h * w // 4
            rows = (4 * tokens[:, None] + torch.arange(4)).flatten()
            received = torch.zeros(len(rows), dtype=hidden.dtype)
            for head in range(attention.num_heads):
                for row in rows:
                    scores = key[rows, head] @ query[row, head] / math.sqrt(query.shape[-1])
                    received += torch.softmax(scores, dim=0)
            received /= attention.num_heads * len(rows)
            frames.append((key[rows].mean(1).unflatten(0, (-1, 4)).mean(1), received.unflatten(0, (-1, 4)).sum(1)))
    return frames


def _turned(heads, cos, sin):
    """Rotary, [T, H, D]."""
    first, second = heads.chunk(2, dim=-1)
    return heads * cos[:, None] + torch.cat([-second, first], dim=-1) * sin[:, None]


def by_size(frames):
    """Frames in an order that does not hang on how cells were gathered: by size, then by the largest score."""
    return sorted(frames, key=lambda frame: (frame[1].shape[-1], round(float(frame[1].flatten()[0]), 4)))


def flat(frames):
    return [part.double() for frame in by_size(frames) for part in frame]


def test_keys_and_saliency_are_those_of_a_naive_attention(model, family):
    inputs = given(family)
    blocks = (1, 2)
    plain = naive(model, inputs, blocks)
    true = exact(model, lambda: naive(model, inputs, blocks))
    found = looked(model, inputs)
    assert all(part.dtype == torch.float32 for frame in found for part in frame)
    assert_rounds_alike(flat(found), flat(plain), flat(true))
    for _, saliency in found:
        assert_near(saliency.sum(-1), torch.ones(2), roundings=2 * 4 * saliency.shape[-1])


@pytest.mark.parametrize("side", ["left", "right"])
def test_what_else_is_in_the_batch_changes_nothing(model, family, side):
    """Neither padding nor other images, of one prompt or of others, are seen."""
    together = looked(model, given(family, side=side))
    alone = [frame for prompt in (*PROMPTS, clip(family)) for frame in looked(model, batch(prompt))]
    restore(model)
    true = exact(model, lambda: naive(model, given(family), (1, 2)))
    assert_rounds_alike(flat(alone), flat(together), flat(true))


@pytest.mark.parametrize("limit", [1, 2 * 24 * 7, 2**12])
def test_chunks_change_nothing_but_the_order_of_sums(model, family, monkeypatch, limit):
    inputs = given(family)
    whole, true = looked(model, inputs), exact(restore(model), lambda: naive(model, inputs, (1, 2)))
    monkeypatch.setattr(tower, "_SCORES_AT_ONCE", limit)
    assert_rounds_alike(flat(looked(model, inputs)), flat(whole), flat(true))


class Largest(TorchDispatchMode):
    """The most numbers that any tensor held which was made."""

    numbers, names = 0, ()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor):
            self.numbers = max(self.numbers, out.numel())
        self.names = (*self.names, func.overloadpacket.__name__)
        return out


def test_memory_grows_with_a_chunk_and_the_host_never_waits(monkeypatch):
    heads, width, frames = 4, 8, [96] * 3 + [24] + [96]
    query, key = torch.randn(2, heads, sum(frames), width, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(tower, "_SCORES_AT_ONCE", heads * 96 * 5)
    with Largest() as seen:
        scores = tower.received(query, key, frames, width**-0.5)
    assert seen.numbers <= max(heads * 96 * 5, query.numel())
    assert not set(seen.names) & set(SYNCS)
    assert len(scores) == sum(frames)


def calls(model, inputs):
    """The modules of the vision tower in the order in which they are called."""
    names, hooks = [], []
    for name, module in model.model.visual.named_modules():
        hooks.append(module.register_forward_pre_hook(lambda *_, name=name: names.append(name)))
    model(**inputs)
    for hook in hooks:
        hook.remove()
    return names


def test_no_module_is_called_that_was_not_called_before(model, family):
    """ZeRO-3 waits for ever where processes call different modules."""
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
    usual, true = looked(model, inputs), exact(restore(model), lambda: naive(model, inputs, (1, 2)))
    if kind == "fused":
        fuse(model)
    else:
        model.model.visual.set_attn_implementation(kind)
    assert_rounds_alike(flat(looked(model, inputs)), flat(usual), flat(true))


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
    assert len(again) == len(frames)  # what runs a second time is not looked at a second time
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
    with pytest.raises(
        InputError, match=r"toy_looks looks at attention in block 0 of .* in windows \(1, 2 attend whole\): name"
    ):
        compress(model, config(Looks(named=(0, 1))))
    inputs = given(family)
    plain, true = naive(model, inputs, (0, 2)), exact(model, lambda: naive(model, inputs, (0, 2)))
    assert_rounds_alike(flat(looked(model, inputs, Looks(named=(0, 2), windows="frame"))), flat(plain), flat(true))
    skipped = looked(model, inputs, Looks(named=(0, 2), windows="skip"))
    assert [part.dim() for _, part in skipped] == [1] * len(skipped)
    with pytest.raises(InputError, match="in block 0 of the vision tower"):
        compress(model, config(Looks(named=(0,), windows="skip")))
    whole, alone = looked(model, inputs, Looks(named=(0,), windows="frame")), looked(model, inputs, Keys(named=(0,)))
    for (expected, _), (keys, saliency) in zip(whole, alone, strict=True):
        assert saliency is None
        assert_equal(keys, expected)  # a key is what it is, in a window or not


@pytest.mark.parametrize("block", [3, -4])
def test_a_block_that_is_not_there_is_refused_by_its_number(model, block):
    with pytest.raises(InputError, match=f"toy_looks: the vision tower has 3 blocks, and none of number {block}"):
        compress(model, config(Looks(named=(1, block))))


def test_an_attention_that_is_not_known_is_refused_by_name(model):
    class Other(torch.nn.Module):
        pass

    model.model.visual.blocks[1].attn = Other()
    with pytest.raises(InputError, match="attention 'Other' of the vision tower is not supported"):
        compress(model, config())
    compress(model, CompressionConfig.preset("ppe", k=4))  # nobody looks


def test_what_the_tower_made_before_is_refused_by_name(model, family):
    """Its output does not hold what its blocks saw."""
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
    """A second step, before the decoder or on entry of a layer, sees of each kept token what the first one saw."""
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
