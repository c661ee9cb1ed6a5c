"""Proportional attention: a token that stands for s tokens counts as s of them (ToMe, arXiv 2210.09461)."""

import itertools
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from prompts import GREEDY, MIXED, kept_logits
from support import FAMILIES, Prompt, batch, random_model
from tolerances import assert_equal, assert_near, assert_rounds_alike, attention_roundings, exact
from toys import Looker
from transformers import DynamicCache, StaticCache

from ppe_npu import CompressionConfig, compress
from ppe_npu.errors import InputError
from ppe_npu.methods import DPCKNN, DivPrune, FastV, get
from ppe_npu.models import fused
from ppe_npu.training.args import TrainConfig

pytestmark = pytest.mark.half

SLOW = pytest.mark.slow
proportional = partial(CompressionConfig, proportional_attention=True)
SETTINGS = {
    "keep_one": proportional(ratio=0.4, positions="keep_one"),
    "ppe": proportional(ratio=0.3, k=4),
    "renumber": proportional(ratio=0.4, positions="renumber"),
    "cascade": proportional(ratio=0.5, k=2, layers=[1, 2], before_llm=True),
    "lent, then merged": proportional(steps=[DivPrune(ratio=0.6), DPCKNN(ratio=0.4, layer=1)], k=4),
    "merged before pruning": proportional(steps=[DivPrune(ratio=0.4, dropped="merge"), FastV(layer=2)], k=4),
    "late": proportional(steps=[get("flashvid", ratio=0.4), get("tome", ratio=0.5, metric="tokens", layer=2)], k=4),
}
PROMPT = Prompt([3, "start", ("image", (1, 4, 5)), 2, "start", ("video", (2, 4, 4)), 4], seed=4)
TOWER = {"depth": 2, "fullatt_block_indexes": [1]}


def passes(compression):
    """A list that collects the compression's passes."""
    runs, prefill = [], type(compression).prefill

    def kept(*args, **kwargs):
        run, embeds = prefill(compression, *args, **kwargs)
        runs.append(run)
        return run, embeds

    compression.prefill = kept
    return runs


def count_by_copies(model) -> None:
    """Make the layers process every token as often as it counts, with each copy attending to all copies of its token.
    The layers and their attention then need no sizes."""
    runs = passes(model.compression)

    def copied(index, forward):
        def run_copies(hidden, position_embeddings, **_):
            sizes = runs[-1].sizes[sum(first <= index for first in runs[-1].layers)]
            sizes = torch.ones(hidden.shape[1], dtype=torch.long) if sizes is None else sizes[0]
            copies = torch.arange(len(sizes)).repeat_interleave(sizes)
            added = torch.zeros(len(copies), len(copies), dtype=hidden.dtype)
            added = added.masked_fill(copies[:, None] < copies, torch.finfo(hidden.dtype).min)[None, None]
            table = tuple(part[..., copies, :] for part in position_embeddings)
            out = forward(hidden[:, copies], attention_mask=added, position_embeddings=table)
            return (out[0] if isinstance(out, tuple) else out)[:, sizes.cumsum(0) - sizes]

        return run_copies

    for index, layer in enumerate(model.model.language_model.layers):
        layer.forward = copied(index, layer.forward)


@pytest.mark.parametrize(
    ("name", "implementation"),
    [(name, "sdpa") for name in SETTINGS]
    + [("cascade", "eager"), ("cascade", "fused")]
    + [pytest.param(name, own, marks=SLOW) for name in SETTINGS for own in ("eager", "fused") if name != "cascade"],
)
@torch.no_grad()
def test_a_token_counts_as_all_that_it_stands_for(name, implementation):
    """The oracle is layers that process each of these tokens (count_by_copies), with its error measured in fp64."""
    model, inputs = random_model(tower=TOWER), batch(PROMPT)
    model.set_attn_implementation("eager" if implementation == "eager" else "sdpa")
    compress(fused.fuse(model) if implementation == "fused" else model, SETTINGS[name])
    runs = passes(model.compression)
    found = model(**inputs, use_cache=False).logits
    assert all(sizes is not None for sizes in runs[0].sizes[-1:])
    assert len(runs[0].sizes) == model.compression.stages
    naive = compress(random_model(tower=TOWER), SETTINGS[name])
    naive.set_attn_implementation("eager")
    count_by_copies(naive)
    plain = naive(**inputs, use_cache=False).logits
    assert_rounds_alike(found, plain, exact(naive, lambda: naive(**inputs, use_cache=False).logits))
    other = compress(model, CompressionConfig.from_dict(SETTINGS[name].to_dict() | {"proportional_attention": False}))
    assert (other(**inputs, use_cache=False).logits - found).abs().max() > 1e3 * (found - plain).abs().max()


@torch.no_grad()
def test_what_a_merge_left_is_what_counts(model):
    """Every merged token is counted once; tokens that only lend their position are not counted."""
    compress(model, SETTINGS["ppe"])
    runs = passes(model.compression)
    model(**batch(PROMPT, Prompt([4], seed=1)))
    visual = 4 * 5 + 2 * 4 * 4
    assert runs[0].sizes[0].sum() == visual + (3 + 1 + 2 + 1 + 4) + runs[0].sizes[0].shape[1]
    for steps in ([DivPrune(ratio=0.4)], [DivPrune(ratio=0.4, dropped="drop"), FastV(layer=1)]):
        compress(model, proportional(steps=steps))
        runs = passes(model.compression)
        model(**batch(PROMPT))
        assert all(sizes is None for sizes in runs[0].sizes)


@torch.no_grad()
def test_the_row_that_methods_look_at_counts_sizes_too(model):
    """The row equals the weights of the last token in the layer's own attention."""
    model.set_attn_implementation("eager")
    compress(model, proportional(steps=[DPCKNN(ratio=0.5), Looker(layer=1)], k=4))
    Looker.views.clear()
    out = model(**batch(PROMPT), output_attentions=True)
    first, last = 4, out.attentions[1][0, :, -1].mean(0)  # text before the image
    rows = [row for view in Looker.views for row in view.layer_row]
    image = next(row for row in rows if len(row) == 4 * 5 // 2)
    assert_near(image, last[first : first + 10], roundings=attention_roundings(torch.ones(1, 64), torch.ones(1, 64)))


SINGLE = {
    "dense": {"steps": []},
    "ratio 1": {"ratio": 1.0, "k": 4},
    "ratio 1 in layers": {"ratio": 1.0, "layers": [0, 2], "k": 2},
    "pruning": {"steps": [DivPrune(ratio=0.4), FastV(layer=1, dropped="drop")], "k": 4},
    "late": {"steps": [get("flashvid", ratio=1.0)], "k": 4},
}


@pytest.mark.parametrize("settings", SINGLE.values(), ids=SINGLE)
@pytest.mark.parametrize("fuse", [False, True])
@torch.no_grad()
def test_sizes_of_one_change_no_bit(settings, fuse):
    """Also in a padded batch, which fused attention processes in segments."""
    model = random_model(tower=TOWER)
    model = fused.fuse(model) if fuse else model
    expected = compress(model, CompressionConfig(**settings))(**batch(*MIXED)).logits
    assert_equal(compress(model, proportional(**settings))(**batch(*MIXED)).logits, expected)


@pytest.mark.parametrize(
    ("family", "name", "fuse"),
    [("qwen2_5_vl", "ppe", True), ("qwen3_vl", "cascade", False)]
    + [pytest.param(*all_, marks=SLOW) for all_ in itertools.product(FAMILIES, ["ppe", "cascade"], [False, True])],
)
def test_mates_and_padding_change_nothing(family, name, fuse):
    model = compress(random_model(family=family), SETTINGS[name])
    model = fused.fuse(model) if fuse else model

    def alone():
        return [kept_logits(model, prompt)[0] for prompt in MIXED]

    expected, true = alone(), exact(model, alone)
    for side in ("left", "right"):
        assert_rounds_alike(kept_logits(model, *MIXED, side=side, pad_to=70), expected, true)


@pytest.mark.parametrize(
    ("name", "implementation"),
    [("ppe", "sdpa"), ("cascade", "eager")]
    + [pytest.param(*both, marks=SLOW) for both in (("renumber", "sdpa"), ("renumber", "eager"), ("cascade", "sdpa"))],
)
@torch.no_grad()
def test_sizes_travel_with_the_cache(name, implementation):
    """Tokens that continue a cache give the logits of a pass without one: one by one, several at once, and on a static
    cache."""
    model = random_model()
    model.set_attn_implementation(implementation)
    compress(model, SETTINGS[name])
    short, tail = Prompt([2, ("image", (1, 4, 5)), 3, ("video", (2, 4, 4)), 2], seed=1), torch.tensor([[5, 6, 7, 8]])

    def whole():
        inputs = batch(short)
        for key, rest in (("input_ids", tail), ("attention_mask", torch.ones_like(tail))):
            inputs[key] = torch.cat([inputs[key], rest], dim=1)
        return model(**inputs, use_cache=True).logits[:, -4:]

    def by_cache(steps, static=False):
        text = model.config.text_config
        cache = StaticCache(config=text, max_cache_len=64) if static else DynamicCache(config=text)
        model(**batch(short), past_key_values=cache, use_cache=True)
        parts = tail.split(steps, dim=1)
        return torch.cat([model(input_ids=part, past_key_values=cache, use_cache=True).logits for part in parts], dim=1)

    expected, true = whole(), exact(model, whole)
    for found in (by_cache([1] * 4), by_cache([4]), by_cache([3, 1], static=True)):
        assert_rounds_alike(found, expected, true)


@torch.no_grad()
def test_samples_of_a_cache_take_their_sizes_along(model):
    compress(model, SETTINGS["cascade"])
    inputs, cache = batch(MIXED[0], MIXED[2]), DynamicCache(config=model.config.text_config)
    model(**inputs, past_key_values=cache, use_cache=True)
    model(input_ids=torch.tensor([[5, 6], [7, 8]]), past_key_values=cache, use_cache=True)
    before = cache.ppe_state.sizes
    cache.crop(-2)
    cache.reorder_cache(torch.tensor([1, 0]))
    cache.batch_repeat_interleave(2)
    model(input_ids=torch.full((4, 1), 9), past_key_values=cache, use_cache=True)
    for old, new, mask in zip(before, cache.ppe_state.sizes, cache.ppe_state.masks):
        assert new.shape == mask.shape
        assert_equal(new[:, :-1], old[:, :-2].flip(0).repeat_interleave(2, dim=0))
        assert (new[:, -1] == 1).all()
        assert (old > 1).any()


def test_generation_by_beams_and_static_caches(model):
    compress(model, SETTINGS["ppe"])
    inputs, settings = batch(MIXED[0], MIXED[1]), {"max_new_tokens": 4, **GREEDY}
    expected = model.generate(**inputs, **settings)
    assert torch.equal(model.generate(**inputs, **settings, cache_implementation="static"), expected)
    assert torch.equal(model.generate(**inputs, **settings, use_cache=False), expected)
    assert model.generate(**inputs, **settings, num_beams=2).shape[0] == 2


def test_a_second_picture_on_a_cache(model):
    """The second picture attends to the first one's tokens as often as they count."""
    compress(model, SETTINGS["ppe"])
    first, second = [2, ("image", (1, 4, 5)), 3], [("image", (1, 3, 4)), 2]
    both = batch(Prompt([*first, *second], seed=1))
    ids, length = both["input_ids"], len(Prompt(first).ids)

    def at_once():
        return model(**both).logits[:, -2:]

    def in_turns():
        cache = DynamicCache(config=model.config.text_config)
        patches, grids = both["pixel_values"], both["image_grid_thw"]
        model(input_ids=ids[:, :length], pixel_values=patches[:80], image_grid_thw=grids[:1], past_key_values=cache)
        kept = model.compression.report.spans[0].after
        assert cache.ppe_state.sizes[0].sum() == length
        assert kept < 20
        rest = {"pixel_values": patches[80:], "image_grid_thw": grids[1:], "past_key_values": cache}
        return model(input_ids=ids[:, length:], **rest).logits[:, -2:]

    with torch.no_grad():
        assert_rounds_alike(in_turns(), at_once(), exact(model, at_once))


def test_gradients_are_those_of_copies():
    def gradients(model):
        model.zero_grad()
        inputs = batch(PROMPT)
        model(**inputs, labels=inputs["input_ids"], use_cache=False).loss.backward()
        weights = dict(model.named_parameters())
        return {key: weights[key].grad.clone() for key in weights if "layers.1." in key or "merger.mlp" in key}

    naive = compress(random_model(), SETTINGS["ppe"])
    naive.set_attn_implementation("eager")
    count_by_copies(naive)
    plain, true = gradients(naive), exact(naive, lambda: gradients(naive))
    assert_rounds_alike(gradients(compress(random_model(), SETTINGS["ppe"])), plain, true)


def test_attention_that_takes_no_key_bias_is_refused_by_name(model, monkeypatch):
    monkeypatch.setattr(model.config.text_config, "_attn_implementation_internal", "flash_attention_2")
    with pytest.raises(InputError, match=r"flash_attention_2 takes no mask: load the model with attn_impl"):
        compress(model, SETTINGS["ppe"])
    monkeypatch.undo()
    compress(fused.fuse(model), SETTINGS["ppe"])
    with pytest.raises(InputError, match="segments of a packed batch cannot: leave packed out"):
        model(**batch(PROMPT), labels=batch(PROMPT)["input_ids"], packed=True)
    with pytest.raises(InputError, match="packing and proportional_attention exclude each other"):
        TrainConfig(model="m", data="d", output="o", packing=True, compression=SETTINGS["ppe"])
    text = model.model.language_model
    with pytest.raises(InputError, match=r"but torch_npu\w* on npu cannot: call ppe_npu.models.fused.unfuse"):
        fused.check_key_bias(text, SimpleNamespace(type="npu"))
    fused.check_key_bias(fused.unfuse(model).model.language_model, SimpleNamespace(type="npu"))


def test_it_is_a_setting_like_others():
    config = CompressionConfig.from_text("divprune:ratio=0.25,proportional_attention=true")
    assert config.proportional_attention
    assert config.label.endswith("-proportional")
    assert CompressionConfig.from_dict(config.to_dict()) == config
    assert config.changed(proportional_attention=False) == CompressionConfig.from_text("divprune:ratio=0.25")
    short = CompressionConfig.preset("ppe", proportional_attention=True)
    assert CompressionConfig.from_dict(short.to_dict()) == short != CompressionConfig.preset("ppe")
    assert "proportional_attention" not in CompressionConfig.preset("ppe").to_dict()
    with pytest.raises(InputError, match="proportional_attention='yes'"):
        proportional(proportional_attention="yes")
